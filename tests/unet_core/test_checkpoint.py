import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from families import Mateuszbuda, Milesial, Usuyama, randomised
from networks import make_card, make_network
from safetensors.torch import save_file

from runtime.card import UNetConfig
from runtime.errors import CheckpointError, ConfigError, OutputError
from unet_core.checkpoint import (
    architecture_of,
    initialise,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    weights_sha256,
)
from unet_core.model import UNet


@pytest.fixture
def path(tmp_path, network, card):
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), card, note=7)
    return tmp_path / "model.pth"


def test_round_trip(path, network, card):
    loaded = load_checkpoint(path)
    assert loaded.card == card
    assert loaded.extra == {"note": 7}
    assert (loaded.family, loaded.notes, loaded.card_is_assumed) == ("unet-deploy", (), False)
    restored = loaded.network()
    assert not restored.training
    assert all(torch.equal(value, restored.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights, "optimizer": {}}])
@pytest.mark.parametrize(
    "config",
    [{}, {"in_channels": 1}, {"widths": (3, 5, 9)}, {"classes": 3}, {"up": "bilinear"}, {"up": "bilinear-wide"}],
)
def test_checkpoints_without_a_card_are_recognised_by_their_shapes(tmp_path, wrap, config):
    network = make_network(**config)
    torch.save(wrap(dict(network.state_dict())), tmp_path / "tutorial.pth.tar")
    loaded = load_checkpoint(tmp_path / "tutorial.pth.tar")
    assert loaded.card.architecture == network.config
    assert (loaded.family, loaded.notes, loaded.card_is_assumed) == ("the tutorial", (), True)
    assert loaded.card.output.activation == ("softmax" if config.get("classes") == 3 else "sigmoid")
    assert loaded.card.input.channels == ("L" if config.get("in_channels") == 1 else "RGB")
    assert loaded.card.input.stride == network.config.stride
    x = torch.rand(1, network.config.in_channels, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded.network()(x), network(x))


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """A checkpoint with all that a run keeps beside its weights."""
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    path = tmp_path_factory.mktemp("run") / "my_checkpoint.pth.tar"
    beside = {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "position": 3, "seconds": 0.5}
    save_checkpoint(path, network.state_dict(), make_card(network), **beside)
    return path


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(run_file, tmp_path):
    """Each of 250 files with one flipped bit is refused, or loads with exactly the content that it had."""
    whole, path, random = run_file.read_bytes(), tmp_path / "x.pth.tar", np.random.default_rng(0)
    before = load_checkpoint(run_file)
    refused = 0
    for place in random.integers(len(whole), size=250):
        data = bytearray(whole)
        data[place] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")  # noqa: PT017 - either way is right
            continue
        assert found.card == before.card
        for one, other in ((found.state_dict, before.state_dict), (found.extra, before.extra)):
            assert pickle.dumps(tree(one)) == pickle.dumps(tree(other))
    assert refused > 180


