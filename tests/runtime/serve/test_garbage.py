"""Requests that are damaged at random: none is a fault of the server, and the server goes on."""

import json
import random
import struct
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from served import multipart, png
from waiting import wait_until

ODD = (
    *(
        "",
        "\0",
        "9" * 5_000,
        "-1x-1",
        "0x0",
        "1x99999999999",
        "nan",
        "1e309",
        "-inf",
        "%",
        "ä\u202e",
        "../../etc/passwd",
    ),
    *("native", "flip", "d4", "mask", "7x5", "0.5", "true", "[]", "a" * 20_000),
)
PARAMETERS = ("model", "format", "threshold", "size", "tile", "tta", "other")
REFUSED = {200, 400, 404, 413, 415, 431}

TENSOR = json.dumps(
    {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": list(range(12))}]}
).encode()


def damaged(content, dice):
    """Return bytes of which some are others, missing or doubled."""
    found = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        place = dice.randrange(len(found) + 1)
        match dice.randrange(4):
            case 0:
                found[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                del found[place : place + dice.randint(1, 40)]
            case 2:
                found[place:place] = found[: dice.randint(1, 40)]
            case 3:
                found = found[:place] or bytearray(b"x")
    return bytes(found)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Starlette leaves the file of a cut form to the collector
@pytest.mark.parametrize("seed", range(4))
def test_damaged_requests_are_refused(server, picture, seed):
    dice = random.Random(seed)
    form, kind = multipart(picture, format="npy", threshold="0.4")
    for _ in range(40):
        query = "&".join(f"{name}={quote(dice.choice(ODD))}" for name in dice.sample(PARAMETERS, dice.randrange(3)))
        body, headers = dice.choice(
            [
                (damaged(picture, dice), {}),
                (damaged(form, dice), {"Content_Type": kind}),
                (form, {"Content_Type": damaged(kind.encode(), dice).decode("latin-1").translate({10: 88, 13: 88})}),
                (damaged(picture, dice), {"Content_Encoding": dice.choice(["gzip", "deflate", "br", "identity"])}),
            ]
        )
        reply = server.ask(f"/v1/predict?{query}", body, **headers)
        assert reply.status in REFUSED, (reply, query, headers)
        split = {"Inference_Header_Content_Length": str(dice.randint(-1, 200))} if dice.randrange(2) else {}
        reply = server.ask("/v2/models/brightness/infer", damaged(TENSOR, dice), **split)
        assert reply.status in REFUSED, reply
    assert server.ask("/healthz").status == 200
    wait_until(lambda: server.service.admission.count == 0)


def test_bombs_are_refused_before_they_are_decoded(server):
    """A picture of 400 million pixels in a few kilobytes."""

    def chunk(kind, data):
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">LLBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    whole = png(np.zeros((1, 1), np.uint8))
    bomb = whole[:8] + header + chunk(b"IDAT", zlib.compress(bytes(20_001) * 200, 9)) + chunk(b"IEND", b"")
    reply = server.predict(bomb)
    assert reply.status == 400
    assert reply.error.startswith("image: has 20000 x 20000 pixels, expected at most ")
