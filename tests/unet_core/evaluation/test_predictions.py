"""Answers for sets of images: the same as one by one, whatever the batches, at the size at which they are measured."""

import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import write_pair
from measuring import labels_by_hand, metrics_by_hand, probability_by_hand, write_model
from PIL import Image

from runtime.card import OutputSpec
from runtime.errors import ImageError
from runtime.image import fit, load_image
from unet_core.data.labels import LabelSpec, load_truth
from unet_core.data.pairs import Pair, find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluation.predictions import (
    checkpoint_predictions,
    compute_metrics,
    onnx_predictions,
)
from unet_core.model import Segmenter

SIZES = [(32, 48), (40, 90), (21, 30), (57, 31)]


@pytest.fixture
def pairs(tmp_path):
    """Four pairs of different sizes."""
    for index, size in enumerate(SIZES):
        write_pair(tmp_path / "data", "val", f"v{index}", size=size, seed=index)
    return find_pairs(tmp_path / "data", "val")


@pytest.fixture
def model(pairs, tmp_path):
    """A network and its card, with pictures brought to 32x48 in one way or another."""
    return lambda **config: write_model(tmp_path / "m.pth", [pair.image for pair in pairs], **config)


def records_of(pairs, card, original=True):
    labels = LabelSpec(classes=card.output.classes)
    return Records(pairs, SampleDecoder(input=card.input, labels=labels, truth_at_original=original))


FITS = pytest.mark.parametrize("how", ["stretch", "letterbox", "native"])


@FITS
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_answers_are_those_of_one_image_after_the_other(pairs, model, how, batch_size, workers):
    network, card = model(fit=how)
    records = records_of(pairs, card)
    answers = checkpoint_predictions(Segmenter(network, card), card, records, batch_size=batch_size, workers=workers)
    seen = []
    for index, probability, truth in answers:
        seen.append(index)
        assert probability.dtype == np.float32 and probability.shape == (1, *SIZES[index])
        np.testing.assert_allclose(probability, probability_by_hand(network, card, pairs[index].image), atol=2e-6)
        assert np.array_equal(truth, load_truth(pairs[index].mask, LabelSpec(classes=("car",))))
    assert seen == [0, 1, 2, 3]


@FITS
def test_metrics_are_those_by_hand_and_do_not_depend_on_batches(pairs, model, how):
    network, card = model(fit=how)
    answers = [
        (
            labels_by_hand(probability_by_hand(network, card, pair.image)),
            load_truth(pair.mask, LabelSpec(classes=("car",))),
        )
        for pair in pairs
    ]
    segmenter, records = Segmenter(network, card), records_of(pairs, card)
    for batch_size in (1, 3):
        metrics = compute_metrics(checkpoint_predictions(segmenter, card, records, batch_size=batch_size), card)
        assert metrics.summary() == pytest.approx(metrics_by_hand(answers, [1]))


def test_several_classes_and_grey_pictures(pairs, model, tmp_path):
    network, card = model(classes=3, in_channels=1)
    random = np.random.default_rng(0)
    for pair, (height, width) in zip(pairs, SIZES, strict=True):
        truth = np.kron(random.integers(0, 3, (4, 4)), np.ones((15, 23))).astype(np.uint8)[:height, :width]
        Image.fromarray(truth).save(pair.mask.with_suffix(".png"))
    pairs = [Pair(image=pair.image, mask=pair.mask.with_suffix(".png")) for pair in pairs]
    found = compute_metrics(
        checkpoint_predictions(Segmenter(network, card), card, records_of(pairs, card), batch_size=2), card
    )
    answers = [
        (labels_by_hand(probability_by_hand(network, card, pair.image)), np.asarray(Image.open(pair.mask)))
        for pair in pairs
    ]
    expected = metrics_by_hand(answers, [0, 1, 2])
    assert {name: value for name, value in found.summary().items() if " " not in name} == pytest.approx(expected)


def test_only_the_images_asked_for_and_by_their_own_index(pairs, model):
    network, card = model()
    answers = list(
        checkpoint_predictions(Segmenter(network, card), card, records_of(pairs, card), [3, 1], batch_size=2)
    )
    assert [(index, truth.shape) for index, _, truth in answers] == [(3, SIZES[3]), (1, SIZES[1])]
    assert list(checkpoint_predictions(Segmenter(network, card), card, records_of(pairs, card), [], workers=2)) == []


