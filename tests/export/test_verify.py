import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from networks import make_network
from onnx import TensorProto, numpy_helper
from sealing import save_sealed

from export import export_onnx, exporter, verify
from export.cli import main
from export.proof import cases, expected_answers, graph_run, network_run, proof_rows
from export.verify import check_file, check_form
from runtime.card import ModelCard
from runtime.devices import registry
from runtime.errors import CheckpointError, ConfigError, DataError, DeviceError, ModelError, ProofError
from unet_core.checkpoint import save_checkpoint, weights_sha256
from unet_core.model_options import CardChanges

FILES = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8", "values": "s8"},
    "u8": {"precision": "int8", "int8_for": "cpu"},
}


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """An export in every precision, and the raw one."""
    folder = tmp_path_factory.mktemp("files")

    def build(*_):
        copy = onnx.ModelProto()
        copy.CopyFrom(trained.graph)
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "build_graph", build)
        for name, options in FILES.items():
            export_onnx(trained.checkpoint, folder / f"{name}.onnx", data=trained.data, **options)
    return folder


@pytest.fixture
def changed(files, tmp_path):
    """A copy of the fp32 file that went through a function."""

    def write(change):
        model = onnx.load(files / "fp32.onnx")
        change(model)
        return save_sealed(model, tmp_path / "changed.onnx")

    return write


def test_a_good_file_without_its_checkpoint(files):
    report = check_file(files / "fp32.onnx")
    assert (report.device, report.reference, report.rows, report.max_abs_error) == ("cpu", "nothing", (), 0.0)
    assert report.golden_error < 1e-5


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "u8"])
def test_a_good_file_with_its_checkpoint_and_images(files, trained, name):
    report = check_file(files / f"{name}.onnx", checkpoint=trained.checkpoint, data=trained.data)
    assert report.reference == f"PyTorch with {trained.checkpoint}"
    assert {row.images for row in report.rows} == {"synthetic", "data"}
    recorded = max(row.parity.max_abs_error for row in report.card.proof.rows)
    assert report.max_abs_error <= recorded + 1e-6
    assert (recorded < 2e-5) == (name == "fp32")


def test_another_checkpoint_is_not_what_it_was_exported_from(files, trained, tmp_path):
    network = make_network()
    card = replace(trained.card, weights_sha256=weights_sha256(network.state_dict()))
    save_checkpoint(tmp_path / "other.pth", network.state_dict(), card)
    with pytest.raises(ProofError, match=r"was not exported from \S+other\.pth, which has other weights"):
        check_file(files / "fp32.onnx", checkpoint=tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        check_file(files / "fp32.onnx", checkpoint=tmp_path / "none.pth")


def scale_weight(model, factor):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "ups.0.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))


@pytest.fixture
def slightly(changed, trained, monkeypatch):
    """A file with a weight changed so little that a golden sample of wider tolerance lets it through."""
    monkeypatch.setitem(registry.BACKENDS, "cpu", replace(registry.BACKENDS["cpu"], tolerance=1e-3))
    for step in range(1, 100):
        file = changed(lambda model, factor=1 + step / 5000: scale_weight(model, factor))
        run = graph_run(onnx.load(file))
        rows = proof_rows(
            run, expected_answers(network_run(trained.segmenter), cases(trained.card)), trained.card.output
        )
        if max(row.parity.max_abs_error for row in rows) > 1.2e-4:
            break
    return file


def test_changed_weights_show_by_the_golden_sample_or_by_the_checkpoint(changed, slightly, trained):
    check_file(slightly)
    off = r"is off by \S+ from PyTorch with .* at \(batch, height, width\) \(.*\), expected at most 0\.0001"
    with pytest.raises(ProofError, match=off) as caught:
        check_file(slightly, checkpoint=trained.checkpoint)
    assert caught.value.card.max_abs_error > 1e-4
    with pytest.raises(ModelError, match="answers the golden sample wrongly"):
        check_file(changed(lambda model: scale_weight(model, -1)))


@pytest.mark.parametrize("name", ["fp16", "int8", "u8"])
def test_changed_weights_show_also_where_the_precision_loses_much(files, tmp_path, name):
    model = onnx.load(files / f"{name}.onnx")
    proof = check_file(files / f"{name}.onnx").card.proof
    assert proof.golden_error < 0.02
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "downs.1.conv.0.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    save_sealed(model, tmp_path / "damaged.onnx")
    with pytest.raises(ModelError, match="answers the golden sample wrongly"):
        check_file(tmp_path / "damaged.onnx")


def test_an_answer_that_depends_on_its_neighbours_is_refused(files, monkeypatch):
    monkeypatch.setattr(verify, "depends_on_batch", lambda *_: True)
    with pytest.raises(ProofError, match="depends on the other images in its batch"):
        check_file(files / "fp32.onnx")


def external(tensor):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def test_external_data_is_refused_before_it_is_opened(changed, monkeypatch):
    path = changed(lambda model: external(model.graph.initializer[0]))
    monkeypatch.setattr(onnx, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ModelError, match="in another file, which was not opened; expected one file"):
        check_form(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such file; make it with: unet-export model\.pth"),
        (b"", r"is empty \(0 bytes\)"),
        (b"PK\x03\x04 a checkpoint", "looks like a PyTorch checkpoint; convert it with"),
        (b"\x00" * 100, "is not an ONNX file, or is truncated"),
    ],
)
def test_what_is_no_onnx_file_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        check_file(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"is a folder, expected an \.onnx file"):
        check_file(tmp_path)


