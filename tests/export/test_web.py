"""The web page beside an exported file: what is written, and what is refused."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from onnx.helper import set_model_props
from onnx_files import write_onnx

from export import exporter
from export.cli import main
from export.web import RUNTIME_FILES, write_page
from runtime.card import RAW_KEY, ModelCard
from runtime.errors import ConfigError, ModelError, OutputError
from runtime.model_file.golden import golden_image
from runtime.page.files import alone_files
from runtime.predictor import Predictor


@pytest.fixture
def model(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def package(tmp_path):
    """A folder like that of the npm package."""
    folder = tmp_path / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name in (*RUNTIME_FILES, "ort.all.min.js"):
        (folder / "dist" / name).write_text(f"// {name}")
    return folder


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_of_a_page(model, package, tmp_path):
    index = write_page(model, tmp_path / "new" / "site", onnxruntime_web=package)
    assert index == tmp_path / "new" / "site" / "index.html"
    files = files_in(index.parent)
    assert files.pop("model.onnx") == model.read_bytes()
    content = json.loads(files.pop("model.json"))
    assert {name: files.pop(f"ort/{name}") for name in RUNTIME_FILES} == {
        name: f"// {name}".encode() for name in RUNTIME_FILES
    }
    assert files == {path: file.content for path, file in alone_files().items()}
    assert ModelCard.from_json(json.dumps(content["card"])) == Predictor(model, "cpu").card
    golden = content["golden"]
    image = np.frombuffer(base64.b64decode(golden["image"]), np.uint8).reshape(golden["shape"])
    assert np.array_equal(image, golden_image(3)) and golden["limit"] == 1e-4
    probability = np.frombuffer(base64.b64decode(golden["probability"]), "<f4").reshape(1, *golden["size"])
    assert np.abs(probability - Predictor(model, "cpu").predict(image, size="native").probability).max() < 2e-6


def test_the_sample_of_a_file_of_one_shape_is_shown_at_its_size(tmp_path):
    write_onnx(tmp_path / "model.onnx", size=(64, 96), fixed_batch=2)
    index = write_page(tmp_path / "model.onnx", tmp_path / "site")
    golden = json.loads((index.parent / "model.json").read_text())["golden"]
    assert (golden["shape"], golden["size"]) == ([64, 96, 3], [56, 88])


def test_a_page_is_replaced_and_other_files_stay(model, tmp_path):
    index = write_page(model, tmp_path / "site")
    index.write_bytes(index.read_bytes() + b"<!-- edited -->")
    (tmp_path / "site" / "notes.txt").write_text("mine")
    card = write_onnx(model, classes=3)
    write_page(model, tmp_path / "site")
    files = files_in(tmp_path / "site")
    assert files["notes.txt"] == b"mine" and files["index.html"] == alone_files()["index.html"].content
    assert json.loads(files["model.json"])["card"]["output"]["classes"] == list(card.output.classes)


@pytest.mark.parametrize("kind", ["text", "folder"])
def test_an_index_of_somebody_else_stays(model, tmp_path, kind):
    index = tmp_path / "site" / "index.html"
    index.parent.mkdir()
    if kind == "text":
        index.write_text("<h1>Mine</h1>")
    else:
        index.mkdir()
    with pytest.raises(OutputError) as error:
        write_page(model, index.parent)
    assert str(error.value) == (
        f"{index}: is not a page that unet-export wrote; move it away, or choose another folder"
    )
    assert list(index.parent.iterdir()) == [index]


def test_a_package_without_the_files_is_refused_before_anything_is_written(model, package, tmp_path):
    (package / "dist" / RUNTIME_FILES[1]).unlink()
    with pytest.raises(ConfigError) as error:
        write_page(model, tmp_path / "site", onnxruntime_web=package)
    assert str(error.value) == (
        f"--onnxruntime-web {package}: has no {RUNTIME_FILES[1]}, expected the npm package onnxruntime-web; run npm "
        "install onnxruntime-web and give node_modules/onnxruntime-web"
    )
    assert not (tmp_path / "site").exists()


def test_the_folder_dist_itself_is_taken(model, package, tmp_path):
    write_page(model, tmp_path / "site", onnxruntime_web=package / "dist")
    assert {path.name for path in (tmp_path / "site" / "ort").iterdir()} == set(RUNTIME_FILES)


def test_models_of_arrays_have_no_page(tmp_path):
    card = write_onnx(tmp_path / "model.onnx")
    raw = replace(card, input=replace(card.input, channels="raw"))
    from export.web import check_page

    with pytest.raises(ConfigError) as error:
        check_page(raw, tmp_path / "site")
    assert str(error.value) == (
        "--web: the model takes arrays of 3 channels, expected pictures (RGB or grey), which are all that a page can "
        "show; leave it out"
    )


def test_raw_and_changed_files_are_refused(model, tmp_path):
    import onnx

    proto = onnx.load(model)
    set_model_props(proto, {RAW_KEY: "{}"})
    onnx.save(proto, tmp_path / "raw.onnx")
    with pytest.raises(ModelError, match="is a raw export"):
        write_page(tmp_path / "raw.onnx", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def exported(model, tmp_path_factory, monkeypatch):
    """A checkpoint for the command, whose export, without its minutes, is the file that is there."""
    from unet_core.networks import checkpoint

    card = Predictor(model, "cpu").card
    facts = {"path": model, "card": card, "size": 1, "image_dice": None, "seconds": 1, "card_is_assumed": False}
    report = exporter.ExportReport(**facts, family="unet-deploy", notes=())
    monkeypatch.setattr(exporter, "export_loaded", lambda *_: report)

    class Loaded:
        pass

    Loaded.card = card
    monkeypatch.setattr(checkpoint, "open_checkpoint", lambda *_: Loaded)
    file = tmp_path_factory.mktemp("run") / "m.pth"
    file.touch()
    return file


def test_the_command_writes_the_page_and_tells_how_to_see_it(exported, package, tmp_path):
    site = tmp_path / "my site"
    done = run(exported, "--web", site, "--onnxruntime-web", package)
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == (
        f"web page: {site}/index.html; to see it: python3 -m http.server --bind 127.0.0.1 --directory '{site}'"
    )
    assert files_in(site).keys() >= {"index.html", "model.onnx", "ort/ort.wasm.min.mjs"}


def test_the_command_tells_what_the_page_lacks(exported, tmp_path):
    done = run(exported, "--web", tmp_path / "site")
    assert done.stderr == (
        "note: the page lacks onnxruntime-web; run npm install onnxruntime-web and copy ort.wasm.min.mjs, "
        "ort-wasm-simd-threaded.mjs, ort-wasm-simd-threaded.wasm from node_modules/onnxruntime-web/dist to "
        f"{tmp_path}/site/ort, or give --onnxruntime-web node_modules/onnxruntime-web\n"
    )


def test_a_folder_that_cannot_be_taken_is_told_before_the_export(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "export_loaded", lambda *_: pytest.fail("exported"))
    (tmp_path / "index.html").write_text("mine")
    done = run(exported, "--web", tmp_path)
    assert done.exit_code != 0 and "is not a page that unet-export wrote" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--onnxruntime-web", "."], "--onnxruntime-web: goes with --web; leave it out"),
        (
            ["--raw", "--web", "site"],
            "--raw: has neither card nor golden sample for --card, --triton or --web; leave it out",
        ),
    ],
)
def test_options_that_contradict_one_another(options, message):
    done = run("m.pth", *options)
    assert done.exit_code == 2 and message in done.stderr
