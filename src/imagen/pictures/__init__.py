"""Pictures as bytes and files: what goes in is looked at; what comes out is checked, named, marked, written.

The way of one picture, each step a file:

    naming.py     OutputPattern        what it will be called
    address.py    check_address        can that be one that goes in?
    size.py       read_size            how large is it?
    files.py      check_writable       before anything is bought: can it lie there?
    inspect.py    inspect_picture      is it whole, and really a picture?
    metadata.py   embed, read_note     prompt, model and seed, written into it
    files.py      Landing, land        given its name in one step, never half and never over another file

and several of them together: contact_sheet.py, a numbered grid to choose from. thumbnail.py: one made small.
mask.py: which part of one is to be painted anew.

Knows nothing of predictions or backends; needs Pillow only when a picture is looked into.
"""

from imagen.pictures.address import check_address
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
from imagen.pictures.mask import black_and_white
from imagen.pictures.metadata import PictureNote, embed, read_note
from imagen.pictures.naming import NameFields, OutputPattern, numbered
from imagen.pictures.size import read_size
from imagen.pictures.thumbnail import THUMBNAIL_TYPE, thumbnail

__all__ = [
    "MAX_PIXELS",
    "MEDIA_TYPES",
    "THUMBNAIL_TYPE",
    "DefectivePicture",
    "Landing",
    "NameFields",
    "OutputPattern",
    "PictureFacts",
    "PictureNote",
    "Tile",
    "black_and_white",
    "check_address",
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
    "thumbnail",
]
