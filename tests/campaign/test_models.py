"""Damaged models: whatever is taken with its digest is what was exported, and everything else is a ModelError."""

import re
from pathlib import Path

import onnx
import pytest
from campaigns import SLOWEST
from model_server import ModelServer
from sealing import save_sealed

from runtime.model_file.digest import NO_DIGEST, NOT_ASKED, PRODUCER, VERIFIED

SHARE = 0.25
SAMPLES = Path(__file__).parents[1] / "data" / "v0.1" / "models"
NAMES = ("fp32", "int8-u8", "several", "cpu")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """The bytes of some models as `unet-export` writes them, by name."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name in NAMES:
        model = onnx.load(SAMPLES / f"{name}.onnx")
        model.producer_name = PRODUCER
        found[name] = save_sealed(model, folder / f"{name}.onnx").read_bytes()
    return found


def flipped(content, random, place):
    content[place] ^= 1 << random.integers(8)


def flip_anywhere(content, random):
    flipped(content, random, random.integers(len(content)))


def flip_a_weight(content, random):
    """Among the initializers, which are the long part before the metadata."""
    flipped(content, random, random.integers(content.index(b"unet.card")))


def flip_in_an_entry(content, random):
    """In the card, the golden sample or the digest, or in the bytes that frame them."""
    start = content.index([b"unet.card", b"unet.golden", b"unet.digest"][random.integers(3)])
    flipped(content, random, min(start - 8 + random.integers(2_000), len(content) - 1))


def other_digit_in_the_card(content, random):
    """The card stays valid JSON."""
    start = content.index(b"unet.card")
    digits = [match.start() for match in re.finditer(rb"\d", content[start : content.index(b"unet.golden")])]
    content[start + digits[random.integers(len(digits))]] = ord("0") + random.integers(10)


def other_number_in_the_graph(content, random):
    """An attribute of a node, such as strides, or a dimension that is stored."""
    model = onnx.load_from_string(bytes(content))
    lists = [attribute.ints for node in model.graph.node for attribute in node.attribute if attribute.ints]
    lists += [tensor.dims for tensor in model.graph.initializer if tensor.dims]
    chosen = lists[random.integers(len(lists))]
    chosen[random.integers(len(chosen))] = STRANGE[random.integers(len(STRANGE))]
    content[:] = model.SerializeToString()


def other_bytes(content, random):
    for place in random.integers(len(content), size=random.integers(1, 9)):
        content[place] = random.integers(256)


def cut(content, random):
    del content[random.integers(len(content)) :]


def cut_out(content, random):
    start = random.integers(len(content))
    del content[start : start + random.integers(1, 64)]


def repeat(content, random):
    start, end = sorted(random.integers(len(content), size=2))
    place = random.integers(len(content) + 1)
    content[place:place] = content[start : min(end, start + 4_096)]


DAMAGES = [
    flip_anywhere,
    flip_a_weight,
    flip_in_an_entry,
    other_digit_in_the_card,
    other_number_in_the_graph,
    other_bytes,
    cut,
    cut_out,
    repeat,
]
STRANGE = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 4_096, 2**20, 2**31 - 1, 2**63 - 1)


def test_damaged_models(campaign, sealed, tmp_path):
    path = tmp_path / "model.onnx"
    with ModelServer() as server:
        expected = {}
        for name, content in sealed.items():
            path.write_bytes(content)
            said = server.ask(path, verify=True)
            assert said["integrity"] == VERIFIED
            expected[name] = said["taken"]

        def attempt(random):
            name = NAMES[random.integers(len(NAMES))]
            verify = random.random() < 0.6
            content = bytearray(sealed[name])
            DAMAGES[random.integers(len(DAMAGES))](content, random)
            path.write_bytes(content)
            kind = "verified" if verify else "verify=False"
            try:
                said = server.ask(path, verify=verify)
            except TimeoutError:
                assert not verify
                return f"{kind}: computes for more than {SLOWEST:g} s"
            assert "escaped" not in said, said.get("escaped")
            if not verify and said["seconds"] > SLOWEST:  # whoever gives that gets what the graph computes
                server.seconds -= said["seconds"]
                return f"{kind}: computes for more than {SLOWEST:g} s"
            if "refused" in said:
                assert said["text"].isprintable() and len(said["text"]) < 1_000, said["text"]
                assert said["refused"] == "ModelError" or (said["opened"] and not verify), said["text"]
                return f"{kind}: refused, {said['refused']}"
            same = said["taken"] == expected[name]
            assert same or not verify, "another answer was taken"
            assert said["integrity"] in ((VERIFIED, NO_DIGEST) if verify else (NOT_ASKED,))
            return f"{kind}: {'same' if same else 'another'} answer"

        campaign.run("models", attempt, share=SHARE, clock=lambda: server.seconds)
