import errno
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from google.protobuf import text_format
from onnx.helper import set_model_props
from onnx_files import gate_of, int8_graph, write_onnx
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelDynamicBatching, ModelInstanceGroup
from tritonclient.utils import np_to_triton_dtype

from export.triton import write_repository
from runtime.card import RAW_KEY, ModelCard
from runtime.errors import ConfigError, ModelError, OutputError
from runtime.model_file.digest import check_digest, seal
from runtime.model_file.golden import golden_image, synthetic_image
from runtime.predictor import Predictor
from runtime.support.locks import try_lock

TRITON_TYPES = {onnx.TensorProto.UINT8: np.uint8, onnx.TensorProto.FLOAT: np.float32}


@pytest.fixture
def model(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def parsed(text):
    """By the published schema: an unknown field, a wrong type or a bad enum raises."""
    return text_format.Parse(text, ModelConfig())


def config_in(folder):
    return parsed((folder / "config.pbtxt").read_text())


def accelerators(config):
    return [
        (item.name, dict(item.parameters))
        for item in config.optimization.execution_accelerators.gpu_execution_accelerator
    ]


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_of_a_model(model, tmp_path):
    folder = write_repository(model, tmp_path / "new" / "models")
    assert folder == tmp_path / "new" / "models" / "thin"
    files = files_in(folder.parent)
    assert files.keys() == {"thin/config.pbtxt", "thin/1/model.onnx", "thin/warmup/image"}
    assert files["thin/1/model.onnx"] == model.read_bytes()
    assert files["thin/warmup/image"] == golden_image(3).tobytes()
    assert Predictor(folder / "1" / "model.onnx", "cpu").report.golden_error < 2e-6


@pytest.mark.parametrize("changes", [{}, {"classes": 3}, {"in_channels": 1}], ids=str)
def test_tensors_are_those_of_the_file(tmp_path, changes):
    write_onnx(tmp_path / "model.onnx", **changes)
    config = config_in(write_repository(tmp_path / "model.onnx", tmp_path / "models"))
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert (config.name, config.platform, config.max_batch_size) == ("thin", "onnxruntime_onnx", 8)
    for ours, theirs in ((config.input, graph.input), (config.output, graph.output)):
        ((found,), (expected,)) = ours, theirs
        tensor = expected.type.tensor_type
        batch, *sizes = [size.dim_value or -1 for size in tensor.shape.dim]
        assert (found.name, batch, list(found.dims)) == (expected.name, -1, sizes)
        kind = np_to_triton_dtype(TRITON_TYPES[tensor.elem_type])
        assert (
            type(found).DESCRIPTOR.fields_by_name["data_type"].enum_type.values[found.data_type].name == f"TYPE_{kind}"
        )


def test_it_runs_on_gpus_or_else_on_the_cpu(model, tmp_path):
    (group,) = config_in(write_repository(model, tmp_path)).instance_group
    assert (group.count, group.kind) == (1, ModelInstanceGroup.KIND_AUTO)


def test_a_file_for_cpus_runs_there_and_is_not_given_to_tensorrt(tmp_path):
    write_onnx(tmp_path / "model.onnx", target="cpu")
    folder = write_repository(tmp_path / "model.onnx", tmp_path)
    assert "GPU" not in (folder / "config.pbtxt").read_text()
    config = config_in(folder)
    (group,) = config.instance_group
    assert group.kind == ModelInstanceGroup.KIND_CPU and not config.HasField("optimization")


@pytest.mark.parametrize("batch", [2, 8, 1024])
def test_requests_are_batched(model, tmp_path, batch):
    config = config_in(write_repository(model, tmp_path, max_batch=batch))
    assert config.max_batch_size == batch
    assert config.dynamic_batching == ModelDynamicBatching(max_queue_delay_microseconds=2000)


def test_nobody_waits_for_a_batch_of_one(model, tmp_path):
    config = config_in(write_repository(model, tmp_path, max_batch=1))
    assert config.max_batch_size == 1 and not config.HasField("dynamic_batching")
    assert [sample.batch_size for sample in config.model_warmup] == [1, 1]


def test_warm_up_replays_the_golden_sample_and_the_trained_size(model, tmp_path):
    folder = write_repository(model, tmp_path)
    config = config_in(folder)
    found = [(sample.batch_size, list(sample.inputs["image"].dims)) for sample in config.model_warmup]
    assert found == [(1, [56, 88, 3]), (8, [56, 88, 3]), (1, [32, 48, 3]), (8, [32, 48, 3])]
    for sample in config.model_warmup:
        assert sample.inputs.keys() == {"image"}
        image = sample.inputs["image"]
        assert image.data_type == config.input[0].data_type
        if image.input_data_file:
            assert (folder / "warmup" / image.input_data_file).stat().st_size == np.prod(image.dims)
        else:
            assert image.random_data


def test_the_card_travels_in_the_configuration(tmp_path):
    def renamed(card):
        return replace(card, output=replace(card.output, classes=('a "quoted" \\ straße\n',)))

    card = write_onnx(tmp_path / "model.onnx", of_card=renamed)
    config = config_in(write_repository(tmp_path / "model.onnx", tmp_path))
    assert ModelCard.from_json(config.parameters["unet.card"].string_value) == card


def test_the_scale_of_images_is_named_for_clients(tmp_path):
    for scale, named in ((0.5, " at 0.5 of an image's own size: clients resize by that"), (1.0, "")):

        def native(card, scale=scale):
            return replace(card, input=replace(card.input, fit="native", scale=scale))

        write_onnx(tmp_path / "model.onnx", of_card=native)
        text = (write_repository(tmp_path / "model.onnx", tmp_path / str(scale)) / "config.pbtxt").read_text()
        assert f"(width x height, fit: native{named})." in text


def test_the_tensorrt_section(tmp_path):
    write_onnx(tmp_path / "model.onnx", size=(64, 72))
    text = (write_repository(tmp_path / "model.onnx", tmp_path, max_batch=4) / "config.pbtxt").read_text()
    expected = {
        "precision_mode": "FP32",
        "max_workspace_size_bytes": str(2 * 2**30),
        "trt_profile_min_shapes": "image:1x56x72x3",
        "trt_profile_opt_shapes": "image:4x64x72x3",
        "trt_profile_max_shapes": "image:4x64x88x3",
    }
    assert accelerators(parsed(text)) == [("tensorrt", expected)]
    cached = re.sub(r"# (parameters \{ key: \"trt_engine_cache)", r"\1", text)
    ((_, options),) = accelerators(parsed(cached))
    assert options.items() > expected.items()
    assert options["trt_engine_cache_enable"] == "true"
    assert re.fullmatch(r"/var/cache/thin-[0-9a-f]{16}", options["trt_engine_cache_path"])


def test_images_of_any_size_are_not_held_to_a_profile(tmp_path):
    write_onnx(tmp_path / "model.onnx", of_card=lambda card: replace(card, input=replace(card.input, fit="native")))
    text = (write_repository(tmp_path / "model.onnx", tmp_path) / "config.pbtxt").read_text()
    expected = {"precision_mode": "FP32", "max_workspace_size_bytes": str(2 * 2**30)}
    assert accelerators(parsed(text)) == [("tensorrt", expected)]
    assert "Images come at their own size (fit: native), so any shape is taken" in text
    ((_, named),) = accelerators(
        parsed(text.replace('# parameters { key: "trt_profile', 'parameters { key: "trt_profile'))
    )
    assert named == expected | {
        "trt_profile_min_shapes": "image:1x4x4x3",
        "trt_profile_opt_shapes": "image:8x32x48x3",
        "trt_profile_max_shapes": "image:8x56x88x3",
    }


def test_engines_of_other_weights_are_kept_elsewhere(tmp_path):
    paths = set()
    for seed in (0, 1):
        write_onnx(tmp_path / "model.onnx", seed=seed)
        text = (write_repository(tmp_path / "model.onnx", tmp_path / str(seed)) / "config.pbtxt").read_text()
        paths.add(re.search(r'"trt_engine_cache_path" value: "(.*)"', text)[1])
    assert len(paths) == 2


@pytest.mark.parametrize(("precision", "values", "mode"), [("fp16", None, "FP16"), ("int8", "s8", "INT8")])
def test_tensorrt_computes_in_the_precision_of_the_file(tmp_path, precision, values, mode):
    graph = int8_graph(values) if values else None
    write_onnx(tmp_path / "model.onnx", precision=precision, graph=graph)
    ((_, options),) = accelerators(config_in(write_repository(tmp_path / "model.onnx", tmp_path)))
    assert options["precision_mode"] == mode


def test_int8_for_cpus_is_not_given_to_tensorrt(tmp_path):
    write_onnx(tmp_path / "model.onnx", precision="int8", graph=int8_graph("u8"))
    config = config_in(write_repository(tmp_path / "model.onnx", tmp_path))
    assert not config.HasField("optimization") and len(config.model_warmup) == 4


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_gate_is_said_first(tmp_path, passed):
    write_onnx(tmp_path / "model.onnx", precision="fp16", gate=gate_of(passed=passed))
    text = (write_repository(tmp_path / "model.onnx", tmp_path) / "config.pbtxt").read_text()
    assert text.startswith("# Warning: this file failed its gate") is not passed
    parsed(text)


def test_the_same_model_is_replaced_and_others_stay(model, tmp_path):
    write_onnx(tmp_path / "other.onnx", seed=1)
    write_repository(tmp_path / "other.onnx", tmp_path / "models", name="other")
    write_repository(model, tmp_path / "models", max_batch=2)
    folder = write_repository(model, tmp_path / "models", max_batch=4)
    assert config_in(folder).max_batch_size == 4
    assert sorted(path.name for path in folder.parent.iterdir()) == ["other", "thin"]
    assert files_in(folder).keys() == {"config.pbtxt", "1/model.onnx", "warmup/image"}


def test_a_file_that_was_changed_since_its_export_is_refused_and_others_carry_their_digest(model, tmp_path):
    seal(model)
    folder = write_repository(model, tmp_path / "models")
    assert check_digest(folder / "1" / "model.onnx").told == "verified"
    content = model.read_bytes()
    model.write_bytes(content.replace(b'"threshold": 0.5', b'"threshold": 0.1'))
    with pytest.raises(ModelError, match="its digest does not fit its card; "):
        write_repository(model, tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_a_raw_export_is_refused(model, tmp_path):
    bare = onnx.load(model)
    set_model_props(bare, {RAW_KEY: write_onnx(model).to_json()})
    onnx.save(bare, model)
    with pytest.raises(ModelError, match="is a raw export"):
        write_repository(model, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "-a", ".a", "my car", "a\n", "ü", "a" * 101])
def test_names_that_are_no_folders(model, tmp_path, name):
    with pytest.raises(ConfigError, match=r"name of the model on Triton: found .*, expected letters, digits"):
        write_repository(model, tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my run (2)", "my_run_2"),
        ("../Läufe/car.v2", "L_ufe_car.v2"),
        ("-a--b-", "a--b"),
        ("車", "model"),
        ("a" * 101, "a" * 100),
        ("a_-.", "a_-."),
    ],
)
def test_a_card_s_name_becomes_one_that_triton_takes(tmp_path, name, expected):
    write_onnx(tmp_path / "model.onnx", of_card=lambda card: replace(card, name=name))
    folder = write_repository(tmp_path / "model.onnx", tmp_path / "models")
    assert folder == tmp_path / "models" / expected
    assert config_in(folder).name == expected


