import os

import numpy as np
import pytest
import torch
from folders import write_pair
from PIL import Image
from torch.utils.data import DataLoader

from runtime.card import InputSpec
from runtime.errors import DataError, ImageError
from runtime.image import fit
from unet_core.data import (
    EpochSampler,
    EvaluationSet,
    TrainingSet,
    batches_of,
    check_pairs,
    checked_pairs,
    collate_evaluation,
    find_pairs,
    fingerprint,
    fit_truth,
    load_truth,
)

SPEC = InputSpec(size=(32, 48))


@pytest.mark.parametrize("suffix", ["_mask.gif", ".gif", "_mask.png", ".png"])
def test_masks_are_found_by_both_names(tmp_path, suffix):
    mask = write_pair(tmp_path, "train", "a", mask_suffix=suffix)
    (pair,) = find_pairs(tmp_path, "train")
    assert (pair.name, pair.mask.name) == ("a", f"a{suffix}")
    assert np.array_equal(load_truth(pair.mask), mask)


@pytest.mark.parametrize(
    ("suffix", "foreground"), [("_mask.gif", 255), ("_mask.gif", 1), ("_mask.png", 1), (".png", 255)]
)
def test_masks_of_0_255_and_0_1_mean_the_same(tmp_path, suffix, foreground):
    mask = write_pair(tmp_path, "train", "a", mask_suffix=suffix, foreground=foreground)
    assert np.array_equal(load_truth(find_pairs(tmp_path, "train")[0].mask), mask)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_uniform_masks_are_empty_or_full(tmp_path, value):
    path = tmp_path / "m.png"
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)
    assert (load_truth(path) == (value > 0)).all()


@pytest.mark.parametrize("values", [(0, 1, 255), (0, 128), (0, 2), (3, 7, 9)])
def test_odd_mask_values_are_named(tmp_path, values):
    path = tmp_path / "m.png"
    Image.fromarray(np.resize(np.array(values, np.uint8), (4, 6))).save(path)
    shown = ", ".join(map(str, values))
    with pytest.raises(ImageError) as caught:
        load_truth(path)
    assert str(caught.value) == f"{path}: has the mask values {shown}, expected 0 and 255, or 0 and 1"


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="train_images: no such folder; expected train_images, train_masks"):
        find_pairs(tmp_path, "train")
    (tmp_path / "val_images").mkdir()
    (tmp_path / "val_masks").mkdir()
    with pytest.raises(DataError, match=r"val_images: no images in this folder; expected \.jpg or \.png"):
        find_pairs(tmp_path, "val")


def test_images_without_masks_are_all_counted_and_ten_listed(tmp_path):
    for index in range(12):
        write_pair(tmp_path, "train", f"n{index:02}")
        (tmp_path / "train_masks" / f"n{index:02}_mask.gif").unlink()
    write_pair(tmp_path, "train", "good")
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path, "train")
    message = str(caught.value)
    assert message.startswith("12 of 13 pairs cannot be used, mend or remove them: ")
    expected = f"expected {tmp_path / 'train_masks' / 'n00'}_mask.gif or n00.png"
    assert f"{tmp_path / 'train_images' / 'n00.jpg'}: found no mask, {expected}; " in message
    assert message.count("found no mask") == 10
    assert message.endswith("; and 2 more")


