"""Mask files whose values are not labels yet: foreground above a threshold, classes as colours."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from runtime.errors import ConfigError, ImageError
from runtime.image_files.limits import Limits

if TYPE_CHECKING:  # loads NumPy, which --help must not need
    from unet_core.data.labels import Labels, LabelSpec

IGNORE = "ignore"
"""Name in `--colours` for pixels that do not count."""

COLOUR = re.compile(r"(?P<name>[^=]+)=#(?P<value>[0-9a-fA-F]{6})")


@dataclass(frozen=True, kw_only=True)
class MaskValues:
    """Settings by which the values of mask files become labels; by default they are labels.

    `threshold`: pixels of this value (1 to 255) or brighter are foreground, all others background.

    `colours`: "NAME=#RRGGBB" for each class. A name may occur several times; `background` and `ignore` are known, too.
    """

    threshold: int | None = None
    colours: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return True if the values are not labels."""
        return self.threshold is not None or bool(self.colours)

    def check(self, classes: Sequence[str], ignore_index: int | None, class_offset: int = 0) -> None:
        """Raise a ConfigError if these settings contradict the classes or one another."""
        from unet_core.data.labels import BACKGROUND

        if not self:
            return
        if self.threshold is not None and self.colours:
            raise ConfigError("--mask-threshold: contradicts --colours; leave one of them out")
        name = "--colours" if self.colours else f"--mask-threshold {self.threshold}"
        if ignore_index is not None:
            instead = f"{IGNORE}=#RRGGBB among the --colours" if self.colours else "masks of plain labels"
            raise ConfigError(f"{name}: contradicts --ignore-index {ignore_index}; leave that out, or use {instead}")
        if class_offset:
            raise ConfigError(f"{name}: contradicts --class-offset {class_offset}; leave one of them out")
        if self.threshold is not None and len(classes) > 1:
            raise ConfigError(f"{name}: is for one class, found {len(classes)} --classes; leave it out")
        if self.colours:
            named = {found for found, _ in parse_colours(self.colours)}
            known = {*classes, IGNORE, *((BACKGROUND,) if len(classes) == 1 else ())}
            if unknown := sorted(named - known):
                raise ConfigError(f"--colours: {unknown[0]!r} is none of the --classes ({', '.join(classes)})")
            if missing := [found for found in classes if found not in named]:
                raise ConfigError(f"--colours: has no colour for the class {missing[0]!r}; add {missing[0]}=#RRGGBB")


def parse_colours(colours: Sequence[str]) -> list[tuple[str, int]]:
    """Return the (name, 0xRRGGBB) of each text NAME=#RRGGBB.

    Raises:
        ConfigError: a text has another form, or a colour occurs twice.
    """
    found: dict[int, str] = {}
    for text in colours:
        match = COLOUR.fullmatch(text)
        if match is None:
            raise ConfigError(f"--colours {text[:100]!r}: expected NAME=#RRGGBB, such as road=#804080")
        value, name = int(match["value"], 16), match["name"].strip()
        if value in found:
            raise ConfigError(f"--colours: found #{value:06x} twice ({found[value]}, {name}), expected it once")
        found[value] = name
    return [(name, value) for value, name in found.items()]


def classes_of(colours: Sequence[str]) -> tuple[str, ...]:
    """The classes that colours name, in their order; of a class and the background alone, the class.

    Raises:
        ConfigError: see `parse_colours`.
    """
    from unet_core.data.labels import BACKGROUND

    names = [name for name in dict.fromkeys(name for name, _ in parse_colours(colours)) if name != IGNORE]
    return tuple(name for name in names if name != BACKGROUND) if len(names) == 2 else tuple(names)


def labels_from(source: Path | IO[bytes], spec: "LabelSpec", values: MaskValues, limits: Limits) -> "Labels":
    """Read a mask file as labels, uint8 [height, width], by its threshold, its colours or, without either, its values.

    With one class, black is background unless `colours` name it.

    Raises:
        ImageError: the file cannot be read, or has a colour that no class has.
        ConfigError: see `MaskValues.check`.
    """
    import numpy as np

    from runtime.image import load_image
    from runtime.image_files.decoding import open_image
    from runtime.image_files.sources import name_of
    from unet_core.data.labels import IGNORED, listed_colours, load_truth

    if not values:
        return load_truth(source, spec, limits)
    values.check(spec.classes, spec.ignore_index, spec.class_offset)
    if values.threshold is not None:
        picture = open_image(source, limits)
        stored = np.asarray(picture) if picture.mode.startswith("I") else None
        if stored is None or stored.max() > 255:  # else a file of 16 bits with values of 8, as `load_labels` takes them
            stored = load_image(source, "L", limits=limits)[:, :, 0]
        return (stored >= values.threshold).astype(np.uint8)
    meaning = {0: 0} if spec.binary else {}
    for name, value in parse_colours(values.colours):
        if name in spec.classes:
            meaning[value] = 1 if spec.binary else spec.classes.index(name)
        else:
            meaning[value] = IGNORED if name == IGNORE else 0
    red, green, blue = np.moveaxis(load_image(source, "RGB", limits=limits).astype(np.uint32), 2, 0)
    codes, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    if unknown := [code for code in codes.tolist() if code not in meaning]:
        example = ", such as background=#000000," if 0 in unknown else ""
        raise ImageError(
            f"{name_of(source)}: has colours of no class ({listed_colours(unknown)}); name them in --colours, as a "
            f"class{example} or as {IGNORE}"
        )
    return np.array([meaning[code] for code in codes.tolist()], np.uint8)[places].reshape(red.shape)
