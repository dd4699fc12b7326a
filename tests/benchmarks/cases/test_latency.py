"""Peers in turns: what is measured, what is skipped and why, what of budget and memory is left."""

import dataclasses

import numpy as np
import pytest
import torch
from devices import CPU, GPU
from subjects import MadeUpContestant, write_bare_subject, write_subject

from benchmarks.cases import latency
from benchmarks.cases.latency import measure
from benchmarks.contestants.onnx_runtime import OURS, PLAIN
from benchmarks.contestants.pytorch import CHANNELS_LAST, EAGER
from benchmarks.measuring import timing
from benchmarks.measuring.graph_cost import count
from benchmarks.results import Measurement, Results, Skipped
from runtime.errors import ConfigError, DeviceError


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return write_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)


@pytest.fixture
def peers(monkeypatch):
    """Sets the peers that there are: those of the CPU, and of GPU 0."""

    def set_peers(*made):
        def on(device):
            return tuple(one for one in made if (one.device == CPU) == (device.kind == "cpu"))

        monkeypatch.setattr(latency, "contestants_on", on)
        return made

    return set_peers


def peak(precision="fp32", device="cpu", value=100.0):
    settings = {"device": device, "precision": precision, "threads": 1}
    return Measurement(part="peak", contestant="matrix product", settings=settings, unit="GFLOP/s", values=(value,))


def test_real_peers_of_one_size_are_one_group(subject):
    names = [EAGER, CHANNELS_LAST, PLAIN, OURS]
    found = measure(
        subject, batches=[1, 5], sizes=[(20, 24)], peers=names, precisions=["fp32"], threads=1, rounds=5, peaks=[peak()]
    )
    assert [(one.contestant, one.settings["batch"]) for one in found] == [(n, b) for b in (1, 5) for n in names]
    assert {one.group for one in found} == {"latency cpu 1x20x24", "latency cpu 5x20x24"}
    work = count(subject.model, 5, 20, 24)
    last = found[-1]
    expected = {"batch": 5, "height": 20, "width": 24, "threads": 1, "precision": "fp32", "device": "cpu"}
    assert (last.settings, last.unit, len(last.values)) == (expected, "ms", 5)
    assert min(last.values) > 0
    assert last.facts["provider"] == "CPUExecutionProvider"
    assert (last.facts["gflop"], last.facts["mb_least"]) == (work.gflop, work.least_mb)
    assert last.facts["mb_moved"] == work.weights_mb + work.activations_mb
    assert last.facts["peak_share"] == pytest.approx(work.gflop / last.median * 1e3 / 100)
    assert all(0 <= one.facts["mean_abs_error"] <= one.facts["max_abs_error"] < 5e-6 for one in found)
    Results(environment={}, method={}, disturbance=None, measurements=tuple(found))


def test_without_a_checkpoint_the_answer_is_onnx_runtimes(tmp_path):
    found = measure(write_bare_subject(tmp_path), precisions=["fp32"], peers=[EAGER, PLAIN, OURS], threads=1, rounds=5)
    assert [(type(one), one.contestant) for one in found] == [
        (Skipped, EAGER),
        (Measurement, PLAIN),
        (Measurement, OURS),
    ]
    assert found[0].settings == {"precision": "fp32", "device": "cpu"}
    assert found[0].reason.endswith("give --checkpoint")
    assert found[1].facts["max_abs_error"] == 0
    assert (found[1].settings["height"], found[1].settings["width"]) == (32, 48)


