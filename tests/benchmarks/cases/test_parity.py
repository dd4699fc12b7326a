import numpy as np
import pytest

from benchmarks.cases.parity import measure, require_parity
from benchmarks.results import Skipped
from export.proof import parity as parity_of
from runtime.errors import ProofError
from runtime.image import list_images
from runtime.predictor import Predictor


def compared(thin, checkpoint="model.pth"):
    return measure(thin / "model.onnx", thin / checkpoint, list_images(thin / "val_images"), threads=1)


def test_error_and_flips_of_each_image_at_its_own_size(thin):
    found = compared(thin)
    error, share = found
    assert (error.unit, share.unit) == ("error", "share")
    assert len(error.values) == len(share.values) == 3
    assert 0 < error.facts["max_abs_error"] == max(error.values) < 2e-6
    assert error.facts["allowed"] == 1e-4
    assert error.settings == {"images": 3, "precision": "fp32", "device": "cpu", "threads": 1}
    require_parity(found)


def test_another_models_answers_are_shown_and_refused(thin):
    found = compared(thin, "other.pth")
    error, share = found
    assert error.facts["max_abs_error"] > 0.01
    assert error.facts["worst_image"] == f"v{np.argmax(error.values)}.jpg"
    assert max(share.values) == share.facts["flipped"] > 0
    with pytest.raises(ProofError) as caught:
        require_parity(found)
    shown = f"{error.facts['max_abs_error']:.2g}"
    assert str(caught.value) == (
        f"parity on cpu: answers differ by {shown} from PyTorch's, expected at most 0.0001; are model and checkpoint "
        "the same?"
    )


def test_figures_are_those_of_the_other_model(thin):
    """Against the other checkpoint's own export, which answers as that checkpoint does."""
    from export import export_onnx

    other = export_onnx(thin / "other.pth").path
    images = list_images(thin / "val_images")
    with Predictor(thin / "model.onnx", "cpu") as ours, Predictor(other, "cpu") as theirs:
        output = ours.card.output
        pairs = [(ours.predict(path).probability, theirs.predict(path).probability) for path in images]
    figures = [parity_of(answer, expected, output) for answer, expected in pairs]
    error, share = compared(thin, "other.pth")
    assert error.values == pytest.approx([one.max_abs_error for one in figures], abs=1e-5)
    assert share.values == pytest.approx([one.flipped for one in figures], abs=1e-3)


@pytest.mark.parametrize(
    ("checkpoint", "images", "reason"),
    [(None, ["a.jpg"], "needs --checkpoint"), ("model.pth", [], "needs images, by --data")],
)
def test_without_what_it_compares_it_is_skipped(thin, checkpoint, images, reason):
    found = measure(thin / "model.onnx", checkpoint and thin / checkpoint, images, threads=1)
    assert found == [Skipped(part="parity", contestant="unet-deploy", settings={}, reason=reason)]
    require_parity(found)
