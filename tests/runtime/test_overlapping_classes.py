"""Classes that overlap (activation "sigmoids"): a pixel has several of them, one or none."""

import html
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from answers import IMAGE
from click.testing import CliRunner
from PIL import Image, ImageSequence

from runtime import rle
from runtime.commands.predict import predict
from runtime.errors import ConfigError, OutputError
from runtime.images.overlay import COLOURS
from runtime.output_formats import FORMATS
from runtime.predictor import Predictor

HAIR = [[1, 1, 1], [0, 0, 0]]
HAT = [[0, 1, 1], [0, 0, 1]]
NONE = [[0, 0, 0], [0, 0, 0]]


def test_the_mask_has_a_plane_for_each_class(overlapping):
    assert overlapping.mask.dtype == np.uint8
    assert overlapping.mask.tolist() == [HAIR, HAT, NONE]
    assert np.asarray(overlapping) is overlapping.mask
    assert overlapping.size == (2, 3)


def test_another_threshold_is_for_every_class(overlapping):
    assert overlapping.threshold(0.35).mask.tolist() == [[[1, 1, 1], [0, 1, 0]], HAT, [[1, 1, 1], [1, 1, 1]]]
    with pytest.raises(ConfigError, match=r"^threshold: found 2, expected a number between 0 and 1$"):
        overlapping.threshold(2)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, [[1, 1, 1], [0, 0, 1]]),
        ("hair", HAIR),
        (1, HAT),
        ("face", NONE),
        (["hair", "hat"], [[1, 1, 1], [0, 0, 1]]),
        (["hat", "face"], HAT),
    ],
    ids=str,
)
def test_a_region_is_of_the_classes_whatever_else_its_pixels_are(overlapping, classes, expected):
    expected = np.array(expected, bool)
    region = overlapping.region(classes)
    assert region.dtype == np.bool_ and np.array_equal(region, expected)
    assert overlapping.area(classes) == expected.sum()
    assert overlapping.rle(classes) == rle.encode(expected)
    assert overlapping.coco_rle(classes) == rle.coco_encode(expected)
    assert len(overlapping.polygons(classes)) == (1 if expected.any() else 0)


def test_boxes(overlapping):
    boxes = [overlapping.box(classes) for classes in (None, "hair", "hat", "face")]
    assert boxes == [(0, 0, 3, 2), (0, 0, 3, 1), (1, 0, 3, 2), None]


def test_a_changed_mask_changes_regions(overlapping):
    overlapping.mask[2, 1, 0] = 1
    assert overlapping.area("face") == 1 and overlapping.region()[1, 0]
    overlay = overlapping.overlay(1)
    assert overlay[1, 0].tolist() == list(COLOURS[2])


def test_shares_may_add_up_to_more_than_all_pixels(overlapping):
    assert repr(overlapping) == "Segmentation(3x2, hair 50.0%, hat 50.0%)"
    text = overlapping._repr_html_()
    assert re.findall(r"rgb(\(.*?\))", text) == [str(COLOURS[0]), str(COLOURS[1])]
    assert [html.unescape(found) for found in re.findall(r"([^ >]+ [0-9.]+%)", text)] == ["hair 50.0%", "hat 50.0%"]


def test_a_pixel_has_the_colour_of_its_most_probable_class(overlapping):
    hair, hat = map(list, COLOURS[:2])
    expected = [[hair, hair, hat], [*IMAGE[1, :2].tolist(), hat]]
    assert overlapping.overlay(1).tolist() == expected
    with Image.open(io.BytesIO(overlapping._repr_png_())) as preview:
        assert preview.size == (3, 2)


def test_a_cutout_is_as_opaque_as_its_most_probable_class(overlapping):
    assert overlapping.cutout(soft=True)[:, :, 3].tolist() == [[153, 230, 242], [102, 128, 191]]
    assert overlapping.cutout("hat", soft=True)[0, :, 3].tolist() == [76, 204, 242]
    for classes in (None, "hair", "hat", ["face", "hat"]):
        assert np.array_equal(overlapping.cutout(classes)[:, :, 3] > 127, overlapping.region(classes))
    assert overlapping.probability_of(None, np.uint16)[0].tolist() == [39_321, 58_982, 62_258]


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".PNG"])
def test_a_picture_that_holds_one_class_for_each_pixel_is_refused(overlapping, tmp_path, suffix):
    path = tmp_path / "folder" / f"mask{suffix}"
    with pytest.raises(OutputError) as caught:
        overlapping.save(path)
    assert str(caught.value) == (
        f"{path}: holds one class for each pixel, and this model's classes overlap; take tiff (a page for each class) "
        "or npy (probabilities)"
    )
    assert not path.parent.exists()
    with pytest.raises(ConfigError, match=r"^picture: holds one class for each pixel, and this model's overlap; see"):
        overlapping.picture()


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
def test_a_tiff_has_a_page_for_each_class(overlapping, tmp_path, suffix):
    with Image.open(overlapping.save(tmp_path / f"mask{suffix}")) as file:
        pages = [np.asarray(page) for page in ImageSequence.Iterator(file)]
    assert np.array_equal(pages, 255 * overlapping.mask) and pages[0].dtype == np.uint8


