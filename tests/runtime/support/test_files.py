"""Atomic writes: a reader sees the old file or the new one, and no rubbish is left behind."""

import errno
import os
import subprocess
import sys

import pytest

from runtime.errors import ImageError, OutputError
from runtime.support.files import (
    formula_note,
    is_formula,
    make_folder,
    make_inner_folder,
    new_temporary,
    prepare_target,
    remove_leftovers_of,
    replacing,
    write_bytes,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_new_file_is_written_and_its_folder_made(tmp_path):
    target = tmp_path / "a" / "b" / "file.bin"
    write_bytes(target, b"\x00new")
    assert target.read_bytes() == b"\x00new"
    assert names(target.parent) == ["file.bin"]


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "t.txt", "漢字 ü\n")
    assert (tmp_path / "t.txt").read_bytes() == b"\xe6\xbc\xa2\xe5\xad\x97 \xc3\xbc\n"


def test_old_file_is_whole_until_the_block_ends(tmp_path):
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with replacing(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"
        assert temporary.name.startswith(".model.")
        temporary.write_text("half of it")
        assert target.read_text() == "old"
        temporary.write_text("new")
        identity = temporary.stat().st_ino
    assert target.read_text() == "new"
    assert target.stat().st_ino == identity  # renamed, not copied
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("kind", [ValueError, ImageError, KeyboardInterrupt])
def test_exception_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path, kind):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def work():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        work()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_two_writers_at_once_do_not_share_a_temporary_file(tmp_path):
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"  # it ended last
    assert names(tmp_path) == ["a.txt"]


def test_name_at_the_file_systems_limit_can_be_written(tmp_path):
    target = tmp_path / ("字" * 83 + ".png")  # 253 bytes of at most 255
    write_bytes(target, b"x")
    assert names(tmp_path) == [target.name]


def test_target_that_is_a_folder_is_refused_before_the_block_runs(tmp_path):
    with pytest.raises(OutputError) as caught, replacing(tmp_path):
        pytest.fail("the block ran")
    assert str(caught.value) == f"{tmp_path}: is a folder, expected a file name; add one"


def test_parent_that_is_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match=r"file: cannot create this folder \(file exists\); choose another one"):
        write_bytes(tmp_path / "file" / "a.txt", b"x")
    with pytest.raises(OutputError, match=r"b: cannot create this folder \(not a directory\)"):
        make_folder(tmp_path / "file" / "b")
    assert (tmp_path / "file").read_text() == "kept"


def test_making_a_folder_twice_is_fine(tmp_path):
    assert make_folder(str(tmp_path / "x" / "y")) == make_folder(tmp_path / "x" / "y") == tmp_path / "x" / "y"


