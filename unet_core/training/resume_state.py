"""What a run needs beside weights to go on exactly where it stopped."""

from collections.abc import Mapping
from typing import Any

import torch


def with_settings(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved optimizer's state with the settings of now: momentum and weight decay may be given anew on resume."""
    groups = [
        {**old, **{key: value for key, value in new.items() if key not in ("params", "lr")}}
        for old, new in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def random_state() -> dict[str, Any]:
    """PyTorch's generators. Order and augmentation are drawn from the seed and need no state."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put PyTorch's generators back; those of GPUs only where there are as many as before."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
