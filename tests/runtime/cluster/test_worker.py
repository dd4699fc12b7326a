"""A worker in this process: what it answers, what it skips, and what keeps it from starting."""

import gc
import os
import pickle
import socket
from dataclasses import replace

import numpy as np
import pytest
from masks import mask_of, pixels_of
from ray import cloudpickle
from stores import empty_memory

from runtime.cluster.library import capacity, connected
from runtime.cluster.rows import Content, RowSettings, RowWorker, place_of
from runtime.cluster.worker import ImageWorker, WorkerSettings
from runtime.errors import ConfigError, DeviceError, OutputError
from runtime.jobs.job import Job
from runtime.output_formats import FORMATS, TABLES, cutout_format
from runtime.support.version import installed_version

SETTINGS = WorkerSettings(form=FORMATS["mask"], device="cpu")


@pytest.fixture(autouse=True)
def same_gpus(monkeypatch):
    """The worker changes its own process's environment."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))


@pytest.fixture
def jobs(pictures, out):
    return [Job(path, out / f"{path.stem}.png", f"{path.stem}.png") for path in sorted(pictures.glob("?.*"))]


@pytest.fixture
def start(models):
    def make(**changes):
        worker = ImageWorker(pickle.loads(cloudpickle.dumps(replace(SETTINGS, **changes))))
        worker.start(models["brightness"].read_bytes())
        return worker

    return make


def test_images_are_answered_and_written(start, jobs, pictures):
    (pictures / "b.bmp").write_bytes(b"no picture")
    outcomes = start().answer(jobs)
    assert [outcome.status for outcome in outcomes] == ["written", "failed", "written"]
    assert (
        outcomes[1].error
        == f"{pictures / 'b.bmp'}: is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM)"
    )
    for job, outcome in zip(jobs, outcomes, strict=True):
        assert outcome.path == str(job.source)
        if outcome.status == "written":
            assert np.array_equal(pixels_of(outcome.file), mask_of(job.source))
            assert outcome.foreground == np.count_nonzero(mask_of(job.source)) / mask_of(job.source).size
    assert not jobs[1].target.exists()


def test_whole_files_are_skipped_where_that_is_asked_for(start, jobs):
    start().answer(jobs)
    jobs[0].target.write_bytes(jobs[0].target.read_bytes()[:-1])
    before = jobs[1].target.stat().st_mtime_ns
    worker = start(skip_existing=True)
    assert [outcome.status for outcome in worker.answer(jobs)] == ["written", "skipped", "skipped"]
    assert jobs[1].target.stat().st_mtime_ns == before
    assert [outcome.status for outcome in start().answer(jobs)] == ["written"] * 3


def test_entries_of_a_table_come_back(start, jobs, out):
    outcomes = start(form=TABLES["areas"]).answer(jobs)
    assert all(outcome.entry is not None for outcome in outcomes)
    assert not out.exists()


@pytest.mark.parametrize("form", [*FORMATS.values(), *TABLES.values(), cutout_format(background="white")])
def test_every_format_can_be_sent_to_a_worker(form):
    assert pickle.loads(cloudpickle.dumps(form)).name == form.name


def test_two_answers_of_one_image(start, jobs, out):
    twice = [jobs[0], replace(jobs[0], target=out / "again.png"), jobs[1]]
    outcomes = start().answer(pickle.loads(pickle.dumps(twice)))
    assert [outcome.file for outcome in outcomes] == [str(job.target) for job in twice]
    assert (out / "again.png").read_bytes() == jobs[0].target.read_bytes()


def test_a_worker_that_ends_leaves_no_copy_of_the_model(start, jobs):
    worker = start()
    worker.answer(jobs)
    copy = worker._predictor.path
    assert copy.exists()
    worker.close()
    gc.collect()
    assert not copy.exists()


def test_an_answer_that_cannot_be_written_is_raised(start, jobs, out):
    out.write_bytes(b"a file")
    with pytest.raises(OutputError, match="cannot create this folder"):
        start().answer(jobs)


def test_files_that_this_machine_does_not_see_are_refused(start, tmp_path):
    with pytest.raises(ConfigError) as refused:
        start(visible=(tmp_path, tmp_path / "gone"))
    assert str(refused.value) == (
        f"{tmp_path / 'gone'}: is not on the machine {socket.gethostname()}; give a folder that all machines of the "
        "cluster share, or a URL such as s3://bucket/folder"
    )


def test_another_version_of_this_library_is_refused(start):
    with pytest.raises(ConfigError) as refused:
        start(version="0.0.1")
    assert str(refused.value) == (
        f"{socket.gethostname()}: has unet-deploy {installed_version()}, expected 0.0.1 as where the job was started; "
        "install the same version everywhere"
    )


def test_a_device_that_does_not_run_here_is_told(start, no_gpu):
    with pytest.raises(DeviceError, match=r"^device cuda:0: "):
        start(device="cuda")


def test_without_gpus_of_its_own_a_worker_sees_none(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    start()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    start(gpus=0.5)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


class OneCluster:
    """As much of `ray` as is asked."""

    def __init__(self, *nodes):
        self._nodes = nodes

    def nodes(self):
        return [{"Alive": alive, "Resources": resources} for alive, resources in self._nodes]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{port}", "connection refused at 127.0.0.1:{port}"),
        ("ray://127.0.0.1:{port}", "connection refused at ray://127.0.0.1:{port}"),
    ],
)
def test_an_address_at_which_nobody_listens_is_refused_without_waiting(address, reason):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as refused, connected(address.format(port=port)):
            pytest.fail("connected")
    text = f"--ray-address {address}: no Ray cluster answers ({reason})".format(port=port)
    assert str(refused.value) == text


def test_workers_are_counted_by_machine():
    ray = OneCluster((True, {"CPU": 7.0, "GPU": 1.0}), (True, {"CPU": 3.0}), (False, {"CPU": 64.0}))
    assert capacity(ray, 1, 0) == 10
    assert capacity(ray, 2, 0) == 4
    assert capacity(ray, 4, 0) == 1
    assert capacity(ray, 1, 0.25) == 4
    assert capacity(ray, 1, 1) == 1


@pytest.fixture
def answer_rows(models, monkeypatch):
    """Answer a batch of rows."""

    class Library:
        @staticmethod
        def get(model):
            return model

    monkeypatch.setattr("runtime.cluster.rows.ray_library", lambda: Library)

    def answer(batch, output=None, root=None):
        settings = replace(SETTINGS, returned=output is None)
        rows = RowSettings(output=output and place_of(output), root=root and place_of(root))
        worker = RowWorker(settings, rows, models["brightness"].read_bytes())
        return {name: list(values) for name, values in worker(batch).items()}

    return answer


def column(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_rows_of_bytes_give_answers_and_keep_other_columns(answer_rows, pictures, out):
    content = [(pictures / name).read_bytes() for name in ("a.png", "b.bmp")]
    batch = {"bytes": column([*content, b"no picture"]), "path": column(["b/a.png", "b/b.bmp", "b/c"]), "id": [1, 2, 3]}
    rows = answer_rows(batch)
    assert set(rows) == {"path", "id", "answer", "file", "status", "error", "ms", "foreground"}
    assert (rows["id"], rows["status"]) == ([1, 2, 3], ["written", "written", "failed"])
    assert rows["error"] == ["", "", "b/c: is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM)"]
    assert rows["file"] == [""] * 3 and rows["answer"][2] is None
    out.write_bytes(rows["answer"][0])
    assert np.array_equal(pixels_of(out), mask_of(pictures / "a.png"))
    assert np.isnan(rows["ms"][2]) and rows["foreground"][0] == np.float32(np.mean(mask_of(pictures / "a.png") > 0))


def test_rows_of_pixels(answer_rows, pictures, out):
    rows = answer_rows({"image": column([pixels_of(pictures / "a.png"), np.zeros((2, 2, 3), np.float16) + 7])})
    assert rows["status"] == ["written", "failed"]
    out.write_bytes(rows["answer"][0])
    assert np.array_equal(pixels_of(out), mask_of(pictures / "a.png"))


def test_files_are_named_below_the_root(answer_rows, pictures, out):
    paths = [str(pictures / "a.png"), str(pictures.parent / "elsewhere" / "b.png")]
    rows = answer_rows({"path": column(paths)}, output=out, root=pictures)
    assert rows["file"] == [str(out / "a.png"), ""]
    assert rows["error"] == ["", f"{paths[1]}: is not below {pictures}, which is given as root"]
    assert np.array_equal(pixels_of(out / "a.png"), mask_of(pictures / "a.png"))
    assert "answer" not in rows


def test_files_are_never_written_beside_the_folder(answer_rows, pictures, out):
    paths = [str(pictures / ".." / "a.png"), "s3://bucket/a.png"]
    rows = answer_rows({"path": column(paths)}, output=out, root=pictures)
    assert rows["error"] == [f"{path}: is not below {pictures}, which is given as root" for path in paths]
    assert not out.exists()


def test_paths_without_a_protocol_have_that_of_the_root(answer_rows, pictures, out):
    """Ray Data leaves it out."""
    batch = {"path": column(["bucket/in/sub/a b.png"])}
    with empty_memory() as store:
        store.pipe_file("/bucket/in/sub/a b.png", (pictures / "a.png").read_bytes())
        rows = answer_rows(batch, output="memory://bucket/out", root="memory://bucket/in/")
        assert (rows["error"], rows["file"]) == ([""], ["memory://bucket/out/sub/a b.png"])
        out.write_bytes(store.cat_file("/bucket/out/sub/a b.png"))
    assert np.array_equal(pixels_of(out), mask_of(pictures / "a.png"))


def test_rows_without_an_image_are_refused(answer_rows):
    with pytest.raises(ConfigError, match=r"^dataset: has the columns id, expected one of path, bytes, image$"):
        answer_rows({"id": column([1])})


def test_files_that_have_no_name_are_refused(answer_rows, out):
    pixels = column([np.zeros((2, 2, 3), np.uint8)])
    with pytest.raises(ConfigError, match=r"^dataset: has the columns image, expected path, which names the files in"):
        answer_rows({"image": pixels}, output=out, root=out)


def test_a_content_tells_its_name():
    assert Content(b"a", "s3://b/a").name == "s3://b/a"
