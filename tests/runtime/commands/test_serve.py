"""unet-serve's arguments."""

import shutil
import sys

import pytest
from click.testing import CliRunner

from runtime.commands.serve import named, serve
from runtime.errors import ConfigError, ModelError


def test_models_are_called_as_their_cards_or_as_they_are_named(models, tmp_path):
    path = models["brightness"]
    assert named((str(path), f"other={path}")) == (("brightness", path), ("other", path))
    odd = tmp_path / "a=b.onnx"
    shutil.copyfile(path, odd)
    assert named((f"m={odd}",)) == (("m", odd),)
    assert named((str(odd),)) == (("brightness", odd),)


def test_names_are_those_of_addresses_and_different(models):
    path = models["brightness"]
    with pytest.raises(ConfigError, match=r"is called brightness as .* is; give names, as in brightness-2="):
        named((str(path), str(path)))
    for name in ("", "a/b", "../x", "ä", ".x", "a b"):
        with pytest.raises(ConfigError, match=r"expected letters, digits, '\.', '_' and '-'"):
            named((f"{name}={path}",))


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(ModelError):
        named((str(tmp_path / "x.onnx"),))
    done = CliRunner().invoke(serve, [str(tmp_path / "x.onnx")])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_defaults_are_those_of_the_settings():
    from dataclasses import fields

    from runtime.serve.settings import ServerSettings

    options = serve.make_context("unet-serve", ["m.onnx"]).params
    for field in fields(ServerSettings):
        if field.name in options and field.name != "models":
            assert options[field.name] == field.default, field.name
    assert options["max_mb"] * 2**20 == ServerSettings(models=()).max_bytes


def test_missing_packages_are_one_line_with_their_extra(models, monkeypatch):
    monkeypatch.delitem(sys.modules, "runtime.serve.process", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(serve, [str(models["brightness"])])
    assert (done.exit_code, done.stderr) == (
        2,
        "error: fastapi is not installed; install unet-deploy with its extra [serve]\n",
    )
