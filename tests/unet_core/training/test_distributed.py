"""Several processes: who takes what, and a real run of two, started by torchrun, against one."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from forked import train_as_two

from runtime.errors import ConfigError, DataError, DeviceError
from unet_core.checkpoint import load_checkpoint
from unet_core.data import records
from unet_core.data.dataset import TrainingSet
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate
from unet_core.reporting.progress import Display
from unet_core.train import train
from unet_core.training import distributed
from unet_core.training.distributed import Processes, join
from unet_core.training.run import find_records, load_records
from unet_core.training.trainer import Trainer

LAST, BEST = "my_checkpoint.pth.tar", "model.pth"


def test_one_process_needs_nobody():
    alone = Processes()
    assert (alone.first, alone.gather("x"), alone.largest(3)) == (True, ["x"], 3)
    network = torch.nn.Linear(2, 2)
    assert alone.parallel(network, torch.device("cpu")) is network
    assert alone.device_name("cuda:3") == "cuda:3"


def test_each_process_takes_the_gpu_of_its_rank(monkeypatch):
    third = Processes(rank=6, count=8, local_rank=2)
    assert (third.first, third.device_name("cuda"), third.device_name("cpu")) == (False, "cuda:2", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert third.device_name("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert third.device_name("auto") == "cuda:2"
    assert (third.device_name("gpu"), third.device_name("CUDA"), third.device_name("CPU")) == (
        "cuda:2",
        "cuda:2",
        "CPU",
    )
    with pytest.raises(
        ConfigError, match="--device cuda:1: 8 processes need one each; expected auto, cpu, gpu or cuda"
    ):
        third.device_name("cuda:1")


def test_processes_that_were_not_started_together_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DeviceError, match=r"cannot reach each other \('RANK'\); start them with torchrun"):
        join()


def test_a_batch_smaller_than_the_processes_is_refused(config):
    sets = find_records(config)
    load_records(config, sets, Processes(), Display(quiet=True))
    with pytest.raises(ConfigError, match="--batch-size 4: expected 5, one per process"):
        Trainer(config, *sets, processes=Processes(0, 5))


class Pretended(Processes):
    """One of two processes, without the other."""

    def gather(self, value):
        return [value]

    def largest(self, value):
        return value

    def parallel(self, network, device):
        return network

    def share(self, network):
        pass


class Told(Processes):
    """A process that hears what the others' failures are."""

    def __init__(self, rank, failures):
        super().__init__(rank, len(failures), rank)
        self.failures = failures

    def gather(self, value):
        return [value if rank == self.rank else failure for rank, failure in enumerate(self.failures)]


def test_a_failure_of_one_ends_all_and_the_first_tells_of_it(monkeypatch):
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: None)
    failure = DeviceError("cuda:1: is broken")
    for _ in range(2):
        with Told(0, [None, None]).raise_on_all_ranks():
            pass
    with pytest.raises(DeviceError) as caught, Told(0, [None, failure]).raise_on_all_ranks():
        pass
    assert caught.value is failure
    with pytest.raises(SystemExit) as ended, Told(1, [None, None]).raise_on_all_ranks():
        raise failure
    assert ended.value.code == 2
    assert ended.value.__cause__ is failure
    with pytest.raises(ConfigError, match="mine"), Told(0, [None, failure]).raise_on_all_ranks():
        raise ConfigError("mine")


def test_a_fault_that_is_no_error_of_ours_is_not_talked_about():
    with pytest.raises(ZeroDivisionError), Told(1, [DeviceError("x"), None]).raise_on_all_ranks():
        raise ZeroDivisionError


@pytest.mark.parametrize(("rank", "local_rank", "decoded"), [(0, 0, 9), (1, 1, 0), (2, 0, 9)])
def test_the_first_process_of_each_machine_decodes(config, monkeypatch, rank, local_rank, decoded):
    seen = []
    real = records.SampleDecoder.make
    monkeypatch.setattr(records.SampleDecoder, "make", lambda *arguments: (seen.append(1), real(*arguments))[1])
    load_records(config, find_records(config), Pretended(rank, 3, local_rank), Display(quiet=True))
    assert len(seen) == decoded


