"""ONNX Runtime's CUDA provider on the stand-in: options, copies, plans, graphs, DLPack, threads, memory, refusals."""

import json

import onnxruntime
import pytest

from runtime.options import RESERVED

pytestmark = pytest.mark.stub

ADDRESSES = {"gpu_external_alloc", "gpu_external_free", "gpu_external_empty_cache"}
"""Options whose values are addresses of functions."""

PROCESS_ARENA = 2**20
"""Bytes that the arena of values made in Python takes first."""

OPTIONS = """
import json, sys
from on_stand_in import open_on
given = {"gpu_mem_limit": 2**33, "tf32": False, "cuda_graphs": True, "extra": json.loads(sys.argv[2])}
sessions = [open_on(sys.argv[1], **options) for options in ({}, given)]
print(json.dumps([session._inference.get_provider_options()["CUDAExecutionProvider"] for session in sessions]))
"""


def test_every_option_is_taken_and_arrives(stand_in, models):
    names = set(stand_in.run(OPTIONS, models["conv"], "{}").answer[0]) - RESERVED - ADDRESSES
    extra = {name: "2" if "threads" in name else "1" for name in names}
    defaults, given = stand_in.run(OPTIONS, models["conv"], json.dumps(extra)).answer
    expected = {
        "device_id": "0",
        "use_tf32": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "0",
        "gpu_mem_limit": str(2**64 - 1),
    }
    assert {name: defaults[name] for name in expected} == expected
    expected |= {"use_tf32": "0", "enable_cuda_graph": "1", "gpu_mem_limit": str(2**33)} | extra
    assert {name: given[name] for name in expected} == expected
    assert len(extra) >= 12


REFUSALS = """
import json, sys, warnings
from on_stand_in import no_golden
from runtime import Predictor
from runtime.errors import UnetError
from runtime.options import ProviderOptions

warnings.simplefilter("ignore")
model, said = sys.argv[1], []

def ask(device, **extra):
    try:
        said.append(str(Predictor(model, device, options=ProviderOptions(extra=extra)).report))
    except UnetError as error:
        said.append(f"{type(error).__name__}: {error}")

ask("cuda")
ask("cuda:1")
ask("auto")
no_golden()
ask("cuda", prefer_nwhc="1")
ask("auto", prefer_nwhc="1")
ask("cuda", prefer_nhwc="yes")
ask("cuda:1")
print(json.dumps(said))
"""


def test_what_does_not_run_as_asked_is_refused_by_name(stand_in, models):
    one, two = (stand_in.run(REFUSALS, models["conv"], STAND_IN_DEVICES=str(count)).answer for count in (1, 2))
    wrong, missing, skipped, *options, second = one
    assert wrong.startswith("DeviceError: device cuda:0: answers the golden sample wrongly (off by ")
    assert missing.startswith("DeviceError: device cuda:1: GPU 1 does not exist, the driver sees 1; see nvidia-smi")
    assert second == missing
    assert (
        skipped.startswith("cpu: CPUExecutionProvider") and "cuda skipped: answers the golden sample wrongly" in skipped
    )
    version = onnxruntime.__version__
    unknown = f"ConfigError: extra: found 'prefer_nwhc', which ONNX Runtime {version} does not know; leave it out"
    value = f"ConfigError: extra: found 'prefer_nhwc' with the value 'yes', which ONNX Runtime {version} refuses; "
    value += "leave it out"
    assert options == [unknown, unknown, value]
    assert two[-1].startswith("cuda:1: CUDAExecutionProvider, nodes: ")


RUNS = """
import json, sys
from on_stand_in import images, mark, open_on, set_memory
import onnxruntime

session = open_on(sys.argv[1])
for name, height in (("A", 8), ("AA", 8), ("AAB", 12), ("AABA", 8)):
    mark(name)
    session.run(images(2, height, 16))
mark("shapes")
shapes = [list(session.run(images(n, h, w)).probability.shape) for n, h, w in ((1, 5, 7), (9, 8, 8))]
value = onnxruntime.OrtValue.ortvalue_from_numpy(images(2, 8, 12), "cuda", 0)
session.run_dlpack(value)
mark("DLPack")
answer = session.run_dlpack(value)
found = answer.device_name(), answer.shape()
mark("close")
session.close()
del value, answer  # they hold memory of the session's arena
mark("end")
print(json.dumps([shapes, *found]))
"""


