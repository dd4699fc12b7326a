"""The record of a pair, and the refusal of those that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest
from caching import STRETCH, decoder, nothing, said_by, write_pairs
from PIL import Image

import unet_core.data.cache
from runtime.errors import DataError, ImageError
from runtime.image import load_image, resize
from runtime.image_files.limits import Limits
from unet_core.data.cache import check_and_cache, pending
from unet_core.data.labels import IGNORED
from unet_core.data.pairs import Pair
from unet_core.data.records import Records


def test_problems_of_all_sets_are_listed_together_and_the_good_ones_are_kept(pairs, tmp_path, cache, decoding):
    Image.new("L", (20, 10)).save(pairs[1].mask)
    content = pairs[3].image.read_bytes()
    pairs[3].image.write_bytes(content[: len(content) // 2])
    others = write_pairs(tmp_path / "others", 4)
    Image.new("L", (90, 40), 7).save(others[0].mask)
    others[2].image.unlink()  # what is gone has no identity, so this set is looked at anew each time
    for left in (9, 2 + 4):
        sets = Records(pairs, decoder(draft=True)), Records(others, STRETCH)
        assert pending(sets, cache) == left
        with pytest.raises(DataError) as caught:
            check_and_cache(sets, cache, nothing, nothing)
        assert decoding.since() == left
        assert str(caught.value) == (
            "4 of 9 pairs cannot be used, fix or remove them: "
            "differs in size from its image (20x10, expected 84x48): pictures/1.png; "
            "is damaged or truncated (it ends before its end marker), replace it: pictures/3.jpg; "
            "has invalid labels (7), expected 0 and 255, or 0 and 1, name more --classes, or give the value "
            "that does not count with --ignore-index: others/0.png; no such file: others/2.jpg"
        )


def test_masks_and_images_are_held_to_the_limits(pairs):
    large = pairs[0]
    with Image.open(large.image) as image, Image.open(large.mask) as mask:
        assert image.size == mask.size
        width, height = image.size
    exact = replace(STRETCH, limits=Limits(pixels=width * height))
    assert all(np.array_equal(*both) for both in zip(exact.make(large), STRETCH.make(large), strict=True))
    Image.new("L", (width, height + 1)).save(large.mask)
    with pytest.raises(ImageError) as caught:
        exact.make(large)
    assert str(caught.value) == (
        f"{large.mask}: has {width} x {height + 1} pixels, expected at most {width * height} in all; "
        f"make it smaller, or allow more with limits=runtime.Limits.for_pixels({width * (height + 1)})"
    )


def test_limits_change_the_name_of_cached_records_only_where_they_change_pixels(pairs, cache):
    name = cache.of(pairs, STRETCH)
    assert cache.of(pairs, replace(STRETCH, limits=Limits.for_pixels(10**9))) == name
    assert cache.of(pairs, replace(STRETCH, limits=Limits(truncated="warn"))) != name


def test_faults_of_matching_are_listed_with_those_of_the_files_and_their_set_is_not_kept(pairs, tmp_path, cache):
    Image.new("L", (20, 10)).save(pairs[1].mask)
    lonely = [replace(pair, mask=None, fault="has no mask, expected one") for pair in pairs[2:4]]
    others = write_pairs(tmp_path / "others", 3)
    with pytest.raises(DataError) as caught:
        said_by((Records([*pairs[:2], *lonely], STRETCH), Records(others, STRETCH)), cache)
    assert str(caught.value) == (
        "3 of 7 pairs cannot be used, fix or remove them: has no mask, expected one: pictures/2.jpg, pictures/3.jpg; "
        "differs in size from its image (20x10, expected 84x48): pictures/1.png"
    )
    assert list(cache.folder.iterdir()) == [cache.of(others, STRETCH)]


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_images_that_are_turned_fit_masks_as_displayed(tmp_path, draft, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = tmp_path / f"turned{suffix}", tmp_path / "mask.png"
    Image.effect_noise((400, 200), 90).convert("RGB").save(image, exif=exif)
    turned = decoder(draft=draft, truth_at_original=True)
    Image.new("L", (200, 400), 255).save(mask)
    assert turned.make(Pair(image=image, mask=mask))[1].shape == (400, 200)
    assert (turned.make(Pair(image=image))[1] == np.full((400, 200), IGNORED)).all()
    Image.new("L", (400, 200)).save(mask)
    with pytest.raises(ImageError) as caught:
        turned.make(Pair(image=image, mask=mask))
    assert str(caught.value) == f"{mask}: differs in size from its image (400x200, expected 200x400)"


def write_jpeg(folder, size):
    """A JPEG of (width, height) with rough colours, and a mask of fine stripes."""
    rough = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    pair = Pair(image=folder / "a.jpg", mask=folder / "a.png")
    Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(pair.image, quality=90)
    Image.fromarray((np.indices(size[::-1])[1] % 3 == 0).astype(np.uint8)).save(pair.mask)
    return pair


def test_drafts_are_decoded_at_no_less_than_twice_the_size_that_the_network_sees(tmp_path):
    """Half of 900x600 is more than 240x160, but less than twice that."""
    pair = write_jpeg(tmp_path, (900, 600))
    whole, drafted = (decoder(size=(160, 240), draft=draft).make(pair)[0] for draft in (False, True))
    assert np.array_equal(drafted, whole)
    half = load_image(pair.image, at_least=(300, 300))
    assert half.shape == (300, 450, 3)
    drafted = decoder(size=(148, 222), draft=True).make(pair)[0]
    assert np.array_equal(drafted, resize(half, (148, 222)))


def test_a_draft_in_a_letterbox_lies_where_the_whole_image_would(tmp_path):
    """900x707 is 204 columns wide in 240x160; its half of 450x354 would be 203."""
    pair = write_jpeg(tmp_path, (900, 707))
    whole, drafted = (decoder("letterbox", size=(160, 240), draft=draft).make(pair) for draft in (False, True))
    assert not np.array_equal(drafted[0], whole[0])
    assert np.array_equal(drafted[1], whole[1])
    assert np.count_nonzero(drafted[1][0] != IGNORED) == 204


def test_a_draft_is_kept_apart_from_drafts_of_another_factor(pairs, cache, monkeypatch):
    names = [cache.of(pairs, decoder(draft=draft)) for draft in (False, True)]
    monkeypatch.setattr(unet_core.data.cache, "SPARE", 1)
    assert cache.of(pairs, decoder(draft=False)) == names[0]
    assert cache.of(pairs, decoder(draft=True)) not in names


def test_draft_changes_pixels_a_little_and_labels_not_at_all(tmp_path):
    rough = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    pair = Pair(image=tmp_path / "a.jpg", mask=tmp_path / "a.png")
    Image.fromarray(rough).resize((1918, 1280), Image.Resampling.BICUBIC).save(pair.image, quality=90)
    Image.fromarray((rough[:, :, 0] > 200).astype(np.uint8)).resize((1918, 1280), 0).save(pair.mask)
    for fit in ("stretch", "letterbox"):
        whole = decoder(fit, size=(160, 240)).make(pair)
        drafted = decoder(fit, size=(160, 240), draft=True).make(pair)
        difference = np.abs(whole[0].astype(int) - drafted[0])
        assert 0 < difference.mean() < 2
        assert np.array_equal(whole[1], drafted[1])