@FITS
def test_truth_at_the_trained_size_is_measured_there(pairs, model, how):
    network, card = model(fit=how)
    segmenter = Segmenter(network, card)
    for index, probability, truth in checkpoint_predictions(
        segmenter, card, records_of(pairs, card, False), batch_size=2
    ):
        fitted = fit(load_image(pairs[index].image), card.input)
        assert (
            probability.shape[1:]
            == truth.shape
            == fitted.image.shape[:2]
            == (SIZES[index] if how == "native" else (32, 48))
        )
        with torch.inference_mode():
            expected = segmenter.eval()(torch.from_numpy(fitted.image)[None]).numpy()[0]
        np.testing.assert_allclose(probability, expected, atol=2e-6)
        inside = np.zeros(truth.shape, bool)
        inside[fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width] = True
        assert np.array_equal(truth != 255, inside)


@pytest.mark.parametrize("abandoned", [False, True])
def test_every_module_is_left_in_the_mode_it_was_in(pairs, model, abandoned):
    network, card = model()
    segmenter = Segmenter(network, card).train()
    network.bottleneck.eval()
    before = [module.training for module in segmenter.modules()]
    answers = checkpoint_predictions(segmenter, card, records_of(pairs, card))
    next(answers)
    assert not any(module.training for module in segmenter.modules())
    answers.close() if abandoned else list(answers)
    assert [module.training for module in segmenter.modules()] == before
    assert len(set(before)) == 2


def test_no_more_workers_than_batches(pairs, model):
    network, card = model()
    before = len(multiprocessing.active_children())
    answers = checkpoint_predictions(
        Segmenter(network, card), card, records_of(pairs[:3], card), batch_size=2, workers=8
    )
    next(answers)
    assert len(multiprocessing.active_children()) - before == 2
    answers.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mask_of_another_size_is_never_measured(pairs, model, workers):
    network, card = model()
    Image.new("L", (20, 10)).save(pairs[1].mask)
    predictions = checkpoint_predictions(Segmenter(network, card), card, records_of(pairs, card), workers=workers)
    with pytest.raises(ImageError) as error:
        compute_metrics(predictions, card)
    assert str(error.value) == f"{pairs[1].mask}: differs in size from its image (20x10, expected 90x40)"


def test_an_exported_model_is_asked_as_an_application_asks_it(pairs, card):
    def predict(path, limits):
        height, width = load_image(path).shape[:2]
        probability = np.full((1, height, width), pairs.index(Pair(image=path, mask=masks[path])) / 8, np.float32)
        return SimpleNamespace(shape=(height, width), probability=probability)

    pairs[2] = Pair(image=pairs[2].image)
    masks = {pair.image: pair.mask for pair in pairs}
    answers = list(onnx_predictions(SimpleNamespace(predict=predict), records_of(pairs, card)))
    assert [(index, float(probability.max())) for index, probability, _ in answers] == [(n, n / 8) for n in range(4)]
    for index, _, truth in answers:
        expected = np.full(SIZES[2], 255) if index == 2 else load_truth(pairs[index].mask, LabelSpec(classes=("car",)))
        assert np.array_equal(truth, expected)


def test_measuring_obeys_the_cards_threshold_and_tells_of_every_image(card):
    output = OutputSpec(threshold=0.75)
    truth = np.array([[1, 1, 0, 255]], np.uint8)
    told = []
    metrics = compute_metrics(
        iter(
            [
                (5, np.array([[[0.75, 0.8, 0.9, 1.0]]], np.float32), truth),
                (2, np.zeros((1, 1, 4), np.float32), truth * 0),
            ]
        ),
        replace(card, output=output),
        lambda *of_image: told.append(of_image),
    )
    assert [(index, predicted.tolist(), dice) for index, predicted, _, dice in told] == [
        (5, [[0, 1, 1, 1]], 0.5),
        (2, [[0, 0, 0, 0]], 1.0),
    ]
    assert told[0][2] is truth
    assert metrics.state().keys() == {5, 2}
    assert metrics.summary() == pytest.approx({"accuracy": 5 / 7, "image_dice": 0.75, "pixel_dice": 0.5, "iou": 1 / 3})