def test_what_is_wrong_with_a_peer_is_its_reason_and_the_others_are_measured(subject, peers):
    made = peers(
        MadeUpContestant(name="good"),
        MadeUpContestant(name="off", off=0.01),
        MadeUpContestant(name="nan", off=np.nan),
        MadeUpContestant(name="elsewhere", error=DeviceError("device: found cpu, expected cuda")),
        MadeUpContestant(name="broken", error=ValueError("two\nlines")),
        MadeUpContestant(name="absent", reason="not installed"),
    )
    found = {one.contestant: one for one in measure(subject, threads=1, rounds=5)}
    assert {name: one.reason for name, one in found.items() if isinstance(one, Skipped)} == {
        "off": "answers differ by 0.01, expected at most 0.0001 in fp32",
        "nan": "answers differ by inf, expected at most 0.0001 in fp32",
        "elsewhere": "device: found cpu, expected cuda",
        "broken": "ValueError: two lines",
        "absent": "not installed",
    }
    assert found["good"].facts["provider"] == "made up" and found["good"].facts["file"] == "f"
    assert found["off"].settings["batch"] == 1
    told = {one.name: one.told for one in made}
    assert told["good"] == [("open", 1, (1, 32, 48)), *["run"] * 12, "close"]
    assert told["off"] == told["nan"] == [("open", 1, (1, 32, 48)), "run", "close"]
    assert told["absent"] == []


class Failing(MadeUpContestant):
    """Fails at its third call."""

    def open(self, subject, threads, shape):
        opened, calls = super().open(subject, threads, shape), []

        def run(images):
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError
            return opened.run(images)

        return dataclasses.replace(opened, run=run)


def test_one_that_fails_while_it_is_timed_is_left_out_and_the_others_are_timed_again(subject, peers):
    made = peers(MadeUpContestant(name="one"), Failing(name="two"), MadeUpContestant(name="three"))
    found = measure(subject, threads=1, rounds=5)
    assert [(type(one).__name__, one.contestant) for one in found] == [
        ("Skipped", "two"),
        ("Measurement", "one"),
        ("Measurement", "three"),
    ]
    assert found[0].reason == "MemoryError: "
    assert all(one.told.count("close") == 1 for one in made)


class Stale(MadeUpContestant):
    """Answers as it did to the first batch, for ever."""

    def open(self, subject, threads, shape):
        opened, answers = super().open(subject, threads, shape), []

        def run(images):
            answers.append(opened.run(images))
            return answers[0]

        return dataclasses.replace(opened, run=run)


def test_one_whose_answers_are_stale_is_found_out(subject, peers):
    peers(Stale(name="stale"), MadeUpContestant(name="good"))
    stale, good = measure(subject, threads=1, rounds=5)
    assert stale.reason.startswith("while it was timed, answers differ by 0.")
    assert isinstance(good, Measurement)


def test_images_of_a_batch_are_compared_at_their_places(subject, peers):
    """A peer that answers the first image for all of them is found out."""

    class FirstOnly(MadeUpContestant):
        def open(self, subject, threads, shape):
            opened = super().open(subject, threads, shape)
            return dataclasses.replace(opened, run=lambda images: opened.run(np.repeat(images[:1], len(images), 0)))

    peers(FirstOnly(name="first"))
    assert isinstance(measure(subject, batches=[1], threads=1, rounds=5)[0], Measurement)
    (found,) = measure(subject, batches=[6], threads=1, rounds=5)
    assert found.reason.startswith("answers differ by ")


def test_threads_are_pinned_for_every_peer(subject, peers):
    seen = []

    class Watched(MadeUpContestant):
        def open(self, subject, threads, shape):
            seen.append((threads, torch.get_num_threads()))
            return super().open(subject, threads, shape)

    peers(Watched(name="watched"))
    before = torch.get_num_threads()
    for threads in (1, 3):
        assert measure(subject, threads=threads, rounds=5)[0].settings["threads"] == threads
        assert torch.get_num_threads() == before
    assert seen == [(1, 1), (3, 3)]


def test_a_precision_that_nobody_has_is_told_and_the_others_are_measured(subject, peers):
    peers(MadeUpContestant(name="one"))
    skipped, measured = measure(subject, precisions=["bf16", "fp32"], threads=1, rounds=5)
    assert (skipped.contestant, skipped.settings) == ("all", {"precision": "bf16"})
    assert (measured.contestant, measured.settings["precision"]) == ("one", "fp32")


