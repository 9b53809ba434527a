"""One pure function per loss term: logits [B, num_classes] in, a scalar out."""

import math

import torch.nn.functional as F
from torch import Tensor


def class_loss(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """L_ce: the teacher should see the wanted label (NAYER, equation 3).

    >>> class_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.6931)
    """
    return F.cross_entropy(teacher_logits, targets)


def class_balance_loss(teacher_logits: Tensor) -> Tensor:
    """The negative entropy of the batch's mean prediction, in nats: least for equal classes.

    DAFL (Chen et al., 2019, arXiv 1904.01186, equation 5); DFQ (Choi et al., 2020,
    arXiv 2005.04136).

    >>> class_balance_loss(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
    tensor(-0.6931)
    """
    # In logarithms, where a class that nobody sees has a gradient.
    each = F.log_softmax(teacher_logits, dim=1)
    mean = each.logsumexp(0) - math.log(len(each))
    return (mean.exp() * mean).sum()


def divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each image at `temperature`, in nats: [B]."""
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def adversarial_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """L_adv: the student should disagree with the teacher, but not yet on the label.

    The negative divergence, counted on images where both predict the same class and averaged
    over all images (NAYER, equation 4).
    """
    agree = student_logits.argmax(1) == teacher_logits.argmax(1)
    return -(divergence(student_logits, teacher_logits) * agree).mean()


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 20.0
) -> Tensor:
    """KL(teacher || student) * temperature**2 (Hinton et al., 2015, arXiv 1503.02531)."""
    return divergence(student_logits, teacher_logits, temperature).mean() * temperature**2
