"""The tables and lines of unet-export."""

from dataclasses import replace

import pytest
from onnx_files import gate_of, permission_of, write_onnx

from export.console_report import proof_table, verdict_line


@pytest.mark.parametrize(
    ("precision", "gate", "rows"),
    [
        (
            "fp16",
            {"kept": ("ups.0",), "layers": 13},
            [
                "pixels flipped against fp32                      0.0020%   at most 0.0100%   PASS",
                "layers in fp16                                  12 of 13   at least 1        PASS",
            ],
        ),
        (
            "fp16",
            {"passed": False, "flipped": 1.04e-4, "layers": 13},
            [
                "pixels flipped against fp32                      0.0104%   at most 0.0100%   FAILED",
                "layers in fp16                                  13 of 13   at least 1        PASS",
            ],
        ),
        (
            "int8",
            {"flipped": 0.001, "image_dice": None, "image_dice_fp32": None},
            ["pixels flipped against fp32                      0.1000%   at most 0.5000%   PASS"],
        ),
        (
            "int8",
            {"flipped": 0.009, "image_dice": 0.9498, "image_dice_fp32": 0.95},
            [
                "pixels flipped against fp32                      0.9000%   not judged",
                "image Dice of fp32                                0.9500   at least 0.4850   PASS",
                "image Dice lost                                   0.0002   at most 0.0020    PASS",
            ],
        ),
        (
            "int8",
            {"passed": False, "image_dice": 0.05, "image_dice_fp32": 0.06},
            [
                "pixels flipped against fp32                      0.0020%   not judged",
                "image Dice of fp32                                0.0600   at least 0.4850   FAILED",
                "image Dice lost                                   0.0100   at most 0.0020    FAILED",
            ],
        ),
        (
            "int8",
            {"passed": False, "flipped": 0.0, "image_dice": None, "image_dice_fp32": None},
            [
                "pixels flipped against fp32                      0.0000%   at most 0.5000%   PASS",
                "different answers of fp32                              1   at least 2        FAILED",
            ],
        ),
    ],
)
def test_below_fp32_the_table_shows_what_is_judged_with_its_limit(tmp_path, precision, gate, rows):
    card = write_onnx(tmp_path / "model.onnx", precision=precision, gate=gate_of(**gate))
    lines = proof_table(card).splitlines()
    assert lines[0] == "judged on 8 real images                            found   limit             verdict"
    assert lines[1:] == rows


def test_bf16_has_a_table_and_a_part_of_the_last_line(tmp_path):
    card = write_onnx(tmp_path / "model.onnx")
    assert "bf16" not in proof_table(card) + verdict_line(card, "")
    allowed = replace(card, bf16=permission_of(flipped=8.1e-5, image_dice=0.97, image_dice_fp32=0.971))
    assert proof_table(allowed).splitlines()[-4:] == [
        "in bf16, judged on 8 real images                   found   limit             verdict",
        "pixels flipped against fp32                      0.0081%   at most 0.0500%   PASS",
        "image Dice of fp32                                0.9710   at least 0.4850   PASS",
        "image Dice lost                                   0.0010   not judged",
    ]
    assert verdict_line(allowed, "").removeprefix(verdict_line(card, "")) == (
        "; CPUs with bf16 may compute it in bf16, where it answers 0.0081% of the pixels of 8 real images otherwise "
        "than fp32, with an image Dice of 0.9700 instead of 0.9710 (0.1000 points less)"
    )
    refused = replace(card, bf16=permission_of(passed=False, flipped=0.01))
    assert proof_table(refused).splitlines()[-1].split()[-5:] == ["1.0000%", "at", "most", "0.0500%", "FAILED"]
    assert verdict_line(refused, "") == verdict_line(card, "")
