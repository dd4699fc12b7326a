import cv2
import numpy as np
import pytest
import torch
from benchmark_models import require_installed
from folders import write_pair
from known_times import in_known_time
from measuring import write_model
from onnx_files import gate_of, write_onnx
from PIL import Image

from benchmarks.cases import folder
from benchmarks.cases.folder import FAST, LOOP, POOL, SCRIPT, SHARED, STREAM, folder_calls, measure
from benchmarks.contestants.base import BenchmarkModel
from benchmarks.results import Skipped
from export import export_onnx
from runtime.image import list_images
from runtime.predictor import Predictor
from unet_core.checkpoint import load_checkpoint
from unet_core.model import Segmenter

NO_INT8 = "no int8 file was given; make one with unet-export --precision int8"


def model_in(folder, checkpoint="model.pth", others=()):
    return BenchmarkModel.read(folder / "model.onnx", folder / checkpoint if checkpoint else None, others)


def segmenter_in(folder, card):
    return Segmenter(load_checkpoint(folder / "model.pth").network(), card).eval()


@pytest.fixture
def known(monkeypatch):
    """Known times; what was pinned while contestants took turns, and the files that were there afterwards."""
    seen = []

    def interleave(contestants, rounds, *, budget_s=None):
        seen.append((torch.get_num_threads(), cv2.getNumThreads(), rounds, budget_s))
        return in_known_time(contestants, rounds)

    monkeypatch.setattr(folder, "interleave", interleave)
    return seen


def test_folders_in_images_per_second(thin, known):
    images, asked = list_images(thin / "val_images"), {"threads": 1, "budget_s": 9.0}
    folders = measure(model_in(thin), images, folder_sizes=(2, 5), passes=5, **asked)
    skipped, *folders = folders
    assert (skipped.contestant, skipped.reason) == (FAST, NO_INT8)
    assert [one.contestant for one in folders] == [SCRIPT, SHARED, LOOP, POOL, STREAM] * 2
    assert [one.settings["images"] for one in folders] == [2] * 5 + [5] * 5
    assert [one.facts["different"] for one in folders] == [2] * 5 + [3] * 5
    assert {one.group for one in folders} == {"folder of 2", "folder of 5"}
    assert folders[6].values == pytest.approx([2500.0, 1250.0, 2500 / 3, 625.0, 500.0])  # 5 images in 2, 4, 6 ... ms
    assert known == [(1, 1, 5, 4.5), (1, 1, 5, 4.5)]


def test_masks_do_not_replace_png_images(thin, tmp_path, monkeypatch):
    images = []
    for path in list_images(thin / "val_images"):
        images.append(tmp_path / f"{path.stem}.png")
        Image.open(path).save(images[-1])
    copied, copies = [], folder.copies

    def interleave(contestants, rounds, *, budget_s=None):
        times = in_known_time(contestants, rounds)
        assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in images]
        return times

    monkeypatch.setattr(folder, "interleave", interleave)
    monkeypatch.setattr(folder, "copies", lambda *given: copied.extend(copies(*given)) or copied)
    measure(model_in(thin), images, folder_sizes=(3,), threads=1)
    assert len(copied) == 3


def test_what_is_missing_is_said(thin, known):
    images = list_images(thin / "val_images")
    reason = "needs images, by --data"
    assert measure(model_in(thin), [], threads=1) == [
        Skipped(part="folder", contestant="all", settings={}, reason=reason)
    ]
    found = measure(model_in(thin, None), images, folder_sizes=(3,), threads=1)
    assert [one.contestant for one in found] == [SCRIPT, SHARED, FAST, LOOP, POOL, STREAM]
    assert [one.reason for one in found if isinstance(one, Skipped)] == ["needs --checkpoint"] * 2 + [NO_INT8]


def test_the_int8_file_is_streamed_in_openvino(tmp_path, known):
    require_installed("openvino")
    for name in ("model.onnx", "model.int8.onnx"):
        write_onnx(tmp_path / name, **({} if name == "model.onnx" else {"precision": "int8", "gate": gate_of()}))
    write_pair(tmp_path, "val", "v", size=(32, 48))
    model = model_in(tmp_path, None, [tmp_path / "model.int8.onnx"])
    found = measure(model, list_images(tmp_path / "val_images"), folder_sizes=(2,), threads=1)
    assert [one.contestant for one in found] == [SCRIPT, SHARED, LOOP, POOL, STREAM, FAST]


@pytest.mark.parametrize("classes", [1, 3])
def test_all_ways_through_a_folder_write_the_same_masks(tmp_path, classes):
    for index in range(3):
        write_pair(tmp_path, "val", f"v{index}", seed=index)  # of the trained size: nothing is resized
    paths, written = list_images(tmp_path / "val_images"), {}
    write_model(tmp_path / "model.pth", paths, classes=classes)
    export_onnx(tmp_path / "model.pth")
    with Predictor(tmp_path / "model.onnx", "cpu", 2) as predictor:
        segmenter = segmenter_in(tmp_path, predictor.card)
        for name, run in folder_calls(predictor, segmenter, predictor, paths, tmp_path).items():
            run()
            written[name] = [np.asarray(Image.open(tmp_path / f"{path.stem}.png")) for path in paths]
    assert list(written) == [SCRIPT, SHARED, LOOP, POOL, STREAM, FAST]
    assert all(np.array_equal(written[name], written[LOOP]) for name in written)
    assert len(np.unique(written[LOOP])) == max(2, classes)


def test_the_script_with_our_pictures_resizes_as_we_do(tmp_path):
    for index in range(2):
        write_pair(tmp_path, "val", f"v{index}", size=(40, 60 + index), seed=index)
    paths, written = list_images(tmp_path / "val_images"), {}
    write_model(tmp_path / "model.pth", paths, classes=1)
    export_onnx(tmp_path / "model.pth")
    with Predictor(tmp_path / "model.onnx", "cpu", 1) as predictor:
        calls = folder_calls(predictor, segmenter_in(tmp_path, predictor.card), None, paths, tmp_path)
        for name in (SHARED, LOOP):
            calls[name]()
            written[name] = [np.asarray(Image.open(tmp_path / f"{path.stem}.png")) for path in paths]
    assert [mask.shape for mask in written[SHARED]] == [(40, 60), (40, 61)]
    assert all(map(np.array_equal, written[SHARED], written[LOOP]))
    assert [len(np.unique(mask)) for mask in written[SHARED]] == [2, 2]
