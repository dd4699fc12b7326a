"""The folder that conversion writes: whole or not at all, images linked, names that files can have."""

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from layouts import blocks, convert, converted, run, write_image, write_mask
from PIL import Image
from write_faults import Faults

from unet_core.conversion import writer
from unet_core.conversion.samples import Sample
from unet_core.conversion.writer import output_names, whole_folder


@pytest.fixture
def source(tmp_path):
    for index in range(3):
        write_image(tmp_path / "source" / "images" / f"{index}.png", index)
        write_mask(tmp_path / "source" / "masks" / f"{index}.png", blocks((index, 9, 2, 9, 255)))
    return tmp_path / "source"


def refuse_links(monkeypatch, *names):
    def refused(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    for name in names:
        monkeypatch.setattr(Path, name, refused)


def test_images_are_links_or_else_copies(source, tmp_path, monkeypatch):
    image = source / "images" / "1.png"
    convert(source, tmp_path / "hard")
    assert (tmp_path / "hard" / "train_images" / "1.png").samefile(image)
    refuse_links(monkeypatch, "hardlink_to")
    convert(source, tmp_path / "symbolic")
    assert (tmp_path / "symbolic" / "train_images" / "1.png").readlink() == image
    assert len(converted(tmp_path / "symbolic")[0]) == 3
    refuse_links(monkeypatch, "hardlink_to", "symlink_to")
    done = convert(source, tmp_path / "copy")
    copy = tmp_path / "copy" / "train_images" / "1.png"
    assert not copy.samefile(image) and copy.read_bytes() == image.read_bytes()
    assert "3 in train_images (3 copied)" in done.stdout


def test_a_folder_with_files_is_refused_and_an_empty_one_is_used(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    convert(source, out)
    before = sorted(path.name for path in out.iterdir())
    assert before == ["dataset.toml", "train_images", "train_masks"]
    done = run("convert", source, out)
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: {out}: exists and is not empty; choose a new folder, or remove that one\n",
    )
    assert sorted(path.name for path in out.iterdir()) == before


def test_nothing_is_left_of_a_conversion_that_fails(source, tmp_path, monkeypatch):
    write_mask(source / "masks" / "2.png", blocks((0, 9, 2, 9, 77)))
    done = run("convert", source, tmp_path / "deep" / "out")
    assert done.exit_code == 2 and [path.name for path in (tmp_path / "deep").iterdir()] == []
    write_mask(source / "masks" / "2.png", blocks())
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(writer, "mask_file", lambda *_: (_ for _ in ()).throw(full))
    done = run("convert", source, tmp_path / "out")
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: {tmp_path / 'out'}: cannot be written (no space left on device); free some space, or choose another "
        "place\n",
    )
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_every_call_that_may_fail_leaves_all_or_nothing(source, tmp_path):
    """Each call that changes a file fails in turn, and with it all later ones, as on a disk that is full or breaks."""
    counted = Faults(tmp_path)
    with counted.active():
        convert(source, tmp_path / "whole")
    assert counted.count > 8
    for failing in range(1, counted.count + 1):
        out, faults = tmp_path / f"out{failing}", Faults(tmp_path, failing=failing, forever=True)
        with faults.active():
            done = run("convert", source, out, "--copy")
        assert faults.hit
        if done.exit_code == 0:  # a folder that could not be removed, or the like
            assert len(converted(out)[0]) == 3
        else:
            assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.exception
            assert done.stderr.startswith(f"error: {out}: cannot be written (no space left on device)")
            assert not out.exists()


def test_what_a_killed_process_left_is_removed(source, tmp_path):
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom unet_core.conversion.writer import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'train_images').mkdir()\n    (folder / 'train_images' / 'old.png').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    assert (tmp_path / ".out.unfinished" / "train_images" / "old.png").exists() and not out.exists()
    convert(source, out)
    assert sorted(path.name for path in (out / "train_images").iterdir()) == ["0.png", "1.png", "2.png"]
    assert not (tmp_path / ".out.unfinished").exists()


def test_a_second_process_is_refused_and_disturbs_nothing(source, tmp_path):
    out = tmp_path / "out"
    with whole_folder(out) as folder:
        (folder / "file").write_bytes(b"first")
        done = run("convert", source, out)
        assert (done.exit_code, done.stderr) == (
            2,
            f"error: {out}: is being written by another process; wait for it, or choose another folder\n",
        )
    assert (out / "file").read_bytes() == b"first"


def test_a_link_in_place_of_the_unfinished_folder_is_not_followed(source, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(source, elsewhere)
    (tmp_path / ".out.unfinished").symlink_to(elsewhere)
    done = run("convert", source, tmp_path / "out")
    assert done.stderr == (
        f"error: {tmp_path / '.out.unfinished'}: is a link, expected a folder or nothing; remove it\n"
    )
    assert len(list((elsewhere / "images").iterdir())) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run("convert", source, tmp_path / "locked" / "out")
    assert done.stderr == (
        f"error: {tmp_path / 'locked' / 'out'}: cannot be written (permission denied); choose another place\n"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b.v2"], ["a", "b"]),
        (["scan.1", "scan.2"], ["scan.1", "scan.2"]),
        (["x/a.jpg", "y\\a.jpg"], ["x-a", "y-a"]),
        (["../../a.jpg", "/etc/a.jpg"], ["a", "etc-a"]),
        (["a.jpg", "a.png"], ["a-1", "a-2"]),
        (["..", ".hidden.jpg", "q\n:?.jpg"], ["image", "hidden", "q--?"]),
        (["a" * 300 + ".jpg"], ["a" * 100]),
    ],
)
def test_names_are_those_of_the_files_and_never_lead_elsewhere(names, expected):
    samples = [Sample(image=Path(name), name=name) for name in names]
    assert output_names(samples) == expected


def test_one_class_is_black_and_white_and_several_are_indices():
    labels = np.array([[0, 1, 255]], np.uint8)
    for classes, stored in ((1, [[0, 255, 128]]), (3, [[0, 1, 255]])):
        with Image.open(io.BytesIO(writer.mask_file(labels, classes))) as picture:
            assert np.asarray(picture).tolist() == stored
