"""Trainings in processes of their own that start at once, forked from a server that has imported all they need."""

import multiprocessing
import os
import signal
import socket
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

KIND = multiprocessing.get_context("forkserver")
KIND.set_forkserver_preload(["training_libraries"])


def start_training(config, *, resume=False, **environment):
    """Start a trainer in a process that leads a group of its own, with the processes that load images for it."""
    with patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):  # where the server looks for what to import
        forkserver.ensure_running()
    method = multiprocessing.get_start_method()
    process = KIND.Process(target=_train, args=(config, resume, method, os.environ | environment))
    process.start()
    return process


def start(work, *arguments):
    """Start a function of a module in this folder in a process of its own."""
    with patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):
        forkserver.ensure_running()
    process = KIND.Process(target=work, args=arguments)
    process.start()
    return process


def train_as_two(config):
    """Train in two processes that reach each other as those of `torchrun` do; return their exit codes."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for rank in range(2):
            processes.append(start_training(config, RANK=str(rank), LOCAL_RANK=str(rank), **group))
        for process in processes:
            process.join(120)
    finally:
        for process in processes:
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return [process.exitcode for process in processes]


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _train(config, resume, method, environment):
    os.setsid()
    import torch
    from trained import write_no_curves

    from unet_core.train import train

    os.environ.update(environment)
    multiprocessing.set_start_method(method, force=True)  # else processes that load images would take KIND's
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    with patch("unet_core.training.run_directory.save_curves", write_no_curves):
        train(config, resume=resume)