def test_runs_copy_once_each_way_plan_once_for_a_shape_and_give_all_back(stand_in, models):
    ran = stand_in.run(RUNS, models["conv"])
    assert ran.answer == [[[1, 1, 5, 7], [9, 1, 8, 8]], "cuda", [2, 1, 8, 12]]
    for name, height, plans in (("A", 8, 2), ("AA", 8, 0), ("AAB", 12, 2), ("AABA", 8, 2)):
        calls = ran.part(name)
        assert crossings(calls) == [f"{2 * height * 16 * 3} host-to-device", f"{2 * height * 16 * 4} device-to-host"]
        assert (calls.count("cudnn plan"), calls.count("cudnn execute")) == (plans, 2)
    calls = ran.part("DLPack")
    assert crossings(calls) == [] and calls.count("cudnn execute") == 2 and calls.count("cudnn plan") == 0
    before = ran.calls[: ran.calls.index("mark end")]
    taken, freed = (
        sorted(int(call.split()[1]) for call in before if call.startswith(name))
        for name in ("cudaMalloc ", "cudaFree ")
    )
    # What Python allocates is in an arena of the process, which stays.
    assert taken == sorted([*freed, PROCESS_ARENA]) and len(freed) >= 8


def crossings(calls):
    """Sizes and directions of the copies between the host and the device."""
    return [call.partition(" ")[2] for call in calls if call.startswith("cudaMemcpy") and "host" in call]


GRAPHS = """
import json, sys, threading
from on_stand_in import images, mark, open_on

session = open_on(sys.argv[1], cuda_graphs=True)
for name in ("first", "second"):
    mark(name)
    session.run(images(1, 8, 8))
mark("others")
for height in range(12, 48, 4):
    session.run(images(1, height, 8))
mark("again")
session.run(images(1, 8, 8))
mark("full")
session.run(images(1, 44, 8))
mark("threads")
threads = [threading.Thread(target=session.run, args=(images(1, 8, 8),)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
mark("close")
session.close()
mark("end")
print("0")
"""


def test_graphs_are_captured_once_for_a_shape_and_replayed(stand_in, models):
    ran = stand_in.run(GRAPHS, models["conv"])

    def counted(name):
        calls = ran.part(name)
        names = ("cudaStreamBeginCapture", "cudaGraphLaunch", "cudnn execute", "cudaGraphExecDestroy")
        return [calls.count(one) for one in names]

    assert counted("first") == [1, 1, 6, 0]  # two runs before the capture, which is the third
    assert counted("second") == [0, 1, 0, 0]
    assert counted("others") == [7, 7, 7 * 6 + 2 * 2, 0]  # eight shapes have a graph, two do not
    assert counted("again") == [0, 1, 0, 0]
    assert counted("full") == [0, 0, 2, 0]
    assert counted("threads") == [0, 4, 0, 0]
    assert counted("close") == [0, 0, 0, 8]
    assert not [call for call in ran.calls if "breaks the capture" in call]


BROKEN = """
import json, sys, threading
from on_stand_in import images, open_on

graphs, plain, said = open_on(sys.argv[1], cuda_graphs=True), open_on(sys.argv[1]), []

def run():
    try:
        said.append(list(graphs.run(images(1, 8, 8)).probability.shape))
    except Exception as error:
        said.append(str(error))

thread = threading.Thread(target=run)
thread.start()
while thread.is_alive():
    try:
        plain.run(images(1, 8, 8))
    except Exception:
        pass
run()
print(json.dumps(said))
"""


def test_a_broken_capture_is_told_and_the_next_run_captures_again(stand_in, models):
    broken, whole = stand_in.run(BROKEN, models["conv"], STAND_IN_CAPTURE_MS="200").answer
    assert broken.startswith(
        "device cuda:0: cannot run a batch of [1, 8, 8, 3] (Error in execution: CUDA failure 901: "
    )
    assert whole == [1, 1, 8, 8]


THREADS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from on_stand_in import images, open_on

session = open_on(sys.argv[1])
shapes = [(1 + k % 3, 8 + 4 * (k % 5), 12) for k in range(120)]
with ThreadPoolExecutor(6) as pool:
    found = list(pool.map(lambda shape: session.run(images(*shape)).probability.shape, shapes))
print(json.dumps([list(shape) for shape in found] == [[n, 1, h, w] for n, h, w in shapes]))
"""


def test_threads_share_a_session(stand_in, models):
    assert stand_in.run(THREADS, models["conv"]).answer is True
