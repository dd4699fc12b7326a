"""The batches that the network is fed: the same for the same seed, image and labels always together."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from runtime.card import InputSpec
from runtime.image import Fitted, fit, load_image, place
from unet_core.data.augmentation import augmentation
from unet_core.data.crops import crop
from unet_core.data.dataset import (
    EpochBatches,
    EvaluationSet,
    TrainingSet,
    collate_evaluation,
)
from unet_core.data.labels import IGNORED, LabelSpec
from unet_core.data.pairs import Pair, find_pairs
from unet_core.data.records import Records, SampleDecoder
from unet_core.data.workers import quiet_worker

SIZE = (32, 48)
CAR = LabelSpec(classes=("car",))
SEVERAL = LabelSpec(classes=("road", "car", "sky", "tree"), ignore_index=9)
GREYS = np.array([10, 80, 150, 220], np.uint8)


def decoder(how="stretch", channels="RGB", labels=CAR, size=SIZE, **options):
    count = len(channels)
    spec = InputSpec(size=size, fit=how, channels=channels, mean=(0.5,) * count, std=(0.2,) * count)
    return SampleDecoder(input=spec, labels=labels, **options)


@pytest.fixture
def records(data):
    return Records(find_pairs(data, "train"), decoder())


@pytest.fixture
def painted(tmp_path):
    """Pairs whose image shows its own labels: a grey for each class, and class 3 where pixels do not count."""
    pairs = []
    for index in range(3):
        random = np.random.default_rng(index)
        labels = np.kron(random.integers(0, 4, (5, 6)), np.ones((24, 24))).astype(np.uint8)
        mask = labels.copy()
        mask[labels == 3] = 9
        pairs.append(Pair(image=tmp_path / f"{index}.png", mask=tmp_path / f"{index}_mask.png"))
        Image.fromarray(np.dstack([GREYS[labels]] * 3)).save(pairs[-1].image)
        Image.fromarray(mask).save(pairs[-1].mask)
    return pairs


def loaded(records, *, workers=0, epoch=1, seed=3, batch_size=4, augment="strong"):
    """The batches of an epoch, each as one tensor; of 0 workers for comparison too."""
    batches = EpochBatches(len(records), batch_size, seed)
    batches.epoch = epoch
    loader = DataLoader(
        TrainingSet(records, seed=seed, augment=augment),
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=quiet_worker,
    )
    assert len(loader) == len(batches)
    return [torch.cat([images, labels[..., None]], dim=3) for images, labels in loader]


def test_items_are_uint8_images_and_labels(records):
    image, labels = TrainingSet(records, seed=0)[1, 0]
    assert (image.shape, image.dtype) == ((*SIZE, 3), torch.uint8)
    assert (labels.shape, labels.dtype) == (SIZE, torch.uint8)
    assert labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize("augment", ["basic", "strong"])
def test_batches_repeat_whatever_the_number_of_workers(records, augment):
    alone = loaded(records, augment=augment)
    assert [batch.shape for batch in alone] == [(4, *SIZE, 4), (2, *SIZE, 4)]
    for workers in (0, 1, 2):
        for first, second in zip(alone, loaded(records, workers=workers, augment=augment), strict=True):
            assert torch.equal(first, second)


def test_crops_repeat_whatever_the_number_of_workers(data):
    records = Records(find_pairs(data, "train"), decoder("native", size=(16, 24)))
    alone = loaded(records, augment="off")
    for first, second in zip(alone, loaded(records, workers=2, augment="off"), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(torch.cat(alone).sum(), torch.cat(loaded(records, epoch=2, augment="off")).sum())


def test_epochs_seeds_and_images_are_augmented_differently(records):
    pairs = records.pairs
    twins = Records([pairs[0], pairs[0]], records.decoder)
    drawn = [
        TrainingSet(twins, seed=seed)[key][0] for seed, key in ((0, (1, 0)), (0, (2, 0)), (1, (1, 0)), (0, (1, 1)))
    ]
    for other in drawn[1:]:
        assert (drawn[0] != other).float().mean() > 0.5
    assert torch.equal(drawn[0], TrainingSet(twins, seed=0)[1, 0][0])
    again = pickle.loads(pickle.dumps(TrainingSet(twins, seed=0)))
    again[7, 1]
    assert torch.equal(drawn[0], again[1, 0][0])


def test_off_gives_pictures_as_they_are(records):
    image, labels = TrainingSet(records, seed=0, augment="off")[3, 2]
    expected = records[2]
    assert np.array_equal(image, expected[0]) and np.array_equal(labels, expected[1])


@pytest.mark.parametrize("channels", ["RGB", "L"])
@pytest.mark.parametrize("augment", ["basic", "strong"])
def test_labels_follow_the_image(painted, augment, channels):
    """Every class has its grey, and brightness keeps their order: the middle of each class tells what is where."""
    training = TrainingSet(Records(painted, decoder("native", channels, SEVERAL, (120, 144))), seed=0, augment=augment)
    moved, counted = 0, 0
    for epoch in range(1, 13):
        for index in range(3):
            image, labels = training[epoch, index]
            assert image.shape == (120, 144, len(channels))
            grey, labels = image.numpy().mean(axis=2), labels.numpy()
            assert set(np.unique(labels)) <= {0, 1, 2, IGNORED}
            greys = [np.median(grey[labels == label]) for label in (0, 1, 2, IGNORED)]
            assert greys == sorted(greys)
            nearest = np.abs(grey[:, :, None] - greys).argmin(axis=2)
            assert (np.array([0, 1, 2, IGNORED])[nearest] == labels).mean() > 0.93
            moved += (labels != training.records[index][1]).mean()
            counted += (labels == IGNORED).mean()
    assert moved / 36 > 0.4
    assert 0.15 < counted / 36 < 0.4  # about a quarter of the pixels do not count


def test_basic_leaves_colours_alone_and_mirrors_the_border():
    transform = augmentation("basic")
    image = np.zeros((40, 60, 3), np.uint8) + np.array([9, 90, 200], np.uint8)
    for seed in range(5):
        transform.set_random_seed(seed)
        changed = transform(image=image, mask=np.ones((40, 60), np.uint8))
        assert np.array_equal(changed["image"], image)
        assert changed["mask"].all()


def test_strong_changes_brightness_and_colour_but_no_labels_value():
    transform = augmentation("strong")
    image = np.zeros((40, 60, 3), np.uint8) + np.array([60, 90, 160], np.uint8)
    means = []
    for seed in range(40):
        transform.set_random_seed(seed)
        changed = transform(image=image, mask=np.full((40, 60), IGNORED, np.uint8))
        assert (changed["mask"] == IGNORED).all()
        means.append(changed["image"].mean(axis=(0, 1)))
    assert (np.std(means, axis=0) > 10).all()
    ratio = np.array(means)[:, 0] / np.array(means)[:, 2]
    assert ratio.max() - ratio.min() > 0.1


def drawn(batches):
    return [index for batch in batches for _, index in batch]


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    batches = EpochBatches(50, 8, seed=0)
    first = list(batches)
    assert [len(batch) for batch in first] == [8] * 6 + [2] and len(batches) == 7
    assert {epoch for batch in first for epoch, _ in batch} == {1}
    assert drawn(first) == drawn(list(batches)) == batches.order().tolist()
    batches.epoch = 2
    assert {epoch for batch in batches for epoch, _ in batch} == {2}
    orders = [drawn(first), drawn(batches), drawn(EpochBatches(50, 8, seed=1))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_of_an_epoch_and_its_first_picture_are_drawn_apart(painted):
    """Numpy fills up short seeds with zeros: (seed, epoch) and (seed, epoch, 0) are one stream."""
    records = Records(painted, decoder("native", labels=SEVERAL, size=(16, 24)))
    for seed in range(5):
        item = TrainingSet(records, seed=seed, augment="off", foreground_share=1.0)[1, 0][1]
        random = np.random.default_rng((seed, 1))
        assert not np.array_equal(item, crop(*records[0], (16, 24), random, 1.0)[1])


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 12, 13])
def test_processes_share_every_batch_without_doubles(processes, length):
    parts = [EpochBatches(length, 4, seed=5, rank=rank, processes=processes) for rank in range(processes)]
    counted = []
    for step, batches in enumerate(zip(*parts, strict=True)):
        shares = [part.share(4 * step) for part in parts]
        assert {whole for _, whole in shares} == {sum(own for own, _ in shares)} == {min(4, length - 4 * step)}
        assert all(batches)  # a process without a share takes part nevertheless
        counted.append(
            sorted(index for batch, (own, _) in zip(batches, shares, strict=True) for _, index in batch[:own])
        )
        assert all(len(batch) == max(own, 1) for batch, (own, _) in zip(batches, shares, strict=True))
    order = parts[0].order()
    assert counted == [sorted(order[start : start + 4].tolist()) for start in range(0, length, 4)]
    assert {len(part) for part in parts} == {len(counted)}


@pytest.mark.parametrize("batch_size", [4, 3, 50])
def test_an_epoch_goes_on_from_a_position_in_the_same_order(batch_size):
    whole = EpochBatches(21, 4, seed=5)
    rest = EpochBatches(21, batch_size, seed=5)
    whole.epoch = rest.epoch = 3
    rest.position = 8
    assert drawn(rest) == drawn(whole)[8:]
    assert len(rest) == len(list(rest)) == -(-13 // batch_size)
    rest.position = 21
    assert (len(rest), list(rest)) == (0, [])


@pytest.mark.parametrize("how", ["stretch", "letterbox"])
def test_evaluation_gives_pictures_as_the_runtime_sees_them_and_truths_of_their_size(data, how):
    pairs = find_pairs(data, "val")
    records = Records(pairs, decoder(how, size=(16, 16), truth_at_original=True))
    loader = DataLoader(EvaluationSet(records, [2, 0]), 3, collate_fn=collate_evaluation)
    ((fitted, truths),) = list(loader)
    for index, way_back, truth in zip((2, 0), fitted, truths, strict=True):
        image = way_back.image
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
        expected = fit(load_image(pairs[index].image), records.decoder.input)
        assert np.array_equal(image, expected.image)
        assert place(image, way_back.original, records.decoder.input).top == expected.top == way_back.top
        assert (way_back.height, way_back.original) == (expected.height, (32, 48))
        assert truth.shape == (32, 48) and set(np.unique(truth)) == {0, 1}


def test_truths_of_the_fitted_size_are_measured_on_the_whole_canvas(data):
    records = Records(find_pairs(data, "val"), decoder("letterbox", size=(16, 16)))
    fitted, truth = EvaluationSet(records, [1])[0]
    assert fitted == Fitted(image=fitted.image, top=0, left=0, height=16, width=16, original=(16, 16))
    assert np.array_equal(fitted.image, records[1][0])
    assert (truth[:2] == IGNORED).all() and (truth[-3:] == IGNORED).all() and (truth[3:13] != IGNORED).all()


def test_pictures_of_their_own_size_come_one_by_one(painted):
    records = Records(painted, decoder("native", labels=SEVERAL, truth_at_original=True))
    fitted, truths = collate_evaluation([EvaluationSet(records, [1])[0]])
    assert fitted[0].image.shape == (120, 144, 3)
    assert (fitted[0].original, truths[0].shape) == ((120, 144), (120, 144))
