import os
from dataclasses import replace

import numpy as np
import pytest
from folders import write_pair
from known_times import in_known_time
from measuring import write_model
from onnx_files import write_onnx
from PIL import Image

from benchmarks.cases import cold, folder
from benchmarks.cases.cold import BARE, BARE_SCRIPT, KEPT, KEPT_SCRIPT, OURS, OURS_SCRIPT, measure
from benchmarks.contestants.base import BenchmarkModel
from benchmarks.measuring.subprocesses import run_script
from benchmarks.results import Skipped
from export import export_onnx
from runtime.errors import DeviceError


def test_seconds_of_all_contestants(thin, monkeypatch):
    scripts = []
    monkeypatch.setattr(cold, "interleave", in_known_time)
    monkeypatch.setattr(cold, "run_script", lambda script, *_: scripts.append(script))
    found = measure(thin / "model.onnx", thin / "val_images" / "v2.jpg", threads=1, rounds=5)
    assert {one.contestant: one.values for one in found} == {
        BARE: (0.001, 0.002, 0.003, 0.004, 0.005),
        OURS: (0.002, 0.004, 0.006, 0.008, 0.01),
        KEPT: (0.003, 0.006, 0.009, 0.012, 0.015),
    }
    settings = {"height": 40, "width": 62, "pictures": "real", "device": "cpu", "threads": 1}
    assert all((one.unit, one.settings, one.group) == ("s", settings, "cold start") for one in found)
    assert scripts == [BARE_SCRIPT, OURS_SCRIPT]


def test_without_an_image_a_synthetic_one_is_taken(thin, monkeypatch):
    monkeypatch.setattr(cold, "interleave", in_known_time)
    found = measure(thin / "model.onnx", threads=1, rounds=5)
    assert [one.contestant for one in found] == [BARE, OURS, KEPT]
    assert {one.settings["pictures"] for one in found} == {"synthetic"}


def test_classes_that_overlap_are_no_png(tmp_path):
    write_onnx(tmp_path / "model.onnx", classes=3, of_card=overlapping)
    reason = "writes masks as PNG, which hold one class for each pixel, and the model's classes overlap"
    skipped = {"contestant": "all", "settings": {}, "reason": reason}
    assert measure(tmp_path / "model.onnx", threads=1) == [Skipped(part="cold start", **skipped)]
    found = folder.measure(BenchmarkModel.read(tmp_path / "model.onnx"), [tmp_path / "a.jpg"], threads=1)
    assert found == [Skipped(part="folder", **skipped)]


def overlapping(card):
    return replace(card, output=replace(card.output, activation="sigmoids"))


@pytest.mark.parametrize("classes", [1, 3])
def test_all_contestants_write_the_same_mask(tmp_path, classes):
    write_pair(tmp_path, "val", "v0")  # of the trained size: nothing is resized
    image, model = tmp_path / "val_images" / "v0.jpg", tmp_path / "model.onnx"
    write_model(tmp_path / "model.pth", [image], classes=classes)
    export_onnx(tmp_path / "model.pth")
    targets = [tmp_path / f"{index}.png" for index in range(3)]
    run_script(BARE_SCRIPT, model, image, targets[0], 1, 32, 48, "RGB")
    run_script(OURS_SCRIPT, model, image, targets[1], 1, 10**6)
    with cold.open_process(KEPT_SCRIPT, model, image, targets[2], 1, 10**6) as ask:
        ask()
        targets[2].unlink()
        ask()  # it goes on
    masks = [np.asarray(Image.open(target)) for target in targets]
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[1], masks[2])
    assert len(np.unique(masks[0])) == max(2, classes)


def test_opencv_has_the_threads_asked_for_in_processes_of_their_own(thin, tmp_path):
    given = (thin / "model.onnx", thin / "val_images" / "v0.jpg", tmp_path / "mask.png", 5, 10**6)
    assert run_script(OURS_SCRIPT + "print(cv2.getNumThreads())", *given) == "5\n"
    told = "import sys; sys.stdin = iter(())" + KEPT_SCRIPT + "print(cv2.getNumThreads())"
    assert run_script(told, *given) == "5\n"


def test_a_process_that_stays_open_ends_with_its_block(tmp_path):
    with cold.open_process(
        "import os, sys\nfor _ in sys.stdin: print(os.getpid(), file=open(sys.argv[1], 'w'))\n"
    ) as ask:
        with pytest.raises(
            DeviceError,
            match=r"^a process that stays open: ended with status 1 \(IndexError: list index out of range\)$",
        ):
            ask()
        with pytest.raises(DeviceError, match="ended with status 1"):
            ask()
    with cold.open_process(
        "import os, sys\nfor _ in sys.stdin:\n open(sys.argv[1], 'w').write(str(os.getpid()))\n print(flush=True)",
        tmp_path / "pid",
    ) as ask:
        ask()
        process = int((tmp_path / "pid").read_text())
        os.kill(process, 0)  # is there
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_process_that_never_answers_is_ended():
    with cold.open_process("import time; time.sleep(600)", limit_s=0.5) as ask:
        for _ in range(2):
            with pytest.raises(
                DeviceError,
                match=r"^a process that stays open: took longer than 0\.5 s and was ended; measure less of it, "
                r"or on an idle machine$",
            ):
                ask()
