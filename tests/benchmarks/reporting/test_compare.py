import math
from dataclasses import replace

import pytest
from measured import ENVIRONMENT, measured, measurement, noisy

from benchmarks.reporting.compare import (
    DICE,
    SHARE,
    compare_results,
    comparison_report,
    differences,
    lost_measurements,
    only_in,
    regressions,
)
from benchmarks.results import Results, Skipped
from export.precision.gate import FP16_FLIPPED, INT8_DICE
from runtime.errors import ConfigError

ONE = {"batch": 1, "height": 160, "width": 240, "device": "cpu"}


def run(*measurements, **others):
    given = {"environment": ENVIRONMENT, "method": {"rounds": 20}, "disturbance": None} | others
    return Results(**given, measurements=measurements)


def latency(ms, contestant="unet-deploy", group="a", rounds=20, **settings):
    return measurement("latency", contestant, ONE | settings, "ms", noisy(ms, rounds), group=group)


def test_a_run_does_not_differ_from_itself():
    comparisons = compare_results(measured(), measured())
    assert len(comparisons) == len(measured().measurements)
    assert {one.ratio.median for one in comparisons} == {1.0}
    assert not any(one.ratio.excludes_one for one in comparisons)
    assert differences(measured(), measured()) == []


def test_only_what_is_significantly_slower_than_allowed_is_a_regression():
    comparisons = compare_results(measured(), measured(slower=1.15))
    found = regressions(comparisons, fail_above=5)
    assert {(one.new.part, one.new.contestant) for one in found} == {("latency", "unet-deploy")}
    assert len(found) == 3
    assert all(12 < one.worse_percent < 18 for one in found)
    assert regressions(comparisons, fail_above=20) == []
    assert regressions(compare_results(measured(slower=1.15), measured()), fail_above=5) == []


def test_within_noise_nothing_is_a_regression():
    old, new = run(latency(100.0)), run(measurement("latency", "unet-deploy", ONE, "ms", noisy(100.5, 20, 0.3, 1)))
    (one,) = compare_results(old, new)
    assert one.worse_percent != 0
    assert regressions([one], fail_above=0) == []


def test_less_speed_is_worse_and_less_time_is_better():
    old = run(measurement("folder", "stream", {}, "images/s", (10.0,) * 5), latency(100.0))
    new = run(measurement("folder", "stream", {}, "images/s", (8.0,) * 5), latency(80.0))
    speed, time = compare_results(old, new)
    assert speed.worse_percent == pytest.approx(25)
    assert time.worse_percent == pytest.approx(-20, abs=2)
    assert regressions([speed, time], fail_above=10) == [speed]


@pytest.mark.parametrize("values", [(0.9,), (0.9, 0.91, 0.92, 0.93), (0.0,) * 5, (5e-324,) * 5])
def test_times_with_too_few_values_or_near_zero_are_never_significant(values):
    old, new = (run(measurement("folder", "stream", {}, "s", one)) for one in (values, (100.0,) * len(values)))
    (one,) = compare_results(old, new)
    assert regressions([one], fail_above=0) == []
    assert "too few values" in comparison_report(old, new, [one], fail_above=0)


@pytest.mark.parametrize(
    ("part", "unit", "old", "new", "verdict"),
    [
        ("parity", "error", (1e-6,) * 20, (*(1e-6,) * 19, 0.9), "**REGRESSION**: 9.0e-01 error worse"),
        ("parity", "error", (1e-6,), (1.1e-5,), "**REGRESSION**: 1.0e-05 error worse"),
        ("parity", "error", (2e-6,), (1.1e-5,), "9.0e-06 error worse"),
        ("parity", "error", (1e-8,), (9e-6,), "9.0e-06 error worse"),
        ("parity", "error", (0.0,) * 5, (1e-3, 0, 0, 0, 0), "**REGRESSION**: 1.0e-03 error worse"),
        ("parity", "error", (1e-6, 0.9), (0.1, 0.1), "8.0e-01 error better"),
        ("parity", "share", (0.0, 0.0), (0.5, 0.0), "**REGRESSION**: 50.0 % share worse"),
        ("parity", "share", (0.3,), (0.3002,), "**REGRESSION**: 0.0200 % share worse"),
        ("parity", "share", (0.0,), (9e-5,), "0.00900 % share worse"),
        ("parity", "share", (0.0, 0.25), (0.0, 0.25), "the same"),
        ("trade-off", "Dice", (0.95,), (0.1,), "**REGRESSION**: 0.8500 Dice worse"),
        ("trade-off", "Dice", (0.95,), (0.0,), "**REGRESSION**: 0.9500 Dice worse"),
        ("trade-off", "Dice", (0.95,), (0.9481,), "0.0019 Dice worse"),
        ("trade-off", "Dice", (0.0,), (0.9,), "0.9000 Dice better"),
        ("scaling", "MB", (100.0,), (1000.0,), "**REGRESSION**: 900 MB worse"),
        ("scaling", "MB", (100.0,), (105.0,), "5.00 MB worse"),
        ("scaling", "MB", (2.0,), (2.9,), "0.900 MB worse"),
        ("memory", "MB", (90.0, 120.0, 101.0), (90.0, 91.0, 108.0), "**REGRESSION**: 7.00 MB worse"),
        ("memory", "MB", (90.0, 91.0, 108.0), (90.0, 120.0, 101.0), "7.00 MB better"),
        ("tiles", "MB", (100.0, 100.0, 100.0, 100.0, 150.0), (100.0,) * 5, "the same"),
    ],
)
def test_errors_dice_and_memory_are_one_figure_against_a_limit(part, unit, old, new, verdict):
    before, after = (run(measurement(part, "it", {}, unit, values)) for values in (old, new))
    (one,) = compare_results(before, after)
    assert (one.ratio.low, one.ratio.high) == (0, math.inf)
    table = comparison_report(before, after, [one], fail_above=5)
    assert table.splitlines()[2].split("|")[-2].strip() == verdict
    assert len(regressions([one], fail_above=5)) == ("REGRESSION" in verdict)


