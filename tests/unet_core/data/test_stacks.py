"""Stacks of images and masks are expanded page by page; masks with a page for each class; all others are refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from runtime.card import InputSpec
from runtime.errors import DataError, ImageError
from runtime.image import load_image
from unet_core.data.cache import check_and_cache
from unet_core.data.faults import shared_images
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import Layout, Pair, find_pairs, find_splits, fingerprint, pair_up
from unet_core.data.records import Records, SampleDecoder
from unet_core.evaluate import evaluate, main
from unet_core.train import train

CAR = LabelSpec(classes=("car",))
THREE = LabelSpec(classes=("sky", "road", "car"))


def slices(pages, seed=0):
    """Pictures [pages, 32, 48], and their masks of 0 and 255."""
    images = np.random.default_rng(seed).integers(0, 256, (pages, 32, 48), dtype=np.uint8)
    return images, np.where(images > 99, 255, 0).astype(np.uint8)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack")
    return path


def write_stack(data, split, name, pages, seed=0):
    """Write a stack and its masks, as ISBI's train-volume.tif and train-labels.tif."""
    images, masks = slices(pages, seed)
    write(data / f"{split}_images" / f"{name}.tif", images)
    write(data / f"{split}_masks" / f"{name}.tif", masks)
    return images, masks


@pytest.fixture
def stacks(tmp_path):
    data = tmp_path / "stacks"
    write_stack(data, "train", "volume", 6)
    write_stack(data, "val", "other", 3, seed=1)
    return data


def faults(data):
    """The line about pairs that cannot be used."""
    train_pairs, val_pairs = find_splits(data)
    decoder = SampleDecoder(input=InputSpec(size=(32, 48)), labels=CAR)
    with pytest.raises(DataError) as caught:
        check_and_cache((Records([*train_pairs, *val_pairs], decoder),), None, lambda _: None, pytest.fail)
    return str(caught.value).partition("fix or remove them: ")[2]


def test_stacks_of_images_and_masks_are_expanded_page_by_page(stacks):
    images, masks = slices(6)
    pairs = find_pairs(stacks, "train")
    assert [pair.name for pair in pairs] == [f"volume_{number:03}" for number in range(1, 7)]
    for page, pair in enumerate(pairs):
        assert np.array_equal(load_image(pair.source(pair.image), "L")[:, :, 0], images[page])
        assert np.array_equal(pair.truth(CAR) * 255, masks[page])
    assert pairs[1].label == "volume.tif, page 2"


def test_a_run_trains_and_evaluates_on_all_pages(config, stacks, capsys):
    best = train(replace(config, data=str(stacks), channels="L"))
    said = capsys.readouterr().out
    assert "6 training and 3 validation images" in said
    assert {path.name[3:] for path in (best.parent / "saved_images").iterdir()} == {
        f"other_{number:03}.png" for number in (1, 2, 3)
    }
    pairs = find_pairs(stacks, "val")
    measured = evaluate(best, pairs, device="cpu")
    files = stacks.parent / "files"
    for page, (image, mask) in enumerate(zip(*slices(3, seed=1), strict=True)):
        write(files / "val_images" / f"{page}.tif", image)
        write(files / "val_masks" / f"{page}.tif", mask)
    assert measured.summary() == evaluate(best, find_pairs(files, "val"), device="cpu").summary()
    done = CliRunner().invoke(main, [str(best), str(stacks), "--device", "cpu", "--pictures", str(stacks / "looks")])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "on 3 val images" in done.stdout and "worst.png  (other_00" in done.stdout


def test_an_exported_model_is_measured_on_all_pages(model, tmp_path):
    write_stack(tmp_path / "stacks", "val", "other", 3)
    images, masks = slices(3)
    for page in range(3):
        write(tmp_path / "files" / "val_images" / f"{page}.tif", images[page])
        write(tmp_path / "files" / "val_masks" / f"{page}.tif", masks[page])
    figures = [
        evaluate(model.with_suffix(".onnx"), find_pairs(tmp_path / name, "val"), device="cpu").summary()
        for name in ("stacks", "files")
    ]
    assert figures[0] == figures[1]


def test_decoded_pages_are_kept_each_by_itself(config, stacks, cache):
    decoder = SampleDecoder(input=replace(config, channels="L").input, labels=CAR)
    pairs = find_pairs(stacks, "train")
    for part in (pairs[:2], pairs[2:4]):  # of the same files
        records = Records(part, decoder)
        check_and_cache((records,), cache, lambda _: None, pytest.fail)
        assert records.stored == 2
        assert [records[index][0].tobytes() for index in (0, 1)] == [decoder.make(pair)[0].tobytes() for pair in part]
    assert len(list(cache.folder.glob("records-*"))) == 2


