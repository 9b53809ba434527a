"""The loss of methods that invert the teacher: label, BatchNorm statistics and adversary.

DeepInversion (Yin et al., 2020, arXiv 1912.08795, equation 4) and DFQ (Choi et al., 2020,
arXiv 2005.04136). `FrozenTeacher.observe` gives the statistics of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from nayer_pl.losses.functional import adversarial_loss, gaussian_kl
from nayer_pl.networks.teacher import FrozenTeacher, Statistics
from nayer_pl.runtime.options import checked


class InversionLoss(nn.Module):
    """The teacher should see the target label, and its BatchNorms the statistics that they know.

    L = bn_weight L_bn + ce_weight L_ce + adv_weight L_adv (NAYER, equation 5).

    Args:
        teacher: Its BatchNorms are matched.
        bn_weight: Weight of the statistics term; 0 leaves it out.
        ce_weight: Weight of the label term.
        adv_weight: Weight of the adversarial term, which is left out in warm-up.
        bn_momentum: Weight of earlier rounds in the statistics term.
        adversary: (student logits, teacher logits) -> the adversarial term, a scalar.

    Raises:
        InputError: `bn_weight` is above 0, and the teacher has no statistics to match.

    Example:
        >>> from nayer_pl.networks import Classifier
        >>> network = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten())
        >>> teacher = FrozenTeacher(Classifier(network, mean=[0.5], std=[0.5]))
        >>> loss = InversionLoss(teacher, bn_weight=10, ce_weight=1, adv_weight=1, bn_momentum=0.9)
        >>> sorted(loss(torch.rand(3, 2, 1, 1), torch.tensor([0, 1, 0]), teacher, teacher, False))
        ['adv', 'bn', 'ce', 'loss']
    """

    @checked
    def __init__(
        self,
        teacher: FrozenTeacher,
        bn_weight: NonNegativeFloat,
        ce_weight: NonNegativeFloat,
        adv_weight: NonNegativeFloat,
        bn_momentum: Annotated[float, Ge(0), Lt(1)],
        adversary: Callable[[Tensor, Tensor], Tensor] = adversarial_loss,
    ) -> None:
        super().__init__()
        self.bn_weight, self.ce_weight, self.adv_weight = bn_weight, ce_weight, adv_weight
        self.adversary = adversary
        self.batchnorm = BatchNormMatching(teacher.norms, bn_momentum)
        if bn_weight:
            teacher.require_norms(optional=True)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: FrozenTeacher,
        student: nn.Module,
        warm_up: bool,
    ) -> dict[str, Tensor]:
        """L ("loss") and its terms, scalars, of images [B, C, H, W] and target labels [B]."""
        logits, statistics = teacher.observe(images)
        terms = {"ce": F.cross_entropy(logits, targets)}
        loss = self.ce_weight * terms["ce"]
        if self.bn_weight:
            terms["bn"] = self.batchnorm(statistics)
            loss = loss + self.bn_weight * terms["bn"]
        if self.adv_weight and not warm_up:
            terms["adv"] = self.adversary(student(images), logits)
            loss = loss + self.adv_weight * terms["adv"]
        return {"loss": loss, **terms}


class BatchNormMatching(nn.Module):
    """Distance between the statistics of synthetic batches and those of the training data.

    The sum over layers of ||variance - v||_2 + ||mean - m||_2, where (m, v) is `momentum` times
    the running average over earlier rounds plus the rest times the batch. NAYER's authors average
    so, because a single round is too small a sample of the data; the first round stands alone.
    Variances are biased.

    Args:
        norms: BatchNorms of the teacher, which hold the mean and variance of its training data.
        momentum: Weight of the running average over earlier rounds, at least 0 and below 1.

    Example:
        >>> norm = nn.BatchNorm2d(2)
        >>> matching = BatchNormMatching([norm], momentum=0.9)
        >>> matching({norm: (torch.zeros(2), 4 * torch.ones(2))}).round(decimals=3)
        tensor(4.2430)
    """

    average: Tensor
    average_weight: Tensor
    layer: Tensor

    @checked
    def __init__(
        self, norms: Sequence[nn.Module], momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    ) -> None:
        super().__init__()
        self.norms, self.momentum = list(norms), momentum
        # All layers side by side in one row for the means and one for the variances: a network
        # has hundreds of small statistics, and arithmetic on each alone would take longer.
        sizes = torch.tensor([len(n.get_buffer("running_mean")) for n in self.norms]).long()
        layer = torch.arange(len(sizes)).repeat_interleave(sizes)
        self.register_buffer("layer", layer, persistent=False)
        self.register_buffer("average", torch.zeros(2, len(layer)))
        self.register_buffer("average_weight", torch.zeros(()))  # no average before the first round
        self._mixed = self.average

    def forward(self, statistics: Mapping[nn.Module, Statistics]) -> Tensor:
        """The distance, a scalar; a layer without statistics adds nothing."""
        known = [(n.get_buffer("running_mean"), n.get_buffer("running_var")) for n in self.norms]
        batch = [statistics.get(n, at) for n, at in zip(self.norms, known, strict=True)]
        self._mixed = torch.lerp(_side_by_side(batch), self.average, self.average_weight)
        squares = (_side_by_side(known) - self._mixed).square()
        per_layer = squares.new_zeros(2, len(self.norms)).index_add(1, self.layer, squares)
        return (per_layer + 1e-30).sqrt().sum()  # the root of zero has no derivative

    def update_average(self) -> None:
        """Take the last batch into the running average; to be called at the end of a round."""
        self.average.copy_(self._mixed.detach())
        self.average_weight.fill_(self.momentum)
        self._mixed = self.average  # not the graph of the last call


class GaussianMatching(nn.Module):
    """Divergence between Gaussians: a channel of the batch, and the same of the training data.

    The sum over layers and channels of KL(batch || data), in nats (DFQ). To both variances is
    added what BatchNorm itself adds, or channels that never vary would have none.

    Args:
        norms: BatchNorms of the teacher, which hold the mean and variance of its training data.

    Example:
        >>> norm = nn.BatchNorm2d(1, eps=0)
        >>> GaussianMatching([norm])({norm: (torch.ones(1), torch.ones(1))})
        tensor(0.5000)
    """

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norms = list(norms)

    def forward(self, statistics: Mapping[nn.Module, Statistics]) -> Tensor:
        """The divergence, a scalar."""
        each = []
        for norm in self.norms:
            if norm in statistics:
                (mean, variance), eps = statistics[norm], float(norm.eps)  # type: ignore[arg-type]
                known = norm.get_buffer("running_mean"), norm.get_buffer("running_var") + eps
                each.append((mean, variance + eps, *known))
        # All channels side by side: arithmetic on each small layer alone would take longer.
        return gaussian_kl(*map(torch.cat, zip(*each, strict=True))).sum()


def _side_by_side(statistics: Sequence[Statistics]) -> Tensor:
    """Mean and variance [C] of each layer -> [2, sum of C]."""
    return torch.stack([torch.cat(row) for row in zip(*statistics, strict=True)])
