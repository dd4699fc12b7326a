"""Answers that leave the process: files, supervision, other processes."""

import io
import json
import multiprocessing
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from answers import IMAGE, THREE, TIMES
from PIL import Image
from zlib_ng import zlib_ng

from runtime.card import OutputSpec
from runtime.errors import ConfigError, OutputError
from runtime.image import load_image
from runtime.output_formats import FORMATS
from runtime.result import Segmentation
from runtime.rle import coco_decode


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif", ".tiff", ".PNG"])
def test_mask_of_one_class_is_saved_as_0_and_255(single, tmp_path, suffix):
    path = single.save(str(tmp_path / f"mask{suffix}"))
    assert path == tmp_path / f"mask{suffix}"
    assert load_image(path, "L")[:, :, 0].tolist() == [[0, 0, 0], [255, 255, 255]]
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif", ".tiff"])
@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 2], [2]], ids=str)
def test_classes_are_saved_as_their_indices_even_if_some_do_not_occur(tmp_path, suffix, kept):
    mask = np.resize(kept, (4, 5))
    probability = (np.arange(3)[:, None, None] == mask).astype(np.float32)
    result = Segmentation(probability=probability, image=np.zeros((4, 5, 3), np.uint8), output=THREE)
    assert np.array_equal(load_image(result.save(tmp_path / f"mask{suffix}"), "L")[:, :, 0], mask)


@pytest.mark.parametrize("name", ["mask.jpg", "mask.webp", "mask", "mask.png.jpeg"])
def test_lossy_or_unknown_suffix_is_refused(single, tmp_path, name):
    with pytest.raises(OutputError) as caught:
        single.save(tmp_path / name)
    expected = (
        "would not keep a mask exactly; expected a name that ends in .bmp, .geojson, .gif, .json, .npy, .npz, .png, "
        ".tif, .tiff; to get a picture to look at, save Image.fromarray(result.overlay())"
    )
    assert str(caught.value) == f"{tmp_path / name}: {expected}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "form"), [("PNG", "mask"), (".tif", "tiff"), ("overlay", "overlay"), ("npz", "npz")])
def test_file_objects_are_written_in_the_format_that_is_named(single, tmp_path, asked, form):
    file = io.BytesIO(b"")
    assert single.save(file, format=asked) is None
    assert not file.closed and file.getvalue() == FORMATS[form].encode(single)
    path = single.save(tmp_path / "any.thing", format=asked)
    assert path.read_bytes() == file.getvalue()
    with open(tmp_path / "mask.bmp", "wb") as file:
        single.save(file)
    assert (tmp_path / "mask.bmp").read_bytes() == FORMATS["bmp"].encode(single)


def test_file_objects_that_cannot_be_written_are_refused(single, tmp_path):
    with pytest.raises(OutputError, match=r"^file object: has no name that tells its format; give one, such as format"):
        single.save(io.BytesIO())
    with pytest.raises(OutputError, match=r"^file object: is no binary file; open it with mode 'wb'$"):
        single.save(io.StringIO(), "png")
    with pytest.raises(
        OutputError, match=r"^format: found 'jpeg', expected one of bilevel, bmp, cutout, geojson, gif, json, mask, "
    ):
        single.save(tmp_path / "mask.png", format="jpeg")
    with pytest.raises(OutputError) as caught:
        single.save(tmp_path / "a.json", format="coco")
    assert str(caught.value) == (
        "format: coco is one file for all images; expected a format with one for each, or call "
        'runtime.output_formats.TABLES["coco"].open(path, result.output) and add(name, result)'
    )
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OutputError) as caught:
        single.save(full, "png")
    assert str(caught.value) == "/dev/full: cannot be written (no space left on device)"


