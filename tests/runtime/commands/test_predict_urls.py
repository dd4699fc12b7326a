"""unet-predict on URLs: what is read and written there is what it is on disk."""

import csv
import io
import sys

import numpy as np
import pyarrow.parquet
import pytest
from masks import mask_of, pixels_of
from stores import empty_memory

from runtime.output_formats import FORMATS

IN, OUT = "memory://bucket/in", "memory://bucket/out"


@pytest.fixture
def store(pictures):
    """A store in memory with the three pictures, and a file that is none."""
    with empty_memory() as system:
        for path in pictures.iterdir():
            system.pipe_file(f"/bucket/in/{'sub/' * (path.suffix == '.tif')}{path.name}", path.read_bytes())
        yield system


def written(store, below="/bucket/out"):
    return {path.removeprefix(f"{below}/"): store.cat_file(path) for path in store.find(below)}


def test_a_url_gives_the_bytes_that_a_folder_gives(run_predict, pictures, store, out):
    result = run_predict(IN, to=OUT)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"3 of 3 written to {OUT} on cpu\n", "")
    assert run_predict(pictures).exit_code == 0
    found = written(store)
    assert sorted(found) == ["a.png", "b.png", "sub/c.png"]
    for name, content in found.items():
        assert content == (out / name.removeprefix("sub/")).read_bytes()


def test_folders_and_urls_may_be_mixed(run_predict, pictures, store, out, tmp_path):
    result = run_predict(f"{IN}/sub/*.tif", (pictures / "a.png").as_uri(), to=out)
    assert (result.exit_code, result.stdout) == (0, f"2 of 2 written to {out} on cpu\n")
    assert np.array_equal(pixels_of(out / "c.png"), mask_of(pictures / "c.tif"))
    result = run_predict(pictures, to=f"{OUT}/")
    assert (result.exit_code, result.stdout) == (0, f"3 of 3 written to {OUT} on cpu\n")
    assert written(store)["c.png"] == (out / "c.png").read_bytes()
    assert run_predict(f"{IN}/b.bmp", to=(tmp_path / "other").as_uri()).exit_code == 0
    assert (tmp_path / "other" / "b.png").exists()


@pytest.mark.parametrize("kind", ["mask", "npy", "palette"])
def test_what_is_there_and_whole_is_skipped(run_predict, store, kind):
    assert run_predict(IN, "--format", kind, to=OUT).exit_code == 0
    first = written(store)
    (cut,) = [name for name in first if name.startswith("a.")]
    store.pipe_file(f"/bucket/out/{cut}", first[cut][:-1])
    (gone,) = [name for name in first if name.startswith("b.")]
    store.rm_file(f"/bucket/out/{gone}")
    result = run_predict(IN, "--format", kind, "--skip-existing", to=OUT)
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        f"2 of 2 written to {OUT} on cpu, 1 skipped\n",
        "note: 1 of 3 files are truncated or of another format or size; writing them again\n",
    )
    assert written(store) == first
    result = run_predict(IN, "--format", kind, "--skip-existing", to=OUT)
    assert (result.exit_code, result.stdout) == (0, f"nothing to do: 3 of 3 are in {OUT} already\n")


def test_one_file_for_all_images_is_sent_when_it_is_whole_and_grows(run_predict, store):
    url = "memory://bucket/areas.csv"

    def names():
        return [row["image"] for row in csv.DictReader(io.StringIO(store.cat_file("/bucket/areas.csv").decode()))]

    assert run_predict(f"{IN}/a.png", "--format", "areas", to=url).exit_code == 0
    assert names() == ["a.png"]
    result = run_predict(IN, "--format", "areas", "--skip-existing", to=url)
    assert (result.exit_code, result.stdout) == (0, f"2 of 2 written to {url} on cpu, 1 skipped\n")
    assert names() == ["a.png", "b.bmp", "sub/c.tif"]
    before = store.modified("/bucket/areas.csv")
    assert run_predict(IN, "--format", "areas", "--skip-existing", to=url).stdout.startswith("nothing to do: 3 of 3")
    assert store.modified("/bucket/areas.csv") == before
    store.pipe_file("/bucket/areas.csv", b"another table")
    refused = run_predict(IN, "--format", "areas", "--skip-existing", to=url)
    assert refused.exit_code == 2 and refused.stderr.startswith(f"error: {url}: ")
    assert store.cat_file("/bucket/areas.csv") == b"another table"


def test_a_bad_image_stops_nothing(run_predict, store):
    store.pipe_file("/bucket/in/bad.png", FORMATS["mask"].name.encode())
    result = run_predict(IN, to=OUT)
    assert (result.exit_code, result.stdout) == (1, f"3 of 4 written to {OUT} on cpu, 1 failed\n")
    assert (
        result.stderr
        == f"error: {IN}/bad.png: is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM)\n"
    )


def test_masks_of_a_data_set_are_left_out(run_predict, store):
    store.pipe_file("/bucket/in/train_masks/a.png", b"")
    result = run_predict(IN, to=OUT)
    assert result.stderr == (
        f"note: 1 mask, {IN}/train_masks/a.png, is left out (*_mask.*, *_masks/); to segment a mask, name its file\n"
    )


