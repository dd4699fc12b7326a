from dataclasses import replace

import pytest
from measured import ENVIRONMENT, measured, measurement, noisy

from benchmarks.compare import alone, compare, comparison_table, differences, regressions
from benchmarks.results import Results, Skipped
from runtime.errors import ConfigError

ONE = {"batch": 1, "height": 160, "width": 240, "device": "cpu"}


def run(*measurements, **others):
    given = {"environment": ENVIRONMENT, "method": {"rounds": 20}, "disturbance": None} | others
    return Results(**given, measurements=measurements)


def latency(ms, contestant="unet-deploy", group="a", rounds=20, **settings):
    return measurement("latency", contestant, ONE | settings, "ms", noisy(ms, rounds), group=group)


def test_a_run_does_not_differ_from_itself():
    comparisons = compare(measured(), measured())
    assert len(comparisons) == len(measured().measurements)
    assert {one.ratio.median for one in comparisons} == {1.0}
    assert not any(one.ratio.excludes_one for one in comparisons)
    assert differences(measured(), measured()) == []


def test_only_what_is_significantly_slower_than_allowed_is_a_regression():
    comparisons = compare(measured(), measured(slower=1.15))
    found = regressions(comparisons, fail_above=5)
    assert {(one.new.part, one.new.contestant) for one in found} == {("latency", "unet-deploy")}
    assert len(found) == 3
    assert all(12 < one.worse_percent < 18 for one in found)
    assert regressions(comparisons, fail_above=20) == []
    assert regressions(compare(measured(slower=1.15), measured()), fail_above=5) == []


def test_within_noise_nothing_is_a_regression():
    old, new = run(latency(100.0)), run(measurement("latency", "unet-deploy", ONE, "ms", noisy(100.5, 20, 0.3, 1)))
    (one,) = compare(old, new)
    assert one.worse_percent != 0
    assert regressions([one], fail_above=0) == []


def test_less_speed_is_worse_and_less_time_is_better():
    old = run(measurement("folder", "stream", {}, "images/s", (10.0,) * 5), latency(100.0))
    new = run(measurement("folder", "stream", {}, "images/s", (8.0,) * 5), latency(80.0))
    speed, time = compare(old, new)
    assert speed.worse_percent == pytest.approx(25)
    assert time.worse_percent == pytest.approx(-20, abs=2)
    assert regressions([speed, time], fail_above=10) == [speed]


@pytest.mark.parametrize("values", [(0.9,), (0.9, 0.91, 0.92, 0.93), (0.0,) * 5])
def test_too_few_values_and_zeros_are_never_significant(values):
    old, new = (run(measurement("trade-off", "base 8", {}, "Dice", one)) for one in (values, (0.1,) * len(values)))
    (one,) = compare(old, new)
    assert regressions([one], fail_above=0) == []
    assert "too few values" in comparison_table(old, new, [one], fail_above=0)


def test_on_a_slower_machine_runs_are_compared_relative_to_one_contestant():
    def both(machine, ours):
        return run(latency(100.0 * machine, "PyTorch eager"), latency(50.0 * machine * ours))

    assert len(regressions(compare(both(1, 1), both(2, 1)), fail_above=5)) == 2
    (same,) = compare(both(1, 1), both(2, 1), relative_to="PyTorch eager")
    assert same.new.contestant == "unet-deploy"
    assert same.ratio.median == pytest.approx(1, abs=0.03)
    (slower,) = compare(both(1, 1), both(2, 1.3), relative_to="PyTorch eager")
    assert regressions([slower], fail_above=20) == [slower]


def test_what_did_not_take_turns_with_the_reference_is_not_divided_by_it():
    reference = latency(100.0, "PyTorch eager")
    others = (
        latency(50.0, "another group", group="b"),
        latency(50.0, "no group", group=""),
        latency(50.0, "another number of rounds", rounds=19),
        latency(50.0, "another batch", batch=4),
        latency(50.0, "another precision", precision="fp16"),
    )
    found = compare(run(reference, *others), run(reference, *others), relative_to="PyTorch eager")
    assert [one.new.contestant for one in found] == ["another precision"]


def test_what_was_measured_alone_is_not_divided():
    both = run(latency(100.0, "PyTorch eager", group=""), latency(50.0, group=""))
    with pytest.raises(ConfigError) as caught:
        compare(both, both, relative_to="PyTorch eager")
    assert str(caught.value).endswith("expected a run in which contestants took turns")


def test_a_reference_that_nothing_took_turns_with_is_refused():
    both = run(latency(1.0, "PyTorch eager"), latency(2.0))
    with pytest.raises(ConfigError) as caught:
        compare(both, both, relative_to="ncnn")
    assert str(caught.value) == (
        "relative to 'ncnn': nothing took turns with it in both runs, expected one of PyTorch eager, unet-deploy"
    )


def test_runs_without_anything_in_common_are_refused():
    with pytest.raises(ConfigError) as caught:
        compare(run(latency(1.0)), run(latency(1.0, batch=2)))
    assert str(caught.value).startswith("old and new results: have no measurement in common")


def test_what_only_one_run_has_is_listed_with_the_reason():
    reason = Skipped(part="latency", contestant="ncnn", settings={}, reason="is not installed")
    old, new = run(latency(1.0), latency(1.0, "ncnn")), run(latency(1.0), latency(1.0, batch=4), skipped=(reason,))
    assert [one.contestant for one in alone(old, new)] == ["ncnn"]
    assert [one.settings["batch"] for one in alone(new, old)] == [4]
    text = comparison_table(old, new, compare(old, new), fail_above=5)
    assert "Only in the old run:\n\n- latency, ncnn, 240x160, batch 1, cpu (ms): skipped, is not installed\n" in text
    assert "Only in the new run:\n\n- latency, unet-deploy, 240x160, batch 4, cpu (ms)\n" in text


def test_another_machine_version_or_method_and_a_disturbance_are_told():
    old = run(latency(1.0))
    versions = {"torch": "2.16.0", "onnxruntime": "1.31.1"}
    environment = ENVIRONMENT | {"cpu": "Slide rule", "versions": versions, "time": "later", "git_commit": "fedc"}
    new = replace(old, environment=environment, method={"rounds": 5}, disturbance="it rained")
    assert differences(old, new) == [
        "the new run is not a measurement: it rained",
        "cpu: Abacus 3000 in the old run, Slide rule in the new one",
        "versions: torch: 2.15.0 in the old run, 2.16.0 in the new one",
        "git commit: 0123456789abcdef in the old run, fedc in the new one",
        "rounds: 20 in the old run, 5 in the new one",
    ]


def test_the_table_names_regressions():
    old, new = measured(), measured(slower=1.5)
    lines = comparison_table(old, new, compare(old, new), fail_above=10).splitlines()
    (line,) = [line for line in lines if "unet-deploy" in line and "240x160, batch 1," in line and "latency" in line]
    assert "**REGRESSION**" in line and "% worse" in line
    assert sum("REGRESSION" in line for line in lines) == 3
    better = comparison_table(new, old, compare(new, old), fail_above=10)
    assert "REGRESSION" not in better and "% better" in better
    relative = compare(old, new, relative_to="PyTorch eager")
    table = comparison_table(old, new, relative, fail_above=10, relative_to="PyTorch eager")
    assert "new / old, relative to PyTorch eager (90 % interval)" in table
