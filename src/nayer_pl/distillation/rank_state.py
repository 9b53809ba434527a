"""What a checkpoint holds beside Lightning's own: enough to go on as if nothing had happened."""

import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor
from torchmetrics import Metric

from nayer_pl.errors import InputError
from nayer_pl.runtime import distributed

KEY = "nayer_pl"
FORMAT = 1  # of what stands under KEY; raised when an older one can no longer be read


class Resumable(LightningModule):
    """A method that goes on exactly where a checkpoint was written, on every rank.

    Common to all ranks is what Lightning saves. What each rank has to itself is gathered, because
    only one of them writes the file.
    """

    resumed = False  # whether a checkpoint was loaded
    _random: dict[str, Any] | None = None

    def facts(self) -> dict[str, str]:
        """What a checkpoint must have in common with this run, by name, to be one of it."""
        return {"method": type(self).__name__}

    def own_state(self) -> dict[str, Any]:
        """What this rank does not share with the others; tensors and plain values."""
        return {}

    def load_own_state(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        """Take back what `own_state` gave on every rank; there may be another number of them now.

        Args:
            states: of all ranks that the run had.
            rank: this one of those that it has now.
        """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of."""
        own = {"random": random_states(self.device), **self.own_state()}
        checkpoint[KEY] = {
            "format": FORMAT,
            "version": version("nayer_pl"),
            "facts": self.facts(),
            "ranks": distributed.all_gather(own),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back, if it is from a run like this one.

        Raises:
            InputError: another program's, version's, method's, network's or plan's checkpoint.
        """
        states = check(checkpoint, self.facts())["ranks"]
        rank, self.resumed = self.global_rank, True
        self._random = states[rank]["random"] if rank < len(states) else None
        self.load_own_state(states, rank)

    def on_train_start(self) -> None:
        """Set the global random numbers at the last moment: building things may use some."""
        if self._random is not None:
            set_random_states(self._random, self.device)
            self._random = None


def check(checkpoint: Mapping[str, Any], facts: Mapping[str, str]) -> dict[str, Any]:
    """What `Resumable` wrote into a checkpoint, if it is from a run with these facts.

    Raises:
        InputError: it is not; the message names the first difference.
    """
    content = checkpoint.get(KEY)
    if content is None:
        raise InputError(
            "The checkpoint was not written by a run of this version of nayer_pl, which can "
            "therefore not go on from it; its weights can still be read, with teacher.weights=."
        )
    if content["format"] != FORMAT:
        raise InputError(
            f"The checkpoint was written by nayer_pl {content['version']} and cannot be read by "
            f"{version('nayer_pl')}; go on with that version."
        )
    theirs = content["facts"]
    for name in [*facts, *theirs]:
        if facts.get(name) != theirs.get(name):
            raise InputError(
                f"The checkpoint belongs to another run: its {name} is {theirs.get(name)}, here it "
                f"is {facts.get(name)}; go on with the settings of that run, or start a new one "
                "with run_dir=PATH."
            )
    return content


def random_states(device: torch.device) -> dict[str, Any]:
    """States of the random numbers that everybody may use: Python's, NumPy's, PyTorch's."""
    _, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put `random_states` back."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def metric_state(metric: Metric) -> dict[str, Any]:
    """What a metric that adds up has added up so far."""
    states = metric.metric_state.items()
    sums = {name: value.cpu().clone() for name, value in states if isinstance(value, Tensor)}
    return {"sums": sums, "updates": metric.update_count}


def load_metric(metric: Metric, states: Sequence[Mapping[str, Any]]) -> None:
    """Let a metric go on from `metric_state`; from several, as if it had seen what they saw."""
    metric.reset()
    for state in states:
        for name, value in state["sums"].items():
            setattr(metric, name, getattr(metric, name) + value.to(metric.device))
        metric._update_count += state["updates"]
