"""What checkpoints hold beside Lightning's own: enough to resume as if nothing had happened.

Lightning saves what all ranks have in common. What each rank has to itself is gathered here,
because only one of them writes the file.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import MeanMetric

from nayer_pl.errors import InputError
from nayer_pl.networks.registry import described
from nayer_pl.networks.weights import fingerprint
from nayer_pl.runtime import distributed
from nayer_pl.runtime.numerics import restore_generator

KEY = "nayer_pl"
FORMAT = 2  # of what stands under KEY; raised when an older one can no longer be read


class RankState:
    """Saves and restores what each rank of a module has to itself.

    Here that is random numbers and a mean loss; a subclass says what else (`own`, `load_own`).

    Args:
        module: A LightningModule that calls `save`, `load` and `finish_loading` in its hooks
            `on_save_checkpoint`, `on_load_checkpoint` and `on_train_start`.

    Example:
        >>> from lightning import LightningModule
        >>> from torch import nn
        >>> from nayer_pl.distillation.student import COSINE, MOMENTUM_SGD, StudentUpdater
        >>> class Method(LightningModule):
        ...     updater = StudentUpdater(nn.MSELoss(), MOMENTUM_SGD, COSINE)
        ...     def run_identity(self):
        ...         return {"method": "Method"}
        >>> checkpoint = {}
        >>> RankState(Method()).save(checkpoint)
        >>> checkpoint["nayer_pl"]["identity"]
        {'method': 'Method'}
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.resumed = False  # whether a checkpoint was loaded
        self._random: dict[str, Any] | None = None

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this run to belong to it, by name."""
        return self.module.run_identity()

    def own(self) -> dict[str, Any]:
        """What this rank does not share with the others; tensors and plain values."""
        return {"loss": self.module.updater.mean_loss.metric_state}

    def load_own(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        """Restore from what `own` returned on every rank of then; there may be others now."""
        mine = states[rank :: self.module.trainer.world_size]
        load_mean(self.module.updater.mean_loss, [state["loss"] for state in mine])

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of; called on all ranks."""
        own = {"random": random_states(self.module.device), **self.own()}
        # Other ranks may not see this one's device.
        ranks = distributed.all_gather(move_data_to_device(own, torch.device("cpu")))
        checkpoint[KEY] = {
            "format": FORMAT,
            "version": version("nayer_pl"),
            "identity": self.identity(),
            "ranks": ranks,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            InputError: The checkpoint belongs to another program, version, method, network or plan.
        """
        states = check_identity(checkpoint, self.identity())["ranks"]
        rank, self.resumed = self.module.global_rank, True
        self._random = states[rank]["random"] if rank < len(states) else None
        self.load_own(states, rank)

    def finish_loading(self) -> None:
        """Set the global random numbers at the last moment: building things may use some."""
        if self._random is not None:
            set_random_states(self._random, self.module.device)
            self._random = None


def check_identity(checkpoint: Mapping[str, Any], identity: Mapping[str, str]) -> dict[str, Any]:
    """Return what `RankState` wrote; raise an InputError if that was another run or program."""
    content = checkpoint.get(KEY)
    if content is None:
        raise InputError(
            "The checkpoint was not written by a run of this version of nayer_pl, which therefore "
            "cannot resume from it; its weights can still be read as the weights of a teacher."
        )
    if content["format"] != FORMAT:
        raise InputError(
            f"The checkpoint was written by nayer_pl {content['version']} and cannot be read by "
            f"this {version('nayer_pl')}; resume it with the version that wrote it."
        )
    theirs = content["identity"]
    for name in [*identity, *theirs]:
        if identity.get(name) != theirs.get(name):
            raise InputError(
                f"The checkpoint belongs to another run: its {name} is {theirs.get(name)}, here it "
                f"is {identity.get(name)}; resume with the settings of that run, or start a new "
                "one in another directory."
            )
    return content


def random_states(device: torch.device) -> dict[str, Any]:
    """States of the global random numbers: Python's, NumPy's, PyTorch's."""
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
    """Restore `random_states`."""
    random.setstate(states["python"])
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def load_mean(metric: MeanMetric, states: Sequence[Mapping[str, Tensor]]) -> None:
    """Let a mean continue from its `metric_state`; from several, as if it had seen all of it."""
    metric.reset()
    if not any(float(state["weight"]) for state in states):
        return
    metric.update(0.0)  # it has seen something; the sums are set below
    for name in states[0]:
        total = torch.stack([state[name] for state in states]).sum(0)
        setattr(metric, name, total.to(metric.device))


class DistillationState(RankState):
    """The state of a `DataFreeDistillation` beside the student's weights."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        # Of a checkpoint, until it is time for them:
        self.buffers: dict[str, Tensor] = {}  # the student's
        self._optimizers: list[dict[str, Any]] = []  # the synthesizer's

    def identity(self) -> dict[str, str]:
        """Method, networks, images and plan."""
        module, data = self.module, self.module.datamodule
        return {
            "method": type(module).__name__,
            "teacher": self._teacher,
            "student": described(module.student),
            "image shape": str(tuple(data.image_shape)),
            "number of classes": str(data.num_classes),
            "plan": str(data.plan),
        }

    @cached_property
    def _teacher(self) -> str:
        teacher = self.module.teacher.classifier
        return f"{described(teacher)} (weights {fingerprint(teacher)})"

    def own(self) -> dict[str, Any]:
        """What makes this rank's images, and what it has counted."""
        module = self.module
        # Neither the networks nor what every round draws again.
        drawn = [f"synthesizer.{part}" for part in module.synthesizer.transient]
        elsewhere = tuple(f"{part}." for part in ("student", "teacher", *drawn))
        parts = {k: v for k, v in module.state_dict().items() if not f"{k}.".startswith(elsewhere)}
        return {
            "parts": parts,
            "buffers": dict(module.student.named_buffers()),
            "rounds": module.rounds,
            "synthesis_steps": module.synthesis_steps,
            "rng": module.synthesizer.rng.get_state(),
            "optimizers": [each.state_dict() for each in module.trainer.optimizers[1:]],
            "kd_loss": module.updater.mean_loss.metric_state,
            "synthesis_loss": module.synthesis_loss.metric_state,
        }

    def load_own(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        """Restore it; a rank that is new starts from another one's state, with noise of its own."""
        module, alike = self.module, states[rank % len(states)]
        if rank < len(states):
            restore_generator(module.synthesizer.rng, alike["rng"])
        module.load_state_dict(alike["parts"], strict=False)
        self.buffers, self._optimizers = alike["buffers"], alike["optimizers"]
        mine = states[rank :: module.trainer.world_size]  # none if there are more ranks than before
        module.rounds = sum(state["rounds"] for state in mine)
        module.synthesis_steps = sum(state["synthesis_steps"] for state in mine)
        load_mean(module.updater.mean_loss, [state["kd_loss"] for state in mine])
        load_mean(module.synthesis_loss, [state["synthesis_loss"] for state in mine])

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add also what the ranks have in common: averaged BatchNorm buffers and the progress."""
        super().save(checkpoint)
        module, state = self.module, checkpoint["state_dict"]
        with distributed.averaged_batchnorm(module.student):  # saving must not change a run
            for name, buffer in module.student.named_buffers(prefix="student"):
                if name in state:  # not the normalization
                    state[name] = buffer.clone()
        for optimizer in checkpoint.get("optimizer_states", [])[1:]:  # every rank has its own
            optimizer["state"] = {}
        progress = {"student_updates": module.student_updates, "rounds": module.rounds}
        checkpoint["progress"] = progress

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Restore also the progress, and the place in the epoch."""
        super().load(checkpoint)
        self.module.student_updates = checkpoint["progress"]["student_updates"]
        self.module.datamodule.seek_epoch(checkpoint["loops"]["fit_loop"])

    def finish_loading(self) -> None:
        """Restore the synthesizer's optimizers, after Lightning has restored those it knows."""
        super().finish_loading()
        own = self.module.trainer.optimizers[1:]
        for optimizer, state in zip(own, self._optimizers, strict=False):
            optimizer.load_state_dict(state)
        self._optimizers = []

    def restore_buffers(self) -> None:
        """Restore the student's; in the first step, with which DDP sends out those of rank 0."""
        for name, saved in self.buffers.items():
            self.module.student.get_buffer(name).copy_(saved)
        self.buffers = {}
