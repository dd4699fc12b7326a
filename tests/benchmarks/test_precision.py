import pytest
from click.testing import CliRunner

from benchmarks.cases.precisions import PrecisionReport
from benchmarks.precision import main, markdown
from runtime.errors import ConfigError
from unet_core.model_options import CardChanges, NetworkOptions


@pytest.mark.parametrize(("doubt", "first"), [(None, []), ("it rained", ["**Not a measurement**: it rained.", ""])])
def test_a_report_begins_with_doubts_and_ends_with_what_it_was_measured_on(doubt, first):
    environment = {"cpu": "Abacus", "cores": 2, "versions": {"torch": "3", "numpy": "4"}}
    report = PrecisionReport(
        device="cuda:0",
        images=1,
        shape=(1, 2, 3, 3),
        rounds=5,
        rows={},
        disturbance=doubt,
        environment=environment,
    )
    lines = markdown(report).splitlines()
    assert lines[: len(first) + 1] == [
        *first,
        "1 real images; batch 1 at 3x2 on cuda:0, 5 rounds, in which the files alternate.",
    ]
    assert lines[-2:] == ["", "Abacus, 2 cores; torch 3, numpy 4"]


def test_the_options_of_a_network_reach_its_exports(tmp_path, monkeypatch):
    asked = []

    def measure_precisions(*arguments, **options):
        asked.append((arguments[:2], options))
        raise ConfigError("asked")

    monkeypatch.setattr("benchmarks.cases.precisions.measure_precisions", measure_precisions)
    given = ("--network", "net.py:Net", "--network-arg", "width=3", "--weights", "ema", "--size", "48x32")
    done = CliRunner().invoke(main, [str(tmp_path / "w.pth"), str(tmp_path), *given, "--masks", "fine"])
    assert (done.exit_code, done.stderr) == (2, "error: asked\n")
    ((arguments, options),) = asked
    assert arguments == (tmp_path / "w.pth", tmp_path)
    assert options["network"] == NetworkOptions(source="net.py:Net", arguments={"width": 3}, weights="ema")
    assert options["changes"] == CardChanges(size=(32, 48))
    assert options["layout"].masks == "fine"