def test_a_file_that_is_cut_off_anywhere_is_one_line(files, tmp_path):
    content = (files / "fp32.onnx").read_bytes()
    for share in (0.01, 0.3, 0.6, 0.99):
        (tmp_path / "cut.onnx").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ModelError) as caught:
            check_file(tmp_path / "cut.onnx")
        assert "\n" not in str(caught.value)


def test_other_inputs_and_outputs_than_the_contract_says(changed):
    def rename(model):
        model.graph.output[0].name = "mask"
        model.graph.node[-1].output[0] = "mask"

    def fix(model):
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64

    for change in (rename, fix):
        with pytest.raises(ModelError, match=r"found inputs and outputs .*, expected .*; export it again"):
            check_form(changed(change))


def test_a_graph_that_is_no_valid_onnx(changed):
    def spoil(model):
        model.graph.node[-1].op_type = "NoSuchOperator"

    with pytest.raises(ModelError, match="is not valid ONNX") as caught:
        check_form(changed(spoil))
    assert "\n" not in str(caught.value)


def test_a_raw_export_is_compared_with_its_checkpoint(trained, tmp_path):
    path = export_onnx(trained.checkpoint, tmp_path / "raw.onnx", raw=True).path
    with pytest.raises(ConfigError, match=r"is a raw export, without golden sample; give --checkpoint"):
        check_file(path)
    report = check_file(path, checkpoint=trained.checkpoint, data=trained.data)
    assert (report.golden_error, report.max_abs_error < 2e-5, len(report.rows)) == (None, True, 11)
    done = run("--check", path, "--checkpoint", trained.checkpoint)
    assert done.stdout.splitlines()[-1].startswith(f"OK: {path}: equals PyTorch with {trained.checkpoint} within ")
    model = onnx.load(path)
    scale_weight(model, 1.01)
    save_sealed(model, path)
    with pytest.raises(ProofError, match="is off by"):
        check_file(path, checkpoint=trained.checkpoint)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("input", {"fit": "letterbox"}, "its card has the input "),
        ("output", {"classes": ("dog",)}, "its card has the output "),
    ],
)
def test_another_card_than_the_checkpoints_is_refused(changed, trained, part, change, message):
    def edit(model):
        card = model.metadata_props[0]
        found = ModelCard.from_json(card.value)
        card.value = replace(found, **{part: replace(getattr(found, part), **change)}).to_json()

    path = changed(edit)
    check_file(path)
    with pytest.raises(ProofError, match=message):
        check_file(path, checkpoint=trained.checkpoint)


