"""Processes: training in several processes that `torchrun` starts, and the messages between them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import ConfigError, DeviceError, UnetError

PATIENCE = timedelta(hours=6)
"""Time that a process waits for the others, long enough for slow disks; if one fails, `torchrun` ends all."""

GRACE = 2.0
"""Seconds that the first process has to report an error: when any process has ended, `torchrun` ends all."""


class Processes:
    """The processes of a run. In a run of one process, without `torchrun`, the methods here do nothing."""

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0) -> None:
        self.rank, self.count, self.local_rank = rank, count, local_rank

    @property
    def first(self) -> bool:
        """True in the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values that all processes gave, by rank; plain picklable values, on the CPU."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def largest(self, value: int) -> int:
        """Return the largest of the values that all processes gave."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def share(self, network: nn.Module) -> None:
        """Give every process the first one's weights and BatchNorm statistics, which differ after a step."""
        if self.count > 1:
            for value in network.state_dict().values():
                distributed.broadcast(value, 0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)

    def agree(self, failure: UnetError | None) -> None:
        """Raise in all processes if one of them failed, so that the others do not wait for it.

        Raises:
            UnetError: in the first process, the error of the lowest rank that failed.
            SystemExit: in the others, with that error's exit code; the first one reports it.
        """
        found = next((error for error in self.gather(failure) if error is not None), None)
        if found is None:
            return
        if not self.first:
            time.sleep(GRACE)
            raise SystemExit(found.exit_code) from failure
        raise failure or found

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Run a block that sends no messages; if it fails in one process, raise in all of them, as `agree`."""
        failure: UnetError | None = None
        try:
            yield
        except UnetError as error:
            failure = error
        self.agree(failure)

    def device_name(self, name: str) -> str:
        """Return the device of this process: each of several processes takes the GPU of its local rank.

        Raises:
            ConfigError: one GPU was named for several processes.
        """
        if self.count == 1 or name.lower() == "cpu":
            return name
        if name.lower() not in ("auto", "gpu", "cuda"):
            raise ConfigError(f"--device {name}: {self.count} processes need one each; expected auto, cpu, gpu or cuda")
        if name.lower() == "auto" and not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{self.local_rank}"

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with gradients averaged over all processes."""
        if self.count == 1:
            return network
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    def leave(self) -> None:
        """Leave the process group."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def join() -> Processes:
    """Join the process group that `torchrun` started, if it did.

    Raises:
        DeviceError: the other processes cannot be reached.
    """
    try:
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return Processes()
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DeviceError(f"several processes: cannot reach each other ({reason}); start them with torchrun") from error
    return Processes(rank, count, local_rank)
