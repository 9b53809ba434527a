"""DFQ: Data-Free Network Quantization With Adversarial Knowledge Distillation.

Choi et al., CVPR Workshops 2020, arXiv 2005.04136.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nayer_pl.distillation.descent import descend
from nayer_pl.distillation.inversion import ask_for_statistics
from nayer_pl.distillation.online import OnlineDistillation
from nayer_pl.errors import require_not_negative
from nayer_pl.losses.batchnorm import BatchNormMatching
from nayer_pl.losses.functional import class_balance_loss, divergence
from nayer_pl.networks.classifier import Classifier


class DFQ(OnlineDistillation):
    """The generator looks for disagreement among images that could be the teacher's own data.

    It maximizes KL(teacher || student), less three terms that keep its images near the data: the
    teacher's BatchNorms should see their statistics, the teacher should be sure of every image
    (instance entropy), and over a batch it should see every class as often (batch entropy). In
    warm-up epochs the generator learns from those three alone. The student minimizes the
    divergence. No network is quantized here, and there is one generator and one student; the paper
    has more of them for some of its results. Images are in [0, 1] (there: standardized by a last
    BatchNorm in the generator).

    The authors published no code. Later collections (CMI's) have another method of this name, with
    the l2 norm of DeepInversion and the cross-entropy of DAFL in place of the KL divergence and the
    instance entropy.

    Args:
        teacher, student, image_shape: see `OnlineDistillation`, which also takes `online`.
        bn_weight, entropy_weight, balance_weight: of the three terms.
        adv_weight: of the divergence.
        noise_features: size of z.
        generator_betas: of the generator's Adam.
        temperature: of the student's loss.
        learning_rate, momentum, weight_decay: of the student's SGD, with Nesterov's momentum.
        min_learning_rate: where its cosine ends.
        online: the generator's other arguments, seed and so on of `OnlineDistillation`.

    Raises:
        InputError: the teacher has no BatchNorm statistics to match.
    """

    nesterov = True

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        bn_weight: float = 1.0,
        entropy_weight: float = 1.0,
        balance_weight: float = 1.0,
        adv_weight: float = 1.0,
        noise_features: int = 512,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        temperature: float = 1.0,
        learning_rate: float = 0.1,
        min_learning_rate: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        **online: Any,
    ) -> None:
        super().__init__(
            teacher,
            student,
            image_shape,
            noise_features,
            generator_betas=generator_betas,
            temperature=temperature,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            **online,
        )
        require_not_negative(
            bn_weight=bn_weight,
            entropy_weight=entropy_weight,
            balance_weight=balance_weight,
            adv_weight=adv_weight,
        )
        self.bn_weight, self.entropy_weight = bn_weight, entropy_weight
        self.balance_weight, self.adv_weight = balance_weight, adv_weight
        self.statistics = GaussianMatching(teacher)
        ask_for_statistics(self.statistics)

    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's turn; in warm-up the student is not asked."""
        return descend(
            self,
            self.all_optimizers()[1],
            self.generator_steps,
            lambda: self.make(len(targets)),
            lambda images: self.judge(images, warm_up),
        )

    def judge(self, images: Tensor, warm_up: bool = False) -> dict[str, Tensor]:
        """The three terms less the divergence, weighted, and each of them."""
        logits = self.statistics(images)
        terms = {
            "bn": self.statistics.loss(),
            "entropy": entropy_loss(logits),
            "balance": class_balance_loss(logits),
        }
        loss = self.bn_weight * terms["bn"] + self.entropy_weight * terms["entropy"]
        loss = loss + self.balance_weight * terms["balance"]
        if self.adv_weight and not warm_up:
            terms["divergence"] = divergence(self.student(images), logits).mean()
            loss = loss - self.adv_weight * terms["divergence"]
        return {"loss": loss, **terms}


class GaussianMatching(BatchNormMatching):
    """Every channel of a BatchNorm's input is taken for a Gaussian, the batch's and the data's."""

    def loss(self) -> Tensor:
        """Sum over layers and channels of KL(batch || data), for the last call.

        To both variances is added what BatchNorm itself adds, or channels that never vary would
        have none.
        """
        each = []
        for norm in self.norms:
            if norm in self._taken:
                mean, variance = self._taken[norm]
                home = norm.get_buffer("running_mean"), norm.get_buffer("running_var") + norm.eps
                each.append((mean, variance + norm.eps, *home))
        # All channels side by side: arithmetic on each small layer alone would take longer.
        return gaussian_kl(*map(torch.cat, zip(*each, strict=True))).sum()


def gaussian_kl(
    mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor
) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)), element by element."""
    ratio = variance / other_variance
    return ((mean - other_mean).square() / other_variance + ratio - ratio.log() - 1) / 2


def entropy_loss(teacher_logits: Tensor) -> Tensor:
    """The mean entropy of a prediction, in nats: least where the teacher is sure."""
    logs = F.log_softmax(teacher_logits, dim=1)
    return -(logs.exp() * logs).sum(1).mean()
