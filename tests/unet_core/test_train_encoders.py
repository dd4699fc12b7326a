"""Training of networks with encoders: frozen, slower, resumed, started from one another; and what their files hold."""

import json
import sys
from dataclasses import replace

import click.testing
import pytest
import torch
from encoders import ENCODER, OPTIONS, encoder_config
from folders import write_pair

from runtime.card import SmpConfig
from runtime.errors import CheckpointError, ConfigError
from unet_core.checkpoint import architecture_of, load_checkpoint, load_weights, save_checkpoint
from unet_core.data.pairs import Layout, find_splits
from unet_core.evaluate import evaluate
from unet_core.smp_networks import library, make_network
from unet_core.train import main, train
from unet_core.training import run_directory

LAST = "my_checkpoint.pth.tar"
RICH = {"ema": 0.9, "freeze_encoder": 1, "encoder_lr_scale": 0.1, "optimizer": "adamw", "weight_decay": 0.01}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six pairs to train on and two to validate."""
    folder = tmp_path_factory.mktemp("encoders") / "data"
    for index in range(8):
        write_pair(folder, "train" if index < 6 else "val", f"car{index}", size=(64, 96), seed=index)
    return folder


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(run_directory, "save_curves", lambda path, *_: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of an encoder's weights, with running means that no initialisation gives."""
    torch.manual_seed(5)
    values = make_network(
        SmpConfig(name="Unet", encoder=ENCODER, options={"encoder_depth": 4, "decoder_channels": (8, 8, 8, 4)})
    )
    state = values.get_submodule("encoder").state_dict()
    state = {name: value + 0.25 if name.endswith("running_mean") else value for name, value in state.items()}
    path = tmp_path_factory.mktemp("weights") / "encoder.pth"
    torch.save(state, path)
    return path


def parts(path):
    """The encoder's weights and the others in a checkpoint."""
    extra = load_checkpoint(path)
    values = extra.extra.get("network") or extra.state_dict
    encoder = {name.removeprefix("encoder."): value for name, value in values.items() if name.startswith("encoder.")}
    return encoder, {name: value for name, value in values.items() if not name.startswith("encoder.")}


def test_a_frozen_encoder_stays_as_it_was_until_its_epochs_are_over(data, weights, tmp_path, capsys):
    config = encoder_config(data, tmp_path / "run", encoder_weights=str(weights), freeze_encoder=1, epochs=1)
    train(config)
    assert f"encoder {ENCODER}: weights {weights}, mean 0.485,0.456,0.406" in capsys.readouterr().out
    start, (encoder, others) = torch.load(weights), parts(tmp_path / "run" / LAST)
    assert encoder.keys() == start.keys()
    assert all(torch.equal(value, start[name]) for name, value in encoder.items())  # BatchNorm's statistics too
    weights.rename(weights.with_suffix(".away"))  # a resumed run has its weights
    try:
        train(replace(config, epochs=2), resume=True)
    finally:
        weights.with_suffix(".away").rename(weights)
    later, decoder = parts(tmp_path / "run" / LAST)
    assert all(not torch.equal(value, start[name]) for name, value in later.items() if name.endswith("conv1.weight"))
    assert not torch.equal(decoder["segmentation_head.0.weight"], others["segmentation_head.0.weight"])
    assert load_checkpoint(tmp_path / "run" / "model.pth").card.input.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_equals_an_unbroken_one(data, weights, tmp_path, epochs):
    config = encoder_config(data, tmp_path / "whole", encoder_weights=str(weights), **RICH, epochs=3)
    train(config)
    broken = replace(config, out=str(tmp_path / "broken"), epochs=epochs)
    train(broken)
    train(replace(broken, epochs=3), resume=True)
    for name in (LAST, "model.pth"):
        found, expected = (load_checkpoint(tmp_path / run / name).state_dict for run in ("broken", "whole"))
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
        assert found.keys() == expected.keys()


def test_the_encoder_learns_at_its_own_rate(data, weights, tmp_path):
    settings = {"encoder_weights": str(weights), "epochs": 1, "batch_size": 6, "lr": 0.1}  # one step
    usual = encoder_config(data, tmp_path / "usual", optimizer="sgd", momentum=0.0, **settings)
    train(usual)
    train(replace(usual, out=str(tmp_path / "slow"), encoder_lr_scale=0.5))
    start, (fast, decoder) = torch.load(weights), parts(tmp_path / "usual" / LAST)
    slow, same = parts(tmp_path / "slow" / LAST)
    assert torch.equal(decoder["segmentation_head.0.weight"], same["segmentation_head.0.weight"])
    steps = {name: value - start[name] for name, value in fast.items() if value.dim() == 4}
    name = max(steps, key=lambda one: float(steps[one].abs().max()))
    assert steps[name].abs().max() > 1e-4
    torch.testing.assert_close(slow[name] - start[name], 0.5 * steps[name], atol=1e-6, rtol=1e-3)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The best weights of a run of one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_directory, "save_curves", lambda path, *_: None)
        return train(encoder_config(data, tmp_path_factory.mktemp("trained") / "run", epochs=1))


