"""Ray clusters for tests, in processes of their own, of which none is left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

MARK = "UNET_TEST_CLUSTER"
"""Environment variable by which the processes of a cluster are known."""

SCRIPT = Path(__file__).with_name("ray_cluster.py")


class TwoMachines:
    """A running cluster; a command with `environment` works with it, and one with `alone` starts another one."""

    def __init__(self, process, environment):
        self._process = process
        self.address = process.stdout.readline().strip()
        assert self.address, "the cluster did not start"
        self.alone, self.environment = environment, environment | {"RAY_ADDRESS": self.address}

    def kill_second(self):
        """End the second machine, and wait until all of its processes are gone."""
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"

    def kill_worker(self):
        """End a process that answers images."""
        pid = next(pid for pid in marked(self.environment[MARK]) if command_of(pid).startswith("ray::ImageWorker"))
        os.kill(pid, signal.SIGKILL)


@contextmanager
def two_machines(folder, environment, cpus=1):
    """Start a cluster whose workers have these variables; its processes are all gone at the end."""
    mark = uuid.uuid4().hex
    variables = os.environ | environment | {MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    with open(folder / "cluster.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            text=True,
        )
    try:
        yield TwoMachines(process, variables)
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            end_marked(mark)
            process.stdout.close()


def command_of(pid):
    """The command line of a process; "" if it has ended."""
    try:
        return Path("/proc", str(pid), "cmdline").read_text()
    except OSError:
        return ""


def end_marked(mark):
    """End what is left of a cluster, and wait for it."""
    until = time.monotonic() + 30
    while left := marked(mark):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert time.monotonic() < until, f"processes of Ray are left: {left}"
        time.sleep(0.1)


def marked(mark):
    """The processes that have a cluster's mark in their environment; zombies have none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