def tree(value):
    """A content with bytes in place of tensors."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return [(key, tree(one)) for key, one in value.items()]
    return [tree(one) for one in value] if isinstance(value, list | tuple) else value


def test_checksums_are_written_even_where_a_program_switched_them_off(tmp_path, network, card):
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(tmp_path / "model.pth", network.state_dict(), card)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        assert archive.testzip() is None
        assert any(record.CRC for record in archive.infolist())


class Trap:
    """Unpickling this would create the file it names."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_of_other_things_is_refused_and_never_executed(tmp_path, legacy):
    evil, sprung = tmp_path / "evil.pth", tmp_path / "sprung"
    torch.save({"state_dict": Trap(str(sprung))}, evil, _use_new_zipfile_serialization=not legacy)
    message = r"evil\.pth: is not a checkpoint of plain weights, so it was not executed: it asks for builtins"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(evil)
    assert not sprung.exists()
    evil.write_bytes(pickle.dumps(Trap(str(sprung))))
    with pytest.raises(CheckpointError, match="not executed"):
        load_checkpoint(evil)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes), expected a checkpoint"),
        (b"PK\x03\x04 half a zip", "is damaged, truncated or not a PyTorch checkpoint"),
        (b"nonsense" * 100, "not executed"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_cut_off_anywhere_are_refused(path):
    whole = path.read_bytes()
    for share in (0.01, 0.2, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth.tar"])
def test_a_file_of_no_bytes_says_so(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"is empty \(0 bytes\), expected a checkpoint"):
        load_checkpoint(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.pth: no such file; expected a checkpoint, such as"):
        load_checkpoint(tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="is a folder, expected a checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a dictionary of weights"),
        ({"state_dict": {"a": 1}}, "holds no state dict"),
        ({0: torch.ones(3)}, "holds no state dict"),
        ({"downs.0.conv.0.weight": torch.ones(4, 3).to_sparse()}, "holds no state dict"),
        (
            {"encoder.weight": torch.ones(3)},
            "x.pth: is not a U-Net that is known here (the tutorial, milesial, mateuszbuda, usuyama): found the keys",
        ),
        ({}, "holds no state dict"),
    ],
)
def test_other_contents_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pth")
    assert message in str(caught.value)


def test_missing_extra_and_misshapen_weights_are_listed(tmp_path, network):
    weights = dict(network.state_dict())
    del weights["ups.1.conv.0.weight"]
    weights["zzz"] = torch.ones(1)
    weights["bottleneck.conv.0.weight"] = torch.ones(2, 2, 3, 3)
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pth")
    message = str(caught.value)
    assert "x.pth: looks like the tutorial's U-Net, but 3 keys do not fit: bottleneck.conv.0.weight" in message
    assert "bottleneck.conv.0.weight: [2, 2, 3, 3], expected [16, 8, 3, 3]" in message
    assert "ups.1.conv.0.weight: none, expected [8, 16, 3, 3]" in message
    assert "zzz: [1], expected none" in message


def test_changed_weights_do_not_pass_for_those_of_the_card(path, network, card):
    network.final_conv.bias.data += 1e-6
    save_checkpoint(path, network.state_dict(), card)
    with pytest.raises(CheckpointError, match="its weights are not those that its card names"):
        load_checkpoint(path)


def save_with_card(weights, path):
    network = make_network()
    network.load_state_dict(weights)
    save_checkpoint(path, weights, make_card(network))


FORMATS = {"x.pth": torch.save, "with a card.pth": save_with_card, "x.safetensors": save_file}


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("key", ["downs.1.conv.3.weight", "ups.1.conv.4.running_var", "final_conv.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, network, file, key, value):
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    weights[key].view(-1)[-1] = value
    FORMATS[file](weights, tmp_path / file)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / file)
    assert str(caught.value) == f"{tmp_path / file}: {key} holds NaN or infinite weights; use an earlier checkpoint"


def test_weights_that_are_infinite_in_float32_are_refused_by_name(tmp_path, network):
    weights = network.state_dict() | {"final_conv.bias": torch.tensor([1e300], dtype=torch.float64)}
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: final_conv\.bias holds NaN or infinite weights"):
        load_checkpoint(tmp_path / "x.safetensors")


OTHERS = {
    "the tutorial": lambda: make_network(classes=3, up="bilinear"),
    "milesial": lambda: randomised(Milesial(widths=(4, 8))),
    "mateuszbuda": lambda: randomised(Mateuszbuda(widths=(4, 8))),
    "usuyama": lambda: randomised(Usuyama(widths=(4, 8))),
}


@pytest.mark.parametrize("family", OTHERS)
def test_safetensors_are_the_same_weights(tmp_path, family):
    weights = OTHERS[family]().state_dict()
    torch.save(weights, tmp_path / "theirs.pth")
    save_file(weights, tmp_path / "theirs.SafeTensors", {"format": "pt"})
    expected, loaded = load_checkpoint(tmp_path / "theirs.pth"), load_checkpoint(tmp_path / "theirs.SafeTensors")
    assert (loaded.family, loaded.card, loaded.notes) == (family, expected.card, expected.notes)
    assert (loaded.card_is_assumed, loaded.extra) == (True, {})
    assert loaded.state_dict.keys() == expected.state_dict.keys()
    assert all(torch.equal(weight, expected.state_dict[key]) for key, weight in loaded.state_dict.items())


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_network_starts_with_safetensors_whatever_their_name(tmp_path, network, name):
    save_file(network.state_dict(), tmp_path / name)
    started = make_network(seed=1)
    assert initialise(started, tmp_path / name) is None
    assert torch.equal(started.bottleneck.conv[0].weight, network.bottleneck.conv[0].weight)


@pytest.mark.parametrize(
    "content", [b"nonsense" * 100, b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"PK\x03\x04 half a zip", b"\x80"]
)
def test_damaged_safetensors(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.safetensors")
    assert str(caught.value) == (
        f"{tmp_path / 'x.safetensors'}: is damaged, truncated or not a safetensors file; copy or save it again"
    )


def test_safetensors_cut_off_anywhere_are_refused(tmp_path, network):
    file = tmp_path / "x.safetensors"
    save_file(network.state_dict(), file)
    whole = file.read_bytes()
    for share in (0.001, 0.05, 0.5, 0.999):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match="is damaged, truncated or not a safetensors file"):
            load_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no state dict (names and tensors); expected a U-Net's checkpoint"),
        ({"layer": torch.ones(1)}, "found the keys layer"),
        ({"state_dict": torch.ones(1)}, "found the keys state_dict"),
        ({"final_conv.weight": torch.ones(1), "card": torch.ones(1)}, "looks like the tutorial's U-Net, but 1 key"),
    ],
)
def test_safetensors_of_other_things_are_named(tmp_path, content, message):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.safetensors")
    assert message in str(caught.value)


def test_a_damaged_card_is_refused(path, network, card):
    torch.save({"state_dict": network.state_dict(), "card": card.to_json().replace('"sigmoid"', '"tanh"')}, path)
    with pytest.raises(CheckpointError, match=r"card field output\.activation: found 'tanh'"):
        load_checkpoint(path)