@pytest.mark.parametrize(
    ("image", "to", "line"),
    [
        ("memory://bucket/gone", OUT, "memory://bucket/gone: no images at this URL and below"),
        (
            "memory://bucket/notes",
            OUT,
            "memory://bucket/notes: no images at this URL and below; 1 file left out: .dng (1)",
        ),
        (IN, IN, f"{IN}: holds a.png itself and perhaps other images; choose another folder with -o"),
        (IN, "memory://bucket/m.png", "memory://bucket/m.png: looks like a file, expected a folder; files in it are "
         "named after their images"),
        ("pigeon://b/in", OUT, "pigeon://b/in: is a URL that is not read (Protocol not known: pigeon)"),
        ("file://server/in", OUT, "file://server/in: names the machine server; expected three slashes, as in "
         "file:///data/images"),
    ],
)  # fmt: skip
def test_what_is_refused(run_predict, store, image, to, line):
    store.pipe_file("/bucket/notes/a.dng", b"")
    before = store.find("/bucket")
    result = run_predict(image, to=to)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {line}\n")
    assert store.find("/bucket") == before


@pytest.mark.parametrize("url", ["s3://", "memory:///"])
def test_a_url_that_names_nothing_is_refused(run_predict, pictures, url):
    said = f"Error: Invalid value for '-o' / '--out': {url}: names no bucket or folder (is a shell variable unset?)"
    assert run_predict(pictures, to=url).stderr.splitlines()[-1] == said


def test_a_model_at_a_url_is_refused(run_predict):
    result = run_predict(IN, model="s3://bucket/model.onnx")
    assert result.stderr.splitlines()[-1] == (
        "Error: Invalid value for 'MODEL': s3://bucket/model.onnx: is a URL, expected a file on disk; download the "
        "model first"
    )


def test_a_manifest_lists_all_images(run_predict, pictures, store, models):
    (pictures / "bad.jpg").write_bytes(b"")
    url = "memory://bucket/manifest.parquet"
    assert run_predict(pictures, "--manifest", url).exit_code == 1
    rows = pyarrow.parquet.read_table(io.BytesIO(store.cat_file("/bucket/manifest.parquet"))).to_pylist()
    assert [row["path"] for row in rows] == [str(pictures / name) for name in ("a.png", "b.bmp", "bad.jpg", "c.tif")]
    assert [row["status"] for row in rows] == ["written", "written", "failed", "written"]
    assert rows[2]["error"] == f"{pictures / 'bad.jpg'}: is empty (0 bytes), expected an image"
    share = np.count_nonzero(mask_of(pictures / "a.png")) / 15
    assert rows[0]["foreground"] == np.float32(share) and rows[0]["ms"] > 0
    again = run_predict(pictures, "--manifest", url, "--skip-existing")
    assert again.exit_code == 1
    kept = pyarrow.parquet.read_table(io.BytesIO(store.cat_file("/bucket/manifest.parquet"))).to_pylist()
    assert [row["status"] for row in kept] == ["skipped", "skipped", "skipped", "failed"]
    assert {row["path"]: (row["ms"], row["foreground"]) for row in kept if row["ms"]} == {
        row["path"]: (row["ms"], row["foreground"]) for row in rows if row["ms"]
    }


def test_answers_of_another_model_are_not_skipped(run_predict, pictures, models, tmp_path):
    manifest = tmp_path / "manifest.parquet"
    assert run_predict(pictures, "--manifest", manifest).exit_code == 0
    asked = (pictures, "--manifest", manifest, "--skip-existing")
    assert run_predict(*asked).exit_code == 0
    refused = run_predict(*asked, model=models["conv"])
    assert (refused.exit_code, refused.stdout, refused.stderr) == (
        2,
        "",
        f"error: {manifest}: says that 3 of 3 answers are of another model; leave out --skip-existing to write all "
        "anew, or choose another place with -o\n",
    )


def test_stores_tell_large_letters_from_small_ones(run_predict, pictures, out):
    (pictures / "A.png").write_bytes((pictures / "b.bmp").read_bytes())
    result = run_predict(pictures)
    assert result.stderr.startswith(f"error: {out / 'a.png'}: would hold the masks of both")
    with empty_memory() as store:
        assert run_predict(pictures, to=OUT).exit_code == 0
        assert sorted(written(store)) == ["A.png", "a.png", "b.png", "c.png"]


@pytest.mark.parametrize("name", ["a b.png", "100%.png", "a%20b.png", "#1?.png", "[1].png"])
def test_names_are_taken_as_they_are(run_predict, pictures, store, name, out):
    content = (pictures / "a.png").read_bytes()
    store.pipe_file(f"/bucket/names/{name}", content)
    assert run_predict("memory://bucket/names", to=OUT).exit_code == 0
    assert list(written(store)) == [name]
    (pictures / "names").mkdir()
    (pictures / "names" / name).write_bytes(content)
    assert run_predict((pictures / "names").as_uri(), to=out.as_uri()).exit_code == 0
    assert (out / name).read_bytes() == written(store)[name]


def test_options_of_the_cluster_need_it(run_predict, pictures):
    for option in (["--workers", "2"], ["--ray-address", "auto"], ["--gpus-per-worker", "1"]):
        assert run_predict(pictures, *option).stderr.splitlines()[-1] == f"Error: {option[0]} is for --engine ray"
    refused = run_predict(pictures, "--engine", "ray", device="cuda:1")
    assert refused.stderr.splitlines()[-1] == (
        "Error: --device cuda:1: workers of --engine ray have no GPU; add --gpus-per-worker 1"
    )


def test_without_ray_its_engine_names_the_extra(run_predict, pictures, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run_predict(pictures, "--engine", "ray")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: Ray: ray is not installed; install unet-deploy with its extra [ray]\n",
    )
    assert not out.exists()
