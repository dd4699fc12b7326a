"""unet-serve as a process: it starts, stops and replaces its workers."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from served import ROOT, ServerProcess, ask, patiently

from runtime.errors import OutputError
from runtime.serve.process import serve_by_workers
from runtime.serve.settings import ServerSettings

pytestmark = pytest.mark.timing


def processes_below(process):
    """The ids of a process's children that are workers."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(one) for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_sigterm_finishes_what_runs_and_exits_with_0(models, picture):
    with ServerProcess(models["brightness"], "--device", "cpu") as server:
        url = server.url()
        assert server.lines[0]["message"] == f"unet-serve listens at {url}"
        assert server.lines[0]["models"] == {"brightness": str(models["brightness"])}
        assert ask(url, "/v1/predict", picture).status == 200
        found = re.match(r"http://127\.0\.0\.1:(\d+)", url)
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=60) as client:
            head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
            client.sendall(head + picture[:10])  # a request that is under way
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for(lambda lines: any(line["message"] == "Shutting down" for line in lines))
            with pytest.raises(ConnectionRefusedError):
                ask(url, "/v2/health/live")
            client.sendall(picture[10:])
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 OK")
        assert server.process.wait(300) == 0
        assert server.process.stderr.read() == b""
    last = [line for line in server.lines if line["message"] == "request"][-1]
    assert last["status"] == 200


def test_ctrl_c_exits_with_130(models):
    with ServerProcess(models["brightness"], "--device", "cpu") as server:
        server.url()
        assert server.stop(signal.SIGINT) == 130
        assert server.process.stderr.read() == b"interrupted\n"


def test_workers_without_a_temporary_folder_are_refused(models, monkeypatch):
    """Their metrics meet there; a single worker needs none."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with pytest.raises(OutputError) as refused:
        serve_by_workers(ServerSettings(models=(("m", models["brightness"]),), port=0, workers=2), None)
    assert str(refused.value) == (
        "no temporary folder can be written, and unet-serve with several workers needs one (no usable temporary "
        "directory found in ['/nowhere']); free some space, or set TMPDIR to another folder"
    )


@pytest.mark.slow
def test_workers_share_the_work_and_are_replaced(models, picture, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copyfile(models["brightness"], path)
    with ServerProcess(f"m={path}", "--device", "cpu", "--workers", 2) as server:
        url = server.url()
        first = processes_below(server.process.pid)
        assert len(first) == 2
        for _ in range(20):
            assert ask(url, "/v1/predict", picture).status == 200
        total = count_of(url)
        assert total == 20  # the metrics of both
        os.kill(first[0], signal.SIGKILL)
        patiently(lambda: first[0] not in processes_below(server.process.pid))
        server.wait_for(lambda lines: sum("startup complete" in line["message"] for line in lines) == 3)
        (told,) = [line for line in server.lines if line["message"] == "worker died; another one starts"]
        assert (told["worker"], told["exitcode"]) == (first[0], -signal.SIGKILL)
        assert len(processes_below(server.process.pid)) == 2
        for _ in range(10):
            assert ask(url, "/v1/predict", picture).status == 200
        assert count_of(url) == 30
        assert f"unet_queue_capacity {2 * 64}.0" in ask(url, "/metrics").body.decode()
        shutil.copyfile(models["conv"], tmp_path / "new.onnx")
        (tmp_path / "new.onnx").replace(path)
        server.wait_for(lambda lines: sum(line["message"] == "model swapped" for line in lines) == 2)
        assert len({ask(url, "/v1/predict", picture).headers["x-model-sha256"] for _ in range(10)}) == 1
        assert server.stop() == 0
        assert processes_gone(first)
        assert server.process.stderr.read() == b""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(models):
    with ServerProcess(models["brightness"], "--device", "cpu", "--workers", 2) as server:
        server.url()
        workers = processes_below(server.process.pid)
        server.process.kill()
        patiently(lambda: processes_gone(workers))


def count_of(url):
    metrics = ask(url, "/metrics").body.decode()
    return sum(map(float, re.findall(r'unet_requests_total\{endpoint="/v1/predict".*status="200"\} (.*)', metrics)))


def processes_gone(numbers):
    return not any(Path(f"/proc/{one}").exists() for one in numbers)


def start(*arguments, env=None):
    return subprocess.run(
        [sys.executable, "-c", "from runtime.commands.entry import serve; serve()", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_what_keeps_a_server_from_starting_is_one_line(models, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(models["brightness"], "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: 127.0.0.1, port {port}: cannot be listened at (address already in use); take another --host or "
        "--port\n"
    )
    done = start(models["brightness"], "--port", 0, env={"UNET_SERVE_API_KEY": "short"})
    assert done.stderr == "error: UNET_SERVE_API_KEY: has 5 characters, expected at least 8; or unset it\n"
    done = start(models["brightness"], "--port", 0, "--workers", 2, "--device", "openvino:7")
    assert done.returncode == 2
    assert done.stderr == "error: workers: cannot open the models; the log above says why\n"
    assert "models cannot be opened" in done.stdout


@pytest.mark.slow
def test_a_damaged_file_stops_a_new_worker_and_not_the_others(models, picture, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copyfile(models["brightness"], path)
    with ServerProcess(f"m={path}", "--device", "cpu", "--workers", 2) as server:
        url = server.url()
        (tmp_path / "new").write_bytes(b"damaged")
        (tmp_path / "new").replace(path)
        old = "model was not swapped; the old one goes on"
        server.wait_for(lambda lines: sum(line["message"] == old for line in lines) == 2)
        os.kill(processes_below(server.process.pid)[0], signal.SIGKILL)
        server.wait_for(lambda lines: any(line["message"] == "models cannot be opened" for line in lines))
        patiently(lambda: len(processes_below(server.process.pid)) == 1)
        assert ask(url, "/v1/predict", picture).status == 200
        shutil.copyfile(models["brightness"], tmp_path / "new")
        (tmp_path / "new").replace(path)
        server.wait_for(lambda lines: sum("startup complete" in line["message"] for line in lines) == 3)
        assert server.stop() == 0


EARLY = """
import os, signal
from runtime.serve import process

class Early(process.Server):
    def run(self, *sockets):
        os.kill(os.getpid(), signal.SIGTERM)
        super().run(*sockets)

process.Server = Early
from runtime.commands.entry import serve
serve()
"""


def test_sigterm_is_obeyed_before_the_server_runs(models):
    done = subprocess.run(
        [sys.executable, "-c", EARLY, models["brightness"], "--port", "0", "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