def test_another_threshold_is_told(trained, tmp_path):
    changes = CardChanges(threshold=0.25)
    path = export_onnx(trained.checkpoint, tmp_path / "m.onnx", changes=changes).path
    done = run("--check", path, "--checkpoint", trained.checkpoint)
    assert (done.exit_code, done.stderr) == (0, "note: the card's threshold is 0.25, the checkpoint's 0.5\n")


def test_images_that_flip_more_than_the_gate_saw_are_refused(files, trained, tmp_path):
    model = onnx.load(files / "int8.onnx")
    (card,) = (entry for entry in model.metadata_props if entry.key == "unet.card")
    found = ModelCard.from_json(card.value)
    worse = tuple(replace(row, parity=replace(row.parity, max_abs_error=1.0)) for row in found.proof.rows)
    card.value = replace(found, proof=replace(found.proof, rows=worse, golden_error=1.0)).to_json()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "final_conv.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(3), tensor.name))
    save_sealed(model, tmp_path / "worse.onnx")
    with pytest.raises(
        ProofError, match=r"worse\.onnx: flips \S+% of the pixels of an image in --data, expected at most"
    ):
        check_file(tmp_path / "worse.onnx", checkpoint=trained.checkpoint, data=trained.data)


def test_images_that_cannot_be_used(files, trained, tmp_path):
    with pytest.raises(
        ConfigError, match="--data: there is nothing to compare with; give --checkpoint, or --device cuda"
    ):
        check_file(files / "fp32.onnx", data=trained.data)
    with pytest.raises(DataError, match="no such folder"):
        check_file(files / "fp32.onnx", checkpoint=trained.checkpoint, data=tmp_path / "none")


def test_a_device_that_does_not_run_here_is_an_error(files):
    with pytest.raises(DeviceError, match="device 'tpu': expected auto, gpu, gpu:N, cpu, openvino, cuda"):
        check_file(files / "fp32.onnx", device="tpu")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_prints_the_table_and_one_line(files, trained, tmp_path):
    done = run("--check", files / "fp32.onnx", "--checkpoint", trained.checkpoint, "--data", trained.data)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["batch", "of", "width", "x", "height"]
    assert len(lines) == 1 + 9 + 2 + 1
    assert (
        lines[0].split()[-2:] == ["limit", "verdict"]
        and len({len(line.rpartition("  ")[0]) for line in lines[1:-1]}) == 1
    )
    assert {tuple(line.split()[-2:]) for line in lines[1:-1]} == {("0.0001", "PASS")}
    assert re.fullmatch(
        rf"OK: {files / 'fp32.onnx'}: equals PyTorch with {trained.checkpoint} within \S+ \(limit 0\.0001\), golden "
        r"sample off by \S+ \(limit 0\.0001\), digest verified, on cpu",
        lines[-1],
    )
    done = run("--check", files / "fp16.onnx")
    assert re.fullmatch(
        rf"OK: {files / 'fp16.onnx'}: golden sample off by \S+ \(limit 0\.0\d+\), digest verified, on cpu\n",
        done.stdout,
    )
    done = run("--check", files / "int8.onnx", "--checkpoint", trained.checkpoint)
    assert re.fullmatch(
        rf"OK: {files / 'int8.onnx'}: is as near to PyTorch with {trained.checkpoint} as when it was exported: off by "
        r"at most \S+ on synthetic pictures \(limit 0\.\d+\), golden sample off by \S+ \(limit \S+\), digest verified, "
        r"and at its export it passed its gate: it answers \S+ of the pixels of \d+ \w+ images otherwise than fp32.*, "
        "on cpu",
        done.stdout.splitlines()[-1],
    )
    limits = {line.split()[-2] for line in done.stdout.splitlines()[1:-1]}
    assert len(limits) > 1 and "0.0001" not in limits  # as the card tells of each shape


