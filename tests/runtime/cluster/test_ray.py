"""unet-predict --engine ray and `segment` on a cluster of two machines, with images at an S3 server.

All of it is slow, since Ray takes seconds to start; who gets which images is tested without Ray in test_scheduler.py.
"""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from clusters import end_marked, marked, two_machines
from masks import names_in
from PIL import Image
from stores import Gate, S3Server

pytestmark = pytest.mark.slow

COUNT = 48
"""Images: three batches, so that both workers have some."""

NO_IMAGE = "is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM)"

PREDICT = "from runtime.commands.predict import predict; predict(prog_name='unet-predict')"


@pytest.fixture(scope="module")
def server():
    with S3Server() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with two_machines(folder, server.environment) as running:
        yield running


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of pictures and one file that is none."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(1)
    for index in range(COUNT - 1):
        Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)).save(folder / f"{index:03}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def start(models, cluster):
    """Start unet-predict in a process of its own."""

    def call(*arguments):
        command = [sys.executable, "-c", PREDICT, models["brightness"], *arguments, "--device", "cpu"]
        return subprocess.Popen(
            [str(item) for item in command],
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


def store_of(server):
    import s3fs

    options = server.environment
    return s3fs.S3FileSystem(
        key=options["AWS_ACCESS_KEY_ID"],
        secret=options["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=options["AWS_ENDPOINT_URL"],
        skip_instance_cache=True,
        use_listings_cache=False,
    )


@pytest.fixture
def bucket(server, images, request):
    """The images at the server, in a bucket of the test's own: the store and the bucket's name."""
    store, name = store_of(server), f"b{abs(hash(request.node.name)) % 10**8}"
    store.mkdir(name)
    store.put([str(path) for path in sorted(images.iterdir())], f"{name}/in/")
    return store, name


@pytest.fixture(scope="module")
def expected(models, images, tmp_path_factory):
    """The bytes that one process writes, by name."""
    out = tmp_path_factory.mktemp("expected")
    command = [sys.executable, "-c", PREDICT, models["brightness"], images, "-o", out, "--device", "cpu"]
    done = subprocess.run([str(item) for item in command], capture_output=True, text=True)
    assert done.stdout == f"{COUNT - 1} of {COUNT} written to {out} on cpu, 1 failed\n"
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_rows_of_a_dataset_are_answered(cluster, models, images, expected, bucket, tmp_path):
    program = """
import json, sys, ray
from runtime.distributed import segment
from runtime.errors import ConfigError
ray.init(address=sys.argv[1], log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
dataset = ray.data.read_binary_files(sys.argv[3], include_paths=True)
model, options = sys.argv[2], {"device": "cpu", "root": sys.argv[3], "output": sys.argv[4]}
refused = []
for wrong in ({"workers": 2}, {"gpus_per_worker": 1}, {"threshold": 2}, {"output": None}, {"format": "rle-csv"}):
    try:
        segment(dataset, model, **(options | wrong))
    except Exception as error:
        refused.append(f"{type(error).__name__}: {error}")
rows = segment(dataset, model, **options).take_all()
answers = segment(dataset, model, device="cpu", format="npy").take_all()
sizes = sorted({len(row["answer"]) for row in answers if row["status"] == "written"})
url = sys.argv[5]
stored = ray.data.read_binary_files(f"{url}/in", include_paths=True)
at_urls = segment(stored, model, device="cpu", root=f"{url}/in", output=f"{url}/out").take_all()
print(json.dumps([refused, [[row["path"], row["file"], row["status"], row["error"]] for row in rows], sizes,
                  sorted(row["file"] for row in at_urls)]))
"""
    out, (store, name) = tmp_path / "out", bucket
    command = [sys.executable, "-c", program, cluster.address, models["brightness"], images, out, f"s3://{name}"]
    done = subprocess.run([str(item) for item in command], env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, rows, sizes, files = json.loads(done.stdout.splitlines()[-1])
    assert refused == [
        "ConfigError: workers: found 2 of 1 CPU each, expected at most 1: the cluster has 2 CPUs, and one is left for "
        "reading",
        "ConfigError: workers: the cluster has 2 CPUs, and the smallest job needs 2 CPUs, 1 for a worker and one for "
        "reading, and 1 GPU; add a machine",
        "ConfigError: threshold: found 2, expected a number between 0 and 1",
        "ConfigError: output and root: one was given without the other; files are named after paths below root",
        "OutputError: format: rle-csv is one file for all images; expected a format with one for each, or call "
        'runtime.output_formats.TABLES["rle-csv"].open(path, result.output) and add(name, result)',
    ]
    assert sorted(row[0] for row in rows) == [str(path) for path in sorted(images.iterdir())]
    assert [row[3] for row in rows if row[2] == "failed"] == [f"{images / 'bad.png'}: {NO_IMAGE}"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    assert sizes == [128 + 4 * 5 * 7]
    assert files == ["", *(f"s3://{name}/out/{one}" for one in sorted(expected))]
    assert {path.rpartition("/")[2]: store.cat_file(path) for path in store.find(f"{name}/out")} == expected


def test_a_local_cluster_is_started_and_ended_where_no_address_is_given(models, images, cluster, expected, tmp_path):
    mark = "of-its-own"
    out = tmp_path / "out"
    command = [sys.executable, "-c", PREDICT, models["brightness"], images, "-o", out, "--device", "cpu"]
    environment = cluster.alone | {"UNET_TEST_CLUSTER": mark}
    done = subprocess.run(
        [str(item) for item in [*command, "--engine", "ray", "--workers", "1"]],
        env=environment,
        capture_output=True,
        text=True,
    )
    try:
        assert done.stdout == f"{COUNT - 1} of {COUNT} written to {out} on 1 worker of Ray (cpu), 1 failed\n", (
            done.stderr
        )
        assert done.stderr == f"error: {images / 'bad.png'}: {NO_IMAGE}\n"
        assert names_in(out) == sorted([*expected, "manifest.parquet"])
        assert {name: (out / name).read_bytes() for name in expected} == expected
        assert marked(mark) == []
    finally:
        end_marked(mark)


def test_what_no_cluster_can_do_is_refused_at_once(models, images, cluster, tmp_path):
    options = ["--gpus-per-worker", "1", "--workers", "3"]
    line = (
        "workers: none with --threads 1 and --gpus-per-worker 1 has room in the cluster, whose machines have at most "
    )
    mark, out = "refused", tmp_path / "out"
    command = [sys.executable, "-c", PREDICT, models["brightness"], images, "-o", out, "--engine", "ray", *options]
    environment = cluster.alone | {"UNET_TEST_CLUSTER": mark}
    try:
        done = subprocess.run([str(item) for item in command], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1
        assert not out.exists() and marked(mark) == []
    finally:
        end_marked(mark)


def test_a_table_is_in_the_order_of_the_single_process(start, cluster, images, tmp_path):
    outs = tmp_path / "one.csv", tmp_path / "two.csv"
    assert cluster.environment["RAY_ADDRESS"] == cluster.address
    for out, engine in zip(outs, ([], ["--engine", "ray", "--ray-address", "auto"]), strict=True):
        _, stderr = start(images, "-o", out, "--format", "rle-csv", *engine).communicate()
        assert stderr.count("error: ") == stderr.count(NO_IMAGE) == 1, stderr
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert len(pyarrow.parquet.read_table(tmp_path / "two.parquet")) == COUNT


def test_sigterm_ends_a_job_as_ctrl_c_does(start, cluster, server, bucket):
    _, name = bucket
    server.gate = Gate(f"/{name}/in/", free=0, held=1)
    url = f"s3://{name}"
    process = start(f"{url}/in", "-o", f"{url}/out", "--engine", "ray", "--ray-address", cluster.address)
    assert server.gate.arrived.wait(60)
    process.terminate()
    server.gate.opened.set()
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.splitlines()[-1]) == (130, "interrupted")
    assert f" of {COUNT} written to {url}/out on " in stdout


def test_a_machine_and_a_worker_that_die_in_the_middle_lose_nothing(start, cluster, server, bucket, expected):
    store, name = bucket
    # One worker holds 16 requests at most, so the other one has images, too, when 20 have come.
    server.gate = Gate(f"/{name}/in/", free=6, held=14)
    url = f"s3://{name}"
    arguments = [f"{url}/in", "-o", f"{url}/out", "--engine", "ray", "--ray-address", cluster.address]
    process = start(*arguments)
    assert server.gate.arrived.wait(60)
    cluster.kill_second()
    cluster.kill_worker()  # that of the first machine
    server.gate.opened.set()
    stdout, stderr = process.communicate(timeout=120)
    assert stdout.startswith(f"{COUNT - 1} of {COUNT} written to {url}/out on "), stderr
    assert re.search(r"^note: \d+ images were given to another worker", stderr, re.M)
    found = {path.rpartition("/")[2]: store.cat_file(path) for path in store.find(f"{name}/out")}
    manifest = pyarrow.parquet.read_table(io.BytesIO(found.pop("manifest.parquet"))).to_pylist()
    assert found == expected
    assert sorted(row["path"] for row in manifest) == sorted(f"s3://{path}" for path in store.find(f"{name}/in"))
    assert [row["path"] for row in manifest if row["status"] != "written"] == [f"{url}/in/bad.png"]
    stdout, stderr = start(*arguments, "--skip-existing").communicate(timeout=120)
    assert f"{COUNT - 1} skipped" in stdout and stdout.startswith(f"0 of {COUNT} written"), stderr
