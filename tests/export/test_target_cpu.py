"""`unet-export --target cpu`: what it chooses, what it writes, and who takes it."""

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from networks import make_card, make_network

from export import export_onnx, exporter, graph
from export.cli import main
from export.graph import build_graph
from export.verify import check_file
from export.winograd.autotune import LARGE, OTHER, ROUNDS, UNCOUNTED, Choice, by_layer, layer_times, profiled, tuned
from export.winograd.cost_model import choose_forms, sizes_of
from export.winograd.transform import BLOCK, rewritable, rewrite
from runtime.card import ModelCard
from runtime.devices import availability
from runtime.errors import ConfigError, DeviceError, DeviceWarning, ModelError, OutputError, ProofError
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from unet_core.checkpoint import save_checkpoint
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display

WIDE = {"widths": (64, 128, 256)}


def save(path, size=(32, 48), **config):
    network = make_network(**config)
    save_checkpoint(path, network.state_dict(), make_card(network, size))
    return path


def graph_of(size=(32, 48), **config):
    network = make_network(**config)
    card = make_card(network, size)
    return build_graph(Segmenter(network, card), card), card


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint for which the model of costs takes other forms than direct, and its export."""
    checkpoint = save(tmp_path_factory.mktemp("wide") / "model.pth", size=(64, 96), **WIDE)
    return checkpoint, export_onnx(checkpoint, target="cpu")


def test_the_file_is_rewritten_proved_and_says_so(wide):
    checkpoint, report = wide
    assert report.path == checkpoint.with_name("model.cpu.onnx")
    assert report.card.target == "cpu" and report.card.proof.max_abs_error < 1e-4
    assert any(node.op_type == "Scan" for node in onnx.load(report.path).graph.node)
    predictor = Predictor(report.path, "cpu")
    assert predictor.card == report.card
    plain = Predictor(export_onnx(checkpoint).path, "cpu")
    image = synthetic_image(97, 143, 3, 0)
    assert np.abs(predictor.run(image[None]) - plain.run(image[None])).max() < 1e-5


def test_it_is_proved_again_as_any_file(wide):
    checkpoint, report = wide
    assert check_file(report.path, checkpoint=checkpoint).rows


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_gpus_refuse_it_by_name(wide, device):
    with pytest.raises(DeviceError, match=r"model\.cpu\.onnx is written for CPUs and ONNX Runtime; take the file"):
        Predictor(wide[1].path, device)


def test_auto_runs_it_on_the_cpu_and_says_nothing_where_no_gpu_is(wide, monkeypatch):
    availability.warn_once.cache_clear()
    monkeypatch.setattr(
        availability, "unavailable_reason", lambda device: None if device.kind == "cpu" else "no driver"
    )
    predictor = Predictor(wide[1].path, "auto")
    assert predictor.report.device == "cpu"
    assert predictor.report.skipped == (("tensorrt", "no driver"), ("cuda", "no driver"))


def test_auto_runs_it_on_the_cpu_and_says_why_where_a_gpu_is(wide, monkeypatch):
    availability.warn_once.cache_clear()
    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    with pytest.warns(DeviceWarning, match="is written for CPUs"):
        predictor = Predictor(wide[1].path, "auto")
    assert predictor.report.device == "cpu"


def test_cards_from_before_there_were_targets_are_for_any(wide):
    text = wide[1].card.to_json()
    assert '"target"' in text
    data = json.loads(text) | {"schema": 1}
    del data["target"]
    older = ModelCard.from_json(json.dumps(data))
    assert older == replace(wide[1].card, target="any")


def test_a_thin_network_stays_direct():
    model, card = graph_of(size=(160, 240), widths=(4, 8))
    assert choose_forms(model, card) == {}


def test_a_wide_one_stays_direct_where_channels_are_few():
    model, card = graph_of(size=(160, 240), **WIDE)
    forms = choose_forms(model, card)
    assert "downs.0.conv.0" not in forms  # three channels
    assert forms["bottleneck.conv.3"] != "direct" and set(forms) < set(rewritable(model))


@pytest.mark.parametrize("up", ["transpose", "bilinear", "bilinear-wide"])
def test_sizes_of_what_convolutions_read(up):
    model, card = graph_of(size=(33, 48), widths=(4, 8), up=up)
    sizes = sizes_of(model, card)
    assert set(sizes) >= set(rewritable(model))
    assert sizes["downs.0.conv.0"] == sizes["final_conv"] == sizes["ups.3.conv.3"] == (36, 48)
    assert sizes["downs.1.conv.3"] == sizes["ups.1.conv.0"] == (18, 24)
    assert sizes["bottleneck.conv.0"] == (9, 12)


def test_every_layer_is_timed_in_every_form():
    model, card = graph_of()
    times = layer_times(model, synthetic_image(*card.input.size, 3, 0)[None], Display(quiet=True))
    assert len(times) == 4
    for found in times.values():
        assert all(found[name] > 0 for name in rewritable(model))


class Notes(Display):
    """Keeps what is said."""

    def __init__(self):
        super().__init__(quiet=True)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def in_turns(monkeypatch, seconds):
    """The race has this result, the same in each round unless they are listed; the graphs that took part."""
    graphs = []

    def raced(models, image):
        graphs[:] = list(models)
        return np.array([one if isinstance(one, list) else [one] * ROUNDS for one in seconds])

    monkeypatch.setattr("export.winograd.autotune.interleaved", raced)
    return graphs


def test_forms_that_no_file_can_hold_are_not_timed(monkeypatch):
    model, card = graph_of(widths=(4, 8, 16))
    limit = graph.bytes_of(rewrite(model, dict.fromkeys(rewritable(model), "f2-few")))
    monkeypatch.setattr("export.winograd.autotune.MAX_WEIGHT_BYTES", limit)
    times = layer_times(model, synthetic_image(*card.input.size, 3, 0)[None], Display(quiet=True))
    assert set(times) == {"direct", "f2-few"}


def layers_take(monkeypatch, model, **costs):
    """The profile has these milliseconds of every layer, by form; the names of the layers."""
    names = rewritable(model)
    times = {form.replace("_", "-"): dict.fromkeys(names, cost) for form, cost in costs.items()}
    monkeypatch.setattr("export.winograd.autotune.layer_times", lambda *_: times)
    return names


def test_tuning_keeps_the_graph_where_nothing_is_gained(monkeypatch):
    model, card = graph_of()
    layers_take(monkeypatch, model, direct=2, f4=1)
    in_turns(monkeypatch, [1.0, 0.99, 1.1, 1.0])
    notes = Notes()
    assert tuned(model, card, notes) == Choice(forms={})
    assert notes.notes == ["tuned: one image takes 1000 ms here; no other forms surely save 2%"]


@pytest.mark.parametrize(
    ("seconds", "form", "block"),
    [
        ([1.0, 0.5, 0.9, 0.9], "f2-few", BLOCK),
        ([1.0, 0.9, 0.5, 0.9], "f2-few", LARGE * BLOCK),
        ([1.0, 0.9, 0.9, 0.5], "f4-few", BLOCK),
    ],
)
def test_tuning_takes_what_was_fastest_in_turns(monkeypatch, seconds, form, block):
    model, card = graph_of()
    names = layers_take(monkeypatch, model, direct=4, f4=3, f4_few=2, f2_few=1)
    graphs = in_turns(monkeypatch, seconds)
    notes = Notes()
    choice = tuned(model, card, notes)
    assert choice == Choice(forms=dict.fromkeys(names, form), block=block)
    assert choice.applied(model) == graphs[seconds.index(0.5)]
    assert len({graph.SerializeToString(deterministic=True) for graph in graphs}) == len(graphs) == 4
    assert notes.notes == ["tuned: one image takes 500 ms instead of 1000 here, by medians of 7 rounds"]


@pytest.mark.parametrize(("slower", "taken"), [(1, True), (2, False)])
def test_tuning_takes_nothing_that_loses_more_than_a_round(monkeypatch, slower, taken):
    model, card = graph_of()
    layers_take(monkeypatch, model, direct=2, f4=1)
    in_turns(monkeypatch, [1.0, [0.8] * (ROUNDS - slower) + [1.1] * slower, 1.2])
    assert bool(tuned(model, card).forms) == taken


def test_tuning_races_no_graph_twice(monkeypatch):
    model, card = graph_of()
    layers_take(monkeypatch, model, direct=3, f4=1, f4_few=2, f2_few=2)
    graphs = in_turns(monkeypatch, [1.0, 1.0, 1.0])
    tuned(model, card)
    assert len(graphs) == 3  # as it is, and f4 in blocks of two sizes


def test_tuning_races_nothing_where_every_layer_is_fastest_as_it_is(monkeypatch):
    model, card = graph_of()
    layers_take(monkeypatch, model, direct=1, f4=2, f4_few=2, f2_few=2)
    graphs = in_turns(monkeypatch, [1.0])
    assert tuned(model, card) == Choice(forms={})
    assert graphs == [model]


def test_a_profile_that_the_disk_could_not_take_is_told(monkeypatch):
    model, _ = graph_of()

    class Cut(onnxruntime.InferenceSession):
        def end_profiling(self):
            name = super().end_profiling()
            with open(name, "r+b") as file:
                file.truncate(1000)
            return name

    monkeypatch.setattr(onnxruntime, "InferenceSession", Cut)
    image = synthetic_image(32, 48, 3, seed=0)[None]
    with pytest.raises(OutputError, match=r"cannot take the profiles by which layers are timed: .* set TMPDIR"):
        profiled({0: model.SerializeToString()}, [], image, 1, 1)


def profile(calls, whole):
    """The events of calls of two nodes; after the whole ones, which are told at their ends, one that is cut off."""
    events = []
    for call in range(calls):
        for place, name in enumerate(("down.conv", "sigmoid"), 1):
            events.append({"name": f"{name}_kernel_time", "cat": "Node", "ts": 100 * call + 10 * place, "dur": 2000})
        if call < whole:
            events.append({"name": "model_run", "cat": "Session", "ts": 100 * call, "dur": 90})
    return events[: -1 if whole < calls else None]


def test_a_call_that_the_profile_cuts_off_does_not_count():
    assert by_layer(profile(UNCOUNTED + 3, whole=UNCOUNTED + 3), ["down.conv"]) == {
        "down.conv": [2.0] * 3,
        OTHER: [2.0] * 3,
    }
    assert by_layer(profile(UNCOUNTED + 3, whole=UNCOUNTED + 2), ["down.conv"]) == {
        "down.conv": [2.0] * 2,
        OTHER: [2.0] * 2,
    }


def test_a_profile_without_a_call_that_counts_is_told():
    with pytest.raises(ConfigError, match=r"profile has room for 2 calls of images of this size, expected 3 at least"):
        by_layer(profile(UNCOUNTED + 1, whole=UNCOUNTED), ["down.conv"])


def test_a_confident_network_may_sum_in_another_order_in_a_batch(tmp_path):
    """The last bits of a sum show at once if the range of logits is 60 and half of them are above 0."""
    network = make_network(**WIDE)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 96, 144, 3), np.uint8))
    card = make_card(network, (96, 144))
    with torch.no_grad():
        Segmenter(network, card).train().logits(noise)
        logits = Segmenter(network, card).eval().logits(noise)
        scale = 60 / float(logits.max() - logits.min())
        network.final_conv.weight *= scale
        network.final_conv.bias *= scale
        network.final_conv.bias -= scale * logits.median()
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), make_card(network, (96, 144)))
    report = export_onnx(tmp_path / "model.pth", target="cpu")
    assert any(node.name.endswith("-few") for node in onnx.load(report.path).graph.node)


def test_logits_that_are_nearly_alike_are_held_to_what_fp32_can_hold(tmp_path):
    network = make_network(**WIDE)
    with torch.no_grad():
        network.final_conv.weight *= 1e-2
        network.final_conv.bias[:] = -4  # whose neighbour in fp32 is 1.2e-5 of this network's range away
    save_checkpoint(tmp_path / "model.pth", network.state_dict(), make_card(network, (32, 48)))
    assert export_onnx(tmp_path / "model.pth", target="cpu").card.target == "cpu"


@pytest.mark.parametrize("after", [["--card"], ["--triton", "models"]])
def test_options_that_contradict_each_other_are_named_before_anything_of_the_card(tmp_path, monkeypatch, after):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [str(save("model.pth")), "--target", "cpu", "--precision", "fp16", *after])
    assert done.exit_code == 2
    assert "--target cpu: writes fp32 with a card; leave out --precision fp16" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gpu"}, "--target gpu: expected any or cpu"),
        ({"target": "cpu", "precision": "fp16"}, "--target cpu: writes fp32 with a card; leave out --precision fp16"),
        ({"target": "cpu", "raw": True}, "--target cpu: writes fp32 with a card; leave out --raw"),
        ({"tune": True}, "--tune: chooses layers for --target cpu; add that, or leave --tune out"),
    ],
)
def test_options_that_contradict_each_other(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        export_onnx(save(tmp_path / "model.pth"), **options)


def test_filters_that_no_file_can_hold_are_refused(wide, tmp_path, monkeypatch):
    def small(*given):
        monkeypatch.setattr(graph, "MAX_WEIGHT_BYTES", 1000)  # from here on
        return rewrite(*given)

    monkeypatch.setattr("export.winograd.autotune.rewrite", small)
    with pytest.raises(ModelError, match=r"--target cpu: would write weights of \d+ bytes, and one ONNX file can hold"):
        export_onnx(wide[0], tmp_path / "model.onnx", target="cpu")
    assert not (tmp_path / "model.onnx").exists()


def test_logits_are_held_to_a_hundredth_of_what_others_are(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "logits_error", lambda *_: 2e-5)
    export_onnx(wide[0], tmp_path / "any.onnx")
    with pytest.raises(ProofError, match=r"by 2e-05 of their range, expected at most 1e-05; leave out --target cpu"):
        export_onnx(wide[0], tmp_path / "model.onnx", target="cpu")
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_on_triton_for_gpus_is_not_replaced_and_is_told_before_the_export(tmp_path):
    checkpoint = save(tmp_path / "model.pth")
    args = [str(checkpoint), "--triton", str(tmp_path / "models")]
    assert CliRunner().invoke(main, args).exit_code == 0
    done = CliRunner().invoke(main, [*args, "--target", "cpu"])
    assert done.exit_code == 2
    assert "is another model, fp32 with weights" in done.stderr and "expected fp32 for CPUs with" in done.stderr
    assert not (tmp_path / "model.cpu.onnx").exists()


def test_a_check_without_anything_to_compare_with_does_not_name_a_gpu(wide, tmp_path):
    with pytest.raises(ConfigError, match=r"there is nothing to compare with; give --checkpoint$"):
        check_file(wide[1].path, data=tmp_path)


def test_what_is_rewritten_is_told(wide, tmp_path):
    notes = Notes()
    export_onnx(wide[0], tmp_path / "wide.onnx", target="cpu", display=notes)
    assert re.fullmatch(r"--target cpu: \d of 14 convolutions of 3x3 are computed by .*", notes.notes[-2])
    off = re.fullmatch(r"--target cpu: logits are off by (\S+) of their range \(limit 1e-05\)", notes.notes[-1])
    assert 0 < float(off[1]) < 1e-5
    thin = save(tmp_path / "model.pth")
    export_onnx(thin, target="cpu", display=notes)
    assert notes.notes[-2] == (
        "--target cpu: no layer is rewritten, since this network would not get faster; GPUs refuse the file all the "
        "same, so prefer the one without --target cpu"
    )


def test_the_command_tunes_and_writes_beside_the_checkpoint(tmp_path):
    done = CliRunner().invoke(main, [str(save(tmp_path / "model.pth")), "--target", "cpu", "--tune", "--card"])
    assert done.exit_code == 0, done.output
    assert "tuned: " in done.stderr
    assert (tmp_path / "model.cpu.onnx").exists()
    assert "| written for | CPUs |" in (tmp_path / "model.cpu.md").read_text()
