"""What comes out: checked, named, marked, written.

The way of one picture, each step a file:

    naming.py     OutputPattern        what it will be called
    size.py       read_size            how large is one that goes in?
    files.py      check_writable       before anything is bought: can it lie there?
    inspect.py    inspect_picture      is it whole, and really a picture?
    metadata.py   embed, read_note     prompt, model and seed, written into it
    files.py      Landing, land        given its name in one step, never half and never over another file

and several of them together: contact_sheet.py, a numbered grid to choose from.

Knows nothing of predictions or backends; needs Pillow only when a picture is looked into.
"""

from imagen.pictures.contact_sheet import Tile, contact_sheet
from imagen.pictures.files import Landing, check_writable, is_part, land
from imagen.pictures.inspect import (
    MAX_PIXELS,
    MEDIA_TYPES,
    DefectivePicture,
    PictureFacts,
    inspect_bytes,
    inspect_picture,
    sniff_format,
)
from imagen.pictures.metadata import PictureNote, embed, read_note
from imagen.pictures.naming import NameFields, OutputPattern, numbered
from imagen.pictures.size import read_size

__all__ = [
    "MAX_PIXELS",
    "MEDIA_TYPES",
    "DefectivePicture",
    "Landing",
    "NameFields",
    "OutputPattern",
    "PictureFacts",
    "PictureNote",
    "Tile",
    "check_writable",
    "contact_sheet",
    "embed",
    "inspect_bytes",
    "inspect_picture",
    "is_part",
    "land",
    "numbered",
    "read_note",
    "read_size",
    "sniff_format",
]