def test_two_masks_or_two_images_of_one_name_are_refused(tmp_path):
    write_pair(tmp_path, "train", "a")
    write_pair(tmp_path, "train", "a", mask_suffix=".png")
    with pytest.raises(DataError, match=r"a\.jpg: found the masks a_mask\.gif, a\.png, expected "):
        find_pairs(tmp_path, "train")
    (tmp_path / "train_masks" / "a.png").unlink()
    Image.new("RGB", (48, 32)).save(tmp_path / "train_images" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg: another image has the same name"):
        find_pairs(tmp_path, "train")


def test_check_lists_every_kind_of_offender(data):
    images, masks = data / "train_images", data / "train_masks"
    whole = (images / "car0.jpg").read_bytes()
    (images / "car0.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "car1.jpg").write_text("not an image")
    Image.new("L", (20, 10)).save(masks / "car2_mask.gif")
    Image.fromarray(np.arange(32 * 48, dtype=np.uint8).reshape(32, 48)).save(masks / "car3_mask.gif")
    with pytest.raises(DataError) as caught:
        check_pairs(find_pairs(data, "train"))
    message = str(caught.value)
    assert message.startswith("4 of 6 pairs cannot be used, mend or remove them: ")
    assert "car0.jpg: is damaged or cut off" in message
    assert "car1.jpg: is not an image of a known format" in message
    assert "car2_mask.gif: is 20x10, expected 48x32 as car2.jpg" in message
    assert "car3_mask.gif: has the mask values 0, 1, 2, 3, 4, 5, ..." in message


def test_both_splits_and_both_checks_are_told_at_once(data):
    (data / "train_masks" / "car0_mask.gif").unlink()
    (data / "val_masks" / "val0_mask.gif").unlink()
    Image.effect_noise((48, 32), 90).save(data / "train_masks" / "car1_mask.gif")
    with pytest.raises(DataError) as caught:
        checked_pairs(data)
    message = str(caught.value)
    assert message.startswith("3 of 9 pairs cannot be used")
    for part in ("car0.jpg: found no mask", "val0.jpg: found no mask", "car1_mask.gif: has the mask values"):
        assert part in message


def test_good_pairs_pass_the_check(data):
    check_pairs(find_pairs(data, "train"))
    assert checked_pairs(data) == (find_pairs(data, "train"), find_pairs(data, "val"))


def test_truth_follows_its_image_into_the_letterbox():
    image, mask = np.zeros((10, 40, 3), np.uint8), np.ones((10, 40), np.uint8)
    fitted = fit(image, InputSpec(size=(32, 48), fit="letterbox"))
    truth = fit_truth(mask, fitted)
    assert (fitted.top, fitted.height) == (10, 12)
    assert truth[10:22].all()
    assert truth.sum() == 12 * 48


def test_truth_is_the_majority_of_each_area():
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.uint8)
    fitted = fit(np.zeros((2, 4, 3), np.uint8), InputSpec(size=(1, 2), stride=2))
    assert fit_truth(mask, fitted).tolist() == [[1, 0]]


def test_items_are_uint8_images_and_binary_targets(data):
    image, target = TrainingSet(find_pairs(data, "train"), SPEC, seed=0)[1, 0]
    assert (image.shape, image.dtype) == ((32, 48, 3), torch.uint8)
    assert (target.shape, target.dtype) == ((1, 32, 48), torch.float32)
    assert set(target.unique().tolist()) == {0.0, 1.0}


def test_image_and_target_are_turned_together(data):
    """The rectangle is bright, so wherever augmentation moved it, brightness still tells the target."""
    for epoch in range(1, 8):
        image, target = TrainingSet(find_pairs(data, "train"), SPEC, seed=0)[epoch, 0]
        bright = (image.float().mean(dim=2) > 115).float()
        assert (bright == target[0]).float().mean() > 0.97


def batches(data, workers, epoch, seed=3):
    pairs = find_pairs(data, "train")
    sampler = EpochSampler(len(pairs), seed)
    sampler.epoch = epoch
    loader = DataLoader(TrainingSet(pairs, SPEC, seed), 4, sampler=sampler, num_workers=workers)
    return [torch.cat([images.float().flatten(1), targets.flatten(1)], dim=1) for images, targets in loader]


def test_batches_repeat_whatever_the_number_of_workers(data):
    alone = batches(data, 0, epoch=1)
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(alone, batches(data, workers, epoch=1), strict=True))


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(data):
    pairs = find_pairs(data, "train")
    same_picture = [TrainingSet(pairs, SPEC, seed)[epoch, 0][0] for seed, epoch in ((0, 1), (0, 2), (1, 1))]
    assert not torch.equal(same_picture[0], same_picture[1])
    assert not torch.equal(same_picture[0], same_picture[2])
    sampler = EpochSampler(50, seed=0)
    first = list(sampler)
    sampler.epoch = 2
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {2}
    assert sorted(index for _, index in first) == sorted(index for _, index in second) == list(range(50))
    assert [index for _, index in first] != [index for _, index in second]


def test_evaluation_keeps_the_original_size(data):
    loader = DataLoader(
        EvaluationSet(find_pairs(data, "val"), InputSpec(size=(16, 16))), 3, collate_fn=collate_evaluation
    )
    ((images, fitted, truths),) = list(loader)
    assert images.shape == (3, 16, 16, 3)
    assert [item.original for item in fitted] == [(32, 48)] * 3
    assert [truth.shape for truth in truths] == [(32, 48)] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_loading_process_keeps_its_one_line(data, workers):
    pairs = find_pairs(data, "train")
    pairs[4].image.unlink()
    loader = DataLoader(TrainingSet(pairs, SPEC, 0), 2, sampler=EpochSampler(6, 0), num_workers=workers)
    with pytest.raises(ImageError) as caught:
        list(batches_of(loader))
    assert str(caught.value) == f"{pairs[4].image}: no such file"


def test_fingerprint_sees_names_and_sizes_not_places(data, tmp_path):
    def found(folder):
        return fingerprint(find_pairs(folder, "train"), find_pairs(folder, "val"))

    before = found(data)
    assert before.startswith("6 training and 3 validation pairs, sha256 ")
    data.rename(tmp_path / "moved")
    assert found(tmp_path / "moved") == before
    write_pair(tmp_path / "moved", "val", "val0", size=(32, 52))
    assert found(tmp_path / "moved") != before


def test_names_of_any_bytes_have_a_fingerprint(tmp_path):
    folder = tmp_path / "data"
    write_pair(folder, "train", "a")
    odd = os.fsdecode(b"one\xff")
    (folder / "train_images" / "a.jpg").rename(folder / "train_images" / f"{odd}.jpg")
    (folder / "train_masks" / "a_mask.gif").rename(folder / "train_masks" / f"{odd}_mask.gif")
    assert fingerprint(find_pairs(folder, "train"), []).startswith("1 training")
