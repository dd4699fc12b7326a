import json

from click.testing import CliRunner

from benchmarks.precision import KINDS, main
from unet_core.checkpoint import save_checkpoint


def test_every_precision_is_exported_and_measured(network, card, data, tmp_path):
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), card)
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, [str(tmp_path / "model.pth"), str(data), "--rounds", "5", "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report = json.loads((out / "precision.json").read_text())
    rows = report["rows"]
    assert list(rows) == list(KINDS)
    assert (report["images"], report["shape"]) == (3, [1, 32, 48, 3])
    assert rows["fp32"]["ratio"] == [1.0, 1.0, 1.0]
    assert rows["fp32"]["parity"]["max_abs_error"] < 2e-6 < rows["fp16"]["parity"]["max_abs_error"]
    assert rows["int8 s8"]["parity"]["max_abs_error"] > rows["fp16"]["parity"]["max_abs_error"]
    assert all(0 <= row["image_dice"] <= 1 and row["timing"]["median"] > 0 for row in rows.values())
    assert all((out / f"{name.replace(' ', '.')}.onnx").stat().st_size == row["size"] for name, row in rows.items())
    assert (out / "precision.md").read_text().strip() in result.output