def test_an_exponent_of_memory_is_one_figure_and_one_of_times_is_timed():
    def both(exponent):
        values = {"MB": exponent, "ms": noisy(exponent, 10, 0.01)}
        return run(*(measurement("scaling", "it", {"of": of}, "exponent", one) for of, one in values.items()))

    memory, times = compare_results(both(1.0), both(1.1))
    assert regressions([memory, times], fail_above=5) == [memory, times]
    assert memory.ratio.low == 0 and times.ratio.low > 1


def test_the_limits_are_those_of_the_export_s_gates():
    assert (SHARE, DICE) == (FP16_FLIPPED, INT8_DICE)


def test_the_table_shows_the_figures_that_are_compared():
    old = run(measurement("parity", "it", {}, "error", (1e-6, 3e-6, 2e-6)))
    new = run(measurement("parity", "it", {}, "error", (0.0, 0.0, 0.9)))
    row = comparison_report(old, new, compare_results(old, new), fail_above=5).splitlines()[2]
    assert [text.strip() for text in row.split("|")[4:7]] == ["3.0e-06 error", "9.0e-01 error", "300000.00"]


def test_what_the_machine_can_do_is_no_regression():
    old, new = (run(measurement("peak", "product", {}, "GFLOP/s", noisy(speed))) for speed in (200.0, 100.0))
    (one,) = compare_results(old, new)
    assert one.worse_percent > 80
    assert regressions([one], fail_above=5) == []


def test_on_a_slower_machine_runs_are_compared_relative_to_one_contestant():
    def both(machine, ours):
        return run(latency(100.0 * machine, "PyTorch eager"), latency(50.0 * machine * ours))

    assert len(regressions(compare_results(both(1, 1), both(2, 1)), fail_above=5)) == 2
    (same,) = compare_results(both(1, 1), both(2, 1), relative_to="PyTorch eager")
    assert same.new.contestant == "unet-deploy"
    assert same.ratio.median == pytest.approx(1, abs=0.03)
    (slower,) = compare_results(both(1, 1), both(2, 1.3), relative_to="PyTorch eager")
    assert regressions([slower], fail_above=20) == [slower]


def test_what_is_not_timed_is_compared_as_it_is_when_times_are_relative():
    def both(ours, error):
        answers = measurement("parity", "unet-deploy", {}, "error", error)
        return run(latency(100.0, "PyTorch eager"), latency(ours), answers)

    time, error = compare_results(both(50.0, 1e-6), both(50.0, 0.9), relative_to="PyTorch eager")
    assert (time.new.unit, error.new.unit) == ("ms", "error")
    assert regressions([time, error], fail_above=5) == [error]
    answers = run(measurement("parity", "unet-deploy", {}, "error", 0.9))
    with pytest.raises(ConfigError, match="nothing took turns with it in both runs"):
        compare_results(answers, answers, relative_to="unet-deploy")


def test_what_did_not_take_turns_with_the_reference_is_not_divided_by_it():
    reference = latency(100.0, "PyTorch eager")
    others = (
        latency(50.0, "another group", group="b"),
        latency(50.0, "no group", group=""),
        latency(50.0, "another number of rounds", rounds=19),
        latency(50.0, "another batch", batch=4),
        latency(50.0, "another precision", precision="fp16"),
    )
    found = compare_results(run(reference, *others), run(reference, *others), relative_to="PyTorch eager")
    assert [one.new.contestant for one in found] == ["another precision"]


def test_what_was_measured_alone_is_not_divided():
    both = run(latency(100.0, "PyTorch eager", group=""), latency(50.0, group=""))
    with pytest.raises(ConfigError) as caught:
        compare_results(both, both, relative_to="PyTorch eager")
    assert str(caught.value).endswith("expected a run in which contestants took turns")


def test_a_reference_that_nothing_took_turns_with_is_refused():
    both = run(latency(1.0, "PyTorch eager"), latency(2.0))
    with pytest.raises(ConfigError) as caught:
        compare_results(both, both, relative_to="ncnn")
    assert str(caught.value) == (
        "relative to 'ncnn': nothing took turns with it in both runs, expected one of PyTorch eager, unet-deploy"
    )


