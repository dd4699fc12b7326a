"""Panels of two images of a measured set: a typical one, whose Dice is the median, and the worst one."""

from pathlib import Path

from runtime.image import load_image
from runtime.result import mask_of
from unet_core.data.records import Records
from unet_core.evaluation.metrics import Metrics
from unet_core.evaluation.models import EvaluatedModel
from unet_core.reporting.panels import panel, save_panel


def save_examples(folder: Path, model: EvaluatedModel, records: Records, metrics: Metrics) -> list[str]:
    """Predict the two images again and write typical.png and worst.png; return a line about each.

    Args:
        folder: an existing folder; older pictures are replaced.
        model: the model that was measured.
        records: the images, with truths at their original size.
        metrics: counts of all these images.

    Raises:
        OutputError: a picture cannot be written.
    """
    dices = metrics.dice_by_image()
    order = sorted(dices, key=lambda index: (dices[index], index))
    lines = []
    for kind, place, rank in (("typical", len(order) // 2, "median"), ("worst", 0, "lowest")):
        pair, figure = records.pairs[order[place]], f"Dice {dices[order[place]]:.4f}"
        [(_, probability, truth)] = model.predict(Records([pair], records.decoder), 1, 0)
        predicted, output = mask_of(probability, model.card.output), model.card.output
        title = f"{kind}: {pair.name}   {figure}   {rank} of {len(order)} images"
        path = folder / f"{kind}.png"
        limits, spec = records.decoder.limits, model.card.input
        channels = "raw" if spec.channels == "raw" else "RGB"
        image = load_image(pair.source(pair.image, limits), channels, limits=limits, levels=spec.levels)
        save_panel(path, panel(image, predicted, truth, output.classes, title))
        lines.append(f"{kind + ' image':13}  {path}  ({pair.name}, {figure})")
    return lines