class Hearing(Pretended):
    """A process that hears from the first one which pairs are faulty."""

    bad = ({1: "is bad"}, {})

    def gather(self, value):
        return [self.bad if isinstance(value, tuple) else value]


def test_all_processes_leave_out_what_the_first_one_found(config, data, monkeypatch):
    """The second machine has the faulty image whole, and another one that it alone cannot read."""
    config = replace(config, skip_bad=True)
    for rank, local_rank in ((1, 1), (2, 0)):
        train, val = sets = find_records(config)
        load_records(config, sets, Hearing(rank, 3, local_rank), Display(quiet=True))
        assert [pair.name for pair in train.pairs] == ["car0", "car2", "car3", "car4", "car5"]
        assert len(val) == 3
    image = data / "train_images" / "car4.jpg"
    image.write_bytes(image.read_bytes()[:500])
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as ended:
        load_records(config, find_records(config), Hearing(2, 3, 0), Display(quiet=True))
    refusal = ended.value.__cause__
    assert isinstance(refusal, DataError) and str(refusal).startswith("1 of 9 pairs cannot be used, ")
    assert str(refusal).endswith(": train_images/car4.jpg")


class HearingWeights(Pretended):
    """A process that hears from the first one how much the classes weigh."""

    def gather(self, value):
        return [(0.5, 2.0)]

    def agree(self, failure):
        assert failure is None


def test_all_processes_weigh_classes_as_the_first_one_does(config):
    """The others look at no mask: on another machine they may have other masks in their caches."""
    config = replace(config, class_weights="median")
    sets = find_records(config)
    load_records(config, sets, Processes(), Display(quiet=True))
    second = Trainer(config, *sets, processes=HearingWeights(1, 2, 1))
    second.train.decoder = None  # decoding would fail
    second.weigh_classes()
    logits = torch.zeros(1, 1, 2, 2)
    labels = torch.tensor([[[0, 0], [0, 1]]], dtype=torch.uint8)
    assert second.class_weights == (0.5, 2.0)
    assert second.loss(logits, labels).item() == pytest.approx(math.log(2) * (3 * 0.5 + 2.0) / 4)


def torchrun(config, *more, **how):
    file = Path(config.out).with_suffix(".toml")
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()) + "\n")
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "unet_core.train", "--config", str(file), *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **how,
    )


def run_two(config, *more):
    process = torchrun(config, *more)
    said, complained = process.communicate(timeout=240)
    return process.returncode, said, complained


