"""TrainConfig: what settings are refused and how; stored settings and flags say the same."""

import json
from dataclasses import MISSING, FrozenInstanceError, asdict, fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.errors import ConfigError
from unet_core import train as training
from unet_core.config import FIELDS, TrainConfig, fixed_settings, flag
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import Layout
from unet_core.settings_file import from_stored, read_settings

SECTIONS = ("run", "data", "network", "optimisation", "speed")

ENCODER = {
    "network": "smp.FPN",
    "encoder": "mit_b0",
    "encoder_weights": "none",
    "network_arg": ("decoder_dropout=0.5",),
    "encoder_lr_scale": 0.1,
    "freeze_encoder": 2,
}
CHANGED = {
    "data": "cars",
    "out": "runs/grün",
    "epochs": 7,
    "seed": 2**63 - 1,
    "device": "cuda:1",
    "save_minutes": 2.5,
    "patience": 4,
    "classes": ("road", "street sign", "Auto"),
    "ignore_index": 0,
    "class_offset": 1,
    "masks": "classes",
    "channels": "L",
    "levels": "0,4095",
    "height": 72,
    "width": 80,
    "fit": "letterbox",
    "foreground_share": 0.1,
    "augment": "strong",
    "val_share": 0.2,
    "group": "-",
    "skip_bad": True,
    "max_pixels": 300_000_000,
    "validate_at": "trained",
    "widths": (8, 16, 32),
    "up": "bilinear",
    "init_from": "other.pth",
    "loss": "ce+dice",
    "boundary_weight": 2.0,
    "class_weights": "median",
    "batch_size": 3,
    "accumulate": 2,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "schedule": "plateau",
    "plateau_epochs": 2,
    "warmup_epochs": 0.5,
    "clip_norm": 1.0,
    "ema": 0.999,
    "amp": "bf16",
    "channels_last": False,
    "compile": True,
    "workers": 0,
    "cache_gb": 0.0,
    "cache_dir": "/cache",
    "tensorboard": False,
}
"""Every setting away from its default, but for two ways to read masks that exclude each other and ignored values."""


def config(**changes):
    return TrainConfig(**{"data": "d", "out": "o"} | changes)


def test_defaults_are_the_tutorials():
    found = asdict(config())
    expected = {
        "lr": 1e-4,
        "batch_size": 16,
        "epochs": 3,
        "height": 160,
        "width": 240,
        "widths": (64, 128, 256, 512),
        "up": "transpose",
        "classes": ("car",),
        "channels": "RGB",
        "masks": "masks",
        "group": "_",
        "fit": "stretch",
        "augment": "basic",
        "optimizer": "adam",
        "schedule": "constant",
        "weight_decay": 0.0,
        "ema": 0.0,
        "validate_at": "original",
    }
    assert {name: found[name] for name in expected} == expected
    assert config().loss_name == "bce"


def test_every_setting_can_be_changed():
    changed = TrainConfig(**CHANGED)
    plain = {name: FIELDS[name].default for name in ENCODER}
    assert asdict(changed) == CHANGED | {"mask_threshold": None, "colours": ()} | plain
    assert [name for name, value in (CHANGED | ENCODER).items() if value == FIELDS[name].default] == []
    assert config(mask_threshold=9).layout == Layout(mask_threshold=9)
    several = config(classes=("a", "b"), colours=("a=#000000", "b=#ffffff"))
    assert several.layout == Layout(colours=("a=#000000", "b=#ffffff"))
    other = TrainConfig(data="cars", out="run", height=64, width=96, **ENCODER)
    assert {name: value for name, value in asdict(other).items() if name in ENCODER} == ENCODER
    with pytest.raises(FrozenInstanceError):
        changed.lr = 1.0


@pytest.mark.parametrize("change", [{"ignore_index": 0, "class_offset": 1}, {"ignore_index": 3}, {"ignore_index": 255}])
def test_a_value_of_no_class_can_be_ignored(change):
    assert config(classes=("sky", "road", "car"), **change).labels.ignore_index == change["ignore_index"]