def test_the_file_names_the_network_as_its_library_does(trained, data):
    checkpoint = load_checkpoint(trained)
    options = {"encoder_depth": 4, "decoder_channels": (8, 8, 8, 4)}
    assert (
        checkpoint.card.architecture
        == SmpConfig(name="Unet", encoder=ENCODER, options=options)
        == architecture_of(trained)
    )
    assert checkpoint.card.producer.keys() == {"unet-deploy", "torch", "segmentation-models-pytorch", "timm"}
    theirs = library().Unet(ENCODER, encoder_weights=None, **options).eval()
    theirs.load_state_dict(dict(checkpoint.state_dict))
    picture = torch.rand(2, 3, 64, 96)
    assert torch.equal(checkpoint.network()(picture), theirs(picture))
    _, val = find_splits(str(data), Layout())
    dice = checkpoint.card.training.metrics["pixel_dice"]
    assert evaluate(trained, val, device="cpu").summary()["pixel_dice"] == dice


def test_another_run_starts_from_it_by_its_own_network(trained, data, tmp_path):
    arguments = [str(data), "--out", str(tmp_path / "run"), "--init-from", str(trained), "--size", "96x64"]
    more = ["--epochs", "1", "--lr", "1e-12", "--batch-size", "4", "--workers", "0", "--no-tensorboard"]
    more += ["--device", "cpu", "--cache-gb", "0", "--classes", "car,road"]
    found = click.testing.CliRunner().invoke(main, arguments + more, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert f"--init-from {trained}: all but the last layer was copied, which has the classes car there" in found.output
    started, begun = (load_checkpoint(path).state_dict for path in (tmp_path / "run" / "model.pth", trained))
    name = "decoder.blocks.0.conv1.0.weight"
    torch.testing.assert_close(started[name], begun[name], atol=1e-9, rtol=0)
    assert started["segmentation_head.0.weight"].shape[0] == 2
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["network"], settings["encoder"], set(settings["network_arg"])) == (
        "smp.Unet",
        ENCODER,
        set(OPTIONS),
    )


def test_files_that_are_not_what_they_say_are_refused(trained, tmp_path, monkeypatch):
    checkpoint, path = load_checkpoint(trained), tmp_path / "x.pth"
    other = replace(checkpoint.card, architecture=replace(checkpoint.card.architecture, encoder="resnet18"))
    save_checkpoint(path, checkpoint.state_dict, other)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: its card says smp.Unet with the encoder resnet18, whose weights have other names or shapes; it is "
        "damaged, or of another version of segmentation-models-pytorch"
    )
    save_checkpoint(path, checkpoint.state_dict, replace(checkpoint.card, weights_sha256="0" * 64))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"{path}: its weights are not those that its card names; it is damaged"
    with pytest.raises(CheckpointError) as caught:
        load_weights(trained)
    assert str(caught.value) == (
        f"{trained}: holds smp.Unet with the encoder {ENCODER}, expected a U-Net of this library; to train that "
        "network leave out --widths, --up and --channels"
    )
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(CheckpointError, match=r"needs segmentation-models-pytorch, .*with its extra \[encoders\]$"):
        load_checkpoint(trained)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (8, 16)}, "--widths 8,16: goes with --network unet, found --network smp.Unet; leave it out"),
        (
            {"network": "unet"},
            f"--encoder {ENCODER}: goes with --network smp.Unet or another smp.NAME, found --network unet; "
            "leave it out",
        ),
        ({"encoder": "../x"}, "--encoder: found '../x', expected the name of an encoder, such as resnet34"),
        ({"encoder_weights": ""}, "--encoder-weights '': expected a name such as imagenet, a file, or none"),
        (
            {"network_arg": ("classes=4",)},
            "--network-arg classes: has a setting of its own, or changes the answer; leave it out",
        ),
        ({"network_arg": ("x",)}, "--network-arg x: expected NAME=VALUE, such as in_channels=3"),
        ({"network_arg": ("a=1e9",)}, "--network-arg a: found 1000000000.0, expected a number from 0 to 2048"),
        ({"width": 240}, "--width 240: expected a multiple of 32 for --network smp.Unet, such as 256"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        encoder_config("data", "run", **settings)
    assert str(caught.value) == message


def test_a_settings_file_has_the_options_as_a_list(tmp_path):
    from unet_core.settings_file import read_settings

    (tmp_path / "x.toml").write_text(f'network = "smp.Unet"\nnetwork_arg = {list(OPTIONS)}\n')
    assert read_settings(tmp_path / "x.toml") == {"network": "smp.Unet", "network_arg": OPTIONS}


def test_an_encoder_that_is_asked_for_is_not_passed_over_for_that_of_a_checkpoint(trained, data, tmp_path):
    arguments = [str(data), "--out", str(tmp_path / "run"), "--init-from", str(trained), "--size", "96x64"]
    found = click.testing.CliRunner().invoke(main, [*arguments, "--encoder", "resnet18"])
    assert (found.exit_code, found.stderr) == (
        2,
        f"error: --init-from {trained}: is smp.Unet with the encoder {ENCODER}; leave out --network, --encoder and "
        "--network-arg\n",
    )


def test_bars_of_a_letterbox_have_the_encoders_mean_in_training_too(data, weights, tmp_path):
    """Pictures of 96x64 in 96x96: what the run measures is what the same network gives afterwards."""
    config = encoder_config(data, tmp_path / "run", encoder_weights=str(weights), height=96, fit="letterbox", epochs=1)
    checkpoint = load_checkpoint(train(config))
    assert checkpoint.card.input.mean == (0.485, 0.456, 0.406)
    _, val = find_splits(str(data), Layout())
    measured = evaluate(tmp_path / "run" / "model.pth", val, device="cpu").summary()
    assert measured == checkpoint.card.training.metrics