def test_a_gpus_peers_are_a_group_of_their_own(subject, peers, monkeypatch):
    monkeypatch.setattr(latency, "free_mb", lambda device: 1e6)
    peers(MadeUpContestant(name="a"), MadeUpContestant(name="a", device=GPU, precision="tf32"))
    both = measure(subject, device="auto", threads=1, rounds=5, peaks=[peak(), peak("tf32", "cuda:0", 50.0)])
    assert [(one.group, one.settings["device"]) for one in both] == [
        ("latency cpu 1x32x48", "cpu"),
        ("latency gpu 1x32x48", "cuda:0"),
    ]
    assert both[1].facts["peak_share"] == pytest.approx(both[1].facts["gflop"] / both[1].median * 1e3 / 50)
    assert [one.settings["device"] for one in measure(subject, device="cuda", threads=1, rounds=5)] == ["cuda:0"]


def test_small_batches_come_first_and_what_does_not_fit_the_budget_is_skipped(subject, peers, monkeypatch):
    peers(MadeUpContestant(name="one"), MadeUpContestant(name="two"))
    now, taken, given = [0.0], {1: 1.0, 2: 30.0}, []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    exam = latency._exam

    def slow(task, shape):
        return exam(task, shape)[0], taken[shape[0]]

    def interleave(contestants, rounds, budget_s):
        given.append(budget_s)
        now[0] += 40
        return {name: np.ones(5) for name in contestants}

    monkeypatch.setattr(latency, "_exam", slow)
    monkeypatch.setattr(latency, "interleave", interleave)
    found = measure(subject, batches=[2, 1], threads=1, budget_s=100)
    assert [(type(one).__name__, one.settings["batch"]) for one in found] == [
        ("Measurement", 1),
        ("Measurement", 1),
        ("Skipped", 2),
    ]
    assert given == [50]  # half of it, for one of two groups
    least = 2 * (30 + 30 + 5 * (30 + 0.5))  # its answer, its warm-up, and five rounds with pauses
    assert found[2].reason == f"all would take {least:.0f} s or so, and 60 s of this part's budget are left"
    assert (found[2].contestant, found[2].settings["device"]) == ("all", "cpu")


@pytest.mark.parametrize(
    ("free", "reasons"),
    [
        (0.1, {"all": "the answer to compare with needs about 0 MB, and they are not free"}),
        (8.0, {"large": None, "kept": "needs about 10 MB beside those before it, and 8 MB are free", "again": None}),
        (20.0, {"large": None, "kept": None, "again": None}),
    ],
)
def test_what_does_not_fit_into_memory_is_skipped(subject, peers, monkeypatch, free, reasons):
    """The first gives its memory back, and needs it again beside the second, which does not."""
    unit = count(subject.model, 1, 32, 48).peak_mb

    class Large(MadeUpContestant):
        memory = 6 / unit
        keeps_memory = False

    class Kept(MadeUpContestant):
        memory = 4 / unit

    class Again(Large):
        memory = 7 / unit

    peers(Large(name="large"), Kept(name="kept"), Again(name="again"))
    monkeypatch.setattr(latency, "free_mb", lambda device: free)
    found = measure(subject, threads=1, rounds=5)
    assert {one.contestant: getattr(one, "reason", None) for one in found} == reasons


@pytest.mark.parametrize(("told", "free"), [(None, float("inf")), (0.0, 0.0), (100.0, 100.0)])
def test_free_memory_is_what_the_process_may_still_take(monkeypatch, told, free):
    monkeypatch.setattr(latency, "available_megabytes", lambda: told)
    assert latency.free_mb(CPU) == free


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"peers": ["caffe"]}, ConfigError, "peer: found 'caffe', expected of "),
        (
            {"device": "cpu", "precisions": ["tf32"]},
            ConfigError,
            "peers: none of those that there are on this device is in tf32",
        ),
        ({"device": "tpu"}, DeviceError, "device 'tpu': expected "),
    ],
)
def test_absurd_questions(subject, asked, kind, words):
    with pytest.raises(kind) as error:
        measure(subject, **asked)
    assert str(error.value).startswith(words)
