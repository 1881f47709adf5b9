"""What `ports.PictureShelf` promises, of every implementation."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from imagen.domain.identifiers import new_secret
from imagen.errors import ConfigError, DeliveryError, InvalidRequest, NotFound
from imagen.pictures import MEDIA_TYPES
from imagen.pictures.shelf import FolderShelf
from imagen.ports import PictureShelf

pytestmark = pytest.mark.anyio

PICTURE = b"\x89PNG and so on"
KEY = "shelf_0123456789abcdef-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "kept"


@pytest.fixture(params=["folder"])
def shelf(folder: Path) -> PictureShelf:
    return FolderShelf(folder, spare_bytes=0)


@pytest.fixture
def same_shelf(folder: Path) -> PictureShelf:
    """As another process sees it."""
    return FolderShelf(folder, spare_bytes=0)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# --- what is put there stays there -----------------------------------------------------------------------


@pytest.mark.parametrize(("extension", "media_type"), MEDIA_TYPES.items())
async def test_what_is_put_is_found_whole_by_everybody(
    shelf: PictureShelf, same_shelf: PictureShelf, extension: str, media_type: str
):
    put = await shelf.put(PICTURE, media_type=media_type)
    found = await same_shelf.locate(put.id)
    assert found == put
    assert found.path.read_bytes() == PICTURE
    assert (found.media_type, found.size_bytes) == (media_type, len(PICTURE))
    assert found.name == f"{found.id}.{extension}"
    assert await same_shelf.at(found.path) == found


async def test_ids_cannot_be_guessed_and_are_never_the_same(shelf: PictureShelf):
    put = await asyncio.gather(*(shelf.put(PICTURE, media_type="image/png") for _ in range(50)))
    assert len({one.id for one in put}) == 50
    assert all(one.id.startswith("pic_") and len(one.id) == 36 for one in put)


async def test_the_key_names_the_picture_without_being_told(shelf: PictureShelf, same_shelf: PictureShelf):
    first = await shelf.put(PICTURE, media_type="image/png", key=KEY)
    again = await same_shelf.put(PICTURE, media_type="image/png", key=KEY)
    other = await shelf.put(PICTURE, media_type="image/png", key=KEY[:-1] + "2")
    assert again == first
    assert other.id != first.id
    assert "0123456789abcdef" not in first.id


async def test_other_bytes_under_the_same_key_replace_it_and_tell_so(shelf: PictureShelf, folder: Path):
    first = await shelf.put(b"damaged", media_type="image/png", key=KEY)
    second = await shelf.put(PICTURE, media_type="image/webp", key=KEY)
    assert second.id == first.id
    assert second.version != first.version
    assert (await shelf.locate(first.id)).path.read_bytes() == PICTURE
    assert files(folder) == [second.path]


async def test_many_who_put_the_same_picture_at_once_put_one(
    shelf: PictureShelf, same_shelf: PictureShelf, folder: Path
):
    large = os.urandom(300_000)
    put = await asyncio.gather(
        *(one.put(large, media_type="image/png", key=KEY) for one in (shelf, same_shelf) * 8)
    )
    assert len({one.id for one in put}) == 1
    (path,) = files(folder)
    assert path.read_bytes() == large


async def test_only_pictures_are_kept(shelf: PictureShelf, folder: Path):
    with pytest.raises(InvalidRequest, match="not kept"):
        await shelf.put(b"<script>", media_type="text/html")
    assert files(folder) == []


# --- what is not there -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "pic_",
        "pic_" + "0" * 31,
        "pic_" + "0" * 33,
        "pic_" + "u" * 32,
        "pic_" + "0" * 32 + "\n",
        "PIC_" + "0" * 32,
        "pic_" + "A" * 32,
        "pic_" + "\N{ARABIC-INDIC DIGIT ZERO}" * 32,
        "../../etc/passwd",
        "pic_" + "../" * 10 + "zz",
        "\0",
        "x" * 100_000,
        "pic_" + "0" * 32,
    ],
)
async def test_any_text_may_be_asked_for(shelf: PictureShelf, folder: Path, asked: str):
    await shelf.put(PICTURE, media_type="image/png")
    (folder.parent / "passwd").write_text("secret")
    with pytest.raises(NotFound) as caught:
        await shelf.locate(asked)
    with pytest.raises(NotFound):
        await shelf.remove(asked)
    assert len(str(caught.value)) < 200
    assert len(files(folder)) == 1


async def test_only_its_own_files_lie_on_it(shelf: PictureShelf, folder: Path, tmp_path: Path):
    put = await shelf.put(PICTURE, media_type="image/png")
    elsewhere = tmp_path / put.name
    elsewhere.write_bytes(PICTURE)
    assert await shelf.at(elsewhere) is None
    assert await shelf.at(tmp_path / "fox.png") is None
    assert await shelf.at(Path("/")) is None
    # Neither what others put there counts, nor what they let point elsewhere.
    put.path.unlink()
    put.path.symlink_to(elsewhere)
    with pytest.raises(NotFound):
        await shelf.locate(put.id)
    put.path.unlink()
    put.path.mkdir()
    with pytest.raises(NotFound):
        await shelf.locate(put.id)
    put.path.rename(folder / "elsewhere")
    put.path.with_suffix(".exe").write_bytes(b"MZ")
    with pytest.raises(NotFound):
        await shelf.locate(put.id)


async def test_what_is_removed_is_gone_and_read_to_its_end(shelf: PictureShelf, same_shelf: PictureShelf):
    put = await shelf.put(PICTURE, media_type="image/png")
    with put.path.open("rb") as reading:
        await same_shelf.remove(put.id)
        assert reading.read() == PICTURE
    assert await shelf.at(put.path) is None
    with pytest.raises(NotFound):
        await shelf.remove(put.id)


async def test_looking_at_a_shelf_that_was_never_used_makes_nothing(shelf: PictureShelf, tmp_path: Path):
    with pytest.raises(NotFound):
        await shelf.locate(new_secret("pic"))
    assert everything(tmp_path) == []


# --- for this user alone ---------------------------------------------------------------------------------


async def test_folders_and_files_are_private(shelf: PictureShelf, folder: Path):
    put = await shelf.put(PICTURE, media_type="image/png")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, put.path.parent, put.path)]
    assert modes == [0o700, 0o700, 0o600]


# --- when the disk says no -------------------------------------------------------------------------------


async def test_a_check_that_passes_leaves_nothing_behind(shelf: PictureShelf, folder: Path):
    shelf.check()
    assert files(folder) == []


@pytest.mark.parametrize("blocked", ["kept", "data"])
async def test_a_file_in_the_place_of_the_folder_is_said_before_and_after(
    shelf: PictureShelf, folder: Path, blocked: str
):
    place = folder if blocked == "kept" else folder.parent
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("no folder")
    with pytest.raises(
        ConfigError, match=r"pictures cannot be kept: .*pictures\.folder is no folder"
    ) as told:
        shelf.check()
    assert told.value.setting == "pictures.folder"
    assert str(folder) not in str(told.value)  # strangers read it
    with pytest.raises(DeliveryError, match="is no folder") as caught:
        await shelf.put(PICTURE, media_type="image/png")
    assert str(folder) not in str(caught.value)
    assert "pictures.folder" in (caught.value.hint or "")


async def test_a_disk_with_little_room_is_said_before_anything_is_bought(folder: Path):
    with pytest.raises(ConfigError, match="has no space left"):
        FolderShelf(folder, spare_bytes=10**18).check()
    assert files(folder) == []


async def test_a_folder_of_somebody_else_is_said():
    """Run as a user who may not write, which root is not."""
    script = """
        import asyncio, concurrent.futures.thread, os, tempfile
        from pathlib import Path
        from imagen.errors import ConfigError, DeliveryError
        from imagen.pictures.shelf import FolderShelf
        theirs = Path(tempfile.mkdtemp())
        theirs.chmod(0o555)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        for shelf in (FolderShelf(theirs), FolderShelf(theirs / "new")):
            try:
                shelf.check()
            except ConfigError as error:
                print(error.detail)
            try:
                asyncio.run(shelf.put(b"x", media_type="image/png"))
            except DeliveryError as error:
                print(error.detail)
        os.seteuid(me)
        theirs.rmdir()
    """
    lines = run(script).splitlines()
    assert len(lines) == 4
    assert all("does not allow us to write" in line for line in lines)


async def test_a_file_size_limit_leaves_nothing_behind(folder: Path):
    script = """
        import asyncio, resource, sys
        from pathlib import Path
        from imagen.errors import DeliveryError
        from imagen.pictures.shelf import FolderShelf
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            asyncio.run(FolderShelf(Path(sys.argv[1])).put(bytes(250_000), media_type="image/png"))
        except DeliveryError as error:
            print(error.detail)
    """
    assert "does not take files this large" in run(script, str(folder))
    assert files(folder) == []


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
