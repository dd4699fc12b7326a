"""POST /v1/predict: every format, option and refusal, as the predictor itself answers."""

import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib

import numpy as np
import pytest
from PIL import Image
from served import ServerProcess, ask, multipart, png, served

from runtime.output_formats import FORMATS, TABLES
from runtime.predictor import Predictor


@pytest.fixture(scope="module")
def expected(models, picture):
    return Predictor(models["brightness"], "cpu").predict(picture)


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "json"])
def test_an_answer_has_the_bytes_of_its_format(server, picture, expected, form):
    reply = server.predict(picture, f"?format={form}")
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == FORMATS[form].media_type
    if form == "npz":  # a zip archive holds the time
        found = np.load(io.BytesIO(reply.body))
        np.testing.assert_array_equal(found["probability"], expected.probability)
    else:
        assert reply.body == FORMATS[form].encode(expected)


@pytest.mark.parametrize("form", TABLES)
def test_a_table_has_one_entry_with_the_files_name(server, picture, expected, form, tmp_path):
    body, kind = multipart(picture, filename="C:\\pictures\\car.png", format=form)
    reply = server.ask("/v1/predict", body, Content_Type=kind)
    with TABLES[form].open(tmp_path / f"answer{TABLES[form].suffix}", expected.output) as file:
        file.add("car.png", expected)
    assert reply.body == (tmp_path / f"answer{TABLES[form].suffix}").read_bytes()
    assert b"car.png" in reply.body
    assert b"pictures" not in reply.body


