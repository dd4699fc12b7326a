"""COCO files as other programs read them, and as this one reads them back."""

import contextlib
import io
import json

import numpy as np
import pytest
import supervision
from answers import EACH, ONE, THREE, answer_of, overlapping_classes, random_answers
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.errors import OutputError
from runtime.output_formats import TABLES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' arrays

CAR_AND_TREE = [[0, 1, 1, 0], [0, 1, 0, 2], [0, 1, 1, 1]]


@pytest.fixture
def write(tmp_path):
    """Write answers to a file, called 0.png and so on."""

    def call(answers, kind="coco", name="all.json", keep=False, first=0):
        answers = list(answers)
        with TABLES[kind].open(tmp_path / name, answers[0].output, keep=keep) as file:
            for index, answer in enumerate(answers, first):
                file.add(f"{index}.png", answer)
        return tmp_path / name

    return call


def opened(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_a_file_has_images_categories_and_annotations_with_ids(write):
    path = write([answer_of(CAR_AND_TREE), answer_of([[0, 0]]), answer_of([[0, 2]])], "coco-polygons")
    found = json.loads(path.read_text())
    assert found["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "tree"}]
    assert found["images"] == [
        {"id": 1, "file_name": "0.png", "width": 4, "height": 3},
        {"id": 2, "file_name": "1.png", "width": 2, "height": 1},
        {"id": 3, "file_name": "2.png", "width": 2, "height": 1},
    ]
    assert found["annotations"][1:] == [
        {
            "id": number,
            "image_id": image,
            "category_id": 2,
            "segmentation": [ring],
            "area": 1,
            "bbox": box,
            "iscrowd": 0,
            "score": 0.8,
        }
        for number, image, ring, box in (
            (2, 1, [3, 1, 4, 1, 4, 2, 3, 2], [3, 1, 1, 1]),
            (6, 3, [1, 0, 2, 0, 2, 1, 1, 1], [1, 0, 1, 1]),
        )
    ]
    car = found["annotations"][0]
    assert (car["id"], car["category_id"], car["area"], car["bbox"]) == (1, 1, 6, [1, 0, 3, 3])


@pytest.mark.parametrize("kind", ["coco", "coco-polygons"])
def test_pycocotools_reads_the_pixels_of_every_class(write, kind):
    answers = list(random_answers(40))
    coco = opened(write(answers, kind))
    expected = {(image, index) for image, answer in enumerate(answers, 1) for index in (1, 2) if answer.area(index)}
    assert {(found["image_id"], found["category_id"]) for found in coco.anns.values()} == expected
    assert len(coco.anns) == len(expected)  # no id came twice
    for found in coco.anns.values():
        answer = answers[found["image_id"] - 1]
        x, y, width, height = found["bbox"]
        assert np.array_equal(coco.annToMask(found), answer.region(found["category_id"]))
        assert (x, y, x + width, y + height) == answer.box(found["category_id"])
        assert found["area"] == answer.area(found["category_id"])


def test_annotations_are_results_for_cocos_evaluation(write):
    path = write(random_answers(12))
    truth = opened(path)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(json.loads(path.read_text())["annotations"]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)  # each mask is found where it is


def test_supervision_reads_run_lengths_exactly_and_polygons_up_to_their_edge(write, tmp_path):
    answers = [answer_of(np.pad(np.kron(CAR_AND_TREE, np.ones((8, 9), int)), 3)), answer_of([[1]])]
    for kind in ("coco", "coco-polygons"):
        path = write(answers, kind)
        data = supervision.DetectionDataset.from_coco(str(tmp_path), str(path), force_masks=True)
        assert data.classes == ["car", "tree"]
        assert list(data.annotations) == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
        for answer, found in zip(answers, data.annotations.values(), strict=True):
            assert [data.classes[index] for index in found.class_id] == ["car", "tree"][: len(found)]
            for name, mask, box in zip(("car", "tree"), found.mask, found.xyxy, strict=False):
                region = answer.region(name)
                wide = region.copy()
                if (
                    kind == "coco-polygons"
                ):  # OpenCV, which supervision fills polygons with, adds the pixels on their edge
                    wide[1:] |= region[:-1]
                    wide[:, 1:] |= wide[:, :-1].copy()
                assert (mask >= region).all() and (mask <= wide).all()
                assert tuple(box) == answer.box(name)


def test_a_file_that_is_added_to_is_as_if_written_at_once(write):
    answers = list(random_answers(7))
    whole = write(answers, name="whole.json").read_bytes()
    write(answers[:4])
    assert write(answers[4:], keep=True, first=4).read_bytes() == whole
    nothing = answer_of([[0]])
    write([nothing])
    assert write([nothing], keep=True, first=1).read_bytes() == write([nothing] * 2, name="two.json").read_bytes()
    assert [image["file_name"] for image in opened(write([nothing])).imgs.values()] == ["0.png"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-3],
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"car"', '"bus"'),
        lambda text: json.dumps(json.loads(text), indent=1),
        lambda text: text.replace('"image_id": 1', '"image_id": 7'),
        lambda text: text.replace('"image_id": 1, ', ""),
        lambda text: text.replace('"file_name": "1.png"', '"name": "1.png"'),
        lambda text: text.replace('"area": ', '"area" '),
        lambda text: "",
    ],
)
def test_what_is_no_whole_file_of_these_classes_is_not_added_to(write, change):
    path = write([answer_of([[1]]), answer_of([[2]])])
    path.write_text(change(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(OutputError) as caught:
        write([answer_of([[1]])], keep=True)
    assert str(caught.value) == (
        f"{path}: is not a whole COCO file of this command with run lengths of the classes car, tree, so nothing can "
        "be added; remove it"
    )
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_one_class_and_classes_that_overlap_have_no_background(write):
    coco = opened(write([answer_of([[0, 1]], ONE)]))
    assert coco.cats == {1: {"id": 1, "name": "car"}}
    assert coco.annToMask(coco.anns[1]).tolist() == [[0, 1]]
    answer = overlapping_classes()
    coco = opened(write([answer]))
    assert [category["name"] for category in coco.cats.values()] == list(EACH.classes)
    found = {one["category_id"]: coco.annToMask(one).tolist() for one in coco.anns.values()}
    assert found == {1: answer.mask[0].tolist(), 2: answer.mask[1].tolist()}


def test_names_that_are_no_text_and_probabilities_that_are_no_numbers(write, tmp_path):
    answer = answer_of([[1, 1]])
    answer.probability[:, 0, 0] = [0, np.nan, 0]  # argmax takes a NaN
    for keep in (False, True):
        with TABLES["coco"].open(tmp_path / "a.json", THREE, keep=keep) as file:
            file.add(f"\udcff{keep}.png", answer)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert [image["file_name"] for image in found["images"]] == ["\udcffFalse.png", "\udcffTrue.png"]
    assert found["annotations"][0]["score"] == 0.4


@pytest.mark.parametrize(("kind", "other"), [("coco", "coco-polygons"), ("coco-polygons", "coco")])
def test_run_lengths_and_polygons_are_not_mixed_in_one_file(write, kind, other):
    path = write([answer_of(CAR_AND_TREE)], kind)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"is not a whole COCO file of this command with (polygons|run lengths) of"):
        write([answer_of(CAR_AND_TREE)], other, keep=True, first=1)
    assert path.read_bytes() == before