def test_pages_are_split_off_and_told_apart(stacks):
    for kind in ("images", "masks"):
        shutil.rmtree(stacks / f"val_{kind}")
    train_pairs, val_pairs = find_splits(stacks)
    assert (len(train_pairs), len(val_pairs)) == (5, 1)
    assert shared_images(train_pairs, val_pairs) is None
    assert shared_images(train_pairs, train_pairs[:1]).startswith("1 image is both trained and validated on")
    others = [replace(pair, page=5 - pair.page) for pair in train_pairs]
    assert fingerprint(train_pairs, val_pairs) != fingerprint(others, val_pairs)
    write_stack(stacks, "train", "second_volume", 30)
    train_pairs, val_pairs = find_splits(stacks)
    assert {pair.image.name for pair in val_pairs} == {"volume.tif"}  # neighbours are alike: whole stacks


def test_stacks_that_differ_are_refused_with_their_pages(stacks):
    write(stacks / "train_masks" / "volume.tif", slices(5)[1])
    assert faults(stacks) == (
        "has 6 pages and its mask volume.tif has 5, expected as many in both: train_images/volume.tif"
    )
    write(stacks / "train_masks" / "volume.tif", slices(1)[1])
    assert faults(stacks) == (
        "has 6 pages and its mask volume.tif has 1, expected as many in both, if they are channels, save an array "
        "[height, width, 6] and give --channels 6: train_images/volume.tif"
    )


@pytest.mark.parametrize(("kind", "named"), [("images", ""), ("masks", "has a mask (volume.tif) that ")])
def test_pages_of_different_sizes_are_refused_with_their_number(stacks, kind, named):
    with tifffile.TiffWriter(stacks / f"train_{kind}" / "volume.tif") as writer:
        for side in (32, 16, 8):
            writer.write(np.zeros((side, 48), np.uint8), photometric="minisblack")
    assert faults(stacks) == (
        f"{named}has 3 pages of different sizes, expected one page, or pages of one size: train_images/volume.tif"
    )


def test_what_is_wrong_with_a_page_is_told_with_its_number(stacks):
    values = slices(6)[1]
    values[3, 0, 0] = 7
    write(stacks / "train_masks" / "volume.tif", values)
    decoder = SampleDecoder(input=InputSpec(size=(32, 48)), labels=CAR)
    pair = find_pairs(stacks, "train")[3]
    with pytest.raises(ImageError) as caught:
        pair.truth(CAR)
    assert str(caught.value).startswith(f"{pair.mask}, page 4: has invalid labels (7); expected 0 and 255, or 0 and 1;")
    write(stacks / "train_masks" / "volume.tif", slices(6)[1][:, :20])
    with pytest.raises(ImageError) as caught:
        decoder.make(pair)
    assert str(caught.value) == f"{pair.mask}, page 4: differs in size from its image (48x20, expected 48x32)"


def one_hot(labels, value=255):
    return np.stack([(labels == index) * value for index in range(3)]).astype(np.uint8)


LABELS = np.random.default_rng(5).integers(0, 3, (6, 8)).astype(np.uint8)


@pytest.mark.parametrize("value", [1, 255])
def test_a_page_for_each_class_holds_classes(tmp_path, value):
    pair = Pair(image=tmp_path / "a.png", mask=write(tmp_path / "a.tif", one_hot(LABELS, value)))
    assert np.array_equal(pair.truth(THREE), LABELS)


def test_pages_that_are_no_classes_are_refused_with_their_number(tmp_path):
    def refusal(stack, spec=THREE):
        path = write(tmp_path / "a.tif", stack)
        with pytest.raises(ImageError) as caught:
            Pair(image=tmp_path / "a.png", mask=path).truth(spec)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value).removeprefix(f"{path}: ")

    own = "; save each mask as a file of its own"
    assert refusal(one_hot(LABELS), CAR) == f"has 3 pages, expected one{own}"
    assert refusal(one_hot(LABELS)[:2]) == f"has 2 pages, expected one, or 3, one for each class{own}"
    stack = one_hot(LABELS)
    stack[0, 0, :2] = stack[1, 0, :2] = stack[2, 0, :2] = 0
    stack[:, 1, 0] = 255
    each = "expected a page for each class, and every pixel on one of them"
    assert refusal(stack) == f"has 3 pages, and 3 pixels are set on none or on several of them; {each}"
    stack = one_hot(LABELS)
    stack[1, LABELS == 1] = np.arange((LABELS == 1).sum()) % 2 + 1
    assert refusal(stack) == (
        "has 3 pages, of which page 2 holds 2 values beside 0; expected one page of class indices, or a page of 0 and "
        "1 (or 255) for each class"
    )


def test_one_hot_pages_beside_an_image_are_trained_on(tmp_path):
    write(tmp_path / "train_images" / "a.tif", np.zeros((6, 8), np.uint8))
    mask = write(tmp_path / "train_masks" / "a.tif", one_hot(LABELS))
    (pair,) = pair_up(tmp_path, "train", Layout())
    assert (pair.page, pair.fault, pair.mask) == (None, "", mask)
    decoder = SampleDecoder(input=InputSpec(size=(6, 8)), labels=THREE)
    assert np.array_equal(decoder.make(pair)[1], LABELS)