def test_settings_say_what_network_they_ask_for():
    several = TrainConfig(**CHANGED)
    assert (several.architecture.in_channels, several.architecture.classes, several.architecture.stride) == (1, 3, 8)
    assert (several.architecture.widths, several.architecture.up) == ((8, 16, 32), "bilinear")
    assert (several.input.size, several.input.channels, several.input.mean) == ((72, 80), "L", (0.0,))
    assert (several.input.fit, several.input.stride) == ("letterbox", 8)
    assert (several.output.classes, several.output.activation) == (("road", "street sign", "Auto"), "softmax")
    assert several.labels == LabelSpec(classes=several.classes, ignore_index=0, class_offset=1)
    assert several.layout == Layout(masks="classes", class_offset=1, val_share=0.2, group="-")
    assert (config().output.activation, config().architecture.in_channels, config().input.stride) == ("sigmoid", 3, 16)


REFUSED = [
    ({"lr": 0}, "--lr 0: expected 1e-12 to 1000"),
    ({"lr": 1001.0}, "--lr 1001.0: expected 1e-12 to 1000"),
    ({"lr": float("nan")}, "--lr nan: expected 1e-12 to 1000"),
    ({"lr": float("inf")}, "--lr inf: expected 1e-12 to 1000"),
    ({"lr": "1e-3"}, "--lr '1e-3': expected a number"),
    ({"lr": True}, "--lr True: expected a number"),
    ({"lr": None}, "--lr None: expected a number"),
    ({"lr": 10**400}, f"--lr 1{'0' * 96}...: expected 1e-12 to 1000"),
    ({"epochs": 0}, "--epochs 0: expected 1 to 1000000"),
    ({"epochs": 1.0}, "--epochs 1.0: expected an integer"),
    ({"epochs": 10**5000}, "--epochs of thousands of digits: expected 1 to 1000000"),
    ({"seed": -1}, "--seed -1: expected 0 to 9223372036854775807"),
    ({"seed": 2**63}, "--seed 9223372036854775808: expected 0 to 9223372036854775807"),
    ({"save_minutes": -1}, "--save-minutes -1: expected 0 to 1000000"),
    ({"patience": -1}, "--patience -1: expected 0 to 1000000"),
    ({"workers": 1025}, "--workers 1025: expected 0 to 1024"),
    ({"workers": "2"}, "--workers '2': expected an integer"),
    ({"batch_size": 0}, "--batch-size 0: expected 1 to 1048576"),
    ({"accumulate": 0}, "--accumulate 0: expected 1 to 1048576"),
    ({"momentum": 1}, "--momentum 1: expected 0 to 0.9999"),
    ({"ema": 1.0}, "--ema 1.0: expected 0 to 0.99999"),
    ({"val_share": 0}, "--val-share 0: expected 0.001 to 0.9"),
    ({"foreground_share": 1.5}, "--foreground-share 1.5: expected 0 to 1"),
    ({"cache_gb": -0.5}, "--cache-gb -0.5: expected 0 to 1000000"),
    ({"channels_last": 1}, "--channels-last 1: expected true or false"),
    ({"channels_last": "true"}, "--channels-last 'true': expected true or false"),
    ({"fit": "crop"}, "--fit crop: expected one of stretch, letterbox, native"),
    ({"fit": "a\nb"}, "--fit 'a\\nb': expected one of stretch, letterbox, native"),
    ({"fit": 3}, "--fit 3: expected one of stretch, letterbox, native"),
    ({"fit": "x" * 99}, f"--fit {'x' * 99}: expected one of stretch, letterbox, native"),
    ({"amp": True}, "--amp True: expected one of auto, off, fp16, bf16"),
    ({"data": ""}, "DATA '': expected a folder"),
    ({"data": None}, "DATA None: expected text"),
    ({"data": ["d"]}, "DATA ['d']: expected text"),
    ({"out": ""}, "--out '': expected a folder"),
    ({"out": "a\0b"}, "--out 'a\\x00b': expected text without NUL characters"),
    ({"masks": ""}, "--masks '': expected the end of a folder's name, such as masks"),
    ({"masks": "../masks"}, "--masks '../masks': expected the end of a folder's name, such as masks"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[text.split(":")[0][:40] for _, text in REFUSED])
def test_settings_out_of_their_bounds_or_of_another_type(change, message):
    with pytest.raises(ConfigError) as caught:
        config(**change)
    assert str(caught.value) == message


def test_a_path_object_is_no_text():
    """A setting is what the run's config.json can hold."""
    with pytest.raises(ConfigError, match=r"^--out (Posix|Windows)Path\('o'\): expected text$"):
        config(out=Path("o"))


NAMES = "expected 1 to 200 printable characters without commas, and without spaces at the ends"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "--classes: found 0 names, expected 1 to 255"),
        (tuple(map(str, range(256))), "--classes: found 256 names, expected 1 to 255"),
        (("sky", "road", "sky"), "--classes: found 'sky' twice, expected different names"),
        (("a,b", "c"), f"--classes: found the name 'a,b', {NAMES}"),
        (("a\nb",), f"--classes: found the name 'a\\nb', {NAMES}"),
        (("a", ""), f"--classes: found the name '', {NAMES}"),
        (("a", " b"), f"--classes: found the name ' b', {NAMES}"),
        (("x" * 201,), f"--classes: found the name '{'x' * 96}..., {NAMES}"),
        (("a", 1), "--classes ['a', 1]: expected a list of names"),
        ("car", "--classes 'car': expected a list of names"),
        (["car"], "--classes ['car']: expected a list of names"),
        (None, "--classes None: expected a list of names"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_odd_classes(classes, message):
    with pytest.raises(ConfigError) as caught:
        config(classes=classes)
    assert str(caught.value) == message


def test_at_most_255_classes_leave_the_ignored_label_free():
    names = tuple(map(str, range(255)))
    assert config(classes=names).output.classes == names


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((), "--widths: found 0 numbers, expected 1 to 8"),
        ((8,) * 9, "--widths: found 9 numbers, expected 1 to 8"),
        ((8, 0), "--widths 0: expected numbers from 1 to 65536"),
        ((65537,), "--widths 65537: expected numbers from 1 to 65536"),
        ((8, 16.0), "--widths [8, 16.0]: expected a list of integers"),
        ((True,), "--widths [True]: expected a list of integers"),
        (64, "--widths 64: expected a list of integers"),
    ],
)
def test_odd_widths(widths, message):
    with pytest.raises(ConfigError) as caught:
        config(widths=widths)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ({"height": 30}, "--height 30: expected a multiple of 4 for 2 --widths, such as 32"),
        ({"width": 41}, "--width 41: expected a multiple of 4 for 2 --widths, such as 40"),
        ({"width": 4}, "--width 4: expected a multiple of 4 for 2 --widths, such as 8, and at least 8"),
        ({"height": 0}, "--height 0: expected 4 to 32768"),
        ({"height": -(10**400)}, f"--height -1{'0' * 95}...: expected 4 to 32768"),
        ({"width": 32772}, "--width 32772: expected 4 to 32768"),
        ({"height": 32.0}, "--height 32.0: expected an integer"),
    ],
)
def test_sides_are_multiples_of_the_stride(side, message):
    with pytest.raises(ConfigError) as caught:
        config(widths=(4, 8), **side)
    assert str(caught.value) == message


