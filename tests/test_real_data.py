"""The whole chain on real images: train, export, evaluate both files, predict a folder."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.cases import parity
from export import export_onnx
from runtime.commands.predict import predict
from runtime.image import list_images
from runtime.support.cpu_count import available_threads
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.labels import LabelSpec, load_truth
from unet_core.data.pairs import Layout, find_pairs
from unet_core.evaluate import evaluate
from unet_core.evaluation.metrics import Metrics
from unet_core.train import train

pytestmark = pytest.mark.slow


def chain(data, out, **settings):
    """Train and export; returns checkpoint, ONNX file and the validation pairs."""
    config = TrainConfig(data=str(data), out=str(out), lr=1e-3, loss="bce+dice", **settings)
    best = train(config)
    return best, export_onnx(best).path, find_pairs(data, "val")


def some_of(data, folder, layout=None, **counts):
    """Link as many pairs of each split as `counts` says, evenly spread, into a new folder."""
    for split, count in counts.items():
        pairs = find_pairs(data, split, layout)
        for pair in pairs[:: max(1, len(pairs) // count)][:count]:
            for file in pair.files:
                link = folder / file.relative_to(data)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    return folder


def predict_folder(model, folder, out):
    result = CliRunner().invoke(predict, [str(model), str(folder), "-o", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output


@pytest.mark.xdist_group("test_brain_slices_are_segmented")
def test_brain_slices_are_segmented(brain, tmp_path):
    """Real MRI: the net is right, its export gives the same Dice to four digits, and so do the files on disk."""
    settings = {"widths": (16, 32, 64, 128), "height": 96, "width": 96, "batch_size": 4, "epochs": 3}
    best, model, pairs = chain(brain, tmp_path / "run", classes=("brain",), **settings)
    of_checkpoint = evaluate(best, pairs, device="cpu")
    of_model = evaluate(model, pairs, device="cpu")
    assert of_checkpoint.pixel_dice >= 0.95
    assert of_model.summary() == pytest.approx(of_checkpoint.summary(), abs=5e-5)

    predict_folder(model, brain / "val_images", tmp_path / "masks")
    on_disk = Metrics(("brain",))
    for pair in pairs:
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{pair.name}.png"))
        assert set(np.unique(mask)) <= {0, 255}
        on_disk.add(mask // 255, load_truth(pair.mask, LabelSpec(classes=("brain",))))
    assert len(on_disk.state()) == len(list_images(brain / "val_images"))
    assert on_disk.pixel_dice == of_model.pixel_dice

    error, _ = parity.measure(model, best, [pair.image for pair in pairs], threads=available_threads())
    assert error.facts["max_abs_error"] < 1e-5
    assert error.facts["flip_distance"] < 1e-5


@pytest.mark.xdist_group("test_a_wide_network_answers_alike_in_the_file_for_cpus")
def test_a_wide_network_answers_alike_in_the_file_for_cpus(brain, tmp_path):
    """One epoch teaches it enough to segment; its values are those of a trained network, on real images."""
    data = some_of(brain, tmp_path / "data", train=48, val=12)
    settings = {"widths": (96, 192), "height": 64, "width": 64, "batch_size": 4, "epochs": 1}
    best, model, pairs = chain(data, tmp_path / "run", classes=("brain",), **settings)
    for_cpus = export_onnx(best, target="cpu", data=data)
    assert len([node for node in onnx.load(for_cpus.path).graph.node if node.op_type == "Scan"]) >= 4
    of_model, of_cpus = (evaluate(path, pairs, device="cpu") for path in (model, for_cpus.path))
    assert of_model.pixel_dice > 0.5
    assert of_cpus.summary() == pytest.approx(of_model.summary(), abs=5e-5)
    error, _ = parity.measure(for_cpus.path, best, [pair.image for pair in pairs], threads=available_threads())
    assert error.facts["max_abs_error"] < 1e-5


@pytest.mark.xdist_group("test_the_chain_runs_on_road_scenes")
def test_the_chain_runs_on_road_scenes(camvid, tmp_path):
    """CamVid's cars are hard: one epoch of a thin net proves the chain, not the segmentation."""
    data = some_of(camvid, tmp_path / "data", train=96, val=24)
    best, model, pairs = chain(data, tmp_path / "run", widths=(8, 16, 32, 64), batch_size=2, epochs=1)
    of_checkpoint = evaluate(best, pairs, device="cpu")
    assert 0 < of_checkpoint.pixel_dice < 1
    assert evaluate(model, pairs, device="cpu").summary() == pytest.approx(of_checkpoint.summary(), abs=5e-5)
    predict_folder(model, data / "val_images", tmp_path / "masks")
    for pair in pairs:
        with Image.open(tmp_path / "masks" / f"{pair.name}.png") as mask:
            assert mask.size == (480, 360)


CLASSES = "sky building pole road pavement tree sign fence car pedestrian bicyclist"


@pytest.mark.xdist_group("test_eleven_classes_train_on_road_scenes")
def test_eleven_classes_train_on_road_scenes(camvid, tmp_path):
    """One epoch (46 steps) of a thin net on the class labels: the largest classes are found, beyond guessing one."""
    data = some_of(camvid, tmp_path / "data", Layout(masks="classes"), train=184, val=50)
    config = TrainConfig(
        data=str(data),
        out=str(tmp_path / "run"),
        masks="classes",
        classes=tuple(CLASSES.split()),
        ignore_index=11,
        widths=(8, 16, 32),
        lr=3e-3,
        batch_size=4,
        epochs=1,
        loss="ce+dice",
        ema=0.9,
    )
    card = load_checkpoint(train(config)).card
    assert card.training.metrics["accuracy"] > 0.35
    assert card.training.metrics["pixel_dice sky"] > 0.5
    assert card.training.metrics["pixel_dice road"] > 0.4
