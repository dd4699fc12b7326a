"""Code that a user names makes the network; whatever is wrong with it is one line."""

import os
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


def late(width):
    import part_of_net

    return Net(part_of_net.TWICE * width)


def leaving():
    raise SystemExit(0)
"""

PARSING = """
import argparse
from net import make

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=3)
parser.add_argument("--data", required=False)
WIDTH = parser.parse_args().width


def parsed():
    return make(WIDTH)
"""


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """net.py, which imports helper.py from beside it, and a package, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    (tmp_path / "broken.py").write_text("import not_there\n")
    (tmp_path / "part_of_net.py").write_text("TWICE = 2\n")
    (tmp_path / "script.py").write_text("import sys\nfrom net import Net\nsys.exit(0)\n")
    (tmp_path / "parsing.py").write_text(PARSING)
    (tmp_path / "tidy.py").write_text("import sys\nfrom net import Net\nsys.path.pop(0)\n")
    for name in ("helper", "net", "part_of_net", "script", "parsing", "tidy"):  # of another test
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("source", "arguments", "width"),
    [
        ("net.py:Net", {}, 5),
        ("net.py:Net", {"width": 2}, 2),
        ("net.py:make", {"width": 4, "kind": "plain"}, 4),
        ("net:Net", {}, 5),
        ("net.py:late", {"width": 2}, 4),
        ("net:late", {"width": 2}, 4),
        ("parsing.py:parsed", {}, 3),
        ("tidy.py:Net", {}, 5),
    ],
)
def test_a_class_or_function_of_a_file_or_module_is_called(source, arguments, width, monkeypatch):
    given, places = ["unet-export", "weights.pth", "--width", "9"], list(sys.path)
    monkeypatch.setattr(sys, "argv", given)
    network = make_network(source, arguments)
    assert sys.argv is given and sys.path == places
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
        (
            "net.py:Other",
            {},
            "--network net.py:Other: net.py has no Other; found Net, Settings, make, nothing, late, leaving",
        ),
        ("net.py:NUMBER", {}, "--network net.py:NUMBER: NUMBER is a int, expected a class or a function"),
        (
            "net.py:make",
            {},
            "make() raises TypeError: make() missing 1 required positional argument: 'width'; give its ",
        ),
        ("net.py:make", {"width": 1, "kind": "a"}, "make(width=1, kind='a') raises ValueError: no such kind: a"),
        ("net.py:leaving", {}, "net.py:leaving: leaving() ends the program, expected a torch.nn.Module"),
        (
            "script.py:Net",
            {},
            "--network script.py:Net: script.py ends the program when it is imported; put that under `if __name__ == "
            '"__main__"`',
        ),
        ("net.py:nothing", {}, "nothing() returns NoneType, expected a torch.nn.Module"),
    ],
)
def test_code_that_cannot_be_used_is_one_line(source, arguments, message):
    with pytest.raises(ConfigError) as caught:
        make_network(source, arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert ("--network-arg" in str(caught.value)) == ("TypeError" in message)


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


def test_networks_that_a_package_takes_from_its_modules_are_listed_those_like_the_name_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner.py").write_text("from torch import nn\n\n\nclass Fpn(nn.Module): pass\nclass Unet(Fpn): pass\n")
    (tmp_path / "outer.py").write_text("from inner import Fpn, Unet\n")
    with pytest.raises(ConfigError, match=r"outer\.py has no Unett; found Unet, Fpn$"):
        make_network("outer.py:Unett")


def test_a_network_downloads_no_weights_from_a_hub_unless_the_user_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub_net.py").write_text(
        "import os\nfrom torch import nn\n"
        "def make():\n"
        "    if os.environ['HF_HUB_OFFLINE'] == '1': raise OSError('offline')\n"
        "    return nn.Identity()\n"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ConfigError, match=r"raises OSError: offline; if it downloads weights, .* encoder_weights=None"):
        make_network("hub_net.py:make")
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert isinstance(make_network("hub_net.py:make"), torch.nn.Identity)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
