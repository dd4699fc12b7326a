"""Figures of a whole data set in a few lines, and what they advise."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from unet_core.data.labels import IGNORED, LabelSpec
from unet_core.data.pairs import SPLITS
from unet_core.inspection.checking import DataFindings, ImageFacts
from unet_core.training.data_notes import note_on_missing

LISTED = 5
"""Maximum number of sizes that are listed."""

FEW_LEVELS = 64
"""Number of different values below which pictures look as if most of their bits were lost."""


def statistics(findings: DataFindings, spec: LabelSpec) -> str:
    """Describe the usable images: numbers, sizes, values, and the share of each class; "" if there are none."""
    images = findings.images
    if not images:
        return ""
    splits = Counter(image.split for image in images)
    sizes = Counter(image.size for image in images)
    listed = [f"{width}x{height} ({count})" for (height, width), count in sizes.most_common(LISTED)]
    more = len(sizes) - LISTED
    levels = np.sum([image.levels for image in images], axis=0)
    used = np.flatnonzero(levels)
    mean = float((levels * np.arange(256)).sum() / levels.sum())
    count, grey = len(images[0].means), sum(image.grey for image in images)
    kinds = f"{len(images) - grey} images have colours, {grey} are grey"
    if count not in (1, 3):
        means = np.mean([image.means for image in images], axis=0)
        kinds = f"{count} channels, mean of each: {', '.join(f'{one:.1f}' for one in means)}"
    lines = [
        f"images   {splits['train']} to train on, {splits['val']} to validate on",
        f"sizes    {', '.join(listed)}{f' and {more} more sizes' * (more > 0)}",
        f"values   {used[0]} to {used[-1]} ({len(used)} of 256 in use), mean {mean:.1f}; {kinds}",
    ]
    return "\n".join([*lines, "", *class_lines(images, spec)])


def class_lines(images: Sequence[ImageFacts], spec: LabelSpec) -> list[str]:
    """A line for each class: its share of the pixels that count, and the number of images that have it."""
    names = ["background", *spec.classes] if spec.binary else [*spec.classes]
    counts = np.array([image.labels for image in images])  # [images, 256]
    counted = counts[:, : len(names)].sum()
    width = max(len(name) for name in (*names, "not counted"))
    lines = [f"{'class':{width}}  {'pixels':>8}  {'images':>6}"]
    for label, name in enumerate(names):
        share = 100 * counts[:, label].sum() / max(1, counted)
        lines.append(f"{name:{width}}  {share:7.2f}%  {np.count_nonzero(counts[:, label]):6}")
    if ignored := counts[:, IGNORED].sum():
        share = 100 * ignored / counts.sum()
        lines.append(f"{'not counted':{width}}  {share:7.2f}%  {np.count_nonzero(counts[:, IGNORED]):6}")
    return lines


def advice(findings: DataFindings, spec: LabelSpec) -> list[str]:
    """Notes on figures that promise trouble: classes that no mask has, masks without foreground, lost values."""
    notes = []
    for split, side in zip(SPLITS, ("training", "validation"), strict=True):
        images = [image for image in findings.images if image.split == split]
        if not images:
            continue
        counts = np.array([image.labels for image in images])
        present = np.flatnonzero(counts.sum(axis=0)).tolist()
        if missing := note_on_missing(side, [label for label in present if label != IGNORED], spec.classes):
            notes.append(missing)
        foreground = np.delete(counts, [IGNORED, *([] if spec.background is None else [spec.background])], axis=1)
        empty = int((foreground.sum(axis=1) == 0).sum())
        if 0 < empty < len(images) and spec.background is not None:
            notes.append(f"{split}: {empty} of {len(images)} masks have no foreground")
    few = [image for image in findings.images if np.count_nonzero(image.levels) < FEW_LEVELS]
    if len(few) * 2 > len(findings.images):
        notes.append(f"{len(few)} of {len(findings.images)} images use fewer than {FEW_LEVELS} of 256 values")
    return notes
