"""docs/examples: each program runs by the command that its page shows, and does what it says."""

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def folder(root, models, tmp_path, monkeypatch):
    """The examples with a model that tells red, green and blue apart, photos (one damaged), and a clip of blue frames.

    Blue is foreground and red, the first class, is background: who takes one for the other gets the other mask.
    """
    shutil.copytree(root / "docs" / "examples", tmp_path, dirs_exist_ok=True)
    shutil.copy(models["softmax"], tmp_path / "model.onnx")
    (tmp_path / "photos").mkdir()
    for name, colour in (("a", RED), ("b", BLUE)):
        Image.new("RGB", (60, 40), colour).save(tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "photos" / "damaged.jpg").write_bytes((tmp_path / "photos" / "a.jpg").read_bytes()[:300])
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (60, 40))
    for _ in range(5):
        writer.write(np.full((40, 60, 3), BLUE[::-1], np.uint8))
    writer.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_shown(root, folder, program, **variables):
    """Run the command by which the page shows a program, with these variables; return what it prints."""
    (line,) = re.findall(rf"^(python {program} .*)$", (root / "docs" / "examples" / "README.md").read_text(), re.M)
    command = [sys.executable, "-W", "ignore::UserWarning", *shlex.split(line, comments=True)[1:]]
    environment = os.environ | {"PYTHONPATH": str(root)} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_webcams_frames_are_taken_as_bgr(root, folder):
    said = run_shown(root, folder, "webcam.py")
    assert re.search(r"frame 5: \d+ ms, 100\.0% foreground\n5 frames in out\.avi\n$", said)
    video = cv2.VideoCapture(str(folder / "out.avi"))
    there, frame = video.read()
    assert there and frame.shape == (40, 60, 3)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5


def test_a_video_that_cannot_be_opened_is_named(root, folder):
    command = [sys.executable, "webcam.py", "model.onnx", "absent.avi", "out.avi"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "absent.avi: is no camera or video that OpenCV opens" in done.stderr) == (1, True)


def test_a_progress_bar_counts_images_and_tells_of_the_damaged_one(root, folder):
    lines = run_shown(root, folder, "progress.py").splitlines()
    assert "2 of 3 masks in masks" in lines
    assert lines[-1].startswith("damaged.jpg: photos/damaged.jpg: is damaged or truncated")
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["a.png", "b.png"]
    assert np.asarray(Image.open(folder / "masks" / "b.png")).max() == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_a_job_of_spark_has_a_row_for_each_photo(root, folder):
    pytest.importorskip("pyspark", reason="needs a package that is no dependency: pyspark")
    parquet = pytest.importorskip("pyarrow.parquet")
    options = "--master local[2] --conf spark.ui.enabled=false pyspark-shell"
    here = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "PYSPARK_SUBMIT_ARGS": options}
    lines = run_shown(root, folder, "spark_masks.py", **here).splitlines()
    assert lines[0] == "2 masks in masks.parquet"
    (failure,) = lines[1:]
    assert failure.startswith("file:") and "damaged.jpg: image: is damaged or truncated" in failure
    rows = {row["path"].rpartition("/")[2]: row for row in parquet.read_table(folder / "masks.parquet").to_pylist()}
    assert [(name, row["foreground"], row["mask"] is None) for name, row in sorted(rows.items())] == [
        ("a.jpg", 0.0, False),
        ("b.jpg", 1.0, False),
        ("damaged.jpg", None, True),
    ]
    (folder / "b.png").write_bytes(rows["b.jpg"]["mask"])
    assert np.asarray(Image.open(folder / "b.png")).tolist() == [[2] * 60] * 40


def test_the_notebooks_cells_run_in_order(folder, models):
    notebook = json.loads((folder / "notebook.ipynb").read_text())
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    shutil.copy(models["conv"], folder / "model.onnx")  # one class, and another answer where red and blue change places
    (folder / "photos" / "damaged.jpg").unlink()
    names, shown = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, cell["id"], "exec"), names)
            if last:  # a notebook shows the value of the last line
                shown.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), names))
    pictures = [value for value in shown if hasattr(value, "_repr_html_")]
    assert len(pictures) == 2  # as RGB from the file, and as BGR from OpenCV: the same answer
    assert np.allclose(pictures[0].probability, pictures[1].probability, atol=1e-2)
    area = pictures[0].area()
    assert (area, pictures[0].box(), (40, 60)) in shown
    assert any(isinstance(value, dict) and value.get(0.5) == area for value in shown)


def test_an_application_answers_images_by_masks(folder, monkeypatch):
    pytest.importorskip("fastapi")
    testing = pytest.importorskip("fastapi.testclient")
    monkeypatch.setenv("MODEL", "model.onnx")
    app = runpy.run_path("fastapi_app.py")["app"]
    with testing.TestClient(app) as client:
        answer = client.post("/mask", files={"image": (folder / "photos" / "b.jpg").read_bytes()})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        (folder / "mask.png").write_bytes(answer.content)
        assert np.asarray(Image.open(folder / "mask.png")).tolist() == [[2] * 60] * 40
        refused = client.post("/mask", files={"image": b"no image"})
        assert refused.status_code == 422
        assert refused.json()["detail"].startswith("image: is not an image of a known format")
