"""Files of each version, read by the code of today: `tests/data/make_samples.py` made them with that version."""

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
from click.testing import CliRunner

from runtime.errors import ModelError
from runtime.predictor import Predictor

SAMPLES = Path(__file__).parent / "data"
VERSIONS = ("v0.1", "v0.2")
MODELS = ("cpu", "fp16", "fp32", "grey", "int8-s8", "int8-u8", "opset18", "several")
RUNS = {"run": "data", "grey": "data", "several": "data3"}
"""Folders of runs, and the data set that each was trained on."""

TOLERANCE = 1e-5
"""Largest difference from the recorded probabilities; another processor rounds in another way."""

REPORTS = sorted((Path(__file__).parents[1] / "docs" / "benchmarks").rglob("*.json"))


@pytest.fixture(scope="module", params=VERSIONS)
def samples(request):
    """The folder of a version's samples."""
    return SAMPLES / request.param


@pytest.fixture(scope="module")
def answers(samples):
    """The picture, uint8 [50, 75, 3], and the probabilities that the version gave for it, by the name of the file."""
    with np.load(samples / "answers.npz") as stored:
        return dict(stored)


@pytest.fixture
def work(samples, tmp_path, monkeypatch):
    """The current folder: a copy of a version's samples."""
    shutil.copytree(samples, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def assert_as_recorded(file, answers, name):
    """Compare what a file answers, for the whole picture and for flipped tiles, with what is recorded for `name`."""
    predictor = Predictor(file, "cpu", threads=1)
    grey = predictor.card.input.channels == "L"
    picture = np.ascontiguousarray(answers["picture"][:, :, 0]) if grey else answers["picture"]
    for suffix, options in (("", {}), (" tiles", {"tile": (32, 32), "tta": "flip"})):
        expected, result = answers[name + suffix], predictor.predict(picture, **options)
        assert result.probability.shape == expected.shape
        assert np.abs(result.probability - expected).max() <= TOLERANCE
        several = len(expected) > 1
        assert np.array_equal(result.mask, expected.argmax(0) if several else expected[0] > result.output.threshold)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_files_answer_as_recorded(samples, answers, name):
    assert_as_recorded(samples / "models" / f"{name}.onnx", answers, name)


def test_all_versions_are_looked_at():
    assert {path.name for path in SAMPLES.glob("v*")} == {*VERSIONS}


def test_every_onnx_file_is_looked_at(samples):
    assert {path.stem for path in (samples / "models").iterdir()} == {*MODELS, "raw"}


def test_a_raw_onnx_file_is_refused(samples):
    with pytest.raises(ModelError, match=r"raw\.onnx: .*\braw\b.*--raw"):
        Predictor(samples / "models" / "raw.onnx", "cpu")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("file", ["model.pth", "my_checkpoint.pth.tar"])
def test_checkpoints_load_with_their_card(samples, run, file):
    from unet_core.checkpoint import load_checkpoint, weights_sha256

    checkpoint = load_checkpoint(samples / run / file)
    card = checkpoint.card
    assert not checkpoint.card_is_assumed and checkpoint.family == "unet-deploy" and not checkpoint.notes
    assert weights_sha256(checkpoint.state_dict) == card.weights_sha256
    assert (card.architecture.widths, card.input.size) == ((4, 8), (32, 48))
    assert card.output.classes == (("sky", "road", "car") if run == "several" else ("car",))
    assert (card.input.channels, card.input.fit, card.architecture.up) == {
        "run": ("RGB", "stretch", "transpose"),
        "grey": ("L", "letterbox", "bilinear"),
        "several": ("RGB", "native", "transpose"),
    }[run]
    assert checkpoint.network()


@pytest.mark.parametrize("run", RUNS)
def test_checkpoints_measure_as_in_training(samples, run):
    from unet_core.checkpoint import load_checkpoint
    from unet_core.data.pairs import find_pairs
    from unet_core.evaluate import evaluate

    measured = evaluate(samples / run / "model.pth", find_pairs(samples / RUNS[run], "val"), device="cpu").summary()
    stored = load_checkpoint(samples / run / "model.pth").card.training.metrics
    assert {name: measured[name] for name in stored} == pytest.approx(dict(stored), abs=1e-6)
    assert {"image_dice", "pixel_dice", "iou", "accuracy"} <= stored.keys()


@pytest.mark.slow
def test_a_checkpoint_exports_to_a_file_that_answers_as_recorded(samples, answers, tmp_path):
    from export import export_onnx

    report = export_onnx(samples / "several" / "model.pth", tmp_path / "several.onnx")
    assert_as_recorded(report.path, answers, "several")


@pytest.mark.slow
def test_a_run_is_resumed_with_its_data(work):
    from unet_core.checkpoint import load_checkpoint
    from unet_core.train import main

    before = (work / "run" / "metrics.csv").read_text()
    result = CliRunner().invoke(main, ["--out", "run", "--resume", "--epochs", "5"])
    assert result.exit_code == 0, result.output
    after = (work / "run" / "metrics.csv").read_text()
    assert after.startswith(before) and after.count("\n") == before.count("\n") + 1
    assert load_checkpoint(work / "run" / "my_checkpoint.pth.tar").extra["config"]["epochs"] == 5


@pytest.mark.parametrize("run", RUNS)
def test_settings_are_accepted(samples, run, tmp_path):
    from unet_core.config import TrainConfig
    from unet_core.settings_file import from_stored, read_settings

    stored = json.loads((samples / run / "config.json").read_text())
    settings = from_stored(stored)
    config = TrainConfig(**settings)
    assert (config.widths, config.height, config.width) == ((4, 8), 32, 48)
    file = tmp_path / "settings.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in stored.items() if value is not None))
    assert TrainConfig(**read_settings(file)) == config


def name_of_records(pairs, truth_at_original, draft):
    """The name of the folder of these records: a hash over versions, decoding and files."""
    decoding = {
        "input": {
            "size": (32, 48),
            "channels": "RGB",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "fit": "stretch",
            "stride": 4,
        },
        "labels": {"classes": ("car",), "ignore_index": None, "class_offset": 0, "of_model": False},
        "truth_at_original": truth_at_original,
        "draft": draft,
    }
    files = [(str(path), path.stat()) for pair in pairs for path in pair.files]
    identities = [(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for path, found in files]
    content = json.dumps([(4, PIL.__version__, cv2.__version__), decoding, identities], sort_keys=True)
    return "records-" + hashlib.sha256(content.encode()).hexdigest()[:32]


def test_decoded_images_of_version_0_1_are_decoded_anew(tmp_path, monkeypatch):
    """Also under today's name: earlier versions decoded some TIFF files and masks wrongly, and counted no pixels."""
    from unet_core.config import TrainConfig
    from unet_core.data.cache import check_and_cache, open_cache, pending
    from unet_core.data.pairs import find_splits
    from unet_core.data.records import Records, SampleDecoder
    from unet_core.settings_file import from_stored

    work = tmp_path / "work"
    shutil.copytree(SAMPLES / "v0.1", work)
    config = TrainConfig(**from_stored(json.loads((work / "run" / "config.json").read_text())))
    pairs = find_splits(work / "data")
    options = ({"draft": True, "truth_at_original": False}, {"draft": False, "truth_at_original": True})
    sets = [
        Records(part, SampleDecoder(input=config.input, labels=config.labels, **chosen))
        for part, chosen in zip(pairs, options, strict=True)
    ]
    expected = [[records.decoder.make(pair) for pair in records.pairs] for records in sets]
    folders = sorted((work / "cache").iterdir(), key=lambda folder: (folder / "records.bin").stat().st_size)
    for folder, part, chosen in zip(reversed(folders), pairs, options, strict=True):
        folder.rename(folder.with_name(name_of_records(part, **chosen)))

    cache = open_cache(str(work / "cache"), 1)
    assert pending(sets, cache) == sum(map(len, sets))
    check_and_cache(sets, cache, lambda _: None, pytest.fail)
    monkeypatch.setattr(SampleDecoder, "make", lambda *_: pytest.fail("a pair was decoded again"))
    for records, decoded in zip(sets, expected, strict=True):
        assert len(records) == len(decoded) == records.stored
        for index, (image, labels) in enumerate(decoded):
            assert np.array_equal(records[index][0], image) and np.array_equal(records[index][1], labels)


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_measurements_are_compared(report):
    from benchmarks.cli import main

    result = CliRunner().invoke(main, ["compare", str(report), str(report)])
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1].strip() for line in result.output.splitlines() if line.startswith("| ")]
    assert {one["part"] for one in json.loads(report.read_text())["measurements"]} <= set(rows)


def test_there_are_published_measurements():
    assert len(REPORTS) > 20
