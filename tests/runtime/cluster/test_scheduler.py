"""Who answers which images, and again after a death: nothing is lost, nothing is there twice."""

from pathlib import Path

import pytest
from ray_stand_in import ObjectLostError, RayError, RayStandIn

from runtime.cluster import scheduler as module
from runtime.cluster.scheduler import AHEAD, BATCH, PATIENCE, TRIES, Scheduler, room_for
from runtime.cluster.worker import WorkerSettings
from runtime.errors import ConfigError, DeviceError, OutputError
from runtime.jobs.job import Job
from runtime.jobs.outcome import JobOutcome
from runtime.output_formats import FORMATS

JOBS = [Job(Path(f"/in/{index:03}.png"), Path(f"/out/{index:03}.png"), f"{index:03}.png") for index in range(100)]
SETTINGS = WorkerSettings(form=FORMATS["mask"], threads=3, gpus=0.5, version="1")


class Answers:
    """A `call` of the stand-in: answers all images, but for what a test breaks."""

    def __init__(self):
        self.seen = []
        self.broken = {}
        self.at_start = []
        self.handles = []

    def __call__(self, handle, made, name, arguments):
        if name == "start":
            if self.at_start:
                raise self.at_start.pop()
            self.handles.append(handle)
            return "cpu"
        (jobs,) = arguments
        self.seen.append([job.name for job in jobs])
        for job in jobs:
            if errors := self.broken.get(job.name):
                raise errors.pop()
        return [JobOutcome(path=str(job.source), file=str(job.target), status="written") for job in jobs]


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def told():
    return []


@pytest.fixture
def scheduler(answers, told):
    """Make a scheduler of two workers on a cluster with this room."""

    def make(room=2, workers=2):
        ray = RayStandIn(answers, room)
        return Scheduler(ray, SETTINGS, b"model", workers, told.append)

    return make


def expected(failed=()):
    return [("failed" if job.name in failed else "written", str(job.source)) for job in JOBS]


def outcomes(scheduler):
    try:
        return [(outcome.status, outcome.path) for outcome in scheduler.answers(JOBS)]
    finally:
        scheduler.stop()


def test_all_images_are_answered_in_order_by_batches(scheduler, answers):
    one = scheduler()
    assert outcomes(one) == expected()
    assert [len(names) for names in answers.seen] == [BATCH] * 6 + [4]
    assert (one.devices, one.retried) == ({"cpu": 2}, 0)
    assert one._ray.asked == [{"num_cpus": 3, "num_gpus": 0.5, "max_restarts": 0}] * 2
    assert all(handle.dead for handle in one._ray.alive)


def test_no_more_workers_than_batches_are_hired(scheduler, answers):
    one = scheduler(room=50, workers=50)
    assert outcomes(one) == expected()
    assert one.devices == {"cpu": 7}


def test_the_images_of_a_worker_that_died_are_answered_by_another_one(scheduler, answers):
    answers.broken["020.png"] = [RayError("The actor died.\nclass_name: Worker")]
    one = scheduler()
    assert outcomes(one) == expected()
    alone = [names for names in answers.seen if len(names) == 1]
    assert {name for (name,) in alone} >= {job.name for job in JOBS[16:32]}
    assert one.retried in (BATCH, AHEAD * BATCH)
    assert one.devices == {"cpu": 3}


def test_a_worker_that_is_given_up_may_answer_all_the_same(scheduler, answers):
    answers.broken["000.png"] = [ObjectLostError("the result is gone")]
    one = scheduler(workers=1)
    one._ray.kill = lambda handle: None  # comes too late
    assert outcomes(one) == expected()
    assert (one.retried, one.devices) == (BATCH, {"cpu": 2})


def test_an_image_that_ends_its_process_fails_and_the_others_do_not(scheduler, answers):
    answers.broken["020.png"] = [RayError("The actor died.\nclass_name: Worker") for _ in range(100)]
    one = scheduler()
    failed = [outcome for outcome in one.answers(JOBS) if outcome.status != "written"]
    one.stop()
    assert [outcome.error for outcome in failed] == [
        f"/in/020.png: the process that answered it died, {TRIES} times (The actor died)"
    ]
    assert len(answers.broken["020.png"]) == 100 - TRIES


