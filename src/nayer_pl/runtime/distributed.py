"""Helpers for distributed training.

Every rank has its own generator and its own bank, and makes its images without communication. The
student is common to all ranks: DDP averages its gradients.
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
    """Raise an InputError if the strategy does not keep the whole student on every rank."""
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    # Lightning derives these from DDPStrategy, but they are not DDP.
    if not whole or isinstance(strategy, DeepSpeedStrategy | XLAStrategy):
        raise InputError(
            f"Data-free methods do not run with {type(strategy).__name__}: synthesis asks "
            'the whole student on every rank; choose Trainer(strategy="ddp").'
        )


def refuse_sync_batchnorm(trainer: Trainer, module: nn.Module) -> None:
    """Raise an InputError if a BatchNorm would wait for other ranks inside a synthesis round."""
    # The strategy replaces BatchNorms only after the module was set up.
    asked = getattr(trainer.strategy, "_layer_sync", None) is not None
    if asked or any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        raise InputError(
            "SyncBatchNorm, for which Trainer(sync_batchnorm=True) asks, would make the ranks wait "
            "for each other inside synthesis rounds; leave it out (the student's BatchNorm "
            "statistics are averaged anyway)."
        )


def limit_ddp_to(module: LightningModule, part: str) -> None:
    """Let DDP synchronize only the submodule `part`."""
    # Under every name: a network may hold a tensor in two places.
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
    """Average the running statistics of every BatchNorm over the ranks, in one exchange."""
    if not _several():
        return
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    statistics = [each for norm in norms for each in (norm.running_mean, norm.running_var)]
    buffers = [each for each in statistics if each is not None]
    if not buffers:
        return
    together = torch.cat(buffers)
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for buffer, mean in zip(buffers, together.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)


@contextmanager
def averaged_batchnorm(module: nn.Module) -> Iterator[None]:
    """As `all_reduce_batchnorm`, but afterwards the ranks have their own statistics again."""
    own = [buffer.clone() for buffer in module.buffers()]
    all_reduce_batchnorm(module)
    try:
        yield
    finally:
        for buffer, before in zip(module.buffers(), own, strict=True):
            buffer.copy_(before)


def all_reduce_sum(value: float, device: torch.device) -> float:
    """The sum of a value over the ranks."""
    if not _several():
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return summed.item()


def check_batch_size(batch_size: int, ranks: int) -> None:
    """Raise an InputError if a batch cannot be divided evenly among the ranks."""
    if batch_size % ranks:
        below = batch_size // ranks * ranks
        raise InputError(
            f"batch_size={batch_size} cannot be divided evenly among {ranks} processes; "
            f"choose {f'{below} or ' if below else ''}{below + ranks}."
        )


def sync_step_and_scaler(trainer: Trainer) -> None:
    """Make `global_step` and the loss scale equal on all ranks after a synthesis round.

    Not every rank has the same rounds, and `trainer.global_step` counts the generator's steps too.
    It decides whether a checkpoint is due, for which all ranks wait. The loss scale (precision
    16-mixed) must be equal because DDP averages scaled gradients.
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
    """The first message over all ranks that is not None, on every rank."""
    return next((found for found in all_gather(message) if found is not None), None)


def all_gather(own: Any) -> list[Any]:
    """The objects of all ranks, in their order, on every rank."""
    if not _several():
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def all_reduce_any(flags: list[bool], device: torch.device) -> list[bool]:
    """Which of these flags are set on at least one rank."""
    if not _several():
        return flags
    together = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
