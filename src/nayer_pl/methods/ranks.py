"""Several processes train one student: what they share, and what each keeps to itself.

Every rank has its own generator and its own bank, and makes its images without talking to the
others. Common to all is the student: DDP averages its gradients.
"""

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nayer_pl.errors import InputError


def check_strategy(trainer: Trainer) -> None:
    """Raise an InputError if the student would not be whole on every rank."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise InputError(
            f"Data-free methods do not run with {type(trainer.strategy).__name__}: synthesis asks "
            "the whole student on every rank; choose strategy=ddp."
        )


def check_norms(module: nn.Module) -> None:
    """Raise an InputError if a BatchNorm would wait for other ranks in the middle of a round."""
    if any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        raise InputError(
            "trainer.sync_batchnorm=true would make the ranks wait for each other inside synthesis "
            "rounds; leave it out (the student's BatchNorm statistics are averaged anyway)."
        )


def share_only(module: LightningModule, part: str) -> None:
    """Let DDP synchronise the submodule `part`, and leave everything else to each rank."""
    names = [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        module, [name for name in names if not name.startswith(f"{part}.")]
    )


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
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


def total(value: float, device: torch.device) -> float:
    """The sum of every rank's value."""
    if not _several():
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return summed.item()


def first_of_all(message: str | None) -> str | None:
    """The message of the first rank that has one, on every rank."""
    if not _several():
        return message
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return next((found for found in messages if found is not None), None)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
