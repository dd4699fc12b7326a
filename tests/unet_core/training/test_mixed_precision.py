"""Mixed precision on the CPU, and by what a GPU can do."""

import math

import pytest
import torch
from networks import make_network
from torch import nn

from runtime.errors import ConfigError
from unet_core.training.mixed_precision import MixedPrecision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "text", "dtype"),
    [
        ("off", "fp32", torch.float32),
        ("auto", "fp32", torch.float32),
        ("bf16", "bf16", torch.bfloat16),
        ("fp16", "fp16", torch.float16),
    ],
)
def test_precision_on_the_cpu(name, text, dtype):
    precision, network = MixedPrecision(name, CPU), make_network().train()
    assert str(precision) == text
    with precision.context():
        logits = network(torch.rand(2, 3, 8, 8))
    assert logits.dtype == dtype
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.final_conv.weight.detach().clone()
    precision.backward(logits.float().square().mean() / 1000)  # within fp16, whose loss is scaled
    precision.step(optimizer, network, 0.0)
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert not torch.equal(network.final_conv.weight, before)
    assert precision.skipped == 0


@pytest.mark.parametrize(
    ("capability", "found"),
    [
        ((6, 1), {"auto": None, "fp16": torch.float16, "bf16": ConfigError}),
        ((7, 5), {"auto": torch.float16, "fp16": torch.float16, "bf16": ConfigError}),
        ((8, 0), {"auto": torch.bfloat16, "fp16": torch.float16, "bf16": torch.bfloat16}),
        ((12, 0), {"auto": torch.bfloat16, "fp16": torch.float16, "off": None}),
    ],
)
def test_precision_by_what_a_gpu_can_do(monkeypatch, capability, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: enabled)
    for name, expected in found.items():
        if expected is ConfigError:
            with pytest.raises(ConfigError, match=r"^--amp bf16: this GPU does not support it; expected fp16 or off$"):
                MixedPrecision(name, torch.device("cuda"))
        else:
            precision = MixedPrecision(name, torch.device("cuda"))
            assert (precision.dtype, precision.scaler) == (expected, expected is torch.float16)


def step_once(precision, layer, gradient, clip_norm):
    """One step of SGD, lr 1, on a weight whose gradient is given."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    precision.backward((layer.weight * torch.tensor(gradient)).sum())
    precision.step(optimizer, layer, clip_norm)
    optimizer.zero_grad()
    return layer.weight.tolist()[0]


def layer():
    result = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(result.weight)
    return result


@pytest.mark.parametrize("name", ["off", "fp16"])
@pytest.mark.parametrize(
    ("clip_norm", "expected"), [(0.0, [-3, -4]), (10.0, [-3, -4]), (1.0, [-0.6, -0.8]), (2.5, [-1.5, -2])]
)
def test_gradients_are_clipped_to_a_norm_whatever_their_scale(name, clip_norm, expected):
    precision = MixedPrecision(name, CPU)
    assert step_once(precision, layer(), [3.0, 4.0], clip_norm) == pytest.approx(expected, abs=1e-5)
    assert precision.skipped == 0


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_whose_gradients_overflow_is_skipped_and_counted(clip_norm):
    precision, weights = MixedPrecision("fp16", CPU), layer()
    scale = precision.scaler.get_scale()
    for skipped, gradient in enumerate(([math.inf, 1.0], [math.nan, 1.0]), 1):
        assert step_once(precision, weights, gradient, clip_norm) == [0, 0]
        assert (precision.skipped, precision.scaler.get_scale()) == (skipped, scale / 2**skipped)
    assert step_once(precision, weights, [0.0, 0.5], clip_norm) == pytest.approx([0, -0.5], abs=1e-5)
    assert precision.skipped == 2


def test_precision_resumes_where_it_was_saved():
    precision = MixedPrecision("fp16", CPU)
    step_once(precision, layer(), [math.inf, 1.0], 0.0)
    other = MixedPrecision("fp16", CPU)
    other.restore(precision.state())
    assert (other.skipped, other.scaler.get_scale()) == (1, precision.scaler.get_scale())
    assert other.state() == precision.state()


def test_another_precision_starts_with_a_scale_of_its_own():
    half, brain = MixedPrecision("fp16", CPU), MixedPrecision("bf16", CPU)
    step_once(half, layer(), [math.inf, 1.0], 0.0)
    brain.restore(half.state())
    assert (brain.skipped, brain.state()["scaler"]) == (1, {})
    again = MixedPrecision("fp16", CPU)
    again.restore(brain.state())
    assert (again.skipped, again.scaler.get_scale()) == (1, MixedPrecision("fp16", CPU).scaler.get_scale())


@pytest.mark.parametrize("state", [{}, {"scaler": {}}, {"scaler": {"scale": 1.0}, "skipped": 0}])
def test_a_damaged_state_is_a_key_that_is_missing(state):
    with pytest.raises(KeyError):
        MixedPrecision("fp16", CPU).restore(state)
