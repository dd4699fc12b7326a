import json

import pytest
from click.testing import CliRunner

from benchmarks import serving
from benchmarks.serving import COLD_OURS, LOOP, POOL, RUN, SCRIPT, STREAM, main
from export import export_onnx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return export_onnx(trained.checkpoint, tmp_path_factory.mktemp("serving") / "model.onnx").path


def test_all_parts_are_measured_and_written(exported, trained, tmp_path):
    flags = ["--rounds", "5", "--predictions", "10", "--side", "600", "--out", str(tmp_path)]
    data = trained.data / "val_images"
    result = CliRunner().invoke(main, [str(exported), str(data), "--checkpoint", str(trained.checkpoint), *flags])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "serving.json").read_text())
    assert report["folder"].keys() == report["folder_ratios"].keys() == {SCRIPT, LOOP, POOL, STREAM}
    assert report["folder_ratios"][SCRIPT] == [1.0, 1.0, 1.0]
    assert report["calls"][RUN]["median"] > 0 and report["cold"][COLD_OURS]["median"] > 100
    assert len(report["memory"]) == 10 and min(report["memory"]) > 20
    assert len(report["tiles"]) == 3
    assert all(seconds > 0 and megabytes > 1 for seconds, megabytes in report["tiles"].values())
    assert (tmp_path / "serving.md").read_text().strip() in result.output


def test_all_ways_through_the_folder_write_the_same_masks(exported, trained, tmp_path):
    from runtime.image import list_images
    from runtime.predictor import Predictor

    paths = list_images(trained.data / "val_images")
    written = {}
    predictor = Predictor(exported, "cpu")
    for name, run in serving._folder(predictor, trained.checkpoint, paths, tmp_path).items():
        run()
        written[name] = [(tmp_path / f"{path.stem}.png").read_bytes() for path in paths]
    assert written[LOOP] == written[POOL] == written[STREAM]
    assert len(set(written[LOOP])) > 1
