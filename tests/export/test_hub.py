import hashlib
import re
import runpy
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
from onnx.helper import set_model_props
from onnx_files import gate_of, permission_of, write_onnx
from PIL import Image, ImageSequence

from export.hub import write_model_card
from export.publish.model_card import model_card
from runtime.card import RAW_KEY
from runtime.errors import ModelError, OutputError
from runtime.model_file.digest import seal
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor

CASES = {
    "stretch": {},
    "softmax": {"classes": 3},
    "grey": {"in_channels": 1},
    "sigmoids": {
        "classes": 3,
        "of_card": lambda card: replace(card, output=replace(card.output, activation="sigmoids", threshold=0.4)),
    },
    "letterbox": {
        "of_card": lambda card: replace(card, input=replace(card.input, fit="letterbox", mean=(0.2, 0.4, 0.6)))
    },
    "native": {"of_card": lambda card: replace(card, input=replace(card.input, fit="native"))},
    "half": {"of_card": lambda card: replace(card, input=replace(card.input, fit="native", scale=0.5))},
    "one shape": {"fixed_batch": 2},
    "levels": {"of_card": lambda card: replace(card, input=replace(card.input, levels=(20, 200)))},
    "grey levels": {
        "in_channels": 1,
        "of_card": lambda card: replace(card, input=replace(card.input, levels=(20, 200))),
    },
    "12 bits": {"of_card": lambda card: replace(card, input=replace(card.input, levels=(0, 4095)))},
    "grey of 12 bits": {
        "in_channels": 1,
        "of_card": lambda card: replace(card, input=replace(card.input, levels=(0, 4095))),
    },
    "threshold": {"of_card": lambda card: replace(card, output=replace(card.output, threshold=0.52))},
}


def answers(folder, size, case, monkeypatch):
    """The mask that the Markdown's own script saves for an image, and `Predictor`'s."""
    monkeypatch.chdir(folder)
    write_onnx(folder / "model.onnx", **case)
    picture = synthetic_image(*size, 3, seed=1)
    if case is CASES["12 bits"] or case is CASES["grey of 12 bits"]:
        picture = picture.astype(np.uint16) * 16 + 7
    cv2.imwrite("image.png", picture[:, :, ::-1])
    text = write_model_card(folder / "model.onnx").read_text()
    script = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "onnxruntime" in block)
    assert "runtime.predict" not in script
    (folder / "script.py").write_text(script.replace("image.jpg", "image.png"))
    runpy.run_path("script.py")
    (file,) = folder.glob("mask.*")
    with Image.open(file) as picture:
        found = np.stack([np.asarray(page) for page in ImageSequence.Iterator(picture)])
    return found, np.stack(
        [np.asarray(page) for page in Predictor("model.onnx", "cpu").predict("image.png").pictures()]
    )


