"""The time of each layer, of the default file and of the one for CPUs."""

import pytest
from benchmark_models import write_bare_benchmark_model, write_benchmark_model

from benchmarks.cases.layers import forms_of, measure
from benchmarks.contestants.onnx_runtime import FOR_CPUS, OURS
from benchmarks.measuring.graph_cost import count_work
from benchmarks.reporting.report import markdown
from benchmarks.results import Results

FORMS = {"downs.1.conv.3": "f4", "bottleneck.conv.0": "f2-few"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_benchmark_model(tmp_path_factory.mktemp("model"), widths=(4, 8), forms=FORMS)


@pytest.fixture(scope="module")
def found(model):
    return measure(model, threads=1, rounds=6)


def test_each_layer_of_each_file_in_turns(model, found):
    layers = [node.name for node in count_work(model.path, 1, 32, 48).nodes if node.operator.startswith("Conv")]
    assert len(layers) == 13
    for name in (OURS, FOR_CPUS):
        own = [one for one in found if one.contestant == name]
        assert [one.settings["layer"] for one in own] == [*layers, "other"]
        assert {(one.unit, one.group, len(one.values)) for one in own} == {("ms", "layers", 6)}
        assert all(one.median > 0 for one in own[:-1])
        assert all((one.settings["height"], one.settings["width"]) == (32, 48) for one in own)


def test_facts_tell_operations_and_forms(model, found):
    work = {node.name: node.gflop for node in count_work(model.path, 1, 32, 48).nodes}
    by_layer = {(one.contestant, one.settings["layer"]): one.facts for one in found}
    assert by_layer[OURS, "downs.1.conv.3"] == {"gflop": work["downs.1.conv.3"], "form": "direct"}
    assert by_layer[FOR_CPUS, "downs.1.conv.3"] == {"gflop": work["downs.1.conv.3"], "form": "f4"}
    assert by_layer[FOR_CPUS, "bottleneck.conv.0"]["form"] == "f2-few"
    assert by_layer[FOR_CPUS, "bottleneck.conv.3"]["form"] == "direct"
    assert by_layer[OURS, "other"] == {}


def test_forms_are_read_from_the_file(model):
    names = ["downs.1.conv.3", "bottleneck.conv.0", "bottleneck.conv.3"]
    assert forms_of(model.for_cpus, names) == FORMS
    assert forms_of(model.for_cpus, ["ups.0", "ups.1.conv.0", "ups.2"]) == {}
    assert forms_of(model.path, names) == {}


def test_a_transposed_convolution_of_rows_is_told(tmp_path):
    forms = dict.fromkeys(("bottleneck.conv.3", "ups.1.conv.0"), "f4")
    model = write_benchmark_model(tmp_path, widths=(4, 8), forms=forms)
    names = ["bottleneck.conv.3", "ups.0", "ups.1.conv.0", "ups.2"]
    assert forms_of(model.for_cpus, names) == {**forms, "ups.0": "gemm"}


def test_a_model_without_a_file_for_cpus(tmp_path):
    found = measure(write_bare_benchmark_model(tmp_path), threads=1, rounds=5)
    assert {one.contestant for one in found} == {OURS}


def test_a_budget_means_fewer_calls_but_at_least_five(model):
    assert {len(one.values) for one in measure(model, threads=1, rounds=50, budget_s=1e-9)} == {5}


def test_the_report_has_a_row_for_each_layer_and_their_sum(found):
    text = markdown(Results(environment={}, method={}, disturbance=None, measurements=tuple(found)))
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    heads, *layers, last = rows
    assert heads == [
        "layer", "GFLOP", f"{OURS}, ms", "GFLOP/s", f"{FOR_CPUS}, ms", "GFLOP/s", "form", "times as fast",
    ]  # fmt: skip
    row = {row[0]: row for row in layers}
    assert row["downs.1.conv.3"][6] == "f4" and row["downs.0.conv.0"][6] == "direct"
    assert row["other"][6] == "-" and last[0] == "sum"
    mine = [one for one in found if one.contestant == OURS]
    assert float(last[2]) == pytest.approx(sum(one.median for one in mine), rel=0.01)
