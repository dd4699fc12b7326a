"""Predictors and other processes: pickled, spawned, forked."""

import os
import pickle
import subprocess
import sys
import threading

import pytest
from asked import IMAGES, probabilities, same
from waiting import PATIENCE

from runtime.devices.auto_session import AutoSession
from runtime.errors import ClosedError, DeviceError, ModelError
from runtime.image_files.limits import Limits
from runtime.inference.loaded_model import LoadedModel
from runtime.predictor import Predictor

pytestmark = pytest.mark.timing


def in_a_fork(model):
    """Make a predictor look as a forked process finds it: opened in another process."""
    model._process = -1
    return model


def test_a_pickled_predictor_is_opened_again(models, monkeypatch, tmp_path):
    model = Predictor(models["conv"], "cpu", threads=1, limits=Limits(pixels=5000), verify=False)
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(pickle.dumps(model))
    assert same(again.predict(IMAGES), probabilities(model))
    assert again.report.threads == 1
    assert again._limits == Limits(pixels=5000)
    assert again.report.integrity == "not verified (verify=False)"


ELSEWHERE = """
import pickle, sys
model, image = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(model.predict(image).probability.tobytes())
"""


def test_another_process_answers_the_same(models, root):
    model = Predictor(models["conv"], "cpu")
    given = pickle.dumps((model, IMAGES[0]))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=given, capture_output=True, cwd=root, timeout=60)
    assert done.stdout == model.predict(IMAGES[0]).probability.tobytes(), done.stderr


FORKED = """
import asyncio, os, sys, warnings
import numpy as np
from runtime import Predictor, predict
warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork beside threads
path = sys.argv[1]
image = np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3).astype(np.uint8)
model = Predictor(path, "cpu", threads=2)
expected = model.predict(image).probability
model.submit(image).result()
predict(image, path, "cpu")
ways = (
    lambda: model.predict(image),
    lambda: model.submit(image).result(),
    lambda: asyncio.run(model.predict_async(image)),
    lambda: list(model.stream([image] * 3))[2],
    lambda: predict(image, path, "cpu"),
)
for number, first in enumerate(ways):
    child = os.fork()
    if not child:
        ok = all(np.array_equal(ask().probability, expected) for ask in (first, *ways))
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, number
assert np.array_equal(model.predict(image).probability, expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_whatever_a_forked_process_asks_first_opens_its_own(models, root):
    done = subprocess.run([sys.executable, "-c", FORKED, str(models["conv"])], cwd=root, timeout=120, check=False)
    assert done.returncode == 0


def test_threads_of_a_forked_process_open_the_file_once(models, monkeypatch):
    model, opened = in_a_fork(Predictor(models["conv"], "cpu")), []
    real = LoadedModel.__init__

    def slow(self, *given):
        opened.append(self)
        real(self, *given)

    monkeypatch.setattr(LoadedModel, "__init__", slow)
    threads = [threading.Thread(target=model.predict, args=[IMAGES[0]]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1


def test_a_file_that_was_replaced_since_the_parent_opened_it_is_refused(write_model):
    model = in_a_fork(Predictor(write_model("conv"), "cpu"))
    write_model("brightness")
    with pytest.raises(ModelError, match=r"was replaced since the parent process opened it; open it anew$"):
        model.predict(IMAGES[0])


def test_other_weights_under_the_same_card_are_another_file_too(write_model, make_graph):
    model = in_a_fork(Predictor(write_model("conv"), "cpu"))
    other = make_graph("conv")
    other.graph.name = "another"
    assert Predictor(write_model("conv", graph=other), "cpu").card == model.card
    with pytest.raises(ModelError, match=r"was replaced since the parent process opened it; open it anew$"):
        model.predict(IMAGES[0])


def test_closing_in_a_forked_process_opens_nothing(models, monkeypatch):
    from runtime import predictor

    model = in_a_fork(Predictor(models["conv"], "cpu"))
    opened, real = model._model, predictor.preprocess
    monkeypatch.setattr(predictor, "preprocess", lambda *given: (model.close(), real(*given))[1])  # while it decodes
    with pytest.raises(ClosedError, match=r"^predictor: is closed; open another one$"):
        model.submit(IMAGES[0])
    assert model._model is opened


def test_a_gpu_does_not_survive_a_fork_even_while_a_lock_is_held(models):
    from dataclasses import replace

    model = in_a_fork(Predictor(models["conv"], "cpu"))
    model._model.report = replace(model.report, device="cuda:0")
    auto = model._model.session = AutoSession(other=model._model.session, open_other=lambda: None)
    errors = []

    def ask():
        with pytest.raises(DeviceError) as caught:
            model.predict(IMAGES[0])
        errors.append(str(caught.value))

    with auto._lock:  # by a thread of the parent, which is not here to let go of it
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PATIENCE)
    assert errors == [
        "device cuda:0: was opened in process -1 and does not survive a fork; "
        "open the predictor in each process, or start them by multiprocessing's 'spawn'"
    ]


FREED = """
import os, sys, warnings
import numpy as np
from runtime import Predictor, predict
warnings.simplefilter("ignore", DeprecationWarning)
paths = sys.argv[1:]
image = np.zeros((20, 30, 3), np.uint8)
for path in paths[:4]:
    predict(image, path, "cpu")
model = Predictor(paths[0], "cpu", threads=2)
os.chdir("/")
children = []
for ask in (lambda: predict(image, paths[4], "cpu"), lambda: model.predict(image), lambda: None):
    child = os.fork()
    if not child:
        ask()
        del model
        sys.exit(0)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_may_let_go_of_what_it_inherited(write_model, root):
    paths = [os.path.relpath(write_model("conv", name=f"{index}.onnx"), root) for index in range(5)]
    program = FREED.replace("os.chdir", "paths[4] = os.path.abspath(paths[4]); os.chdir")
    done = subprocess.run([sys.executable, "-c", program, *paths], cwd=root, timeout=60, check=False)
    assert done.returncode == 0