def test_an_answer_that_cannot_be_written_is_tried_again_and_then_ends_the_job(scheduler, answers):
    answers.broken["020.png"] = [OutputError("/out/020.png: busy")]
    assert outcomes(scheduler()) == expected()
    answers.broken["020.png"] = [OutputError("/out/020.png: busy") for _ in range(100)]
    with pytest.raises(OutputError, match=r"^/out/020\.png: busy$"):
        outcomes(scheduler())
    assert len(answers.broken["020.png"]) == 100 - TRIES


def test_a_bug_in_a_worker_is_raised_as_it_is(scheduler, answers):
    answers.broken["020.png"] = [ZeroDivisionError("a bug")]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        outcomes(scheduler())


def test_a_model_that_no_worker_can_open_ends_the_job_at_once(scheduler, answers):
    answers.at_start = [DeviceError("cuda: no driver")]
    with pytest.raises(DeviceError, match=r"^cuda: no driver$"):
        outcomes(scheduler())
    assert answers.seen == []


def test_workers_that_die_while_they_open_the_model_are_replaced_a_few_times(scheduler, answers):
    answers.at_start = [RayError("out of memory")] * (TRIES - 1)
    assert outcomes(scheduler()) == expected()
    answers.at_start = [RayError("The actor died.\nmore")] * TRIES
    with pytest.raises(DeviceError) as refused:
        outcomes(scheduler())
    assert str(refused.value) == (
        f"workers: {TRIES} died while they opened the model (The actor died); look at the memory of the machines, and "
        "whether unet-deploy is installed there"
    )


def test_workers_that_cannot_start_do_not_end_what_others_do(scheduler, answers, told):
    one = scheduler(room=1)
    done = one.answers(JOBS)
    found = [next(done)]
    answers.at_start = [RayError("out of memory")] * TRIES
    one._ray.room = 2
    found += done
    assert [(outcome.status, outcome.path) for outcome in found] == expected()
    assert answers.at_start == []
    assert told == [f"workers: {TRIES} died while they opened the model (out of memory); going on with 1"]
    one.stop()


def test_workers_that_have_no_room_are_not_waited_for(scheduler):
    one = scheduler(room=1, workers=3)
    assert outcomes(one) == expected()
    assert one.devices == {"cpu": 1}


def test_a_worker_that_died_is_replaced_where_there_is_room_for_one_alone(scheduler, answers):
    answers.broken["005.png"] = [RayError("The node died")]
    one = scheduler(room=1, workers=2)
    assert outcomes(one) == expected()
    assert one.devices == {"cpu": 2}


def test_a_cluster_without_room_is_told_of_once(scheduler, told):
    one = scheduler(room=0)
    waited = one._ray.wait

    def wait(*arguments, **named):
        if one._ray.waits == 2 * PATIENCE:
            one._ray.room = 2
        return waited(*arguments, **named)

    one._ray.wait = wait
    assert outcomes(one) == expected()
    assert told == [f"no worker has started for {PATIENCE} s: the cluster is busy or has no room; still waiting"]


def test_what_was_answered_ahead_of_the_first_one_is_bounded(scheduler, answers, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 1)
    one = scheduler()
    slow = []

    def wait(promises, **_):
        slow[:] = slow or [promise for promise in promises if promise.name == "answer"][:1]
        others = [promise for promise in promises if promise not in slow]
        return (others or promises)[:1], []

    one._ray.wait = wait
    done = one.answers(JOBS)
    next(done)
    assert sum(map(len, answers.seen)) <= 3 * BATCH
    assert 1 + sum(1 for _ in done) == len(JOBS)
    one.stop()


class OneCluster:
    """As much of `ray` as is asked: machines of some CPUs and GPUs."""

    def __init__(self, *machines):
        self._machines = machines

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in self._machines]


def test_a_cluster_that_never_has_room_is_not_waited_for():
    ray = OneCluster((4, 0), (8, 1))
    assert room_for(ray, 2, 0, may_be_none=False) == 6
    assert room_for(ray, 2, 1, may_be_none=False) == 1
    with pytest.raises(ConfigError) as refused:
        room_for(ray, 2, 2, may_be_none=False)
    assert str(refused.value) == (
        "workers: none with --threads 2 and --gpus-per-worker 2 has room in the cluster, whose machines have at most 8 "
        "CPUs and 1 GPUs; ask for less, or add machines"
    )
    assert room_for(ray, 2, 2, may_be_none=True) == 0
    with pytest.raises(ConfigError, match=r"^workers: none with --threads 9 has room"):
        room_for(ray, 9, 0, may_be_none=False)