def test_hash_is_of_names_types_shapes_and_values(network):
    weights = dict(network.state_dict())
    same = weights_sha256(weights)
    assert weights_sha256(dict(reversed(weights.items()))) == same
    assert (
        weights_sha256({key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()})
        == same
    )
    assert weights_sha256(weights | {"final_conv.bias": weights["final_conv.bias"] + 1}) != same
    assert weights_sha256(weights | {"final_conv.bias": weights["final_conv.bias"].double()}) != same


def test_a_failed_write_keeps_the_old_checkpoint(path, card, monkeypatch):
    def full_disk(_, target):
        Path(target).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OutputError, match=r"model\.pth: cannot be written"):
        save_checkpoint(path, {}, card)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.pth"]


def test_card_matches_its_network():
    network = make_network(widths=(3, 5, 9), in_channels=1)
    assert make_card(network).input.stride == 8


def answers(network):
    x = torch.rand(1, network.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network(x)


def test_a_network_starts_with_the_weights_of_a_checkpoint(path, network):
    started = make_network(seed=1)
    assert not torch.equal(answers(started), answers(network))
    assert initialise(started, path) is None
    assert torch.equal(answers(started), answers(network))


def test_the_weights_of_a_checkpoint_keep_what_its_card_says(path, card):
    weights = load_weights(path)
    assert (weights.family, weights.config, weights.classes) == ("unet-deploy", card.architecture, ("car",))


@pytest.mark.parametrize(
    ("theirs", "note"),
    [
        (Milesial, None),
        (
            Mateuszbuda,
            "trained on values normalised per volume, which a card cannot express: here they are divided by 255",
        ),
        (Usuyama, "has no BatchNorm: layers were added that change nothing until it is trained further"),
    ],
)
def test_a_network_starts_with_other_peoples_weights_and_two_sigmoids_too(tmp_path, theirs, note):
    file = tmp_path / "theirs.pth"
    torch.save(randomised(theirs(widths=(4, 8), classes=2)).state_dict(), file)
    weights = load_weights(file)
    started = make_network(classes=2, up=weights.config.up)
    assert initialise(started, file) == (f"--init-from {file}: {note}" if note else None)
    assert all(torch.equal(value, weights.state_dict[key]) for key, value in started.state_dict().items())


@pytest.mark.parametrize("classes", [1, 3])
def test_a_network_of_the_architecture_of_a_checkpoint_starts_with_it(tmp_path, classes):
    theirs = randomised(Milesial(widths=(4, 8, 12), channels=1, classes=classes, bilinear=True))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    found = architecture_of(tmp_path / "theirs.pth")
    assert found == UNetConfig(in_channels=1, classes=classes, widths=(4, 8, 12), up="bilinear")
    initialise(UNet(found), tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        architecture_of(tmp_path / "gone.pth")


def test_with_other_classes_all_but_the_last_convolution_is_copied(path, network):
    started = make_network(seed=1, classes=3)
    before = {key: value.clone() for key, value in started.state_dict().items()}
    assert initialise(started, path) == (
        f"--init-from {path}: all but final_conv was copied, which has 1 class there, 3 here"
    )
    for key, value in started.state_dict().items():
        source = before if key.startswith("final_conv.") else network.state_dict()
        assert torch.equal(value, source[key]), key


@pytest.mark.parametrize("settings", [{"in_channels": 3}, {"up": "bilinear"}, {"widths": (4, 8, 16)}])
def test_another_architecture_cannot_start_with_it_and_the_flags_are_told(tmp_path, settings):
    source = make_network(in_channels=1)
    save_checkpoint(tmp_path / "grey.pth", source.state_dict(), make_card(source))
    started = make_network(**{"in_channels": 1} | settings)
    before = answers(started)
    with pytest.raises(ConfigError) as caught:
        initialise(started, tmp_path / "grey.pth")
    assert str(caught.value) == (
        f"--init-from {tmp_path / 'grey.pth'}: is a U-Net of widths 4,8 with up transpose and 1 channel; "
        "give --widths 4,8 --up transpose --channels L"
    )
    assert torch.equal(answers(started), before)


def test_several_classes_in_another_order_start_a_fresh_last_layer(tmp_path):
    """Else every answer would be another class's."""
    network = make_network(classes=3)
    save_checkpoint(tmp_path / "x.pth", network.state_dict(), make_card(network))  # classes c0, c1, c2
    for classes, copied in ((("c0", "c1", "c2"), True), (("c2", "c1", "c0"), False), (None, True)):
        start = make_network(seed=1, classes=3)
        note = initialise(start, tmp_path / "x.pth", classes)
        assert torch.equal(start.final_conv.weight, network.final_conv.weight) is copied
        assert torch.equal(start.bottleneck.conv[0].weight, network.bottleneck.conv[0].weight)
        assert (note is None) is copied
    assert "all but final_conv was copied, which has the classes c0, c1, c2 there, 3 here" in str(
        initialise(start, tmp_path / "x.pth", ("a", "b", "c"))
    )
