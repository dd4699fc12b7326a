import numpy as np
import pytest
import torch

from export.precision.calibration import calibrate, common_range, extremes
from unet_core.reporting.progress import Display


def test_extremes_and_ranges_are_those_of_the_values(trained):
    names = ["downs.0.conv.0", "ups.0"]
    pictures = trained.samples.pictures(2)
    with torch.inference_mode():
        planes = [trained.segmenter.normalise(torch.from_numpy(one)[None]) for one in pictures]
        by_hand = [trained.segmenter.network.downs[0].conv[:2](one).numpy() for one in planes]
    found = extremes(trained.graph, names, pictures)
    assert found["downs.0.conv.0"] == pytest.approx(np.abs(by_hand).max(), rel=1e-4)
    mean, widest, answers = calibrate(trained.graph, names, pictures, Display(quiet=True))
    bounds = np.array([np.percentile(value, [0.01, 99.99]) for value in by_hand])
    assert mean["downs.0.conv.0"] == pytest.approx(tuple(bounds.mean(axis=0)), rel=1e-4)
    assert widest["downs.0.conv.0"] == pytest.approx((bounds[:, 0].min(), bounds[:, 1].max()), rel=1e-4)
    assert mean != widest
    for answer, picture in zip(answers, pictures, strict=True):
        assert np.abs(answer - trained.exact(picture[None])[0]).max() < 1e-5


NOISE = np.random.default_rng(0).standard_normal((1, 8, 64, 60)).astype(np.float32)


@pytest.mark.parametrize(
    "value",
    [
        NOISE,
        np.maximum(NOISE, 0),
        np.sort(NOISE, axis=None),
        np.where(np.arange(NOISE.size).reshape(NOISE.shape) % 61, NOISE, 9),
        np.full((1, 2, 3), 5, np.float32),
        NOISE[:, :1, :1, :1],
        NOISE[:, :1, :1, :2],
        NOISE[:, :, :5, :5],
    ],
    ids=["noise", "relu", "sorted", "the sampled ones are large", "all alike", "one", "two", "few"],
)
def test_the_range_of_a_value_is_that_of_its_percentiles(value):
    assert common_range(value) == pytest.approx(tuple(np.percentile(value, [0.01, 99.99])), rel=1e-6)