@pytest.mark.parametrize("form", ["mask", *TABLES])
def test_no_temporary_folder_is_needed(server, expected, monkeypatch, form, tmp_path):
    """Forms of more than 1 MB and tables are answered where no disk can be written, as in a read-only container."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    pixels = np.random.default_rng(6).integers(0, 256, (640, 640, 3), np.uint8)
    body, kind = multipart(png(pixels), format=form)
    assert len(body) > 2**20
    reply = server.ask("/v1/predict", body, Content_Type=kind)
    assert reply.status == 200, reply.body


def test_json_tells_areas_and_times(server, picture, expected):
    found = server.predict(picture, "?format=json").json
    assert found["size"] == [5, 7]
    assert found["classes"][0]["area"] == expected.area()
    assert found["times"]["infer"] > 0


def test_the_default_is_the_mask_of_the_first_model(server, picture, expected):
    reply = server.predict(picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.body))) > 0, expected.mask > 0)
    assert reply.headers["x-model"] == "brightness"
    assert reply.headers["x-image-size"] == "7x5"
    assert reply.headers["x-device"] == "cpu"
    stages = [part.split(";")[0] for part in reply.headers["server-timing"].split(", ")]
    assert stages == ["receive", "wait", "decode", "fit", "transfer", "infer", "restore", "encode", "total"]


def test_options_are_those_of_the_predictor(server, picture, models):
    predictor = Predictor(models["conv"], "cpu")
    with served({"conv": models["conv"]}) as other:
        for query, options in (
            ("size=24x16", {"size": (16, 24)}),
            ("tile=8x8", {"tile": (8, 8)}),
            ("tta=flip", {"tta": "flip"}),
            ("size=native", {"size": "native"}),
        ):
            found = np.load(io.BytesIO(other.predict(picture, f"?format=npy&{query}").body))
            np.testing.assert_array_equal(found, predictor.predict(picture, **options).probability, query)
    answer = server.predict(picture, "?threshold=0.25")
    assert answer.body == FORMATS["mask"].encode(
        Predictor(models["brightness"], "cpu").predict(picture, threshold=0.25)
    )


def test_a_form_holds_the_same_options_and_wins(server, picture, models):
    body, kind = multipart(picture, model="softmax", format="npy")
    reply = server.ask("/v1/predict?format=json&model=brightness", body, Content_Type=kind)
    found = np.load(io.BytesIO(reply.body))
    np.testing.assert_array_equal(found, Predictor(models["softmax"], "cpu").predict(picture).probability)
    assert reply.headers["x-model"] == "softmax"


def test_what_is_sent_as_a_url_encoded_form_by_curl_is_an_image(server, picture, expected):
    reply = server.predict(picture, Content_Type="application/x-www-form-urlencoded")
    assert reply.body == FORMATS["mask"].encode(expected)


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("?model=car", 404, "model: found 'car', expected brightness, softmax"),
        ("?format=jpeg", 400, f"format: found 'jpeg', expected one of {', '.join([*FORMATS, *TABLES])}"),
        ("?treshold=0.3", 400, "treshold: is no parameter, expected model, format, threshold, size, tile, tta"),
        ("?threshold=high", 400, "threshold: found 'high', expected a number between 0 and 1"),
        ("?threshold=nan", 400, "threshold: found nan, expected a number between 0 and 1"),
        ("?size=3x", 400, "size: found '3x', expected (height, width) or 'WxH', each 1 to 32768, or 'native'"),
        ("?tta=all", 400, "tta: found 'all', expected 'flip', 'd4' or None"),
        ("?size=9999x9999", 400, "size: found 9999x9999, expected at most 4194304 pixels"),
        ("?tile=9999x9999", 400, "tile: found 9999x9999, expected at most 4194304 pixels"),
        (
            "?model=softmax&format=bilevel",
            400,
            "format bilevel: keeps at most 1 class, the mask may have more; take mask (.png) or tiff (.tif)",
        ),
    ],
)
def test_options_that_are_refused(server, picture, query, status, text):
    reply = server.predict(picture, query)
    assert (reply.status, reply.error) == (status, text)
    assert reply.json["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "body: is empty; send an image's file, or multipart/form-data"),
        (b"no image", 400, "image: is not an image of a known format"),
        (multipart(format="npy"), 400, "body: found the parts format, expected a file named image"),
        (multipart(b"x", part="file"), 400, "body: found the parts file, expected a file named image"),
        (multipart(b"x", sise="3x3"), 400, "sise: is no parameter, expected model, format, threshold, size, tile, tta"),
        ((b"x", "multipart/form-data"), 400, "body: is no valid form (Missing boundary in multipart.); send the image"),
        (
            (multipart(b"x")[0], "multipart/form-data; boundary=seam; charset=undefined"),
            400,
            "body: is no valid form (decoding with",
        ),
        (
            (b"--seam", "multipart/form-data; boundary=seam"),
            400,
            "body: found the parts none, expected a file named image",
        ),
    ],
)
def test_bodies_that_are_refused(server, body, status, text):
    content, kind = body if isinstance(body, tuple) else (body, "image/png")
    reply = server.ask("/v1/predict", content, Content_Type=kind)
    assert reply.status == status
    assert reply.error.startswith(text)


def test_a_text_is_never_a_path(server, tmp_path):
    file = tmp_path / "secret.png"
    Image.new("RGB", (3, 3)).save(file)
    for body in (str(file).encode(), f"file://{file}".encode(), os.fsencode(file) + b"\0"):
        assert server.predict(body).error.startswith("image: is not an image of a known format")


def test_files_of_other_kinds_are_refused_by_what_they_are(server, picture):
    assert server.predict(picture[:-20]).status == 400
    assert server.predict(b"%PDF-1.7\n").error.startswith("image: is not an image of a known format")


def test_what_is_not_seen_of_an_image_is_told(models):
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    with ServerProcess(models["brightness"], "--device", "cpu") as server:  # warnings are a whole process's
        reply = ask(server.url(), "/v1/predict", file.getvalue())
        assert reply.status == 200
        assert reply.headers["x-warning"] == "image: has several pages or frames, and only the first one is read"
        assert "x-warning" not in ask(server.url(), "/v1/predict", png_of(4)).headers


def png_of(side):
    return png(np.zeros((side, side, 3), np.uint8))


def test_limits_of_bytes_and_pixels(models, picture):
    with served({"m": models["brightness"]}, max_bytes=1_000, max_pixels=100, max_network_pixels=50) as small:
        assert small.predict(b"x" * 1_001).error == "body: has 1001 bytes, expected at most 1000; send a smaller file"
        assert small.predict(b"x" * 1_001).status == 413
        assert small.predict(picture).status == 200
        reply = small.predict(png_of(8))  # the network would see all of its pixels
        assert reply.status == 400
        assert reply.error == (
            "image: has 8 x 8 pixels, expected at most 50 in all; make it smaller, or give size or tile"
        )
        assert small.predict(png_of(8), "?tile=4x4").status == 200
        reply = small.predict(png_of(11), "?tile=4x4")
        assert reply.error == "image: has 11 x 11 pixels, expected at most 100 in all; make it smaller"
        chunked = small.ask("/v1/predict", iter([b"x" * 600] * 2))  # without a length
        assert (chunked.status, chunked.error) == (
            413,
            "body: has more bytes, expected at most 1000; send a smaller file",
        )


def test_packed_bodies(server, picture, expected):
    for encoding, body in (("gzip", gzip.compress(picture)), ("deflate", zlib.compress(picture))):
        assert server.predict(body, Content_Encoding=encoding).body == FORMATS["mask"].encode(expected)
    bomb = zlib.compress(bytes(65 * 2**20), 9)
    reply = server.predict(bomb, Content_Encoding="deflate")
    assert (reply.status, reply.error) == (413, "body: unpacks to more than 67108864 bytes; send a smaller file")
    assert server.predict(bomb[:-9], Content_Encoding="deflate").status == 413
    cut = server.predict(zlib.compress(picture)[:-9], Content_Encoding="deflate")
    assert (cut.status, cut.error) == (400, "body: ends too early; send all of it")
    assert server.predict(picture, Content_Encoding="gzip").error.startswith("body: is damaged (")
    assert server.predict(picture, Content_Encoding="br").status == 415
    form, kind = multipart(picture, format="npy")
    packed = server.ask("/v1/predict", gzip.compress(form), Content_Type=kind, Content_Encoding="gzip")
    assert packed.body == FORMATS["npy"].encode(expected)


def test_the_models_are_told(server, models):
    found = server.ask("/v1/models").json
    assert [one["name"] for one in found["models"]] == ["brightness", "softmax"]
    assert found["limits"] == {
        "bytes": 67108864,
        "pixels": 25000000,
        "network_pixels": 4194304,
        "seconds": 30.0,
        "queue": 64,
    }
    first, second = found["models"]
    assert first["sha256"] == hashlib.sha256(models["brightness"].read_bytes()).hexdigest()
    assert (first["device"], first["threshold"], first["colours"]) == ("cpu", 0.5, [[255, 64, 64]])
    assert (second["threshold"], second["colours"]) == (None, [None, [255, 64, 64], [64, 160, 255]])
    assert second["card"]["output"]["classes"] == ["red", "green", "blue"]
    assert str(models["brightness"]) not in json.dumps(found)


def test_unknown_addresses_and_methods(server):
    reply = server.ask("/v1/nothing")
    assert (reply.status, reply.error) == (404, "/v1/nothing: is no path of this server; /openapi.json lists them")
    reply = server.ask("/v1/predict")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.error == "/v1/predict: takes POST, and not GET"


def test_an_image_in_a_form_stays_in_memory(server, monkeypatch):
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda _: pytest.fail("written to a disk"))
    image = png(np.random.default_rng(2).integers(0, 256, (800, 700, 3), np.uint8))
    assert len(image) > 2**20
    body, kind = multipart(image)
    assert server.ask("/v1/predict", body, Content_Type=kind).status == 200


def test_an_error_repeats_little_of_what_was_sent(server, picture):
    body, kind = multipart(picture, threshold="x" * 500_000)
    reply = server.ask("/v1/predict", body, Content_Type=kind)
    assert (reply.status, reply.error[:21]) == (400, "threshold: found 'xxx")
    assert len(reply.body) < 3_000