def test_arrays_and_json_hold_every_class(overlapping, tmp_path):
    assert np.array_equal(np.load(overlapping.save(tmp_path / "a.npy")), overlapping.probability)
    with np.load(overlapping.save(tmp_path / "a.npz")) as arrays:
        assert np.array_equal(arrays["mask"], overlapping.mask)
    record = json.loads(overlapping.save(tmp_path / "a.json").read_text())
    assert record["threshold"] == 0.5
    assert [(one["name"], one["area"]) for one in record["classes"]] == [("hair", 3), ("hat", 3), ("face", 0)]
    assert [rle.coco_decode(one["rle"]).tolist() for one in record["classes"]] == [HAIR, HAT, NONE]


@pytest.mark.parametrize("size", [(2, 3), (5, 16), (33, 7)])
def test_a_tiff_of_pages_is_known_as_finished(make_overlapping, tmp_path, size):
    path, form = tmp_path / "a.tif", FORMATS["tiff"]
    result = make_overlapping(size)
    form.save(result, path)
    assert path.read_bytes() == form.encode(result)
    assert form.is_finished(path, 3, size) and not form.is_finished(path, 2, size)
    assert not form.is_finished(path, 3, (size[0], size[1] + 1))
    path.write_bytes(path.read_bytes()[:-1])
    assert not form.is_finished(path, 3, size)


@pytest.fixture
def make_overlapping(models):
    """Make an answer of another size."""
    predictor = Predictor(models["sigmoids"], "cpu")
    return lambda size: predictor.predict(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))


def test_supervision_gets_a_detection_for_each_class_that_occurs(overlapping, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    found = overlapping.to_supervision()
    assert found.class_id.tolist() == [0, 1] and found.data["class_name"].tolist() == ["hair", "hat"]
    assert found.mask.tolist() == [overlapping.region("hair").tolist(), overlapping.region("hat").tolist()]
    assert found.confidence.tolist() == pytest.approx([(0.6 + 0.9 + 0.7) / 3, (0.8 + 0.95 + 0.75) / 3])


@pytest.fixture
def colours(tmp_path):
    """A picture of four pixels: white, black, yellow and grey below the threshold."""
    pixels = np.array([[[255] * 3, [0] * 3, [255, 255, 0], [127] * 3]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return tmp_path / "p.png"


EXPECTED = [[[255, 0, 255, 0]], [[255, 0, 255, 0]], [[255, 0, 0, 0]]]


def test_unet_predict_writes_pages_by_itself(run_predict, colours, out, models):
    asked = {"model": models["sigmoids"]}
    done = run_predict(colours, **asked)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"1 of 1 written to {out} on cpu\n", "")
    with Image.open(out / "p.tif") as file:
        assert [np.asarray(page).tolist() for page in ImageSequence.Iterator(file)] == EXPECTED
    assert run_predict(colours, "--skip-existing", **asked).stdout.startswith("nothing to do: 1 of 1")
    assert run_predict(colours, "--threshold", 0.4, **asked).exit_code == 0
    with Image.open(out / "p.tif") as file:
        assert np.asarray(file).tolist() == [[255, 0, 255, 255]]


def test_unet_predict_refuses_what_cannot_hold_them_before_it_begins(run_predict, colours, out, models):
    done = run_predict(colours, "--format", "mask", model=models["sigmoids"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --format mask: holds one class for each pixel, and this model's classes overlap; take tiff (a page for "
        "each class) or npy (probabilities)\n"
    )
    assert not out.exists()


def test_unet_predict_writes_their_union_as_run_lengths(run_predict, colours, models, tmp_path):
    table = tmp_path / "masks.csv"
    assert run_predict(colours, "--format", "rle-csv", model=models["sigmoids"], to=table).exit_code == 0
    assert table.read_text() == "img,rle_mask\np.png,1 1 3 1\n"


def test_unet_predict_writes_pages_to_a_pipe(models, colours):
    arguments = [str(models["sigmoids"]), "-", "--device", "cpu"]
    done = CliRunner().invoke(predict, arguments, input=colours.read_bytes())
    with Image.open(io.BytesIO(done.stdout_bytes)) as file:
        assert [np.asarray(page).tolist() for page in ImageSequence.Iterator(file)] == EXPECTED
    done = CliRunner().invoke(predict, [*arguments, "--format", "mask"], input=colours.read_bytes())
    assert (done.exit_code, done.stdout_bytes) == (2, b"")
