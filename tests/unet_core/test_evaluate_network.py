"""A checkpoint of somebody else's network is measured by its author's code, and its export by the same figures."""

import pytest
import torch
from authors import write_author
from evaluating import refusal, run
from measuring import labels_by_hand, metrics_by_hand, probability_by_hand
from PIL import Image

from export import export_onnx
from unet_core.data.labels import LabelSpec, load_truth
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.checkpoint import open_checkpoint

SIZE = ("--size", "48x32")
CHANGES = CardChanges(size=(32, 48))


@pytest.fixture
def author(tmp_path, monkeypatch):
    """net.py in the current folder, and weights.pth of it: trained ones, and an average."""
    monkeypatch.chdir(tmp_path)
    average, raw = write_author(tmp_path, seed=1), write_author(tmp_path, seed=4)
    torch.save({"model": raw.state_dict(), "ema": average.state_dict()}, tmp_path / "weights.pth")
    return tmp_path


def figures_by_hand(network, card, views):
    answers = [
        (
            labels_by_hand(probability_by_hand(network, card, pair.image)),
            load_truth(pair.mask, LabelSpec(classes=("foreground",))),
        )
        for pair in find_pairs(views, "val")
    ]
    return metrics_by_hand(answers, [1])


@pytest.mark.parametrize("weights", [None, "ema"])
def test_the_authors_network_is_measured(author, views, weights):
    options = NetworkOptions(source="net.py:Net", weights=weights)
    loaded = open_checkpoint(author / "weights.pth", options, CHANGES)
    expected = figures_by_hand(loaded.network(), loaded.card, views)
    pairs = find_pairs(views, "val")
    measured = evaluate(author / "weights.pth", pairs, device="cpu", network=options, changes=CHANGES)
    assert measured.summary() == pytest.approx(expected)
    given = ("--weights", weights) if weights else ()
    done = run("weights.pth", views, "--network", "net.py:Net", *SIZE, *given)
    assert done.exit_code == 0
    assert f"  pixel Dice  {expected['pixel_dice']:.4f}\n" in done.stdout
    assert done.stderr.startswith(
        "note: weights.pth: has no card; assumed: mean 0,0,0 of values in 0..1, std 1,1,1, fit stretch, classes "
        "foreground (--mean, --std, --fit, --classes)\n"
    )
    taken = (
        "the moving average of the weights, under 'ema', is"
        if weights
        else "the weights as trained, under 'model', are"
    )
    assert f"note: weights.pth: {taken} taken; " in done.stderr


def test_the_export_has_the_same_figures(author, views):
    options = NetworkOptions(source="net.py:Net")
    exported = export_onnx(author / "weights.pth", network=options, changes=CHANGES)
    assert exported.card.architecture.kind == "module"
    pairs = find_pairs(views, "val")
    of_checkpoint = evaluate(author / "weights.pth", pairs, device="cpu", network=options, changes=CHANGES).summary()
    of_export = evaluate(exported.path, pairs, device="cpu").summary()
    assert {name: f"{value:.4f}" for name, value in of_export.items()} == {
        name: f"{value:.4f}" for name, value in of_checkpoint.items()
    }


def test_fields_of_the_card_change_the_answers(author, views):
    network = ("--network", "net.py:Net")
    plain = run("weights.pth", views, *network, *SIZE).stdout
    changed = run("weights.pth", views, *network, *SIZE, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2").stdout
    higher = run("weights.pth", views, *network, *SIZE, "--threshold", 0.6).stdout
    assert len({plain, changed, higher}) == 3


def test_a_network_that_ends_in_a_sigmoid_gets_no_second_one(author, views):
    ends = ("--network-arg", "ends=true", "--activation", "sigmoid")
    plain = run("weights.pth", views, "--network", "net.py:Net", *SIZE).stdout
    assert run("weights.pth", views, "--network", "net.py:Net", *SIZE, *ends).stdout == plain


def test_what_does_not_go_with_the_model_is_one_line(author, views, source):
    exported = source / "model.onnx"
    for option in (("--network", "net.py:Net"), ("--weights", "ema"), ("--size", "48x32")):
        assert refusal(exported, views, *option) == (
            f"{exported}: is an ONNX file, which has its network and its card; leave out --network, --weights and the "
            "options for a card"
        )
    assert (
        refusal("weights.pth", views, "--stride", 2) == "--stride: goes with --network; give that too, or leave it out"
    )
    assert refusal("weights.pth", views).startswith(
        "weights.pth: is not a U-Net that is known here (the tutorial, milesial, mateuszbuda, usuyama): found the keys "
        "encoder.weight, encoder.bias, decoder.weight; other networks are exported with the code that makes them: "
    )
    assert refusal(source / "model.pth", views, "--weights", "ema") == (
        f"--weights ema: {source / 'model.pth'} has a card, which belongs to its weights; leave it out"
    )
    assert refusal(source / "model.pth", views, "--mean", "1,1,1").startswith(
        "--mean: found 1.0,1.0,1.0, the checkpoint's"
    )


def test_an_image_smaller_than_the_network_takes_is_named(author, views):
    code = (author / "net.py").read_text()
    (author / "picky.py").write_text(
        code.replace("        x = self.decoder(", "        assert min(x.shape[2:]) >= 40\n        x = self.decoder(")
    )
    pair = find_pairs(views, "val")[0]
    Image.new("RGB", (30, 20)).save(pair.image)
    Image.new("L", (30, 20)).save(pair.mask)
    network = ("--network", "picky.py:Net", "--size", "256x256", "--fit", "native")
    done = run("weights.pth", views, *network)
    said = done.stderr.splitlines()[-1]  # after notes
    assert done.exit_code == 2 and said.startswith("error: ")
    assert "is 30x20 for the network, which takes at least 39x39, use larger images, or another fit than native" in said
