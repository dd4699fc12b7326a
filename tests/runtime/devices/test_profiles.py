"""Profiles, buckets and parts of batches."""

from pathlib import Path

import numpy as np
import pytest

from runtime.devices.profiles import Profile, bucket, bucketed, cropped, padded, part_size, profile_of, shape_unlike
from runtime.errors import DeviceError
from runtime.model_file.golden import GOLDEN_SIZE, golden_size
from runtime.options import ProviderOptions
from runtime.predictor import Predictor

PROFILE = Profile(low=(1, 32, 48), best=(1, 160, 240), high=(8, 320, 480), channels=3)


@pytest.mark.parametrize(
    ("card", "limits", "low", "high"),
    [
        ({"size": (160, 240), "fit": "stretch"}, {}, (1, 56, 88), (8, 160, 240)),
        ({"size": (8, 16), "fit": "stretch"}, {}, (1, 8, 16), (8, 56, 88)),
        ({"size": (300, 20), "fit": "letterbox"}, {}, (1, 56, 20), (8, 300, 88)),
        ({"size": (160, 240), "fit": "native"}, {}, (1, 4, 4), (8, 160, 240)),
        ({"size": (160, 240), "fit": "native"}, {"min_size": (100, 30)}, (1, 56, 30), (8, 160, 240)),
        ({"size": (160, 240), "fit": "stretch"}, {"max_size": (2000, 90)}, (1, 56, 88), (8, 2000, 240)),
    ],
)
def test_profile_holds_the_golden_sample_the_trained_size_and_the_limits(make_card, card, limits, low, high):
    profile = profile_of(make_card(**card), ProviderOptions(**limits))
    assert (profile.low, profile.best, profile.high) == (low, (1, *card["size"]), high)
    for shape in [(1, *GOLDEN_SIZE), (1, *card["size"]), (8, *card["size"])]:
        profile.check(shape)


@pytest.mark.parametrize(
    ("card", "limits", "low", "high"),
    [
        ({"fit": "native", "stride": 6}, {}, (1, 6, 6), (8, 96, 120)),
        ({"fit": "native", "stride": 1}, {}, (1, 1, 1), (8, 96, 120)),
        ({"fit": "native", "stride": 12, "min_size": (30, 40)}, {}, (1, 30, 40), (8, 96, 120)),
        ({"min_size": (60, 90)}, {}, (1, 60, 90), (8, 96, 120)),
        ({"min_size": (60, 90)}, {"min_size": (10, 100)}, (1, 60, 90), (8, 96, 120)),
        ({"stride": 12, "padded": False}, {}, (1, 60, 96), (8, 96, 120)),
        ({"stride": 24, "padded": False}, {"max_size": (100, 200)}, (1, 72, 96), (8, 120, 216)),
        ({"stride": 48, "size": (48, 96), "padded": False, "min_size": (48, 96)}, {}, (1, 48, 96), (8, 96, 96)),
    ],
)
def test_both_ends_of_a_profile_are_sizes_that_the_network_takes(make_card, card, limits, low, high):
    card = make_card(**{"size": (96, 120), "fit": "stretch"} | card)
    profile = profile_of(card, ProviderOptions(**limits))
    assert (profile.low, profile.high) == (low, high)
    profile.check((1, *golden_size(card.input)))


@pytest.mark.parametrize(
    ("size", "stride", "grown"), [((5, 7), 6, (6, 12)), ((6, 12), 6, (6, 12)), ((3, 7), 1, (3, 7))]
)
def test_small_images_grow_with_any_stride(size, stride, grown):
    low = Profile(low=(1, 6, 12), best=(1, 60, 60), high=(1, 60, 60), channels=3)
    assert low.grown(size, stride) == grown


def test_profile_as_options_of_the_provider():
    assert PROFILE.options() == {
        "trt_profile_min_shapes": "image:1x32x48x3",
        "trt_profile_opt_shapes": "image:1x160x240x3",
        "trt_profile_max_shapes": "image:8x320x480x3",
    }


@pytest.mark.parametrize("shape", [(1, 32, 48), (8, 320, 480), (3, 100, 200)])
def test_profile_takes_what_is_between_its_ends(shape):
    assert PROFILE.inside(shape)
    PROFILE.check(shape)


@pytest.mark.parametrize(
    ("shape", "axis", "found", "low", "high", "option"),
    [
        ((9, 100, 100), "images", 9, 1, 8, "max_batch"),
        ((1, 321, 100), "height", 321, 32, 320, "max_size"),
        ((1, 31, 100), "height", 31, 32, 320, "min_size"),
        ((1, 100, 481), "width", 481, 48, 480, "max_size"),
        ((1, 100, 1), "width", 1, 48, 480, "min_size"),
    ],
)
def test_profile_refuses_what_is_outside_naming_limit_and_option(shape, axis, found, low, high, option):
    assert not PROFILE.inside(shape)
    with pytest.raises(DeviceError) as caught:
        PROFILE.check(shape)
    assert str(caught.value) == (
        f"{axis} of the batch: found {found}, the TensorRT engine takes {low} to {high}; give "
        f"ProviderOptions({option}=...), or allow_rebuild=True to have another engine built"
    )


