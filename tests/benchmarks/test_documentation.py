"""docs/benchmarks.md describes results.json as it is."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from measured import measured

from benchmarks.measuring import environment, intervals, rounds
from benchmarks.reporting import compare
from benchmarks.results import HIGHER, LOWER, MAX_TEXT, PARTS, SCHEMA, UNITS, Measurement, Results, Skipped

TEXT = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
FILE = TEXT[TEXT.index("## The file") :]


def test_the_fields_are_those_of_the_file():
    told = re.findall(r"^\| `([a-z_.]+)` \|", FILE[: FILE.index("Parts:")], re.M)
    nested = {"measurements": Measurement, "skipped": Skipped}
    names = [item.name for item in fields(Results)]
    names += [f"{name}.{item.name}" for name, record in nested.items() for item in fields(record)]
    assert sorted(told) == sorted(names)
    assert f"| `schema` | {SCHEMA} |" in FILE


@pytest.mark.parametrize("better", [LOWER, HIGHER])
def test_the_units_are_told_with_what_is_better(better):
    rows = re.findall(rf"^\| (`.*`) \| {better} \|", FILE, re.M)
    told = {unit for row in rows for unit in re.findall(r"`([^`]+)`", row)}
    assert told == {unit for unit, direction in UNITS.items() if direction == better}


def test_the_parts_are_told():
    assert f"Parts: {', '.join(PARTS)}.\n" in FILE


def test_the_methods_numbers_are_those_of_the_code():
    for text in (
        f"at least {rounds.WINDOW_CALLS} calls and {rounds.WINDOW_SECONDS} s",
        f"no more than {100 * rounds.STABLE:.0f} %",
        f"After {rounds.WARM_UP_SECONDS:.0f} s",
        f"not fewer than {rounds.MIN_ROUNDS}:",
        f"{intervals.DRAWS:,} bootstraps",
        f"{compare.ERROR_TIMES:.0f} times, and larger than {compare.ERROR_FLOOR:.5f};",
        f"{compare.SHARE:.4f}, what the export allows an fp16 file",
        f"{compare.DICE:.3f}, what the export allows an int8 file",
        f"percent, and {compare.MEGABYTES:.0f} MB,",
        f"{100 * environment.MAX_BUSY:.0f} % of them",
        f"at most {MAX_TEXT:,} characters",
    ):
        assert text in " ".join(TEXT.split()), text


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    measured().write(tmp_path / "bench")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    exec(example, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert re.fullmatch(r"ncnn: \d+\.\d ms, 2\.\d\d times as fast as PyTorch", lines[-1])