@pytest.mark.parametrize("batch", [0, -1, 1025, True, 2.0])
def test_batches_out_of_bounds(model, tmp_path, batch):
    with pytest.raises(ConfigError, match=r"largest batch on Triton: found .*, expected 1 to 1024"):
        write_repository(model, tmp_path / "models", max_batch=batch)
    assert not (tmp_path / "models").exists()


def put_other_weights(folder, tmp_path):
    write_onnx(tmp_path / "other.onnx", seed=1)
    write_repository(tmp_path / "other.onnx", folder.parent)


def put_other_precision(folder, tmp_path):
    write_onnx(tmp_path / "other.onnx", precision="fp16")
    write_repository(tmp_path / "other.onnx", folder.parent)


def put_one_for_cpus(folder, tmp_path):
    write_onnx(tmp_path / "other.onnx", target="cpu")
    write_repository(tmp_path / "other.onnx", folder.parent)


def put_second_version(folder, tmp_path):
    write_repository(tmp_path / "model.onnx", folder.parent)
    (folder / "2").mkdir()
    (folder / "2" / "model.onnx").write_bytes(b"mine")


def put_foreign_model(folder, tmp_path):
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"mine")


def put_file_in_a_replaced_model(folder, tmp_path):
    write_repository(tmp_path / "model.onnx", folder.parent)
    (folder / "mine").write_bytes(b"mine")


