import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import make_card, make_network
from PIL import Image

from runtime.errors import CheckpointError, DeviceError, ImageError
from runtime.image import fit, load_image, restore
from unet_core.checkpoint import save_checkpoint
from unet_core.data import find_pairs, load_truth
from unet_core.evaluate import checkpoint_predictions, evaluate, main, measure, torch_device
from unet_core.model import Segmenter


@pytest.fixture
def model(tmp_path, network, card):
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), card)
    return tmp_path / "model.pth"


def logits_of(network, data):
    with torch.inference_mode():
        image = torch.from_numpy(load_image(find_pairs(data, "val")[0].image))
        return network(image.permute(2, 0, 1)[None] / 255).numpy()


def test_figures_by_hand(tmp_path, network, data):
    """One loop with nothing shared but image.py: probabilities at the original size, counted over the whole set."""
    network.final_conv.bias.data -= np.median(logits_of(network, data))  # so that it answers both classes
    card, model = make_card(network), tmp_path / "model.pth"
    save_checkpoint(model, network.state_dict(), card)
    pairs = find_pairs(data, "val")
    tp = fp = fn = tn = 0
    dices = []
    for pair in pairs:
        fitted = fit(load_image(pair.image), card.input)
        with torch.inference_mode():
            answer = Segmenter(network, card).eval()(torch.from_numpy(fitted.image)[None]).numpy()[0]
        found, truth = restore(answer, fitted)[0] > 0.5, load_truth(pair.mask) == 1
        tp, fp = tp + (found & truth).sum(), fp + (found & ~truth).sum()
        fn, tn = fn + (~found & truth).sum(), tn + (~found & ~truth).sum()
        dices.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert evaluate(model, pairs, device="cpu").summary() == pytest.approx(
        {
            "accuracy": (tp + tn) / (tp + tn + fp + fn),
            "image_dice": np.mean(dices),
            "pixel_dice": 2 * tp / (2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
        }
    )
    assert tp and fp and fn and tn


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 0), (3, 2)])
def test_figures_do_not_depend_on_batches_and_workers(model, data, batch_size, workers):
    pairs = find_pairs(data, "val")
    one = evaluate(model, pairs, device="cpu", batch_size=1)
    assert evaluate(model, pairs, device="cpu", batch_size=batch_size, workers=workers) == one


def test_images_of_different_sizes_come_back_at_their_own(network, card, data):
    Image.new("RGB", (31, 57)).save(data / "val_images" / "val0.jpg")
    Image.new("L", (31, 57)).save(data / "val_masks" / "val0_mask.gif")
    segmenter = Segmenter(network, card)
    answers = list(checkpoint_predictions(segmenter, card, find_pairs(data, "val"), batch_size=3))
    assert [probability.shape for _, probability, _ in answers] == [(1, 57, 31), (1, 32, 48), (1, 32, 48)]
    assert [pair.name for pair, _, _ in answers] == ["val0", "val1", "val2"]


def test_the_network_is_left_in_the_mode_it_was_in(network, card, data):
    segmenter = Segmenter(network, card).train()
    list(checkpoint_predictions(segmenter, card, find_pairs(data, "val")))
    assert segmenter.training
    assert segmenter.network.training


@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_that_cannot_be_used_are_listed_before_the_work(model, data, workers):
    Image.new("L", (20, 10)).save(data / "val_masks" / "val1_mask.gif")
    Image.effect_noise((48, 32), 90).save(data / "val_masks" / "val2_mask.gif")
    result = CliRunner().invoke(main, [str(model), str(data), "--device", "cpu", "--workers", str(workers)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: 2 of 3 pairs cannot be used")
    assert "val1_mask.gif: is 20x10, expected 48x32 as val1.jpg; " in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_mask_of_another_size_is_never_measured(network, card, data):
    Image.new("L", (20, 10)).save(data / "val_masks" / "val1_mask.gif")
    predictions = checkpoint_predictions(Segmenter(network, card), card, find_pairs(data, "val"))
    with pytest.raises(ImageError, match=r"val1_mask\.gif: is \(10, 20\), expected \(32, 48\)"):
        measure(predictions, card)


def test_several_classes_are_refused(tmp_path, data):
    network = make_network(classes=3)
    save_checkpoint(tmp_path / "m.pth", network.state_dict(), make_card(network))
    with pytest.raises(CheckpointError, match="has 3 classes; only one is measured so far"):
        evaluate(tmp_path / "m.pth", find_pairs(data, "val"), device="cpu")


def test_command_line_prints_four_digits(model, data):
    result = CliRunner().invoke(main, [str(model), str(data), "--device", "cpu", "--workers", "0"])
    figures = evaluate(model, find_pairs(data, "val"), device="cpu").summary()
    assert result.exit_code == 0, result.output
    for name, value in figures.items():
        assert f"  {name:<12}{value:.4f}\n" in result.output


def test_command_line_refuses_a_missing_model(data, tmp_path):
    for name, message in (("no.pth", "no.pth: no such file"), ("no.onnx", "no.onnx: no such file")):
        result = CliRunner().invoke(main, [str(tmp_path / name), str(data), "--workers", "0"])
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["mps", "gpu", "cuda:x"])
def test_unknown_devices(name):
    with pytest.raises(DeviceError, match=r"expected auto, cpu, cuda or cuda:N"):
        torch_device(name)
