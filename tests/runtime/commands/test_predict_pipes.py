"""unet-predict on pipes and terminals, and at Ctrl-C."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from masks import mask_of, names_in, pixels_of
from PIL import Image
from waiting import wait_until

from runtime.commands.predict import predict

pytestmark = pytest.mark.timing


def test_pipe_takes_an_image_and_gives_its_mask(models, pictures):
    arguments = [str(models["brightness"]), "-", "--device", "cpu"]
    result = CliRunner().invoke(predict, arguments, input=(pictures / "c.tif").read_bytes())
    assert (result.exit_code, result.stderr) == (0, "")
    assert np.array_equal(pixels_of(io.BytesIO(result.stdout_bytes)), mask_of(pictures / "c.tif"))
    result = CliRunner().invoke(predict, [*arguments, "--format", "npy"], input=(pictures / "c.tif").read_bytes())
    assert np.load(io.BytesIO(result.stdout_bytes)).shape == (1, 8, 12)
    result = CliRunner().invoke(predict, arguments, input=b"")
    assert (result.exit_code, result.stdout_bytes) == (2, b"")
    assert result.stderr.endswith(": is empty (0 bytes), expected an image\n")


OUT = "-: standard output is for one image, without -o, as in MODEL - < IMAGE > MASK; a file of this name is ./-"
MODEL = "-: standard input is for an image, name an .onnx file; a file of this name is ./-"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["m.onnx", "-", "-o", "out"], "- writes its answer to standard output; leave out -o and add > FILE"),
        (
            ["m.onnx", "-", "a.jpg"],
            "- is one image from standard input; give it alone, and the other images without it",
        ),
        (["m.onnx", "-", "-"], "- is one image from standard input; give it alone, and the other images without it"),
        (
            ["m.onnx", "-", "--format", "rle-csv"],
            "- has no name for --format rle-csv to list; name a file, or leave out --format",
        ),
        (["m.onnx", "-", "--skip-existing"], "- is one image; leave out --skip-existing"),
        (["m.onnx", "-", "--batch-size", "2"], "- is one image; leave out --batch-size"),
        (["m.onnx", "-", "--engine", "ray"], "- is one image; leave out --engine ray"),
        (["m.onnx", "-", "-o", "-"], f"Invalid value for '-o' / '--out': {OUT}"),
        (["m.onnx", "a.jpg", "-o", "-"], f"Invalid value for '-o' / '--out': {OUT}"),
        (["-", "a.jpg", "-o", "out"], f"Invalid value for 'MODEL': {MODEL}"),
        (["-", "-"], f"Invalid value for 'MODEL': {MODEL}"),
    ],
    ids=" ".join,
)
def test_wrong_uses_of_the_pipe_say_what_to_do(arguments, line):
    result = CliRunner().invoke(predict, arguments, input=b"")
    assert (result.exit_code, result.stdout_bytes) == (2, b"")
    assert result.stderr.splitlines()[-1] == f"Error: {line}"


def test_what_is_called_like_the_pipe_is_a_file_or_folder(models, pictures, monkeypatch):
    (pictures / "sub").mkdir()
    (pictures / "sub" / "-").write_bytes(models["brightness"].read_bytes())
    monkeypatch.chdir(pictures / "sub")
    assert CliRunner().invoke(predict, ["./-", "../a.png", "-o", "../out", "--device", "cpu"]).exit_code == 0
    monkeypatch.chdir(pictures)
    assert CliRunner().invoke(predict, ["sub/-", "a.png", "-o", "./-", "--device", "cpu"]).exit_code == 0
    assert names_in(pictures / "-") == names_in(pictures / "out") == ["a.png"]


@pytest.mark.parametrize(("kind", "name"), [("mask", "out"), ("rle-csv", "out.csv"), ("coco", "out.json")])
def test_interrupt_leaves_whole_files_and_says_how_many(tmp_path, models, root, kind, name):
    folder, out = tmp_path / "in", tmp_path / name
    folder.mkdir()
    Image.effect_noise((300, 300), 90).convert("RGB").save(folder / "0.png")
    for index in range(1, 4_000):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    program = (
        "import sys; from runtime.commands.predict import predict; print('begins', flush=True); predict(prog_name='p')"
    )
    command = [sys.executable, "-c", program, models["conv"], folder, "-o", out, "--device", "cpu", "--format", kind]
    process = subprocess.Popen(
        list(map(str, command)), cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begins\n"
    if kind != "mask":
        wait_until(lambda: any(path.read_bytes().count(b"\n") > 3 for path in tmp_path.glob(".out.*")))
    else:
        wait_until(lambda: out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    count = int(stdout.split()[0])
    assert 0 < count < 4_000
    assert stdout == f"{count} of 4000 written to {out} on cpu\n"
    if kind == "coco":
        images = json.loads(out.read_text())["images"]
        assert len({image["file_name"] for image in images}) == len(images) == count
    elif kind == "rle-csv":
        rows = out.read_text().splitlines()
        assert len(rows) == count + 1 and len({row.partition(",")[2] for row in rows[1:]}) == 1
    else:
        assert len(names_in(out)) == count and {pixels_of(path).shape for path in out.iterdir()} == {(300, 300)}


def test_terminal_shows_progress_and_gets_no_bytes(pictures, out, models, root):
    pty = pytest.importorskip("pty")
    program = "from runtime.commands.predict import predict; predict(prog_name='p')"
    command = [sys.executable, "-c", program, str(models["brightness"])]

    def shown(*arguments):
        ours, theirs = pty.openpty()
        done = subprocess.Popen([*command, *map(str, arguments)], cwd=root, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal with an error
            while piece := os.read(ours, 4096):
                text += piece
        os.close(ours)
        return done.wait(), text.decode()

    (pictures / "bad.jpg").write_bytes(b"no picture")
    code, text = shown(pictures, "-o", out, "--device", "cpu")
    assert code == 1
    assert "4/4" in text and re.search(r"\d\.\d images/s", text)
    assert re.search(r"\r\x1b\[Kerror: \S+bad\.jpg: is not an image", text)
    code, text = shown("-")
    assert (code, text.splitlines()[-1]) == (
        2,
        "Error: - reads an image from standard input, which is a terminal or closed; use < or |",
    )