def test_the_least_and_the_largest_network():
    assert config(widths=(4,), height=4, width=32768).input.size == (4, 32768)
    assert config(widths=(1,) * 8, height=512, width=512).input.stride == 256


def test_auto_loss_depends_on_the_number_of_classes():
    assert config(loss="auto").loss_name == "bce"
    two = config(loss="auto", classes=("a", "b"))
    assert (two.loss_name, two.output.activation) == ("ce", "softmax")
    assert config(loss="bce+dice").loss_name == "bce+dice"


UNCOUNTED = "so its pixels would not count"
IN_ORDER = "name the --classes in the order of their values and ignore none of them"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "ce"}, "--loss ce: expected one of auto, bce, dice, bce+dice, focal for 1 --classes"),
        ({"loss": "l2"}, "--loss l2: expected one of auto, bce, dice, bce+dice, focal for 1 --classes"),
        (
            {"loss": "bce", "classes": ("a", "b")},
            "--loss bce: expected one of auto, ce, dice, ce+dice, focal for 2 --classes",
        ),
        (
            {"loss": "dice", "boundary_weight": 1.0},
            "--boundary-weight 1.0: has no effect on --loss dice; leave one of them out",
        ),
        (
            {"loss": "dice", "class_weights": "median"},
            "--class-weights median: has no effect on --loss dice; leave one of them out",
        ),
        ({"class_weights": "mean"}, "--class-weights mean: expected one of none, median, sqrt"),
        (
            {"ignore_index": 0},
            "--ignore-index 0: is the background when --classes has one name; expected another value",
        ),
        ({"ignore_index": 256}, "--ignore-index 256: expected 0 to 255"),
        ({"ignore_index": True}, "--ignore-index True: expected an integer"),
        (
            {"ignore_index": 0, "classes": ("sky", "road", "car")},
            f"--ignore-index 0: is also the value of the class 'sky', {UNCOUNTED}; add --class-offset 1 "
            f"if 'sky' has the value 1 in the masks, or {IN_ORDER}",
        ),
        (
            {"ignore_index": 1, "class_offset": 1, "classes": ("sky", "road", "car")},
            f"--ignore-index 1: is also the value of the class 'sky', {UNCOUNTED}; add --class-offset 2 "
            f"if 'sky' has the value 2 in the masks, or {IN_ORDER}",
        ),
        (
            {"ignore_index": 1, "classes": ("sky", "road", "car")},
            f"--ignore-index 1: is also the value of the class 'road', so its pixels would not count; {IN_ORDER}",
        ),
        (
            {"ignore_index": 2, "classes": ("sky", "road", "void")},
            f"--ignore-index 2: is also the value of the class 'void', {UNCOUNTED}; leave 'void' out of "
            f"--classes if 2 stands for no class, or {IN_ORDER}",
        ),
        (
            {"class_offset": 1},
            "--class-offset 1: found 1 --classes, expected several, whose values end at 255 or before",
        ),
        (
            {"class_offset": 254, "classes": ("a", "b", "c")},
            "--class-offset 254: found 3 --classes, expected several, whose values end at 255 or before",
        ),
    ],
)
def test_settings_that_contradict_each_other(change, message):
    with pytest.raises(ConfigError) as caught:
        config(**change)
    assert str(caught.value) == message


