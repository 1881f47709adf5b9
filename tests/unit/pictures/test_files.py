"""Whole or not at all, and never over another one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagen.errors import DeliveryError, InvalidInput
from imagen.pictures import Landing, check_writable, is_part, land

AS_ROOT = os.geteuid() == 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(path: Path, *, force: bool = False) -> str:
    with pytest.raises(InvalidInput) as caught:
        check_writable(path, force=force)
    (problem,) = caught.value.problems
    assert problem.field == "output"
    return problem.message


# --- before anything is bought ---------------------------------------------------------------------------


def test_a_new_name_is_fine_and_nothing_is_made(tmp_path: Path):
    check_writable(tmp_path / "cat.png", force=False)
    check_writable(tmp_path / "new" / "folders" / "cat.png", force=False)
    assert names(tmp_path) == []


def test_an_existing_file_needs_force(tmp_path: Path):
    path = tmp_path / "cat.png"
    path.touch()
    assert "use --force or another name" in refused(path)
    check_writable(path, force=True)


def test_a_dangling_link_counts_as_existing(tmp_path: Path):
    path = tmp_path / "cat.png"
    path.symlink_to(tmp_path / "nowhere.png")
    assert "exists already" in refused(path)
    check_writable(path, force=True)


def test_a_link_in_a_circle_is_refused(tmp_path: Path):
    path = tmp_path / "cat.png"
    path.symlink_to(path)
    assert "circle" in refused(path, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_no_place_for_a_file(tmp_path: Path, force: bool):
    assert "is a folder" in refused(tmp_path, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_no_folder(tmp_path: Path, force: bool):
    (tmp_path / "file").touch()
    assert "is a file, not a folder" in refused(tmp_path / "file" / "cat.png", force=force)
    assert "is a file, not a folder" in refused(tmp_path / "file" / "deep" / "cat.png", force=force)


def test_a_device_or_pipe_is_never_replaced(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "no ordinary file" in refused(pipe, force=True)
    with pytest.raises(DeliveryError):
        land(b"picture", pipe, force=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path):
    assert "choose another name" in refused(tmp_path / ("x" * 300))
    assert "NUL" in refused(tmp_path / "x\0y")


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert "cannot be written to" in refused(tmp_path / "cat.png")
    assert "cannot be made" in refused(tmp_path / "new" / "cat.png")


@pytest.mark.skipif(not AS_ROOT, reason="only root can become someone else")
def test_a_folder_of_someone_else_is_refused():
    script = """
        import os, sys, tempfile
        from pathlib import Path
        from imagen.pictures import check_writable, land
        from imagen.errors import InvalidInput, DeliveryError
        folder = Path(tempfile.mkdtemp())
        folder.chmod(0o755)
        os.setegid(65534)
        os.seteuid(65534)
        for call in (
            lambda: check_writable(folder / "a.png", force=False),
            lambda: land(b"x", folder / "a.png"),
            lambda: check_writable(folder / "new" / "a.png", force=False),
        ):
            try:
                call()
            except (InvalidInput, DeliveryError) as error:
                print(error)
        os.seteuid(0)
        assert not list(folder.iterdir())
        folder.rmdir()
    """
    first, second, third = run(script).splitlines()
    assert "cannot be written to" in first
    assert "does not allow us to write" in second
    assert "cannot be made" in third


# --- landing ---------------------------------------------------------------------------------------------


def test_a_picture_lands_whole_in_folders_that_are_made(tmp_path: Path):
    path = tmp_path / "new" / "folders" / "cat.png"
    assert land(b"picture", path) == path
    assert path.read_bytes() == b"picture"
    assert names(path.parent) == ["cat.png"]


def test_until_commit_only_the_part_file_is_there(tmp_path: Path):
    path = tmp_path / "cat.png"
    with Landing(path) as landing:
        for chunk in (b"a", bytearray(b"b"), memoryview(b"c"), b""):
            landing.write(chunk)
        assert names(tmp_path) == [landing.part.name]
        assert is_part(landing.part)
        assert landing.part.name.startswith(".cat.png.")
        assert landing.part.read_bytes() == b"abc"
        assert landing.commit() == path
    assert names(tmp_path) == ["cat.png"]
    assert not is_part(path)


def test_large_pictures_are_written_in_chunks(tmp_path: Path):
    data = os.urandom(3_500_000)
    assert land(data, tmp_path / "cat.png").read_bytes() == data


def test_leaving_without_commit_leaves_nothing(tmp_path: Path):
    with Landing(tmp_path / "cat.png") as landing:
        landing.write(b"half")
    assert names(tmp_path) == []
    with contextlib.suppress(KeyboardInterrupt), Landing(tmp_path / "cat.png") as landing:
        landing.write(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_without_force_a_taken_name_gets_a_number(tmp_path: Path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"theirs")
    assert land(b"ours", path).name == "cat-2.png"
    assert land(b"ours", path).name == "cat-3.png"
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["cat-2.png", "cat-3.png", "cat.png"]


def test_a_name_taken_while_we_wrote_is_not_lost(tmp_path: Path):
    path = tmp_path / "cat.png"
    check_writable(path, force=False)
    with Landing(path) as landing:
        landing.write(b"ours")
        path.write_bytes(b"theirs")
        assert landing.commit() == tmp_path / "cat-2.png"
    assert path.read_bytes() == b"theirs"


def test_a_folder_or_a_dangling_link_is_a_taken_name_too(tmp_path: Path):
    (tmp_path / "cat.png").mkdir()
    (tmp_path / "dog.png").symlink_to(tmp_path / "nowhere")
    assert land(b"ours", tmp_path / "cat.png").name == "cat-2.png"
    assert land(b"ours", tmp_path / "dog.png").name == "dog-2.png"
    assert not (tmp_path / "nowhere").exists()


def test_force_replaces(tmp_path: Path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"old")
    path.chmod(0o600)
    assert land(b"new", path, force=True) == path
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["cat.png"]


def test_force_follows_a_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "dog.png"
    real.write_bytes(b"old")
    link = tmp_path / "cat.png"
    link.symlink_to(real)
    assert land(b"new", link, force=True) == link
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_force_does_not_replace_a_folder(tmp_path: Path):
    (tmp_path / "cat.png").mkdir()
    with pytest.raises(DeliveryError, match="a folder stands"):
        land(b"ours", tmp_path / "cat.png", force=True)
    assert names(tmp_path) == ["cat.png"]


def test_the_umask_is_honoured(tmp_path: Path):
    script = """
        import os, sys
        from pathlib import Path
        from imagen.pictures import land
        os.umask(0o027)
        print(oct(land(b"x", Path(sys.argv[1]) / "cat.png").stat().st_mode & 0o777))
    """
    assert run(script, str(tmp_path)).strip() == "0o640"


def test_the_longest_names_land(tmp_path: Path):
    path = tmp_path / ("水" * 83 + ".png")
    assert len(path.name.encode()) == 253
    assert land(b"one", path) == path
    second = land(b"two", path)
    assert second.name.endswith("-2.png")
    assert len(second.name.encode()) <= 255


@pytest.mark.parametrize("links", [True, False])
def test_many_at_once_get_distinct_names(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    pictures = [f"picture {number}".encode() * 1000 for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        places = list(pool.map(lambda data: land(data, tmp_path / "cat.png"), pictures))
    assert len(set(places)) == 32
    assert [place.read_bytes() for place in places] == pictures
    assert len(names(tmp_path)) == 32


def test_many_at_once_with_force_leave_one_whole_picture(tmp_path: Path):
    pictures = [bytes([number]) * 300_000 for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda data: land(data, tmp_path / "cat.png", force=True), pictures))
    assert names(tmp_path) == ["cat.png"]
    assert (tmp_path / "cat.png").read_bytes() in pictures


def no_links(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_claim_is_given_up_when_the_picture_cannot_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(DeliveryError, match="reports an error"):
        land(b"ours", tmp_path / "cat.png")
    assert names(tmp_path) == []


# --- when the disk says no -------------------------------------------------------------------------------


def test_a_file_size_limit_leaves_nothing_behind(tmp_path: Path):
    script = """
        import resource, sys
        from pathlib import Path
        from imagen.pictures import land
        from imagen.errors import DeliveryError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            land(bytes(250_000), Path(sys.argv[1]) / "cat.png")
        except DeliveryError as error:
            print(error.detail)
    """
    assert "does not take files this large" in run(script, str(tmp_path))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "does not allow"),
        (errno.EIO, "reports an error"),
        (errno.EINTR, "could not be written to"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_the_disk_says_becomes_a_sentence(
    tmp_path: Path, number: int, said: str, call: str, monkeypatch: pytest.MonkeyPatch
):
    def full(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(DeliveryError, match=said) as caught:
            land(b"picture", tmp_path / "secret-prompt.png")
    assert caught.value.hint
    assert "secret-prompt" not in str(caught.value)
    assert names(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    assert land(bytes(range(256)), tmp_path / "cat.png").read_bytes() == bytes(range(256))


def test_a_folder_that_is_a_file_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DeliveryError):
        land(b"picture", tmp_path / "file" / "cat.png")
    with pytest.raises(DeliveryError):
        land(b"picture", tmp_path / "file" / "deep" / "cat.png")


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pillow_is_not_loaded_with_the_package():
    script = "import sys, imagen.pictures; print([name for name in sys.modules if name.startswith('PIL')])"
    assert run(script).strip() == "[]"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="has no folder of the kernel")
def test_a_folder_in_which_none_can_be_made_is_named():
    with pytest.raises(DeliveryError) as caught, Landing(Path("/proc/nowhere/deep/fox.png")):
        pass
    assert caught.value.detail == "The picture could not be written: no folder can be made in /proc."