def put_file(folder, tmp_path):
    folder.parent.mkdir()
    folder.write_bytes(b"mine")


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (put_file_in_a_replaced_model, "holds mine, which unet-export does not write"),
        (put_other_weights, "is another model, fp32 with weights [0-9a-f]{12}, expected fp32 with [0-9a-f]{12}"),
        (put_other_precision, "is another model, fp16 with weights"),
        (put_one_for_cpus, "is another model, fp32 for CPUs with weights [0-9a-f]{12}, expected fp32 with"),
        (put_second_version, "holds 2/model.onnx, which unet-export does not write"),
        (put_foreign_model, "holds no model that unet-export wrote"),
        (put_file, "is a file or a link, expected a folder or nothing"),
    ],
)
def test_what_is_somebody_elses_stays(model, tmp_path, put, message):
    put(tmp_path / "models" / "thin", tmp_path)
    before = files_in(tmp_path / "models")
    with pytest.raises(OutputError, match=f"{message}.*; remove it, or give another name"):
        write_repository(model, tmp_path / "models")
    assert files_in(tmp_path / "models") == before


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("module", "function"), [(shutil, "copyfile"), (os, "fsync")])
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_what_was_there(model, tmp_path, monkeypatch, module, function, there):
    if there:
        write_repository(model, tmp_path / "models", max_batch=2)
    before = files_in(tmp_path / "models")
    monkeypatch.setattr(module, function, full_disk)
    with pytest.raises(OutputError, match=r"cannot be written \(no space left on device\); free some space"):
        write_repository(model, tmp_path / "models")
    assert files_in(tmp_path / "models") == before
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["thin"] * there


