import math
import pickle

import numpy as np
import pytest

from unet_core.data.labels import IGNORED
from unet_core.evaluation.metrics import METRICS, ClassScore, Metric, Metrics


def masks(*rows):
    return np.array(rows, np.uint8)


def random_pairs(labels, count=7, size=(9, 11), seed=0):
    """Predictions and truths in which every image holds other labels, and some pixels are ignored."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        few = random.choice(labels, random.integers(1, labels + 1), replace=False).astype(np.uint8)
        predicted, truth = random.choice(few, size), random.choice(few, size)
        truth[random.random(size) < 0.1] = IGNORED
        pairs.append((predicted, truth))
    return pairs


def counted(classes, pairs):
    metrics = Metrics(classes)
    for index, pair in enumerate(pairs):
        metrics.add(*pair, index)
    return metrics


def score_of(name, pixel_dice, image_dice, iou, pixels):
    return ClassScore(
        name=name, figures={"pixel_dice": pixel_dice, "image_dice": image_dice, "iou": iou}, pixels=pixels
    )


def test_one_class_by_hand():
    metrics = Metrics(["car"])
    first = metrics.add(masks([1, 1, 0, 0]), masks([1, 0, 1, 0]))  # TP 1, FP 1, FN 1, TN 1
    second = metrics.add(masks([1, 1, 1, 1, 0, 0]), masks([1, 1, 1, 1, 1, 0]))  # TP 4, FN 1, TN 1
    assert (first, second) == (0.5, 8 / 9)
    assert metrics.dice_by_image() == {0: 0.5, 1: 8 / 9}
    assert metrics.summary() == {
        "accuracy": 7 / 10,
        "image_dice": pytest.approx((0.5 + 8 / 9) / 2),
        "pixel_dice": 10 / 13,
        "iou": 5 / 8,
    }
    assert metrics.per_class() == [score_of("car", 10 / 13, metrics.image_dice, 5 / 8, 7)]


def test_several_classes_by_hand():
    metrics = Metrics(["background", "car", "wheel", "bus"])
    first = metrics.add(masks([0, 0, 1, 1, 2, 1]), masks([0, 1, 1, 1, 2, 2]))  # car 4/6, wheel 2/3, no bus
    second = metrics.add(masks([0, 0, 0, 3]), masks([0, 0, 2, 0]))  # wheel 0, bus 0, no car
    assert (first, second) == (pytest.approx(2 / 3), 0)
    background, car, wheel, bus = metrics.per_class()
    assert background == score_of("background", 6 / 9, pytest.approx((2 / 3 + 4 / 6) / 2), 3 / 6, 4)
    assert car == score_of("car", 4 / 6, pytest.approx((2 / 3 + 1) / 2), 2 / 4, 3)
    assert wheel == score_of("wheel", 2 / 4, pytest.approx(1 / 3), 1 / 3, 3)
    assert bus == score_of("bus", 0, 0.5, 0, 0)
    assert metrics.summary() == {
        "accuracy": 6 / 10,
        "image_dice": pytest.approx((5 / 6 + 1 / 3 + 1 / 2) / 3),
        "pixel_dice": pytest.approx((2 / 3 + 1 / 2 + 0) / 3),
        "iou": pytest.approx((1 / 2 + 1 / 3 + 0) / 3),
        "pixel_dice background": 6 / 9,
        "pixel_dice car": 4 / 6,
        "pixel_dice wheel": 2 / 4,
    }


def test_without_a_background_every_class_is_in_the_mean():
    metrics = Metrics(["sky", "sea"])
    assert metrics.add(masks([0, 0, 0, 1]), masks([0, 0, 1, 1])) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert metrics.pixel_dice == metrics.image_dice == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_both_empty_is_one_and_a_false_alarm_is_zero():
    metrics = Metrics(["car"])
    assert metrics.add(masks([0, 0]), masks([0, 0])) == 1.0
    assert set(metrics.summary().values()) == {1.0}
    assert metrics.add(masks([1, 0]), masks([0, 0])) == 0.0
    assert metrics.image_dice == 0.5
    assert metrics.pixel_dice == 0.0


def test_class_that_occurs_nowhere_has_no_dice_and_no_part_in_the_means():
    metrics = Metrics(["background", "car", "tram"])
    assert metrics.add(masks([0, 1, 1]), masks([0, 1, 0])) == pytest.approx(2 / 3)
    tram = metrics.per_class()[2]
    assert len(tram.figures) == 3 and all(map(math.isnan, tram.figures.values())) and tram.pixels == 0
    assert (metrics.pixel_dice, metrics.image_dice, metrics.iou) == (2 / 3, 2 / 3, 1 / 2)
    assert "pixel_dice tram" not in metrics.summary()


@pytest.mark.parametrize("classes", [["car"], ["background", "car", "wheel"]])
def test_ignored_pixels_count_nowhere(classes):
    pairs = random_pairs(max(2, len(classes)))
    without = [(predicted[truth != IGNORED], truth[truth != IGNORED]) for predicted, truth in pairs]
    assert any(kept.size < truth.size for (_, kept), (_, truth) in zip(without, pairs, strict=True))
    assert counted(classes, pairs).summary() == counted(classes, without).summary()
    nothing = Metrics(classes)
    assert nothing.add(masks([0, 1]), masks([IGNORED, IGNORED])) == 1.0
    assert nothing.pixels == 0 and set(nothing.summary().values()) == {1.0}


def test_one_class_is_the_second_of_two():
    pairs = random_pairs(2)
    one, two = counted(["car"], pairs), counted(["background", "car"], pairs)
    assert one.per_class() == two.per_class()[1:]
    assert one.summary().items() <= two.summary().items()


@pytest.mark.parametrize("classes", [["car"], [f"class {index}" for index in range(20)]])
def test_neither_order_nor_shards_change_a_bit(classes):
    pairs = random_pairs(max(2, len(classes)), count=40)
    whole = counted(classes, pairs)
    order = np.random.default_rng(5).permutation(len(pairs))
    merged = Metrics(classes)
    for part in np.split(order, [3, 3, 20]):  # one of them is empty
        shard = Metrics(classes)
        for index in part:
            shard.add(*pairs[index], int(index))
        merged.merge(Metrics.from_state(classes, pickle.loads(pickle.dumps(shard.state()))))
    assert merged.summary() == whole.summary()
    assert merged.per_class() == whole.per_class()


def test_images_are_numbered_on_from_the_highest_index():
    metrics = Metrics(["car"])
    metrics.add(masks([1]), masks([1]), 4)
    metrics.add(masks([1]), masks([0]))
    assert list(metrics.state()) == [4, 5]


def test_what_cannot_be_counted_is_refused_and_changes_nothing():
    one, three = Metrics(["car"]), Metrics(["background", "car", "wheel"])
    one.add(masks([1, 0]), masks([1, 1]), 3)
    before = one.summary()
    for refused, message in [
        (lambda: one.add(masks([1, 0]), masks([1, 0, 1])), "masks of (1, 2) and (1, 3) cannot be compared"),
        (lambda: one.add(masks([1]), masks([1]), 3), "image 3: is counted already"),
        (lambda: one.merge(Metrics.from_state(["car"], one.state())), "image 3: is counted already"),
        (lambda: one.merge(three), "metrics of ('background', 'car', 'wheel') and ('car',) cannot be merged"),
        (lambda: one.add(masks([2, 0]), masks([1, 0])), "label 2: has no class, expected 0 or 1"),
        (lambda: one.add(masks([1, 0]), masks([254, 0])), "label 254: has no class, expected 0 or 1"),
        (lambda: three.add(masks([3, 0]), masks([1, 0])), "label 3: has no class, expected 0 to 2"),
        (lambda: three.add(masks([1, 0]), masks([254, 0])), "label 254: has no class, expected 0 to 2"),
        (lambda: Metrics([]), "0 classes: expected 1 to 255"),
        (lambda: Metrics([str(index) for index in range(256)]), "256 classes: expected 1 to 255"),
    ]:
        with pytest.raises(ValueError) as caught:
            refused()
        assert str(caught.value) == message
    assert one.summary() == before and three.pixels == 0


def test_summary_names_90_classes_at_most():
    metrics = Metrics([f"class {index}" for index in range(255)])
    labels = np.arange(255, dtype=np.uint8)[None]
    assert metrics.add(labels, labels) == 1.0
    names = list(metrics.summary())
    assert names[4:] == [f"pixel_dice class {index}" for index in range(90)]


@pytest.mark.parametrize(
    ("classes", "predicted", "truth", "never", "always"),
    [
        (["car"], [0, 0, 0], [0, 1, 1], ("car",), None),
        (["car"], [1, 1, 1], [0, 1, 1], (), "car"),
        (["car"], [1, 1, 0], [1, 1, IGNORED], (), None),  # every pixel that counts, and rightly
        (["car"], [0, 0, 0], [0, 0, 0], (), None),
        (["car"], [1, 0, 0], [0, 1, 1], (), None),
        (["background", "car"], [0, 0, 0], [0, 1, 1], ("car",), "background"),
        (["background", "car", "bus"], [1, 1, 1], [0, 1, 1], ("background",), "car"),
        (["road", "car", "bus"], [0, 1, 1], [0, 1, 2], ("bus",), None),
        (["road", "car", "bus"], [0, 1, 2], [0, 1, 1], (), None),
    ],
)
def test_classes_that_are_predicted_nowhere_or_everywhere(classes, predicted, truth, never, always):
    metrics = Metrics(classes)
    assert (metrics.never_predicted, metrics.always_predicted) == ((), None)
    for pixel in zip(predicted, truth, strict=True):  # over all images, not in each
        metrics.add(*(masks([label]) for label in pixel))
    assert (metrics.never_predicted, metrics.always_predicted) == (never, always)


def test_a_metric_is_one_entry(monkeypatch):
    def recall(images):
        right, _, there = images.sum(axis=0)
        return right / there

    monkeypatch.setitem(METRICS, "recall", Metric(label="recall", of_class=recall))
    metrics = Metrics(["background", "car"])
    metrics.add(masks([0, 0, 1, 1]), masks([0, 1, 1, 1]))
    assert metrics.figure("recall") == metrics.summary()["recall"] == pytest.approx(2 / 3)
    assert list(metrics.summary())[:5] == ["accuracy", "image_dice", "pixel_dice", "iou", "recall"]
    assert [score.figures["recall"] for score in metrics.per_class()] == [1, pytest.approx(2 / 3)]
