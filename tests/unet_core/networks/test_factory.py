"""Code that a user names makes the network; whatever is wrong with it is one line."""

import sys

import pytest
import torch

from runtime.errors import ConfigError
from unet_core.model_options import parse_arguments
from unet_core.networks.factory import make_network

CODE = """
from dataclasses import dataclass

import torch
from helper import WIDTH

NUMBER = 3


class Net(torch.nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, width, 1)


@dataclass
class Settings:
    width: int = 7


def make(width, kind="plain"):
    if kind != "plain":
        raise ValueError(f"no such kind:\\n{kind}")
    return Net(width)


def nothing():
    return None
"""


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """net.py, which imports helper.py from beside it, and a package, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    (tmp_path / "broken.py").write_text("import not_there\n")
    for name in ("helper", "net"):  # of another test
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("source", "arguments", "width"),
    [
        ("net.py:Net", {}, 5),
        ("net.py:Net", {"width": 2}, 2),
        ("net.py:make", {"width": 4, "kind": "plain"}, 4),
        ("net:Net", {}, 5),
    ],
)
def test_a_class_or_function_of_a_file_or_module_is_called(source, arguments, width):
    network = make_network(source, arguments)
    assert isinstance(network, torch.nn.Module) and network.layer.out_channels == width


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("net.py", {}, "--network net.py: expected FILE.py:NAME or package.module:NAME"),
        ("none.py:Net", {}, "--network none.py:Net: none.py: no such file"),
        (
            "none.such:Net",
            {},
            "--network none.such:Net: none.such cannot be imported: it raises ModuleNotFoundError: No ",
        ),
        (
            "broken.py:Net",
            {},
            "broken.py cannot be imported: it raises ModuleNotFoundError: No module named 'not_there'; install",
        ),
        ("net.py:Other", {}, "--network net.py:Other: net.py has no Other; found Net, Settings, make, nothing"),
        ("net.py:NUMBER", {}, "--network net.py:NUMBER: NUMBER is a int, expected a class or a function"),
        (
            "net.py:make",
            {},
            "make() raises TypeError: make() missing 1 required positional argument: 'width'; give its ",
        ),
        ("net.py:make", {"width": 1, "kind": "a"}, "make(width=1, kind='a') raises ValueError: no such kind: a; give"),
        ("net.py:nothing", {}, "nothing() returns a NoneType, expected a torch.nn.Module"),
    ],
)
def test_code_that_cannot_be_used_is_one_line(source, arguments, message):
    with pytest.raises(ConfigError) as caught:
        make_network(source, arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_are_toml_or_text():
    given = ("a=3", "b=0.5", "c=true", 'd="x y"', "e=resnet34", "f=[1, 2]", "g=", "h=None")
    assert parse_arguments(given) == {
        "a": 3,
        "b": 0.5,
        "c": True,
        "d": "x y",
        "e": "resnet34",
        "f": [1, 2],
        "g": "",
        "h": None,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("width",), "--network-arg width: expected NAME=VALUE, such as in_channels=3"),
        (("2=3",), "--network-arg 2=3: expected NAME=VALUE"),
        (("a=1", "a=2"), "--network-arg a: is given twice"),
    ],
)
def test_arguments_that_are_none_are_told(given, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments(given)