def test_a_check_that_fails_says_so_with_the_row_that_did(slightly, changed, trained):
    done = run("--check", slightly, "--checkpoint", trained.checkpoint)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"FAILED: {slightly}: is off by ")
    verdicts = [line.split()[-1] for line in done.stdout.splitlines()]
    assert verdicts[0] == "verdict" and set(verdicts[1:]) == {"PASS", "FAILED"}
    wrong = changed(lambda model: scale_weight(model, -1))
    done = run("--check", wrong)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"FAILED: {wrong}: answers the golden sample wrongly (off by ")


def test_nothing_that_could_be_checked_is_no_failed_check(files, tmp_path):
    done = run("--check", tmp_path / "none.onnx")
    assert done.stderr.startswith(f"error: {tmp_path / 'none.onnx'}: no such file; ")
    done = run("--check", files / "fp32.onnx", "--device", "tpu")
    assert done.stderr.startswith("error: device 'tpu': expected ")


def test_a_device_that_answers_wrongly_fails_the_check(files, monkeypatch):
    wrong = DeviceError(
        "device cuda:0: answers the golden sample wrongly (off by 1, expected at most 0.02); choose another"
    )
    monkeypatch.setattr(verify, "Predictor", raising(wrong))
    done = run("--check", files / "fp32.onnx", "--device", "cuda")
    assert (done.exit_code, done.stderr) == (2, f"FAILED: {wrong}\n")


def raising(error):
    def call(*_, **__):
        raise error

    return call


def test_a_forced_file_that_is_as_it_was_written_is_ok_and_says_that_it_was_forced(files, tmp_path):
    model = onnx.load(files / "int8.onnx")
    (card,) = (entry for entry in model.metadata_props if entry.key == "unet.card")
    found = ModelCard.from_json(card.value)
    gate = replace(found.proof.gate, passed=False)
    card.value = replace(found, proof=replace(found.proof, gate=gate)).to_json()
    save_sealed(model, tmp_path / "forced.onnx")
    done = run("--check", tmp_path / "forced.onnx")
    assert done.stdout.startswith(f"OK: {tmp_path / 'forced.onnx'}: golden sample off by ")
    assert ", but it failed its gate when it was exported (--force), on cpu" in done.stdout


@pytest.mark.parametrize("raw", [False, True])
def test_a_file_that_does_not_fit_its_digest_is_refused(files, trained, tmp_path, raw):
    path = tmp_path / "m.onnx"
    if raw:
        export_onnx(trained.checkpoint, path, raw=True)
    else:
        path.write_bytes((files / "fp32.onnx").read_bytes())
    model = onnx.load(path)
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"threshold": 0.5', '"threshold": 0.6')
    onnx.save(model, path)
    done = run("--check", path, "--checkpoint", trained.checkpoint)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"FAILED: {path}: was damaged or changed since it was exported: its digest does not fit its card; "
    )


def test_a_file_without_digest_is_told(files, tmp_path):
    model = onnx.load(files / "fp32.onnx")
    model.producer_name = ""
    del model.metadata_props[2]
    onnx.save(model, tmp_path / "m.onnx")
    done = run("--check", tmp_path / "m.onnx")
    assert done.stdout.endswith(", digest not verified (the file has none; export it again), on cpu\n")


def test_the_command_shows_the_table_of_a_failure(slightly, trained):
    done = run("--check", slightly, "--checkpoint", trained.checkpoint)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stdout.startswith("batch of width x height   images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "--precision: has no meaning with --check; leave it out"),
        (["--values", "s8"], "--values: has no meaning with --check; leave it out"),
        (["--threshold", "0"], "--threshold: has no meaning with --check; leave it out"),
        (["--ignore-index", "0"], "--ignore-index: has no meaning with --check; leave it out"),
        (["--raw"], "--raw: has no meaning with --check; leave it out"),
    ],
    ids=str,
)
def test_options_of_an_export_have_no_meaning_here(files, arguments, message):
    done = run("--check", files / "fp32.onnx", *arguments)
    assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")