@pytest.mark.parametrize("size", [(32, 48), (101, 90)], ids=["trained size", "larger"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_plain_script_answers_as_the_predictor(tmp_path, monkeypatch, case, size):
    found, expected = answers(tmp_path, size, case, monkeypatch)
    assert len(np.unique(expected)) > 1
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_facts_of_the_file(tmp_path):
    file = tmp_path / "model.onnx"
    card = write_onnx(file, classes=3)
    text = model_card(card, file)
    assert f"| sha256 | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |" in text
    assert f"| size | {file.stat().st_size / 1e6:.1f} MB |" in text
    assert "| output | `probability` | float32 | batch, 3, height, width | 0 to 1 |" in text
    assert "0. `c0`\n1. `c1`\n2. `c2`\n" in text
    assert "3 epochs on data with the fingerprint `f00d`" in text and "| `image_dice` | 0.9700 |" in text
    assert "| 1 of 48x32 | synthetic | 3.0e-07 | 0.0000% | 1.000000 | 0.0e+00 |" in text
    assert "This file's answers against PyTorch's, on `CPUExecutionProvider` with `onnxruntime` `1.31.1`." in text
    assert "largest error of a probability is 3.0e-07; the export allows 0.0001" in text
    assert "Warning" not in text and "### Gate" not in text


def test_classes_that_overlap_are_told(tmp_path):
    file = tmp_path / "model.onnx"
    text = model_card(write_onnx(file, **CASES["sigmoids"]), file)
    assert "A pixel has each class whose probability is above 0.4: none, one or several.\n" in text
    assert '.save("mask.tif")' in text and "mask.png" not in text


def test_a_file_of_one_shape_says_so(tmp_path):
    file = tmp_path / "model.onnx"
    text = model_card(write_onnx(file, fixed_batch=2), file)
    assert "| input | `image` | uint8 | 2, 32, 48, 3 | RGB, 0 to 255 |" in text
    assert "| output | `probability` | float32 | 2, 1, 32, 48 | 0 to 1 |" in text
    assert "The file takes batches of 2 at this size only. Resize images to 48x32 (width x height)" in text


def test_a_file_for_cpus_is_used_there(tmp_path):
    file = tmp_path / "model.onnx"
    text = model_card(write_onnx(file, target="cpu"), file)
    assert 'runtime.predict("image.jpg", model=\'model.onnx\', device="cpu")' in text
    assert "unet-predict model.onnx images/ -o masks --device cpu\n" in text


def test_the_front_matter_names_no_license(tmp_path):
    card = write_onnx(tmp_path / "model.onnx")
    text = model_card(card, tmp_path / "model.onnx")
    front = text.split("---\n")[1].splitlines()
    assert front[:2] == ["library_name: onnx", "pipeline_tag: image-segmentation"]
    assert front[2:6] == ["tags:", "- onnx", "- unet", "- segmentation"]
    assert front[6].startswith("# license: to be filled in") and len(front) == 7


@pytest.mark.parametrize(
    ("precision", "gate", "lost", "allowed"),
    [
        ("fp16", {"flipped": 0.02}, "answers 2.0000% of the pixels of 8 real images", "0.01% of the pixels"),
        ("int8", {"flipped": 0.02, "images": "synthetic"}, "of 8 synthetic images", "0.50% of the pixels"),
        (
            "int8",
            {"image_dice": 0.9, "image_dice_fp32": 0.95},
            "an image Dice of 0.9000 instead of 0.9500 (5.0000 points less)",
            "0.2 points of image Dice",
        ),
    ],
)
def test_a_failed_gate_is_said_before_anything_else(tmp_path, precision, gate, lost, allowed):
    card = write_onnx(tmp_path / "model.onnx", precision=precision, gate=gate_of(passed=False, **gate))
    text = model_card(card, tmp_path / "model.onnx")
    warning = text.split("# `thin`\n\n")[1].splitlines()[0]
    assert warning.startswith(f"> **Warning: this {precision} file failed its gate")
    assert lost in warning and f"allowed are {allowed}" in warning
    assert "**Failed.**" in text


@pytest.mark.parametrize(
    ("precision", "gate", "lost"),
    [
        ("fp16", {"flipped": 0.0}, "answers 0.0000% of the pixels of 8 real images otherwise than fp32"),
        (
            "int8",
            {"image_dice": 0.3, "image_dice_fp32": 0.4},  # in training 0.97
            "with an image Dice of 0.3000 instead of 0.4000 (10.0000 points less)",
        ),
    ],
)
def test_a_forced_file_whose_images_show_nothing_is_not_said_to_lose_too_much(tmp_path, precision, gate, lost):
    card = write_onnx(tmp_path / "model.onnx", precision=precision, gate=gate_of(passed=False, **gate))
    warning = model_card(card, tmp_path / "model.onnx").split("# `thin`\n\n")[1].splitlines()[0]
    assert warning.endswith(f"{lost}; the images cannot show what is lost. Prefer the fp32 file.")


def test_numbers_just_above_their_limit_look_so(tmp_path):
    gate = gate_of(passed=False, flipped=1.000004e-4, image_dice=0.9483999, image_dice_fp32=0.9504)
    text = model_card(write_onnx(tmp_path / "model.onnx", precision="fp16", gate=gate), tmp_path / "model.onnx")
    assert "answers 0.01000004% of the pixels" in text
    text = model_card(write_onnx(tmp_path / "model.onnx", precision="int8", gate=gate), tmp_path / "model.onnx")
    assert "0.9484 instead of 0.9504 (0.20001 points less); allowed are 0.2 points of image Dice" in text


def test_an_fp16_file_without_a_layer_in_fp16_says_so(tmp_path):
    kept = ("ups.0", *(f"layer {index}" for index in range(12)))
    gate = gate_of(passed=False, flipped=0.0, kept=kept)
    text = model_card(write_onnx(tmp_path / "model.onnx", precision="fp16", gate=gate), tmp_path / "model.onnx")
    said = "holds no layer in fp16: all had to stay in fp32."
    assert f"It {said} Prefer the fp32 file." in text and f"**Failed.** The file {said}\n" in text
    assert "of the pixels" not in text and "`ups.0`" not in text


def test_whose_answers_the_proof_of_an_fp16_file_is_about(tmp_path):
    def as_exported(card):
        return replace(card, proof=replace(card.proof, provider="CPUExecutionProvider rounding to fp16"))

    card = write_onnx(tmp_path / "model.onnx", precision="fp16", of_card=as_exported)
    text = model_card(card, tmp_path / "model.onnx")
    assert "This file's answers" not in text
    assert "a graph that rounds to fp16 as this file does on a GPU, against PyTorch's, on `CPUExecutionP" in text


def test_a_passed_gate_and_its_layers_in_fp32(tmp_path):
    card = write_onnx(tmp_path / "model.onnx", precision="fp16", gate=gate_of(kept=("ups.0", "final_conv")))
    text = model_card(card, tmp_path / "model.onnx")
    assert "Warning" not in text
    assert "**Passed.** The file answers 0.0020% of the pixels of 8 real images otherwise than fp32." in text
    assert "Layers that stayed in fp32: `ups.0`, `final_conv`." in text


def test_names_from_outside_stay_text(tmp_path):
    name = "a|b`c`\n# <b>"
    card = write_onnx(
        tmp_path / "model.onnx",
        of_card=lambda card: replace(card, name=name, output=replace(card.output, classes=(name,))),
    )
    text = model_card(card, tmp_path / "model.onnx")
    assert "# `a/b'c' # <b>`\n" in text
    assert name not in text and text.count("<b>") == text.count("`a/b'c' # <b>`")


def test_a_model_without_training_or_proof(tmp_path):
    card = write_onnx(tmp_path / "model.onnx", of_card=lambda card: replace(card, training=None, proof=None))
    text = model_card(card, tmp_path / "model.onnx")
    assert "## Training\n\nNothing is known about it.\n" in text and "## Proof" not in text


def test_raw_exports_have_other_inputs_and_are_refused(tmp_path):
    card = write_onnx(tmp_path / "raw.onnx")
    model = onnx.load(tmp_path / "raw.onnx")
    set_model_props(model, {RAW_KEY: card.to_json()})
    onnx.save(model, tmp_path / "raw.onnx")
    with pytest.raises(ModelError, match="is a raw export"):
        write_model_card(tmp_path / "raw.onnx")
    assert not (tmp_path / "raw.md").exists()


def test_a_file_that_was_changed_since_its_export_is_refused(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    seal(tmp_path / "model.onnx")
    write_model_card(tmp_path / "model.onnx").unlink()
    content = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content.replace(b'"threshold": 0.5', b'"threshold": 0.1'))
    with pytest.raises(ModelError, match="its digest does not fit its card; "):
        write_model_card(tmp_path / "model.onnx")
    assert not (tmp_path / "model.md").exists()


def test_a_folder_in_the_way(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    (tmp_path / "model.md").mkdir()
    with pytest.raises(OutputError, match=r"model.md: is a folder, expected a file name"):
        write_model_card(tmp_path / "model.onnx")


def test_a_model_card_tells_of_bf16(tmp_path):
    file = tmp_path / "model.onnx"
    write_onnx(file)
    seal(file)
    assert "bf16" not in write_model_card(file).read_text()
    write_onnx(file, bf16=permission_of(flipped=8.1e-5))
    seal(file)
    text = write_model_card(file).read_text()
    assert text[text.index("### bf16") : text.index("## License")] == (
        "### bf16\n\n**Permitted.** With OpenVINO, unet-deploy computes this file in bf16 on CPUs that have it "
        "(`ProviderOptions(bf16=False)` refuses that). Judged on `OpenVINO 2026.4.1 in bf16`, it then answers 0.0081% "
        "of the pixels of 8 real images otherwise than fp32; a probability of the proof's pictures is off by at most "
        "2.0e-02.\n\n"
    )
