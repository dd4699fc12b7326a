"""Optimizers, learning rates by hand numbers, the moving average, mixed precision on the CPU."""

import copy
import math
from typing import get_args

import pytest
import torch
from networks import make_network
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from runtime.errors import ConfigError
from unet_core.config import OptimizerName, ScheduleName, TrainConfig
from unet_core.evaluation.metrics import score
from unet_core.training import optim
from unet_core.training.optim import (
    MixedPrecision,
    ModelEMA,
    epochs_without_progress,
    is_best,
    lr_factor,
    make_optimizer,
    reductions,
)

CPU = torch.device("cpu")


@pytest.fixture
def one_thread():
    """A tiny network waits for threads more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**settings):
    return TrainConfig(data="data", out="run", **settings)


def history(*scores):
    return [{"epoch": float(epoch), "pixel_dice": value} for epoch, value in enumerate(scores, 1)]


OPTIMIZERS = [
    ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "decoupled_weight_decay": False}),
    ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "decoupled_weight_decay": True}),
    ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.99}),
]


@pytest.mark.parametrize(("name", "kind", "options"), OPTIMIZERS)
def test_each_optimizer_decays_convolutions_alone(name, kind, options):
    network = make_network()
    optimizer = make_optimizer(network, config(optimizer=name, lr=0.02, momentum=0.8, weight_decay=0.3))
    assert type(optimizer) is kind
    for group, decay in zip(optimizer.param_groups, (0.3, 0.0), strict=True):
        assert {key: group[key] for key in options} == options
        assert (group["lr"], group["weight_decay"]) == (0.02, decay)
    names = {id(weight): name for name, weight in network.named_parameters()}
    decayed, spared = ({names[id(weight)] for weight in group["params"]} for group in optimizer.param_groups)
    assert decayed | spared == set(names.values())
    convolutions = {name for name, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)}
    assert decayed == {f"{name}.weight" for name in convolutions}


def test_every_name_in_the_settings_has_its_function():
    assert (set(optim.OPTIMIZERS), set(optim.SCHEDULES)) == (set(get_args(OptimizerName)), set(get_args(ScheduleName)))


def test_sgd_without_momentum_is_not_nesterovs():
    (group, _) = make_optimizer(make_network(), config(optimizer="sgd", momentum=0.0)).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


def test_weights_that_do_not_learn_are_left_out():
    network = make_network().requires_grad_(False)
    network.final_conv.requires_grad_(True)
    groups = make_optimizer(network, config()).param_groups
    assert [[weight.shape for weight in group["params"]] for group in groups] == [[(1, 4, 1, 1)], [(1,)]]


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, {0.01: 1, 5: 1, 10: 1}),
        ({"warmup_epochs": 2.0}, {0.0: 0, 0.5: 0.25, 1.5: 0.75, 2: 1, 9: 1}),
        ({"warmup_epochs": 20.0}, {1: 0.05, 10: 0.5}),
        ({"schedule": "cosine"}, {0.0: 1, 2.5: 0.5 + math.sqrt(0.125), 5: 0.5, 10: 0, 10.5: 0}),
        ({"schedule": "cosine", "warmup_epochs": 2.0}, {1: 0.5, 2: 1, 6: 0.5, 8: 0.5 - math.sqrt(0.125), 10: 0}),
        ({"schedule": "cosine", "warmup_epochs": 10.0}, {1: 0.1, 9.5: 0.95}),
        ({"schedule": "cosine", "warmup_epochs": 20.0}, {1: 0.05, 9.5: 0.475}),
    ],
)
def test_the_learning_rates_factor_by_hand(settings, factors):
    of_ten = config(epochs=10, **settings)
    assert {epochs: lr_factor(of_ten, epochs, []) for epochs in factors} == pytest.approx(factors, abs=1e-12)


def test_on_a_plateau_the_factor_is_halved_and_only_with_that_schedule():
    stuck = history(0.5, 0.5, 0.4, 0.5, 0.5)
    assert lr_factor(config(schedule="plateau", plateau_epochs=2), 5.5, stuck) == 0.25
    assert lr_factor(config(schedule="plateau", plateau_epochs=2, warmup_epochs=11.0), 5.5, stuck) == 0.125
    assert lr_factor(config(plateau_epochs=2), 5.5, stuck) == 1


@pytest.mark.parametrize(
    ("scores", "patience", "count"),
    [
        ((), 1, 0),
        ((0.5,), 1, 0),
        ((0.0, 0.0), 1, 1),
        ((0.1, 0.2, 0.3), 1, 0),
        ((0.5, 0.5), 1, 1),
        ((0.5, 0.5, 0.6, 0.5, 0.5), 2, 1),
        ((0.5, 0.4, 0.4, 0.4, 0.4), 2, 2),
        ((0.5, 0.4, 0.4, 0.45, 0.49), 2, 2),
        ((0.5, 0.4, 0.4, 0.6, 0.5), 2, 1),
        ((0.5, 0.4, 0.6, 0.5), 2, 0),
        ((0.5, 0.4, math.nan, 0.4), 3, 1),
    ],
)
def test_reductions_of_hand_made_histories(scores, patience, count):
    assert reductions(history(*scores), patience) == count


def test_every_epochs_reductions_follow_from_the_one_before():
    """A resumed run computes the values that the unbroken one had."""
    scores = [0.1, 0.3, 0.2, 0.3, 0.31, 0.2, 0.2, 0.2, 0.2]
    assert [reductions(history(*scores[:epochs]), 2) for epochs in range(10)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("scores", "best", "waited"),
    [
        ((0.0,), True, 0),
        ((0.5, 0.6), True, 0),
        ((0.5, 0.5), False, 1),
        ((0.5, 0.7, 0.6), False, 1),
        ((0.7, 0.5, 0.6), False, 2),
        ((0.5, math.nan), False, 1),
        ((math.nan, 0.0), True, 0),
    ],
)
def test_the_best_epoch_and_the_wait_since(scores, best, waited):
    assert is_best(history(*scores)) is best
    assert epochs_without_progress(history(*scores)) == waited


def test_no_epoch_waits_for_nothing():
    assert epochs_without_progress([]) == 0


def test_epochs_are_chosen_by_pixel_dice():
    assert score({"pixel_dice": 0.25, "image_dice": 0.75, "iou": 0.5}) == 0.25


def test_the_average_by_hand():
    """The decay is 2/11, 3/12, 4/13 and 5/14, until it would be more than asked for."""
    network = make_network().train()
    average = ModelEMA(network, 0.3)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step, decay in enumerate((2 / 11, 3 / 12, 0.3, 0.3), 1):
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight))
            network(torch.rand(2, 3, 8, 8))  # moves the running statistics
        average.update()
        assert average.steps == step
        for name, value in network.state_dict().items():
            counts = name.endswith("num_batches_tracked")
            expected[name] = value.clone() if counts else decay * expected[name] + (1 - decay) * value
    found = average.network.state_dict()
    assert found["bottleneck.conv.1.num_batches_tracked"] == 4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert not torch.equal(found["bottleneck.conv.1.running_var"], network.bottleneck.conv[1].running_var)


def test_the_average_is_a_network_of_its_own():
    network = make_network().train()
    average = ModelEMA(network, 0.9)
    answer = average.network(torch.ones(1, 3, 8, 8))
    assert not average.network.training and network.training
    assert not answer.requires_grad
    assert all(weight.requires_grad for weight in network.parameters())
    with torch.no_grad():
        network.final_conv.bias += 1
        network(torch.ones(1, 3, 8, 8))
    assert torch.equal(average.network(torch.ones(1, 3, 8, 8)), answer)


def statistics_of(network):
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def with_statistics_of(average, network):
    result = copy.deepcopy(average)
    for own, other in zip(statistics_of(result), statistics_of(network), strict=True):
        own.load_state_dict({**own.state_dict(), "running_mean": other.running_mean, "running_var": other.running_var})
    return result


def test_averaged_statistics_suit_the_averaged_weights(one_thread):
    """Late in a run with tiny batches, where weights and statistics jump about.

    Exact are statistics that are taken from the data with the averaged weights. Over 16 seeds and two optimizers, mean
    |dp| to that was 0.01 to 0.05 for the average, 0.11 to 0.18 with the last step's statistics, over 0.2 with fresh
    ones; a network's own statistics, one step's weights and ten steps' statistics, are 0.01 to 0.10 from exact.
    """
    torch.manual_seed(0)
    network = make_network(widths=(4,)).train()
    images = torch.rand(64, 3, 8, 8)
    truth = (functional.avg_pool2d(images[:, :1], 3, 1, 1) > 0.5).float()
    truth = torch.where(torch.rand_like(truth) < 0.2, 1 - truth, truth)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    average = ModelEMA(network, 0.98)
    average.steps = 1000  # the full decay
    for _ in range(150):
        batch = torch.randint(0, 64, (2,))
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(network(images[batch]), truth[batch]).backward()
        optimizer.step()
        average.update()
    exact = copy.deepcopy(average.network)
    update_bn(images.split(2), exact)
    exact.eval()
    fresh = copy.deepcopy(average.network)
    for part in statistics_of(fresh):
        part.reset_running_stats()

    def distance(other):
        with torch.no_grad():
            return (other(images).sigmoid() - exact(images).sigmoid()).abs().mean().item()

    assert distance(average.network) < 0.06
    assert distance(with_statistics_of(average.network, network)) > 2 * distance(average.network)
    assert distance(fresh) > 0.2


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
