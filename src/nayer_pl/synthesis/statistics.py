"""Statistics matching: synthetic batches should look to every BatchNorm as real data did.

After DeepInversion (arXiv 1912.08795, equation 4), with the batch statistics averaged over
synthesis rounds, as NAYER's authors do: a single round is too small a sample of the data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Statistics = tuple[Tensor, Tensor]  # mean and variance of each channel


class ChannelMoments(torch.autograd.Function):
    """Mean and biased variance of every channel: [B, C, H, W] -> [C], [C].

    `torch.var_mean` in value; its own derivative takes several passes over the images, this one
    takes one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Statistics:
        """Two passes, so that a large mean does not cancel a small variance."""
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3))
        ctx.save_for_backward(x, mean)
        return mean.flatten(), variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """d mean / dx = 1 / n and d variance / dx = 2 (x - mean) / n."""
        x, mean = ctx.saved_tensors
        grad_mean, grad_variance = (grad.view_as(mean) for grad in grads)
        per_channel = x.shape[1] / x.numel()
        slope = 2 * per_channel * grad_variance
        return torch.addcmul(per_channel * grad_mean - slope * mean, x, slope)


class StatisticsMatching:
    """L_bn of a frozen teacher; looks at it only inside `watching`.

    Args:
        teacher: its BatchNorm2d layers hold the mean and variance of real data.
        momentum: weight of the running average over earlier rounds.
    """

    def __init__(self, teacher: nn.Module, momentum: float = 0.9) -> None:
        self.norms = [
            module
            for module in teacher.modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]
        self.momentum = momentum
        self._batch: dict[nn.Module, Statistics] = {}
        self._average: dict[nn.Module, Statistics] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take the statistics of the BatchNorm inputs of the forward pass in this block."""
        self._batch = {}
        hooks = [norm.register_forward_pre_hook(self._take) for norm in self.norms]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._batch[norm] = self._mixed(norm, ChannelMoments.apply(inputs[0].float()))

    def _mixed(self, norm: nn.Module, new: Statistics) -> Statistics:
        if norm not in self._average:
            return new
        old, weight = self._average[norm], self.momentum
        return (
            weight * old[0] + (1 - weight) * new[0],
            weight * old[1] + (1 - weight) * new[1],
        )

    def loss(self) -> Tensor:
        """Sum over layers of ||variance - v||_2 + ||mean - m||_2, for the last forward pass.

        (m, v) is 0.1 times the batch plus 0.9 times the running average over earlier rounds; the
        first round's batch stands alone. Variances are biased.
        """
        distances = [
            torch.linalg.vector_norm(norm.get_buffer("running_mean") - mean)
            + torch.linalg.vector_norm(norm.get_buffer("running_var") - variance)
            for norm, (mean, variance) in self._batch.items()
        ]
        return torch.stack(distances).sum()

    def finish_round(self) -> None:
        """Let the last forward pass into the running average."""
        self._average = {
            norm: (mean.detach(), variance.detach())
            for norm, (mean, variance) in self._batch.items()
        }
