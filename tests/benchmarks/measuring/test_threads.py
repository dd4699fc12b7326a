import os
import sys

import cv2
import torch

from benchmarks.measuring.threads import THREAD_VARIABLES, pinned


def test_pinned_threads_are_the_same_for_all_and_restored(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)

    def found():
        return torch.get_num_threads(), cv2.getNumThreads(), *map(os.environ.get, THREAD_VARIABLES[:2])

    before = found()
    with pinned(3):
        assert found() == (3, 3, "3", "3")
    assert found() == before
    assert before[2:] == ("7", None)


def test_threads_are_pinned_where_pytorch_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    before = cv2.getNumThreads()
    with pinned(before + 1):
        assert (cv2.getNumThreads(), os.environ["OMP_NUM_THREADS"]) == (before + 1, str(before + 1))
    assert cv2.getNumThreads() == before
