"""Statistics matching: synthetic batches should look to every BatchNorm as real data did.

After DeepInversion (arXiv 1912.08795, equation 4), with the batch statistics averaged over
synthesis rounds, as NAYER's authors do: a single round is too small a sample of the data.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nayer_pl.errors import require

Statistics = tuple[Tensor, Tensor]  # mean and variance of each channel


class ChannelMoments(torch.autograd.Function):
    """Mean and biased variance of every channel: [B, C, H, W] -> [C], [C], at least float32.

    `torch.var_mean` in value, but by BatchNorm's own kernel, which is many times faster on images
    whose channels are last; and differentiated in one pass over the images.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Statistics:
        """One call, which sums in float32 also where x has fewer digits."""
        if x.device.type in ("cpu", "cuda"):
            dtype = torch.promote_types(x.dtype, torch.float32)
            unused = x.new_zeros(x.shape[1], dtype=dtype)  # running averages
            mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
        else:  # no such kernel
            variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """d mean / dx = 1 / n and d variance / dx = 2 (x - mean) / n."""
        x, mean = ctx.saved_tensors
        per_channel = x.shape[1] / x.numel()
        slope = 2 * per_channel * grads[1]
        offset = per_channel * grads[0] - slope * mean
        offset, slope = (each.to(x.dtype).view(1, -1, 1, 1) for each in (offset, slope))
        return torch.addcmul(offset, x, slope)


class BatchNormMatching(nn.Module):
    """The teacher under observation: its logits, and how far its BatchNorms' inputs are from home.

    Calling it asks a tied copy of the teacher, which shares all of its tensors and is watched; the
    teacher itself stays free of hooks.

    Args:
        teacher: frozen; its BatchNorm2d layers hold the mean and variance of real data.
        momentum: weight of the running average over earlier rounds, in [0, 1).

    Raises:
        InputError: another momentum.
    """

    average: Tensor
    past: Tensor
    layer: Tensor

    def __init__(self, teacher: nn.Module, momentum: float = 0.9) -> None:
        super().__init__()
        require(0 <= momentum < 1, "bn_momentum", "at least 0 and below 1", momentum)
        self.teacher, self.momentum = tied_copy(teacher), momentum
        self.norms = [
            module
            for module in self.teacher.modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]
        for norm in self.norms:
            norm.register_forward_pre_hook(self._take)
        self._taken: dict[nn.Module, Statistics] = {}
        # All layers side by side in one row for the means and one for the variances: a network
        # has hundreds of small statistics, and arithmetic on each alone would take longer.
        sizes = torch.tensor([norm.num_features for norm in self.norms], dtype=torch.int64)
        layer = torch.arange(len(sizes)).repeat_interleave(sizes)
        self.register_buffer("layer", layer, persistent=False)
        self.register_buffer("average", torch.zeros(2, len(layer)))
        self.register_buffer("past", torch.zeros(()))  # weight of the average: none at first
        self._mixed = self.average

    def forward(self, images: Tensor) -> Tensor:
        """The teacher's logits, [B, C, H, W] -> [B, num_classes]; `loss` is about this call."""
        self._taken = {}
        return self.teacher(images)

    def train(self, mode: bool = True) -> "BatchNormMatching":
        """As `nn.Module.train`, but the copy stays in evaluation mode: its averages are shared."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _take(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._taken[norm] = ChannelMoments.apply(inputs[0])

    def loss(self) -> Tensor:
        """Sum over layers of ||variance - v||_2 + ||mean - m||_2, for the last call.

        (m, v) is `momentum` times the running average over earlier rounds plus the rest times the
        batch; the first round's batch stands alone. Variances are biased.
        """
        home = [(n.get_buffer("running_mean"), n.get_buffer("running_var")) for n in self.norms]
        taken = [self._taken.get(norm, at) for norm, at in zip(self.norms, home, strict=True)]
        self._mixed = torch.lerp(_side_by_side(taken), self.average, self.past)
        squares = (_side_by_side(home) - self._mixed).square()
        per_layer = squares.new_zeros(2, len(self.norms)).index_add(1, self.layer, squares)
        return (per_layer + 1e-30).sqrt().sum()  # the root of zero has no derivative

    def finish_round(self) -> None:
        """Let the last call into the running average, and go of its graph."""
        self.average.copy_(self._mixed.detach())
        self.past.fill_(self.momentum)
        self._taken, self._mixed = {}, self.average


def _side_by_side(statistics: Sequence[Statistics]) -> Tensor:
    """Mean and variance [C] of each layer -> [2, sum of C]."""
    return torch.stack([torch.cat(row) for row in zip(*statistics, strict=True)])


def tied_copy(module: nn.Module) -> nn.Module:
    """A second module with the same parameters and buffers, not copies of them."""
    # Not only parameters and buffers: weight normalization keeps what it computes as an attribute.
    kept = [value for part in module.modules() for value in vars(part).values()]
    shared = {
        id(tensor): tensor
        for tensor in [*module.parameters(), *module.buffers(), *kept]
        if isinstance(tensor, Tensor)
    }
    return copy.deepcopy(module, shared)