def test_block_that_writes_nothing_is_an_output_error(tmp_path):
    message = r"a\.txt: cannot be written \(nothing was written\)"
    with pytest.raises(OutputError, match=message), replacing(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_folder_without_permission_is_an_output_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"):
        write_bytes(tmp_path / "a.txt", b"x")


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as caught:
        write_text(target, "new")
    reason = "cannot be written (no space left on device); free some space"
    assert str(caught.value) == f"{target}: {reason}"
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_write_that_stops_half_way_leaves_the_old_file(tmp_path, root):
    pytest.importorskip("resource", reason="needs a limit on the size of files")
    target = tmp_path / "a.bin"
    target.write_text("old")
    program = """
import resource, sys
from runtime.errors import OutputError
from runtime.support.files import formula_note, is_formula, write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_bytes(sys.argv[1], bytes(100_000))
except OutputError as error:
    print(str(error).removeprefix(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", program, target], cwd=root, capture_output=True, text=True)
    assert done.stdout == ": cannot be written (file too large); choose another place\n"
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("there", ["file.txt", "missing.txt", "."])
def test_a_link_that_nobody_named_is_replaced(tmp_path, there):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / there)
    write_text(tmp_path / "link.txt", "new")
    assert not (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "link.txt").read_text() == "new"
    assert names(tmp_path / "there") == ["file.txt"]
    assert (tmp_path / "there" / "file.txt").read_text() == "old"


def test_a_link_that_the_user_named_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "file.txt")
    write_text(tmp_path / "link.txt", "new", follow=True)
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "file.txt").read_text() == "new"


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=r"a\.txt: its folder cannot be written to; choose another place"):
        prepare_target(tmp_path / "a.txt")


@pytest.mark.parametrize(("name", "reason"), [("x" * 300, "file name too long"), ("a\0b", "embedded null byte")])
def test_what_is_no_name_of_a_file_is_an_output_error(tmp_path, name, reason):
    with pytest.raises(OutputError, match=rf"is not a file name \({reason}\); choose another one$"):
        write_bytes(tmp_path / name, b"x")


def test_a_folder_in_one_that_the_user_named_is_no_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "named").symlink_to(tmp_path / "elsewhere")
    assert make_inner_folder(tmp_path / "named", "inner").is_dir()
    (tmp_path / "named" / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("link", "link/below"):
        with pytest.raises(OutputError) as caught:
            make_inner_folder(tmp_path / "named", name)
        link, outer = tmp_path / "named" / "link", tmp_path / "named"
        assert str(caught.value) == (
            f"{link}: is a link, expected a folder or nothing, since links in {outer} are not followed; remove it"
        )
    assert names(tmp_path / "elsewhere") == ["inner", "link"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    target, killed = tmp_path / "model.pth.tar", tmp_path / ".model.pth.0123abcd.tar"
    killed.write_bytes(b"half")
    spared = [".model.pth.0123abcd.pth", ".other.pth.0123abcd.tar", ".model.pth.0123ABCD.tar", ".model.pth.tar"]
    for name in (*spared, "elsewhere"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".model.pth.11111111.tar").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".model.pth.22222222.tar").mkdir()
    os.mkfifo(tmp_path / ".model.pth.33333333.tar")
    before = set(names(tmp_path)) - {killed.name}
    with replacing(target) as living:
        remove_leftovers_of([target, tmp_path / "missing" / "a.txt"])
        assert set(names(tmp_path)) == before | {living.name}
        living.write_bytes(b"new")
    assert set(names(tmp_path)) == before | {target.name}


LIVING = """
import sys, time
from runtime.support.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_another_process_writes_in_peace_until_it_is_killed(tmp_path, root):
    target = tmp_path / "a.bin"
    with subprocess.Popen([sys.executable, "-c", LIVING, target], cwd=root, stdout=subprocess.PIPE) as process:
        temporary = process.stdout.readline().decode().strip()
        remove_leftovers_of([target])
        assert names(tmp_path) == [os.path.basename(temporary)]  # noqa: PTH119
        process.kill()
        process.wait()
    remove_leftovers_of([target])
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
@pytest.mark.parametrize("moment", ["before the lock", "after the lock"])
def test_a_file_that_was_taken_for_a_killed_ones_is_made_again(tmp_path, monkeypatch, moment):
    """Another process may look at the file between its making and its locking."""
    from runtime.support import files

    target, real, taken = tmp_path / "a.bin", files.try_lock, []

    def lock(descriptor):
        if taken:
            return real(descriptor)
        taken.append(1)
        if moment == "after the lock":
            remove_leftovers_of([target])
            return real(descriptor)
        (found,) = tmp_path.iterdir()
        other = os.open(found, os.O_RDWR)
        try:
            assert real(other)
            return real(descriptor)
        finally:
            found.unlink()
            os.close(other)

    monkeypatch.setattr(files, "try_lock", lock)
    temporary, descriptor = new_temporary(target)
    os.close(descriptor)
    assert names(tmp_path) == [temporary.name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_a_file_system_without_locks_is_written_and_nothing_removed(tmp_path, monkeypatch):
    def refused(descriptor):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("runtime.support.files.try_lock", refused)
    (tmp_path / ".a.0123abcd.bin").write_bytes(b"half")
    write_bytes(tmp_path / "a.bin", b"new")
    remove_leftovers_of([tmp_path / "a.bin"])
    assert names(tmp_path) == [".a.0123abcd.bin", "a.bin"]


def test_names_that_spreadsheets_take_for_formulas():
    assert [name for name in ("=a", "+a", "-a", "@a", "\ta", "\ra", "a=", "", "'=a", "1") if is_formula(name)] == [
        "=a", "+a", "-a", "@a", "\ta", "\ra",
    ]  # fmt: skip
    told = "would take 2 names (=a, ...) for a formula; import the first column as text"
    assert formula_note("t.csv", ["b", "=a", "-c"]) == f"t.csv: a spreadsheet {told}"
    assert formula_note("t.csv", ["b"]) == ""