def test_unwritable_folder_is_an_output_error(single, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: cannot create this folder \(file exists\)"):
        single.save(tmp_path / "file" / "mask.png")


@pytest.mark.parametrize("suffix", [".gif", ".bmp"])
def test_more_classes_than_a_format_can_keep_are_refused(tmp_path, suffix):
    output = OutputSpec(classes=tuple(map(str, range(257))), activation="softmax")
    result = Segmentation(probability=np.zeros((257, 2, 3), np.float32), image=IMAGE, output=output)
    path = tmp_path / "folder" / f"mask{suffix}"
    with pytest.raises(OutputError) as caught:
        result.save(path)
    assert str(caught.value) == (
        f"{path}: keeps at most 256 classes, the mask may have more; take mask (.png) or tiff (.tif)"
    )
    assert not path.parent.exists()


def test_what_memory_does_not_suffice_for_is_never_written(single, tmp_path, monkeypatch):
    def refuse(*_):
        raise MemoryError

    target = tmp_path / "mask.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(zlib_ng, "compressobj", refuse)
    with pytest.raises(MemoryError):
        single.save(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_probability_is_saved_as_arrays(several, tmp_path):
    assert np.array_equal(np.load(several.save(tmp_path / "a.NPY")), several.probability)
    with np.load(several.save(tmp_path / "a.npz")) as arrays:
        assert np.array_equal(arrays["probability"], several.probability)
        assert np.array_equal(arrays["mask"], several.mask)
        assert arrays["classes"].tolist() == ["road", "car", "tree"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.NPY", "a.npz"]


def test_json_describes_every_class(several, tmp_path):
    record = json.loads(replace(several, times=TIMES).save(tmp_path / "a.json").read_text())
    assert record["size"] == [2, 3]
    assert record["threshold"] is None
    assert record["times"] == {"decode": 4.0, "fit": 1.0, "transfer": 0.5, "infer": 20.25, "restore": 2.0}
    assert [(item["name"], item["area"], item["box"]) for item in record["classes"]] == [
        ("road", 2, [0, 0, 3, 2]),
        ("car", 1, [2, 0, 3, 1]),
        ("tree", 3, [0, 0, 2, 2]),
    ]
    assert [coco_decode(item["rle"]).tolist() for item in record["classes"]] == [
        (several.mask == index).tolist() for index in range(3)
    ]


def test_json_of_one_class_has_its_threshold_and_no_box_where_nothing_is(single, tmp_path):
    record = json.loads(single.threshold(0.999999).save(tmp_path / "a.json").read_text())
    assert record["threshold"] == 0.999999
    assert record["classes"][0]["area"] == 1
    empty = replace(single, probability=np.zeros((1, 2, 3), np.float32))
    record = json.loads(empty.save(tmp_path / "b.json").read_text())
    assert record["classes"] == [{"name": "car", "area": 0, "box": None, "rle": {"size": [2, 3], "counts": "6"}}]
    assert record["times"] is None


def test_supervision_gets_one_detection_for_each_class_that_occurs(several, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    found = several.to_supervision()
    assert found.class_id.tolist() == [1, 2]
    assert found.data["class_name"].tolist() == ["car", "tree"]
    assert found.xyxy.tolist() == [[2, 0, 3, 1], [0, 0, 2, 2]]
    assert found.confidence.tolist() == pytest.approx([0.8, 0.8])
    assert found.mask.dtype == np.bool_
    assert found.mask.tolist() == [several.region("car").tolist(), several.region("tree").tolist()]


def test_supervision_itself_takes_them_and_draws_them(several):
    import supervision

    found = several.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 2
    drawn = supervision.MaskAnnotator(opacity=1).annotate(np.zeros((2, 3, 3), np.uint8), found)
    assert np.array_equal(drawn.any(axis=2), several.region())


def test_supervision_of_nothing_is_empty(single, monkeypatch):
    stand_in = SimpleNamespace(Detections=SimpleNamespace(empty=lambda: "empty"))
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    assert replace(single, probability=np.zeros((1, 2, 3), np.float32)).to_supervision() == "empty"


def test_supervision_that_is_not_installed_is_named(single, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"^supervision: cannot be imported \(.*\); pip install supervision$"):
        single.to_supervision()


def test_result_goes_to_another_process_and_back(several):
    several = replace(several, times=TIMES)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        back = pool.apply(replace, (several,))
        assert pool.apply(Segmentation.coco_rle, (several, "tree")) == several.coco_rle("tree")
    assert np.array_equal(back.probability, several.probability)
    assert np.array_equal(back.image, several.image)
    assert (back.output, back.times) == (several.output, TIMES)
