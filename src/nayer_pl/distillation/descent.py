"""Images by gradient descent: so many steps, and the best of them is kept."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from nayer_pl.distillation.divergence import GRADIENT, gradient_norm

if TYPE_CHECKING:
    from nayer_pl.distillation.base import DataFreeDistillation


def descend(
    method: "DataFreeDistillation",
    optimizer: LightningOptimizer,
    steps: int,
    make: Callable[[], Tensor],
    judge: Callable[[Tensor], dict[str, Tensor]],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take so many steps down the loss of images, and keep those of the step with the lowest.

    Args:
        method: whose round this is.
        optimizer: of what `make` uses.
        steps: at least one.
        make: images in [0, 1], [B, C, H, W].
        judge: images -> loss terms by name, scalars, "loss" among them.

    Returns:
        Images and terms [steps], as `DataFreeDistillation.synthesize`; the norm of the gradient is
        one more term.
    """
    history: list[dict[str, Tensor]] = []
    lowest = torch.full((), torch.inf, device=method.device)
    kept = torch.zeros((), device=method.device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        method.show_step(step + 1, steps)
        images = make()
        terms = judge(images)
        loss = terms["loss"].detach()
        # Chosen on the device: asking which loss is lower would wait for it at every step.
        better = loss < lowest
        lowest = torch.where(better, loss, lowest)
        kept = torch.where(better, images.detach(), kept)
        optimizer.zero_grad()
        method.manual_backward(terms["loss"])
        if not method.scales_losses:
            terms = {**terms, GRADIENT: gradient_norm(parameters)}
        optimizer.step()
        history.append({name: term.detach() for name, term in terms.items()})
    return kept, {name: torch.stack([step[name] for step in history]) for name in history[0]}