def fail_at(monkeypatch, error, *numbers):
    """Let some of the calls of `Path.rename` on folders, counted from 1, raise."""
    rename, calls = Path.rename, []

    def failing(path, target):
        calls.append(path.is_dir())
        if path.is_dir() and calls.count(True) in numbers:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)


DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("error", "raised"), [(DENIED, OutputError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(model, tmp_path, monkeypatch, error, raised, number):
    write_repository(model, tmp_path / "models", max_batch=2)
    before = files_in(tmp_path / "models")
    fail_at(monkeypatch, error, number)
    with pytest.raises(raised, match=r"^$|thin: cannot be written \(permission denied\); choose another place"):
        write_repository(model, tmp_path / "models")
    assert files_in(tmp_path / "models") == before


def test_an_old_folder_that_cannot_be_put_back_is_kept_and_named(model, tmp_path, monkeypatch):
    folder = write_repository(model, tmp_path / "models", max_batch=2)
    before = files_in(folder)
    fail_at(monkeypatch, DENIED, 2, 3)
    with pytest.raises(OutputError, match=r"thin: cannot be put back .*; move it there from (.*)$") as caught:
        write_repository(model, tmp_path / "models")
    assert files_in(Path(str(caught.value).rpartition(" from ")[2])) == before


def test_an_old_folder_that_cannot_be_deleted_is_out_of_the_way(model, tmp_path, monkeypatch):
    folder = write_repository(model, tmp_path / "models", max_batch=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", full_disk)
        assert write_repository(model, tmp_path / "models", max_batch=4) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["thin"]
    assert config_in(folder).max_batch_size == 4
    assert {name.partition("/")[0] for name in files_in(folder)} == {"config.pbtxt", "1", "warmup", ".replaced"}
    write_repository(model, tmp_path / "models", max_batch=8)
    assert files_in(folder).keys() == {"config.pbtxt", "1/model.onnx", "warmup/image"}


def test_a_repository_that_is_not_ours_to_write(model, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(OutputError, match=r"models: cannot be written \(permission denied\); choose another place"):
        write_repository(model, tmp_path / "models")


class Server:
    """Stands in for tritonclient's client: gives a repository's configuration and the answers of its file."""

    def __init__(self, models):
        self.models = models

    def get_model_config(self, name):
        return tritonclient.grpc.service_pb2.ModelConfigResponse(config=config_in(self.models / name))

    def infer(self, name, inputs):
        (request,), (expected,) = inputs, config_in(self.models / name).input
        assert (request.name(), f"TYPE_{request.datatype()}") == (expected.name, "TYPE_UINT8")
        assert all(wanted in (-1, size) for wanted, size in zip(expected.dims, request.shape()[1:], strict=True))
        images = np.frombuffer(request._get_content(), np.uint8).reshape(request.shape())
        self.answer = Predictor(self.models / name / "1" / "model.onnx", "cpu").run(images)
        return self

    def as_numpy(self, name):
        return {"probability": self.answer}[name]


def test_the_documented_client_gets_what_the_predictor_gives(model, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (script,) = [one for one in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "tritonclient.grpc" in one]
    Image.fromarray(synthetic_image(90, 70, 3, seed=1)).save(tmp_path / "image.png")
    write_repository(model, tmp_path / "models", name="car")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tritonclient.grpc, "InferenceServerClient", lambda address: Server(tmp_path / "models"))
    exec(script.replace("image.jpg", "image.png"), {})
    with Image.open("mask.png") as picture:
        found = np.asarray(picture)
    expected = np.asarray(Predictor(model, "cpu").predict("image.png").picture())
    assert len(np.unique(expected)) == 2 and np.array_equal(found, expected)


def test_a_file_of_one_shape_is_asked_for_whole_batches(tmp_path):
    write_onnx(tmp_path / "model.onnx", fixed_batch=2, size=(64, 96))
    folder = write_repository(tmp_path / "model.onnx", tmp_path / "models")
    config = config_in(folder)
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    ((image,), (probability,)) = config.input, config.output
    assert (list(image.dims), list(probability.dims)) == ([2, 64, 96, 3], [2, 1, 64, 96])
    golden, trained = config.model_warmup
    for sample in (golden, trained):
        assert sample.batch_size == 1 and list(sample.inputs["image"].dims) == [2, 64, 96, 3]
    shown = np.frombuffer((folder / "warmup" / "image").read_bytes(), np.uint8).reshape(2, 64, 96, 3)
    assert np.array_equal(shown[0], shown[1]) and np.array_equal(shown[0, :56, :88], golden_image(3))
    ((name, parameters),) = accelerators(config)
    assert name == "tensorrt" and not [key for key in parameters if "profile" in key]
    with pytest.raises(ConfigError) as caught:
        write_repository(tmp_path / "model.onnx", tmp_path / "models", max_batch=8)
    assert str(caught.value) == "largest batch on Triton: found 8, the file takes batches of 2 only; leave it out"


def test_a_file_of_one_shape_does_not_replace_the_one_of_all(model, tmp_path):
    write_repository(model, tmp_path / "models")
    write_onnx(tmp_path / "fixed.onnx", fixed_batch=1)
    with pytest.raises(
        OutputError, match=r"is another model, fp32 with weights \w+, expected fp32 for batches of 1 of 48x32"
    ):
        write_repository(tmp_path / "fixed.onnx", tmp_path / "models")


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be locked")
def test_what_a_killed_export_left_is_removed_but_no_model_that_was_moved_aside(model, tmp_path):
    names = (".thin.00000000", ".thin.11111111", ".thin.22222222", ".tall.33333333")
    killed, living, aside, other = (tmp_path / name for name in names)
    for path in (killed, living, aside / ".replaced", other):
        path.mkdir(parents=True)
    (killed / "config.pbtxt").write_text("half")
    descriptor = os.open(living, os.O_RDONLY)
    assert try_lock(descriptor)
    write_repository(model, tmp_path)
    os.close(descriptor)
    assert {path.name for path in tmp_path.glob(".*")} == {living.name, aside.name, other.name}
