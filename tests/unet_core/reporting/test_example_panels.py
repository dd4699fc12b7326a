"""A typical answer and the worst one, as `python -m unet_core.evaluate --pictures` shows them."""

import numpy as np
import pytest
from evaluating import refusal, run
from PIL import Image

from runtime.image import load_image
from runtime.image_files.limits import LIMITS
from runtime.result import mask_of
from unet_core.data.labels import load_labels
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate, records_for
from unet_core.evaluation.models import load_model
from unet_core.reporting.panels import panel


def drawn(model, views, index, title):
    """The panel of one image by hand."""
    loaded = load_model(model, "cpu")
    records = records_for(loaded, find_pairs(views, "val"), None, 0, LIMITS)
    _, probability, truth = list(loaded.predict(records, 1, 0))[index]
    output = loaded.card.output
    return panel(load_image(records.pairs[index].image), mask_of(probability, output), truth, output.classes, title)


def test_the_median_is_called_typical_and_the_lowest_dice_worst(model, views, tmp_path):
    mask = views / "val_masks" / "v1_mask.gif"  # v1 turned to its opposite
    labels = load_labels(mask)
    Image.fromarray(np.where(labels > 0, 0, 255).astype(np.uint8)).save(mask, optimize=False)
    dices = evaluate(model, find_pairs(views, "val"), device="cpu").dice_by_image()
    worst, typical, best = sorted(dices, key=dices.get)
    assert dices[worst] < dices[typical] < dices[best]
    folder = tmp_path / "new" / "pictures"
    done = run(model, views, "--pictures", folder)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == [
        f"typical image  {folder}/typical.png  (v{typical}, Dice {dices[typical]:.4f})",
        f"worst image    {folder}/worst.png  (v{worst}, Dice {dices[worst]:.4f})",
    ]
    for kind, index, rank in (("typical", typical, "median"), ("worst", worst, "lowest")):
        title = f"{kind}: v{index}   Dice {dices[index]:.4f}   {rank} of 3 images"
        with Image.open(folder / f"{kind}.png") as picture:
            assert np.array_equal(picture, drawn(model, views, index, title))


def test_several_classes_and_a_single_image(several, views, tmp_path):
    for name in ("v1", "v2"):
        (views / "val_images" / f"{name}.jpg").unlink()
    done = run(several[0], views, "--pictures", tmp_path)
    assert done.exit_code == 0
    first, last = done.stdout.splitlines()[-2:]
    assert first.startswith(f"typical image  {tmp_path}/typical.png  (v0, Dice 0.")
    assert last.startswith(f"worst image    {tmp_path}/worst.png  (v0, Dice 0.")


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(model, views, tmp_path, monkeypatch):
    monkeypatch.setattr("unet_core.evaluate.measure_model", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("mine")
    assert refusal(model, views, "--pictures", tmp_path / "file").startswith(
        f"{tmp_path / 'file'}: cannot create this folder ("
    )


def test_images_without_masks_have_no_such_pictures(model, views, tmp_path):
    line = "--pictures: shows answers beside the truth, and test_images/ has no masks; leave it out"
    submission = tmp_path / "s.csv"
    assert refusal(model, views, "--split", "test", "--submission", submission, "--pictures", tmp_path) == line
