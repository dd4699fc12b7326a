"""The step that draws images, trains a network on them, and exports it in each precision, with a thin one."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu_run import models
from benchmarks.gpu_run.findings import Finding
from benchmarks.gpu_run.sessions import Model

CHECKPOINT = Path(__file__).parents[2] / "data" / "v0.1" / "grey" / "model.pth"


@pytest.fixture
def exported(monkeypatch):
    """(checkpoint, path, precision, data) of every export, none of which is made."""
    found = []

    def export_finding(*arguments):
        found.append(arguments)
        return Finding.measured("export", {})

    monkeypatch.setattr(models, "export_finding", export_finding)
    monkeypatch.setattr(models, "CARS", 2)
    monkeypatch.setattr(models, "SIZE", (32, 48))
    monkeypatch.setattr(models, "SMALL", {**models.SMALL, "widths": (4, 8), "epochs": 1, "height": 32, "width": 48})
    return found


@pytest.mark.slow
def test_a_network_is_trained_and_exported_in_each_precision(context, exported, plain_curves):
    found = {one.subject: one for one in models.make(context)}
    assert found["data set"].figures == {"training_images": 16, "validation_images": 16}
    assert found["training on the CPU"].figures["epoch"] == 1
    checkpoint, data = context.out / "small" / "model.pth", context.out / "data"
    assert checkpoint.exists()
    assert exported == [(checkpoint, context.model(one), one, data) for one in ("fp32", "fp16", "int8")]
    pictures = Model.read(context.model("fp32")).pictures(context)
    assert [picture.shape for picture in pictures] == 8 * [(1, 32, 48, 3)]
    assert len(list((context.out / "few_images").iterdir())) == models.FEW


def test_another_checkpoint_is_judged_on_images_alone(context, exported):
    """Its classes are not the drawn cars, so their masks say nothing about it."""
    own = replace(context, checkpoint=CHECKPOINT)
    assert [one.subject for one in models.make(own)] == ["data set", "export", "export", "export"]
    assert {(given, data) for given, _, _, data in exported} == {(CHECKPOINT, context.out / "data" / "val_images")}


def test_an_export_is_told(context, monkeypatch):
    card, asked = Model.read(context.model("fp16")).card, []

    def export_onnx(checkpoint, path, **options):
        asked.append((checkpoint, path, options))
        return SimpleNamespace(card=card, seconds=1.26, size=2_500_000)

    monkeypatch.setattr("export.exporter.export_onnx", export_onnx)
    path = context.model("full-fp16")
    found = models.export_finding(CHECKPOINT, path, "fp16", context.out)
    gate = card.proof.gate
    figures = {"seconds": 1.3, "mb": 2.5, "gate_flipped": gate.flipped, "gate_passed": gate.passed}
    assert found == Finding.verdict("export, full-fp16", True, figures=figures)
    models.export_finding(CHECKPOINT, path, "fp32", context.out)
    models.export_finding(CHECKPOINT, path, "int8", context.out)
    options = [
        {"precision": "fp16", "force": True, "data": context.out, "int8_for": None},
        {"precision": "fp32", "force": False, "data": None, "int8_for": None},
        {"precision": "int8", "force": True, "data": context.out, "int8_for": "tensorrt"},
    ]
    assert asked == [(CHECKPOINT, path, one) for one in options]


def test_an_export_that_fails_is_told(context):
    found = models.export_finding(context.out / "missing.pth", context.model("fp32"), "fp32", context.out)
    assert (found.subject, found.state) == ("export, fp32", "failed")
    assert found.text.startswith("CheckpointError: ")
