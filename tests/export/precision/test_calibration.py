import numpy as np
import pytest
import torch

from export.precision.calibration import calibrate, extremes
from unet_core.reporting.progress import Display


def test_extremes_and_ranges_are_those_of_the_values(trained):
    names = ["downs.0.conv.0", "ups.0"]
    pictures = trained.samples.pictures(2)
    with torch.inference_mode():
        planes = [trained.segmenter.normalise(torch.from_numpy(one)[None]) for one in pictures]
        by_hand = [trained.segmenter.network.downs[0].conv[:2](one).numpy() for one in planes]
    found = extremes(trained.graph, names, pictures)
    assert found["downs.0.conv.0"] == pytest.approx(np.abs(by_hand).max(), rel=1e-4)
    mean, widest = calibrate(trained.graph, names, [(one, None) for one in pictures], Display(quiet=True))
    bounds = np.array([np.percentile(value, [0.01, 99.99]) for value in by_hand])
    assert mean["downs.0.conv.0"] == pytest.approx(tuple(bounds.mean(axis=0)), rel=1e-4)
    assert widest["downs.0.conv.0"] == pytest.approx((bounds[:, 0].min(), bounds[:, 1].max()), rel=1e-4)
    assert mean != widest
