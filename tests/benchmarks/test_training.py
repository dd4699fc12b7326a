import json

from click.testing import CliRunner

from benchmarks.training import BARE, GPU_VARIANTS, PLAIN, _reference, main


def test_all_parts_are_measured_and_written(data, tmp_path):
    flags = ["--size", "48x32", "--widths", "4,8", "--batch-size", "2", "--rounds", "5", "--device", "cpu"]
    result = CliRunner().invoke(main, [str(data), *flags, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert report["steps"].keys() == report["ratios"].keys() == {BARE, "trainer", "trainer, moving average"}
    assert report["ratios"][BARE] == [1.0, 1.0, 1.0]
    assert len(report["loading"]) == 6 or len(report["loading"]) == 3 * len({0, report["environment"]["cores"]})
    assert all(value > 0 for value in (report["loading"] | report["epochs"]).values())
    assert (tmp_path / "out" / "training.md").read_text().strip() in result.output


def test_variants_on_a_gpu_are_compared_with_plain_fp32():
    assert {_reference(name) for name in GPU_VARIANTS} == {PLAIN}
    assert next(iter(GPU_VARIANTS)) == PLAIN