def test_widened_profile_holds_both():
    wider = PROFILE.widened((2, 8, 1000))
    assert (wider.low, wider.best, wider.high) == ((1, 8, 48), (1, 160, 240), (8, 320, 1000))


@pytest.mark.parametrize(
    ("size", "grown"),
    [((17, 33), (32, 48)), ((31, 47), (32, 48)), ((16, 32), (16, 32)), ((1, 70), (1, 70)), ((500, 48), (500, 48))],
)
def test_small_images_grow_to_the_profile_only_where_the_graph_would_pad_as_far(size, grown):
    assert PROFILE.grown(size, 16) == grown


@pytest.mark.parametrize(("side", "step", "expected"), [(1, 16, 16), (16, 16, 16), (17, 16, 32), (1280, 64, 1280)])
def test_bucket_is_the_next_multiple(side, step, expected):
    assert bucket(side, step) == expected


def test_a_thousand_sizes_fall_into_few_buckets():
    sizes = np.random.default_rng(0).integers(1, 257, (1000, 2)).tolist()
    assert len({tuple(size) for size in sizes}) > 980
    assert len({bucketed(size, 32) for size in sizes}) == 64


def test_padding_repeats_the_edge_and_cropping_takes_it_away():
    batch = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    larger = padded(batch, (3, 5))
    assert larger[0, :, :, 0].tolist() == [[0, 1, 2, 2, 2], [3, 4, 5, 5, 5], [3, 4, 5, 5, 5]]
    answer = larger.transpose(0, 3, 1, 2).astype(np.float32)
    assert cropped(answer, (2, 3))[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert padded(batch, (2, 3)) is batch
    assert cropped(answer, (3, 5)) is answer


@pytest.mark.parametrize(
    ("images", "most", "size"), [(1, 8, 1), (8, 8, 8), (9, 8, 5), (17, 8, 6), (7, 3, 3), (10, 4, 4), (3, 1, 1)]
)
def test_parts_are_as_few_and_as_small_as_can_be(images, most, size):
    assert part_size(images, most) == size


@pytest.mark.parametrize(
    ("images", "most", "before", "size"),
    [(20, 8, 8, 8), (20, 8, 7, 7), (20, 8, 6, 7), (5, 4, 4, 4), (5, 8, 8, 5), (20, 4, 8, 4), (9, 8, 0, 5)],
)
def test_parts_keep_their_size_where_that_makes_no_more_of_them(images, most, before, size):
    assert part_size(images, most, before) == size


@pytest.mark.parametrize(
    ("shapes", "least", "stride", "expected"),
    [
        ([], (1, 1), 16, (1, 16, 16)),
        ([(8, 512, 512)], (1, 1), 16, (1, 16, 16)),
        ([(1, 3, 512)], (1, 1), 16, (2, 32, 16)),  # the graph pads 3 rows to 16
        ([(1, 16, 16), (2, 32, 48), (4, 1, 17)], (1, 1), 16, (3, 48, 64)),
        ([(1, 30, 60)], (20, 40), 10, (2, 20, 40)),
        ([(1, 1, 2)], (1, 1), 1, (2, 2, 1)),
    ],
)
def test_small_shape_has_no_axis_in_common_with_those_that_failed(shapes, least, stride, expected):
    assert shape_unlike(shapes, least, stride) == expected


@pytest.fixture(scope="module")
def unet():
    """A real U-Net, as exported."""
    return Predictor(Path(__file__).parents[2] / "data" / "v0.1" / "models" / "fp32.onnx", "cpu", threads=1)


@pytest.mark.parametrize("size", [(1, 1), (9, 15), (33, 40), (50, 97)])
def test_bucket_of_the_stride_does_not_change_a_single_bit(unet, size):
    batch = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    stride = unet.card.input.stride
    answer = unet.run(padded(batch, bucketed(size, stride)))
    assert np.array_equal(cropped(answer, size), unet.run(batch))


def test_larger_bucket_changes_the_answer_so_it_has_to_be_asked_for(unet):
    batch = np.random.default_rng(0).integers(0, 256, (1, 33, 40, 3), np.uint8)
    answer = cropped(unet.run(padded(batch, (64, 64))), (33, 40))
    assert np.abs(answer - unet.run(batch)).max() > 1e-3