@pytest.mark.parametrize("hyphens", [False, True])
def test_a_toml_file_can_hold_every_setting(tmp_path, hyphens):
    lines = [
        f"{name.replace('_', '-') if hyphens else name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in CHANGED.items()
    ]
    path = tmp_path / "run.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_settings(path) == CHANGED


@pytest.mark.parametrize("settings", [{"data": "d", "out": "o"}, CHANGED], ids=["defaults", "changed"])
def test_settings_survive_json(settings):
    before = TrainConfig(**settings)
    assert TrainConfig(**from_stored(json.loads(json.dumps(asdict(before))))) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"epochs": None}, "epochs"), ({"zoom": 1}, "zoom"), ({1: 2, "lr": None, "zoom": 1}, "1, lr, zoom")],
)
def test_settings_of_another_version_are_refused(change, named):
    """None takes a setting away."""
    stored = {name: value for name, value in (CHANGED | change).items() if change.get(name, 0) is not None}
    with pytest.raises(ConfigError) as caught:
        from_stored(stored)
    assert str(caught.value) == f"its settings are another version's ({named})"


def test_a_resumed_run_may_change_what_does_not_make_it_another_run():
    free = {item.name for item in fields(TrainConfig)} - set(fixed_settings())
    assert free == {
        *("data", "out", "epochs", "device", "save_minutes", "patience", "max_pixels"),
        *("batch_size", "accumulate", "lr", "momentum", "weight_decay"),
        *("schedule", "plateau_epochs", "warmup_epochs", "clip_norm", "encoder_lr_scale"),
        *("amp", "channels_last", "compile", "workers", "cache_gb", "cache_dir", "tensorboard"),
    }


def test_every_setting_is_explained_and_is_a_flag():
    result = CliRunner().invoke(training.main, ["--help"], terminal_width=100)
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    for item in fields(TrainConfig):
        assert item.metadata["section"] in SECTIONS
        assert len(item.metadata["help"]) > 5
        if item.name != "data":  # a positional argument
            assert f"{flag(item.name)} " in words
            assert item.metadata["help"].split("  [")[0] in words
    assert "[DATA]" in words
    assert [words.index(f"{section.capitalize()}: ") for section in SECTIONS] == sorted(
        words.index(f"{section.capitalize()}: ") for section in SECTIONS
    )
    assert [item.name for item in fields(TrainConfig) if item.default is MISSING] == ["data", "out"]
