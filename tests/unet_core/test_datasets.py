"""The command `unet-data`: layouts, options that do not go together, and a conversion that is then trained on."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from layouts import blocks, convert, run, write_image, write_mask

from unet_core.checkpoint import load_checkpoint
from unet_core.conversion.layouts import LAYOUTS
from unet_core.datasets import LAYOUT_NAMES
from unet_core.datasets import main as data
from unet_core.train import main as train


def test_every_layout_has_its_name_on_the_command_line():
    assert sorted(LAYOUT_NAMES) == sorted(["auto", *LAYOUTS])


def test_help_needs_no_pytorch():
    script = (
        "import sys; sys.modules['torch'] = sys.modules['cv2'] = None\n"
        "from unet_core.datasets import main; main(['convert', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "Convert the data set SOURCE" in done.stdout


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "unet_core.data", "convert", "/nowhere", "/tmp/out"],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = "error: /nowhere: no such file or folder; expected a data set to convert\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--from", "voc"], "{0}: is not in the layout voc; expected JPEGImages/ and SegmentationClass/"),
        (
            ["--images", "x"],
            "--images: does not go with the layout folders of {0}; leave it out, or give another --from",
        ),
        (
            ["--rle-order", "rows"],
            "--rle-order: does not go with the layout folders of {0}; leave it out, or give another --from",
        ),
        (
            ["--mask-threshold", "9", "--colours", "a=#123456"],
            "--mask-threshold: contradicts --colours; leave one of them out",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, problem):
    source = tmp_path / "source"
    write_image(source / "images" / "a.png")
    write_mask(source / "masks" / "a.png", blocks())
    done = run("convert", source, tmp_path / "out", *options)
    assert (done.exit_code, done.stderr) == (2, f"error: {problem.format(source)}\n")


def test_a_file_of_no_layout_is_refused(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text("{}")
    done = run("convert", file, tmp_path / "out")
    assert done.stderr == (
        f"error: {file}: is in no known layout; expected a folder, COCO's JSON, or a CSV file of run lengths with a "
        "header such as img,rle_mask or ImageId,EncodedPixels\n"
    )


def test_what_is_converted_can_be_checked_and_trained_on(tmp_path):
    """A COCO file of two classes, by the commands that the conversion names."""
    names = [f"{index}.png" for index in range(4)]
    for index, name in enumerate(names):
        write_image(tmp_path / "source" / "images" / name, index)
    square = [[2, 2, 12, 2, 12, 9, 2, 9]]
    content = {
        "images": [{"id": index, "file_name": name, "height": 24, "width": 32} for index, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": index, "image_id": index, "category_id": 1 + index % 2, "segmentation": square} for index in range(4)
        ],
    }
    (tmp_path / "source" / "coco.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    convert(tmp_path / "source", out)
    done = run("check", out, "--config", out / "dataset.toml", "--group", "")
    assert done.exit_code == 0
    assert (
        "background     90.89%       4\ncat             4.56%       2\ndog             4.56%       2\n" in done.stdout
    )
    settings = [
        "--config",
        out / "dataset.toml",
        "--group",
        "",
        "--val-share",
        "0.5",
        "--widths",
        "2",
        "--size",
        "16x16",
    ]
    told = f"note: {out}/dataset.toml: is not used; give --config {out}/dataset.toml to train on its classes\n"
    for command, arguments in ((data, ["check", out]), (train, [out, "--out", tmp_path / "no"])):
        done = CliRunner().invoke(command, [*map(str, arguments), "--group", ""])
        assert done.exit_code == 2 and told in done.stderr and "has invalid labels (2)" in done.stderr
    quick = ["--epochs", "1", "--workers", "0", "--device", "cpu", "--no-tensorboard", "--cache-gb", "0"]
    done = CliRunner().invoke(train, [*map(str, [out, "--out", tmp_path / "run", *settings]), *quick])
    assert done.exit_code == 0, done.stderr
    assert load_checkpoint(tmp_path / "run" / "model.pth").card.output.classes == ("background", "cat", "dog")