@pytest.mark.slow
@pytest.mark.timing
def test_two_processes_step_and_validate_as_one(config, data):
    """Gradients are those of the whole batch, weighted by images; metrics are exact; one writes and speaks."""
    config = replace(config, optimizer="sgd", momentum=0.0, lr=0.1, epochs=1, batch_size=3, ema=0.5)
    code, said, complained = run_two(config)
    assert code == 0, complained
    assert said.count("pixel Dice") == 2
    assert "2 processes" in said
    best = load_checkpoint(Path(config.out) / BEST)
    alone = evaluate(Path(config.out) / BEST, find_pairs(data, "val"), device="cpu")
    assert alone.summary() == best.card.training.metrics

    # The same steps, one process's part after the other: gradients of both parts, averaged.
    sets = find_records(config)
    load_records(config, sets, Processes(), Display(quiet=True))
    trainers = [Trainer(config, *sets, processes=Pretended(rank, 2, rank)) for rank in range(2)]
    dataset = TrainingSet(sets[0], seed=config.seed)
    for start, size in ((0, 3), (3, 3)):
        for trainer in trainers:
            trainer.batches.epoch, trainer.position = 1, start
            trainer.network.train()
            batch = trainer.batches.order()[start : start + 3]
            keys = [(1, int(index)) for index in batch[trainer.processes.rank :: 2]]
            images, labels = (torch.stack(part) for part in zip(*(dataset[key] for key in keys), strict=True))
            own, whole = trainer.batches.share(start)
            assert (own, whole) == (len(keys), size)
            trainer.backward(images, labels, own * 2 / size, True, own, "")
        with torch.no_grad():
            for first, second in zip(*(trainer.network.parameters() for trainer in trainers), strict=True):
                gradient = (first.grad + second.grad) / 2
                for weight in (first, second):
                    weight -= 0.1 * gradient
                    weight.grad = None
            # Each forward pass of DistributedDataParallel starts with the first one's statistics.
            for trainer in trainers[1:]:
                for own_value, value in zip(trainer.network.buffers(), trainers[0].network.buffers(), strict=True):
                    own_value.copy_(value)
    trained = load_checkpoint(Path(config.out) / LAST).extra["network"]
    for name, value in trainers[0].network.state_dict().items():
        assert torch.allclose(trained[name], value, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.timing
def test_two_processes_stop_and_go_on_bit_for_bit(config, tmp_path):
    config = replace(config, epochs=6, batch_size=2, save_minutes=0.0)
    whole = replace(config, out=str(tmp_path / "whole"))
    assert train_as_two(whole) == [0, 0]
    process = torchrun(config)
    deadline = time.monotonic() + 120
    while not (Path(config.out) / LAST).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, complained = process.communicate(timeout=120)
    assert process.returncode != 0
    assert complained.count("stopped and saved") == 1
    assert len(load_checkpoint(Path(config.out) / LAST).extra["history"]) < config.epochs
    code, _, complained = run_two(config, "--resume")
    assert code == 0, complained
    first, second = (load_checkpoint(Path(folder) / LAST) for folder in (whole.out, config.out))
    assert all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())
    figures = [
        [{name: row[name] for name in row if "seconds" not in name} for row in item.extra["history"]]
        for item in (first, second)
    ]
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.timing
def test_errors_of_two_processes_are_one_line(config, data):
    (data / "val_masks" / "val0_mask.gif").unlink()
    for more in ((), ("--height", "33")):
        code, _, complained = run_two(config, *more)
        assert code != 0
        assert complained.count("\nerror: ") + complained.startswith("error: ") == 1, complained


def test_validation_of_sharded_images_is_that_of_all(config):
    """Without processes: what two halves count, merged, equals one count, in figures and in order."""
    train(config)
    checkpoint = load_checkpoint(Path(config.out) / LAST)
    rows = list(csv.DictReader((Path(config.out) / "metrics.csv").read_text().splitlines()))
    sets = find_records(config)
    load_records(config, sets, Processes(), Display(quiet=True))
    halves = [Trainer(config, *sets, processes=Pretended(rank, 2, rank)) for rank in range(2)]
    counted = []
    for trainer in halves:
        trainer.network.load_state_dict(dict(checkpoint.state_dict))
        counted.append(trainer.validate()[0])
    assert [len(metrics.state()) for metrics in counted] == [2, 1]
    counted[1].merge(counted[0])
    assert counted[1].summary() == {name: float(rows[-1][name]) for name in counted[1].summary()}


@pytest.mark.slow
@pytest.mark.timing
def test_two_processes_weigh_classes(config, tmp_path):
    """With a rectangle of a quarter: background by 2/3 and the class by 2, so the first loss is that of one process."""
    settings = {"epochs": 1, "batch_size": 6, "accumulate": 1, "lr": 1e-12, "ema": 0.0}
    weighted = replace(config, class_weights="median", **settings)
    assert train_as_two(weighted) == [0, 0]
    plain = replace(config, out=str(tmp_path / "plain"), **settings)
    assert train_as_two(plain) == [0, 0]
    losses = [load_checkpoint(Path(one.out) / LAST).extra["history"][0]["train_loss"] for one in (weighted, plain)]
    assert abs(losses[0] - losses[1]) > 1e-3
