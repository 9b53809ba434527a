"""Several processes train one student: what they share, and what each keeps to itself.

Every rank has its own generator and its own bank, and makes its images without talking to the
others. Common to all is the student: DDP averages its gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    XLAStrategy,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nayer_pl.errors import InputError


def check_strategy(trainer: Trainer) -> None:
    """Raise an InputError if the student would not be whole on every rank."""
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    # Lightning derives these from DDPStrategy, but they are not DDP.
    if not whole or isinstance(strategy, DeepSpeedStrategy | XLAStrategy):
        raise InputError(
            f"Data-free methods do not run with {type(strategy).__name__}: synthesis asks "
            "the whole student on every rank; choose strategy=ddp."
        )


def refuse_sync_batchnorm(trainer: Trainer, module: nn.Module) -> None:
    """Raise an InputError if a BatchNorm would wait for other ranks in the middle of a round."""
    # The strategy turns every BatchNorm into one that waits only after the module was set up.
    asked = getattr(trainer.strategy, "_layer_sync", None) is not None
    if asked or any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        raise InputError(
            "SyncBatchNorm (trainer.sync_batchnorm=true) would make the ranks wait for each other "
            "inside synthesis rounds; leave it out (the student's BatchNorm statistics are "
            "averaged anyway)."
        )


def limit_ddp_to(module: LightningModule, part: str) -> None:
    """Let DDP synchronize the submodule `part`, and leave everything else to each rank."""
    # Under every name: the teacher's tensors stand in two places.
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    left = [name for name, _ in tensors if not name.startswith(f"{part}.")]
    # DDP's reducer calls a parameter of the module itself ".name", everything else in DDP "name".
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        module, [*left, *(f".{name}" for name in left if "." not in name)]
    )


@torch.no_grad()
def all_reduce_batchnorm(module: nn.Module) -> None:
    """Make the running statistics of every BatchNorm the mean over the ranks, in one exchange."""
    if not _several():
        return
    buffers = [
        buffer
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None
        for buffer in (part.running_mean, part.running_var)
        if buffer is not None
    ]
    if not buffers:
        return
    together = torch.cat(buffers)
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for buffer, mean in zip(buffers, together.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)


@contextmanager
def averaged_batchnorm(module: nn.Module) -> Iterator[None]:
    """As `all_reduce_batchnorm`, but afterwards every rank has its own again."""
    own = [buffer.clone() for buffer in module.buffers()]
    all_reduce_batchnorm(module)
    try:
        yield
    finally:
        for buffer, before in zip(module.buffers(), own, strict=True):
            buffer.copy_(before)


def all_reduce_sum(value: float, device: torch.device) -> float:
    """The sum of every rank's value."""
    if not _several():
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return summed.item()


def check_batch_size(batch_size: int, ranks: int) -> None:
    """Raise an InputError if a batch cannot be shared out evenly."""
    if batch_size % ranks:
        below = batch_size // ranks * ranks
        raise InputError(
            f"plan.batch_size={batch_size} cannot be shared out evenly among {ranks} processes; "
            f"choose {f'{below} or ' if below else ''}{below + ranks}."
        )


def sync_step_and_scaler(trainer: Trainer) -> None:
    """Undo what a synthesis round, which not every rank had, did to the trainer.

    `trainer.global_step` counts the generator's steps too, and decides whether a checkpoint is due,
    for which all ranks wait. And the gradients of the student, which are averaged as they are, must
    have the same loss scale on every rank (precision 16-mixed).
    """
    if not _several():
        return
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    own = (trainer.global_step, scaler.state_dict() if scaler is not None else {})
    found = all_gather(own)
    missing = max(steps for steps, _ in found) - trainer.global_step
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for tally in (progress.total, progress.current):
        tally.ready += missing
        tally.completed += missing
    if scaler is not None:
        scaler.load_state_dict(min((state for _, state in found), key=lambda s: s["scale"]))


def first_error(message: str | None) -> str | None:
    """The message of the first rank that has one, on every rank."""
    return next((found for found in all_gather(message) if found is not None), None)


def all_gather(own: Any) -> list[Any]:
    """What every rank has, in the order of the ranks, on every rank."""
    if not _several():
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def all_reduce_any(flags: list[bool], device: torch.device) -> list[bool]:
    """Which of these flags are set on any rank."""
    if not _several():
        return flags
    together = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