def test_runs_without_anything_in_common_are_refused():
    with pytest.raises(ConfigError) as caught:
        compare_results(run(latency(1.0)), run(latency(1.0, batch=2)))
    assert str(caught.value).startswith("old and new results: have no measurement in common")


def skipped(reason, contestant="ncnn", part="latency", **settings):
    return Skipped(part=part, contestant=contestant, settings=settings, reason=reason)


def test_what_only_one_run_has_is_listed_with_the_reason():
    old = run(latency(1.0), latency(1.0, "ncnn"))
    new = run(latency(1.0), latency(1.0, batch=4), skipped=(skipped("is not installed"),))
    assert [one.contestant for one in only_in(old, new)] == ["ncnn"]
    assert [one.settings["batch"] for one in only_in(new, old)] == [4]
    text = comparison_report(old, new, compare_results(old, new), fail_above=5, allow_missing=True)
    assert "Only in the old run:\n\n- latency, ncnn, 240x160, batch 1, cpu (ms): skipped, is not installed\n" in text
    assert "Only in the new run:\n\n- latency, unet-deploy, 240x160, batch 4, cpu (ms)\n" in text
    assert text.endswith("\n\nRegressions: 0 worse, 0 not measured any more.\n")
    text = comparison_report(old, new, compare_results(old, new), fail_above=5)
    assert "\n- **REGRESSION**: latency, ncnn, 240x160, batch 1, cpu (ms): skipped, is not installed\n" in text
    assert text.endswith("\n\nRegressions: 0 worse, 1 not measured any more.\n")


@pytest.mark.parametrize(
    ("entry", "is_its"),
    [
        (skipped("why"), True),
        (skipped("why", **ONE, precision="fp32"), True),
        (skipped("why", precision="fp16"), False),
        (skipped("why", seed=1), False),
        (skipped("why", "ONNX Runtime"), False),
        (skipped("why", part="scaling"), False),
        (skipped("why", "all"), True),
        (skipped("why", "all", batch=1, height=160), True),
        (skipped("why", "all", batch=16), False),
    ],
)
def test_a_reason_is_of_the_same_part_contestant_and_settings(entry, is_its):
    old, new = run(latency(1.0, "ncnn", precision="fp32")), run(skipped=(entry,))
    assert [one.contestant for one in lost_measurements(old, new)] == (["ncnn"] if is_its else [])
    assert (": skipped, why" in comparison_report(old, new, [], fail_above=5)) == is_its


def test_what_was_skipped_before_for_the_same_reason_or_is_the_machine_s_is_not_lost():
    peak = measurement("peak", "copy", {}, "GB/s", noisy(24.0))
    entries = (skipped("needs --checkpoint"), skipped("broke", "all", "peak"))
    old, new = run(latency(1.0, "ncnn"), peak, skipped=entries[:1]), run(skipped=entries)
    assert lost_measurements(old, new) == []
    assert [one.contestant for one in lost_measurements(old, run(skipped=(skipped("answers differ"),)))] == ["ncnn"]


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
    lines = comparison_report(old, new, compare_results(old, new), fail_above=10).splitlines()
    (line,) = [line for line in lines if "unet-deploy" in line and "240x160, batch 1," in line and "latency" in line]
    assert "**REGRESSION**" in line and "% worse" in line
    assert sum("REGRESSION" in line for line in lines) == 3
    better = comparison_report(new, old, compare_results(new, old), fail_above=10)
    assert "REGRESSION" not in better and "% better" in better
    relative = compare_results(old, new, relative_to="PyTorch eager")
    table = comparison_report(old, new, relative, fail_above=10, relative_to="PyTorch eager")
    assert "new / old, times relative to PyTorch eager (90 % interval)" in table
    assert " x PyTorch eager |" in next(line for line in table.splitlines() if "| unet-deploy " in line)
    assert "- x PyTorch eager: the time as a multiple of that of PyTorch eager in the same run" in table
    assert "- a regression: worse beyond noise by more than 10.0 %;" in table


def test_many_measurements_of_one_contestant_that_only_one_run_has_are_one_line():
    sizes = [latency(1.0, "ncnn", height=height) for height in (160, 320, 640)]
    old, new = run(latency(1.0), *sizes), run(latency(1.0), skipped=(skipped("why", height=640),))
    text = comparison_report(old, new, compare_results(old, new), fail_above=5)
    assert "- latency, ncnn, 240x160, batch 1, cpu (ms), and 1 more\n" in text
    assert "- **REGRESSION**: latency, ncnn, 240x640, batch 1, cpu (ms): skipped, why\n" in text


def test_slower_times_of_a_disturbed_run_are_to_be_measured_again():
    def last(**others):
        old, new = measured(), measured(**others)
        return comparison_report(old, new, compare_results(old, new), fail_above=10).splitlines()[-1]

    assert last(slower=1.5) == "Regressions: 3 worse, 0 not measured any more."
    assert last(slower=1.5, disturbance="it rained") == (
        "Regressions: 3 worse, 0 not measured any more; a run is not a measurement, measure again on an idle machine."
    )
    assert last(disturbance="it rained") == "Regressions: 0 worse, 0 not measured any more."
