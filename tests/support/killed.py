"""Trainings to be killed, in processes that start at once: PyTorch, which takes seconds to import, is there already."""

import multiprocessing
import os

KIND = multiprocessing.get_context("forkserver")
KIND.set_forkserver_preload(["unet_core.train"])


def start_training(config, *, resume):
    """Start a trainer in a process that leads a group of its own, with the processes that load images for it."""
    process = KIND.Process(target=_train, args=(config, resume, dict(os.environ)))
    process.start()
    return process


def _train(config, resume, environment):
    from unet_core.train import train

    os.setsid()
    os.environ.update(environment)
    train(config, resume=resume)
