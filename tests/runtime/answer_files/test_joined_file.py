"""One file for many images: on disk as it grows, published whole or not at all."""

import json
import re
import threading

import pytest
from answers import THREE, answer_of
from PIL import Image
from write_faults import files_no_larger_than

import runtime
from runtime.answer_files.joined_file import JoinedFile
from runtime.errors import OutputError
from runtime.output_formats import TABLES

ANSWER = answer_of([[1, 2], [0, 1]])


@pytest.mark.parametrize("kind", TABLES)
def test_entries_are_on_disk_as_they_come_and_the_file_appears_at_the_end(tmp_path, kind):
    path = tmp_path / f"all{TABLES[kind].suffix}"
    sizes = []
    with TABLES[kind].open(path, THREE) as file:
        for index in range(3):
            file.add(f"{index}.png", ANSWER)
            (temporary,) = tmp_path.iterdir()
            sizes.append(temporary.stat().st_size)
        assert file.published == 0
    assert sizes[0] < sizes[1] < sizes[2] <= path.stat().st_size
    assert file.published == 3
    assert list(tmp_path.iterdir()) == [path]


def write(path, kind, count, error=None):
    """Write entries for 0.png and so on, then raise the error; returns the closed file."""
    with TABLES[kind].open(path, THREE) as file:
        for index in range(count):
            file.add(f"{index}.png", ANSWER)
        if error:
            raise error
    return file


@pytest.mark.parametrize("kind", TABLES)
def test_ctrl_c_leaves_a_whole_file_of_what_was_written(tmp_path, monkeypatch, kind):
    path, whole = (tmp_path / f"{name}{TABLES[kind].suffix}" for name in ("all", "whole"))
    assert write(whole, kind, 2).published == 2
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, 2, KeyboardInterrupt())
    assert path.read_bytes() == whole.read_bytes()
    real, calls = JoinedFile._write, []

    def interrupted(self, text):
        """Ctrl-C comes right after the bytes of the third image."""
        real(self, text)
        calls.append(text)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(JoinedFile, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, 5)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kind", TABLES)
def test_errors_and_a_full_disk_leave_the_old_file(tmp_path, kind):
    path = tmp_path / f"all{TABLES[kind].suffix}"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write(path, kind, 1, ZeroDivisionError())
    with pytest.raises(OutputError) as caught, files_no_larger_than(1000):
        write(path, kind, 200)
    assert str(caught.value) == f"{path}: cannot be written (file too large); choose another place"
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


def test_entries_are_made_by_any_thread_and_written_in_order(tmp_path):
    with TABLES["coco"].open(tmp_path / "all.json", THREE) as file:
        made = {}
        threads = [
            threading.Thread(target=lambda name=name: made.update({name: file.make(name, ANSWER)})) for name in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in "abcd":
            file.take(made[name])
    with TABLES["coco"].open(tmp_path / "one.json", THREE) as file:
        for name in "abcd":
            file.add(name, ANSWER)
    assert (tmp_path / "all.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, models, root):
    text = (root / "docs" / "runtime.md").read_text()
    (example,) = (block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "TABLES[" in block)
    (tmp_path / "model.onnx").write_bytes(models["softmax"].read_bytes())
    (tmp_path / "photos").mkdir()
    for name, colour in (("a.jpg", (0, 255, 0)), ("b.jpg", (0, 0, 255)), ("c.jpg", (255, 0, 0))):
        Image.new("RGB", (4, 2), colour).save(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    exec(example, {"runtime": runtime})
    found = json.loads((tmp_path / "photos.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [(one["image_id"], one["category_id"], one["area"]) for one in found["annotations"]] == [
        (1, 1, 8),
        (2, 2, 8),
    ]
