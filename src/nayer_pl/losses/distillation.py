"""The student's losses: a class for each published one, which holds its options.

Terms that papers add (cross-entropy with the labels) and warm-ups of weights are left out;
`KLCrossEntropy` alone has both terms.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from nayer_pl.losses.functional import kl_divergence
from nayer_pl.runtime.options import CheckedFields


@runtime_checkable
class StudentLoss(Protocol):
    """What the student minimizes: any function or object with this signature.

    Labels, int64 [B], are the images' target labels or, in methods without, the teacher's answers.

    Example:
        >>> isinstance(KLDivergence(), StudentLoss)
        True
    """

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] and labels [B] -> a scalar."""


@dataclass(frozen=True)
class KLDivergence(CheckedFields):
    """KL(teacher || student) of softened predictions (`soft_kl`); labels are not used.

    Args:
        temperature: divides all logits; 20 as in NAYER.
        mean_over_classes: divides the loss by the number of classes, as ZSKT's published code does.

    Example:
        >>> KLDivergence(4)(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.4949)
    """

    temperature: PositiveFloat = 20.0
    mean_over_classes: bool = False

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] -> a scalar."""
        loss = soft_kl(student_logits, teacher_logits, self.temperature)
        return loss / teacher_logits.shape[1] if self.mean_over_classes else loss


def soft_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The mean KL(teacher || student) * temperature**2, in nats (arXiv 1503.02531, section 2)."""
    return kl_divergence(student_logits, teacher_logits, temperature).mean() * temperature**2


@dataclass(frozen=True)
class KLCrossEntropy(CheckedFields):
    """alpha * `soft_kl` + (1 - alpha) * cross-entropy with the labels.

    Hinton et al., 2015 (arXiv 1503.02531), section 2, only ask for a much lower weight of the
    labels; most published comparisons have 0.9 and 0.1 at a temperature of 4.

    Args:
        temperature: divides all logits in the divergence, not in the cross-entropy.
        alpha: weight of the divergence, from 0 to 1.

    Example:
        >>> KLCrossEntropy(alpha=0.5)(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.3466)
    """

    temperature: PositiveFloat = 4.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] and labels [B] -> a scalar."""
        divergence = soft_kl(student_logits, teacher_logits, self.temperature)
        return self.alpha * divergence + (1 - self.alpha) * F.cross_entropy(student_logits, labels)


@dataclass(frozen=True)
class DecoupledKD(CheckedFields):
    """DKD: alpha * TCKD + beta * NCKD, each * temperature**2 as in the published code.

    Zhao et al., 2022 (arXiv 2203.08679), equation 7. TCKD is the divergence of the binary
    predictions "label or not", NCKD that of the predictions among the other classes. To leave out
    the label, the published code takes 1000 from its logit; here its column is left out, which is
    exact for logits of any size. TCKD has a logsumexp here, not the log of a sum that may be zero.

    Args:
        temperature: divides all logits.
        alpha: weight of the target-class part.
        beta: weight of the non-target-class part; published with 0.5 to 8, by pair of networks.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 9.0, 0.0]])
        >>> DecoupledKD(temperature=1)(student, teacher, torch.tensor([1]))
        tensor(1.0961)
    """

    temperature: PositiveFloat = 4.0
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 8.0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] and labels [B] -> a scalar."""
        student = _split(student_logits / self.temperature, labels)
        teacher = _split(teacher_logits / self.temperature, labels)
        target, others = (
            kl_divergence(*pair).mean() * self.temperature**2
            for pair in zip(student, teacher, strict=True)
        )
        return self.alpha * target + self.beta * others


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C] -> logits of "label or not" [B, 2] and of the other classes [B, C - 1]."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    label = labels.unsqueeze(1)
    others = logits.gather(1, columns + (columns >= label))
    return torch.cat([logits.gather(1, label), others.logsumexp(1, keepdim=True)], 1), others


@dataclass(frozen=True)
class LogitStandardization(CheckedFields):
    """`soft_kl` of each image's z-scores: mean and spread of the student's logits are free.

    Sun et al., 2024 (arXiv 2403.01427), algorithms 1 and 2. The standard deviation has C in the
    denominator in the paper, but C - 1 in the published code, which also adds 1e-7 to it. This has
    C - 1 as the published results do, and adds nothing, so that scale has no influence at all.
    Labels are not used.

    Args:
        temperature: divides the standardized logits; the paper's base temperature.
        weight: of the loss; published with 9, next to a cross-entropy of weight 0.1.

    Example:
        >>> teacher = torch.tensor([[3.0, 1.0, -1.0]])
        >>> LogitStandardization()(5 * teacher + 7, teacher, torch.tensor([0]))
        tensor(0.)
    """

    temperature: PositiveFloat = 2.0
    weight: NonNegativeFloat = 9.0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] -> a scalar."""
        scores = _z_score(student_logits), _z_score(teacher_logits)
        return self.weight * soft_kl(*scores, self.temperature)


def _z_score(logits: Tensor) -> Tensor:
    """Each image's logits without their mean and spread."""
    deviation, mean = torch.std_mean(logits, 1, keepdim=True)
    return (logits - mean) / deviation.clamp_min(1e-8)


@dataclass(frozen=True)
class DIST(CheckedFields):
    """1 - correlation of probabilities, of classes and of images, each * temperature**2.

    Huang et al., 2022 (arXiv 2205.10536), section 3. The square is in the published code, not in
    the paper. That code adds 1e-8 to the product of two norms, which weakens the relation of a
    class that no image shows; here 1e-8 is the least value of each norm. Labels are not used.

    Args:
        temperature: divides all logits; published with 4 for CIFAR-100 and 1 for ImageNet.
        beta: weight of the relations between classes, within each image.
        gamma: weight of the relations between images, within each class.

    Example:
        >>> teacher = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(DIST()(teacher + 5, teacher, torch.tensor([0, 1])).item(), 4)
        0.0
    """

    temperature: PositiveFloat = 4.0
    beta: NonNegativeFloat = 2.0
    gamma: NonNegativeFloat = 2.0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] -> a scalar."""
        student = (student_logits / self.temperature).softmax(1)
        teacher = (teacher_logits / self.temperature).softmax(1)
        inter, intra = (
            (1 - _pearson(*pair).mean()) * self.temperature**2
            for pair in ((student, teacher), (student.T, teacher.T))
        )
        return self.beta * inter + self.gamma * intra


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of each row; 0 for a constant row."""
    first, second = (each - each.mean(1, keepdim=True) for each in (first, second))
    return F.cosine_similarity(first, second, dim=1, eps=1e-8)


@dataclass(frozen=True)
class L1Logits:
    """The mean absolute difference of logits (DFAD, arXiv 1912.11006); labels are not used.

    Example:
        >>> L1Logits()(torch.tensor([[1.0, 4.0]]), torch.zeros(1, 2), torch.tensor([0]))
        tensor(2.5000)
    """

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] -> a scalar."""
        return F.l1_loss(student_logits, teacher_logits)


@dataclass(frozen=True)
class MSELogits:
    """The mean squared difference of logits; labels are not used.

    Ba and Caruana, 2014 (arXiv 1312.6184), equation 1, with a mean in place of half the sum.

    Example:
        >>> MSELogits()(torch.tensor([[1.0, 4.0]]), torch.zeros(1, 2), torch.tensor([0]))
        tensor(8.5000)
    """

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, num_classes] -> a scalar."""
        return F.mse_loss(student_logits, teacher_logits)
