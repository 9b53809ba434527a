"""The loss terms of synthesis: one pure function each, tensors in and a scalar out.

Logits are [B, num_classes]. The student's losses are in `nayer_pl.losses.distillation`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def onehot_loss(teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher itself sees.

    DAFL (Chen et al., 2019, arXiv 1904.01186, equation 2).

    Example:
        >>> onehot_loss(torch.tensor([[0.0, 0.0]]))
        tensor(0.6931)
    """
    return F.cross_entropy(teacher_logits, teacher_logits.detach().argmax(1))


def entropy_loss(teacher_logits: Tensor) -> Tensor:
    """Mean entropy of a prediction, in nats: lowest where the teacher is sure.

    DFQ (Choi et al., 2020, arXiv 2005.04136).

    Example:
        >>> entropy_loss(torch.tensor([[0.0, 0.0]]))
        tensor(0.6931)
    """
    logs = F.log_softmax(teacher_logits, dim=1)
    return -(logs.exp() * logs).sum(1).mean()


def class_balance_loss(teacher_logits: Tensor) -> Tensor:
    """Negative entropy of the batch's mean prediction, in nats: lowest for equal classes.

    DAFL (Chen et al., 2019, arXiv 1904.01186, equation 5); DFQ (Choi et al., 2020,
    arXiv 2005.04136).

    Example:
        >>> class_balance_loss(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
        tensor(-0.6931)
    """
    # In logarithms, where a class that no image shows has a gradient.
    each = F.log_softmax(teacher_logits, dim=1)
    mean = each.logsumexp(0) - math.log(len(each))
    return (mean.exp() * mean).sum()


def activation_loss(features: Tensor) -> Tensor:
    """Negative mean absolute value of features [B, d] (DAFL, equation 3).

    Example:
        >>> activation_loss(torch.tensor([[1.0, -3.0]]))
        tensor(-2.)
    """
    return -features.abs().mean()


def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) of each image at `temperature`, in nats: [B].

    Example:
        >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[50.0, 0.0]]))
        tensor([0.6931])
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def adversarial_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """L_adv: the student should disagree with the teacher, but not yet on the label.

    The negative divergence, counted on images where both predict the same class and averaged
    over all images (NAYER, equation 4).

    Example:
        >>> adversarial_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0]])) == 0
        tensor(True)
    """
    agree = student_logits.argmax(1) == teacher_logits.argmax(1)
    return -(kl_divergence(student_logits, teacher_logits) * agree).mean()


def jensen_shannon(first_logits: Tensor, second_logits: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence of each image at `temperature`, in nats, 0 to log 2: [B].

    Adaptive DeepInversion (Yin et al., 2020, arXiv 1912.08795, equation 9).

    Example:
        >>> jensen_shannon(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]]), 1.0)
        tensor([0.6931])
    """
    first = F.log_softmax(first_logits / temperature, dim=1)
    second = F.log_softmax(second_logits / temperature, dim=1)
    middle = torch.logaddexp(first, second) - math.log(2)
    both = first.exp() * (first - middle) + second.exp() * (second - middle)
    return both.sum(1) / 2


def total_variation(images: Tensor) -> Tensor:
    """How rough images [B, C, H, W] are; a scalar.

    Differences between neighbors in four directions (rows, columns, both diagonals): the sum of
    their Euclidean norms, each over the whole batch (DeepInversion's published code).

    Example:
        >>> total_variation(torch.ones(2, 3, 4, 4))
        tensor(0.)
    """
    right = images[..., 1:] - images[..., :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., :-1, 1:] - images[..., 1:, :-1]
    norms = [torch.linalg.vector_norm(each) for each in (right, down, falling, rising)]
    return torch.stack(norms).sum()


def gaussian_kl(
    mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor
) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)), element by element, in nats.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> gaussian_kl(one, one, zero, one)
        tensor([0.5000])
    """
    ratio = variance / other_variance
    return ((mean - other_mean).square() / other_variance + ratio - ratio.log() - 1) / 2


def contrastive_loss(parts: Tensor, wholes: Tensor, new: int, temperature: float) -> Tensor:
    """InfoNCE with cosine similarities: among all images, a part should find its own; a scalar.

    The mean over new images plus the mean over earlier ones. CMI (Fang et al., 2021,
    arXiv 2105.08584, equation 7).

    Args:
        parts: Unit vectors [N, d] of parts of images, those of this round first.
        wholes: Unit vectors [N, d] of the same images as a whole.
        new: Number of images of this round.
        temperature: Divides the similarities.

    Example:
        >>> contrastive_loss(torch.eye(2), torch.eye(2), new=2, temperature=1.0)
        tensor(0.3133)
    """
    similarities = parts @ wholes.T / temperature
    own = torch.arange(len(parts), device=parts.device)
    each = F.cross_entropy(similarities, own, reduction="none")
    return each[:new].mean() + (each[new:].mean() if len(each) > new else 0)


def attention(maps: Tensor) -> Tensor:
    """Where a layer looks: the mean square over channels, [B, C, H, W] -> unit vectors [B, H W].

    Attention transfer (Zagoruyko and Komodakis, 2017, arXiv 1612.03928, section 3.1).

    Example:
        >>> attention(torch.ones(1, 3, 2, 2))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.normalize(maps.square().mean(1).flatten(1))


def attention_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """Mean squared difference of attention; a scalar. Channels of [B, C, H, W] may differ.

    Example:
        >>> attention_loss(torch.ones(1, 3, 2, 2), 2 * torch.ones(1, 5, 2, 2))
        tensor(0.)
    """
    return (attention(student_maps) - attention(teacher_maps)).square().mean()
