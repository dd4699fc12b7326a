import math

import numpy as np
import pytest
import torch

from runtime.errors import ConfigError
from unet_core.data.labels import IGNORED
from unet_core.losses import loss_names, make_loss, near_boundary

EVERY_LOSS = [(name, classes) for classes in (1, 3) for name in loss_names(classes)]


def labels_of(*images):
    return torch.tensor(images, dtype=torch.uint8)


def random_batch(classes, images=3, size=(6, 7), seed=0):
    """Logits, and labels of which some are ignored; with several classes one is absent in the first image."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, *size, generator=random)
    labels = torch.randint(0, max(classes, 2), (images, *size), dtype=torch.uint8, generator=random)
    if classes > 1:
        labels[0][labels[0] == 1] = 0
    labels[torch.rand(images, *size, generator=random) < 0.2] = IGNORED
    return logits, labels


def loss_by_definition(name, logits, labels, weights=None):
    """The definitions pixel by pixel in float64."""
    logits, labels = logits.double().numpy(), labels.numpy()
    weights = np.ones(labels.shape) if weights is None else weights.numpy()
    measured = [1] if logits.shape[1] == 1 else None
    if measured:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)  # the softmax of (0, x) is the sigmoid of x
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    images = [
        sum(image_loss(term, *image, measured) for term in name.split("+"))
        for image in zip(probabilities, labels, weights, strict=True)
    ]
    return np.mean(images)


def image_loss(term, probability, truth, weights, measured):
    counted = truth != IGNORED
    if term == "dice":
        dices = [
            (2 * plane[truth == label].sum() + 1) / (plane[counted].sum() + (truth == label).sum() + 1)
            for label, plane in enumerate(probability)
            if (label in measured if measured else label in truth)
        ]
        return 1 - np.mean(dices)
    own = np.array([probability[truth[place]][place] for place in zip(*np.nonzero(counted), strict=True)])
    pixels = -np.log(own)
    if term == "focal":
        pixels *= (1 - own) ** 2
        if measured:
            pixels *= np.where(truth[counted] == 1, 0.25, 0.75)
    return np.average(pixels, weights=weights[counted])


@pytest.mark.parametrize(("name", "classes"), EVERY_LOSS)
def test_every_loss_is_its_definition(name, classes):
    logits, labels = random_batch(classes)
    expected = loss_by_definition(name, logits, labels)
    assert make_loss(name, classes)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("bce", 1, math.log(2)),
        ("ce", 4, math.log(4)),
        ("focal", 1, (0.25 + 3 * 0.75) / 4 * 0.25 * math.log(2)),
        ("focal", 4, 0.75**2 * math.log(4)),
        ("dice", 1, 1 - (2 * 0.5 + 1) / (2 + 1 + 1)),
        ("dice", 4, 1 - ((2 * 0.75 + 1) / (1 + 3 + 1) + (2 * 0.25 + 1) / (1 + 1 + 1)) / 2),  # two classes are absent
    ],
)
def test_logits_of_zero_by_hand(name, classes, expected):
    loss = make_loss(name, classes)(torch.zeros(1, classes, 2, 2), labels_of([[0, 1], [0, 0]]))
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "classes"), EVERY_LOSS)
def test_shards_weighted_by_their_images_give_the_loss_of_the_batch(name, classes):
    logits, labels = random_batch(classes, images=5)
    labels[1] = IGNORED
    loss = make_loss(name, classes, 0 if name == "dice" else 2)
    shards = 2 / 5 * loss(logits[:2], labels[:2]) + 3 / 5 * loss(logits[2:], labels[2:])
    assert shards.item() == pytest.approx(loss(logits, labels).item())


@pytest.mark.parametrize("boundary_weight", [0, 1])
@pytest.mark.parametrize(("name", "classes"), EVERY_LOSS)
def test_ignored_pixels_have_no_gradient_and_an_image_of_them_no_loss(name, classes, boundary_weight):
    logits, labels = random_batch(classes)
    labels[1] = IGNORED
    logits.requires_grad_()
    loss = make_loss(name, classes, 0 if name == "dice" else boundary_weight)
    loss(logits, labels).backward()
    silent = (logits.grad == 0).all(dim=1)
    assert torch.equal(silent, labels == IGNORED)
    assert loss(logits[1:2], labels[1:2]).item() == 0


@pytest.mark.parametrize(("name", "classes"), EVERY_LOSS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_gradients_of_extreme_logits_are_finite(name, classes, size):
    logits, labels = random_batch(classes)
    logits = (logits.sign() * size).requires_grad_()
    loss = make_loss(name, classes)(logits, labels)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize(("name", "classes"), EVERY_LOSS)
def test_half_precision_is_computed_in_single(name, classes):
    logits, labels = random_batch(classes)
    half, loss = logits.bfloat16(), make_loss(name, classes)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(half, labels)
    assert found.dtype == torch.float32
    assert found == loss(half.float(), labels)


def test_dice_of_several_classes_leaves_absent_ones_out_but_not_the_probability_they_take():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, 4:] = 2
    right = (
        20 * torch.nn.functional.one_hot(labels.long(), 3).permute(0, 3, 1, 2).float()
    )  # [n, h, w, c] -> [n, c, h, w]
    dice = make_loss("dice", 3)
    assert dice(right, labels).item() == pytest.approx(0, abs=1e-6)
    stolen = right.clone()
    stolen[:, 1, :4] = 40  # all of class 0 is taken for the absent class 1
    assert dice(stolen, labels).item() == pytest.approx((1 - 1 / (32 + 1)) / 2)


def near_by_definition(labels, reach):
    """Neighbourhood by neighbourhood."""
    height, width = labels.shape
    near = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            window = labels[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            near[y, x] = len(set(window.flatten().tolist()) - {IGNORED}) > 1
    return near


@pytest.mark.parametrize(
    ("size", "reach"),
    [((1, 1), 1), ((2, 9), 1), ((35, 36), 1), ((36, 40), 1), ((50, 64), 2), ((64, 90), 2), ((89, 84), 3)],
)
def test_pixels_near_a_boundary_by_definition(size, reach):
    random = np.random.default_rng(1)
    labels = np.full((2, *size), 254, np.uint8)  # the highest index there can be
    for label in (0, 7, IGNORED, IGNORED, IGNORED):
        for image in labels:
            top, left = random.integers(0, size)
            image[top : top + max(2, size[0] // 5), left : left + max(2, size[1] // 5)] = label
    expected = np.stack([near_by_definition(image, reach) for image in labels])
    assert np.array_equal(near_boundary(torch.from_numpy(labels)).numpy(), expected)
    assert size == (1, 1) or 0 < expected.mean() < 1


def test_ignored_pixels_make_no_boundary():
    assert not near_boundary(labels_of([[0, IGNORED, 0], [IGNORED, IGNORED, 0]])).any()


@pytest.mark.parametrize(("name", "classes"), [(name, n) for name, n in EVERY_LOSS if name != "dice"])
def test_pixels_near_a_boundary_count_more(name, classes):
    logits, labels = random_batch(classes, size=(5, 20))
    labels[:, :, 7:] = 0
    labels[0, :, 12:] = IGNORED
    weights = 1 + 1.5 * near_boundary(labels).double()
    assert set(weights.flatten().tolist()) == {1, 2.5}
    expected = loss_by_definition(name, logits, labels, weights)
    assert make_loss(name, classes, 1.5)(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert make_loss(name, classes)(logits, labels).item() != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("bce", 1, (0.5 + 2 + 0.5) / 3 * math.log(2)),
        ("ce", 3, (0.5 + 2 + 0.5) / 3 * math.log(3)),
        ("focal", 1, (0.5 * 0.75 + 2 * 0.25 + 0.5 * 0.75) / 3 * 0.25 * math.log(2)),
        ("focal", 3, (0.5 + 2 + 0.5) / 3 * (2 / 3) ** 2 * math.log(3)),
    ],
)
def test_pixels_count_as_much_as_their_class_weighs(name, classes, expected):
    """The mean is over the pixels, not over the weights: alone in its image, a class still has its weight."""
    weights = (0.5, 2.0, 1.0)[: max(2, classes)]
    loss = make_loss(name, classes, class_weights=weights)
    labels = labels_of([[0, 1], [0, IGNORED]])
    assert loss(torch.zeros(1, classes, 2, 2), labels).item() == pytest.approx(expected)
    alone, plain = labels_of([[1, IGNORED]]), make_loss(name, classes)
    logits = torch.zeros(1, classes, 1, 2)
    assert loss(logits, alone).item() == pytest.approx(2 * plain(logits, alone).item())
    with_dice = make_loss("bce+dice" if classes == 1 else "ce+dice", classes, class_weights=weights)
    dice = make_loss("dice", classes)
    if name != "focal":
        assert with_dice(logits, alone).item() == pytest.approx((loss(logits, alone) + dice(logits, alone)).item())


def test_weights_of_classes_and_of_boundaries_multiply():
    """A column of each label in a window of 3 is near the boundary, where pixels count 3 times."""
    labels = labels_of([[0, 0, 0, 1]] * 2)
    near = [1, 3, 3 * 2]  # 0 far from it, 0 near it, 1 near it with its weight; the first two columns are far
    loss = make_loss("bce", 1, 2.0, (1.0, 2.0))(torch.zeros(1, 1, 2, 4), labels)
    assert loss.item() == pytest.approx((2 * near[0] + near[1] + near[2]) / (2 * 1 + 3 + 3) * math.log(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("ce", 1), "--loss ce: is for several classes, expected one of bce, dice, bce+dice, focal for one"),
        (("bce", 3), "--loss bce: is for one class, expected one of ce, dice, ce+dice, focal for several"),
        (("hinge", 2), "--loss hinge: is unknown, expected one of ce, dice, ce+dice, focal for several"),
        (("bce", 1, -0.5), "--boundary-weight -0.5: expected a number of at least 0"),
        (("bce", 1, math.nan), "--boundary-weight nan: expected a number of at least 0"),
        (("dice", 1, 2.0), "--boundary-weight 2.0: has no effect on --loss dice; leave one of them out"),
    ],
)
def test_settings_that_do_not_suit_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        make_loss(*settings)
    assert str(caught.value) == message
