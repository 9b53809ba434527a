"""DFAD: Data-Free Adversarial Distillation.

Fang et al., 2019, arXiv 1912.11006.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import MOMENTUM_SGD, step_decay
from nayer_pl.losses.distillation import L1Logits
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.generators import Generator
from nayer_pl.synthesis.synthesizer import OnlineSynthesizer


class DFAD(DataFreeDistillation):
    """Teacher and student disagree; the generator raises the discrepancy, the student lowers it.

    The discrepancy is the mean absolute error between logits. The student's steps (imitation, five
    in the published code) and the generator's (generation) see images of a new z each. The plan
    should be interleaved.

    The paper's generator may maximize the logarithm of one plus the discrepancy, which slows it
    down where the discrepancy is large. The published code does so for segmentation, and not for
    classification; `log_form` chooses. As in all methods here, images are in [0, 1] (there:
    standardized), and the student is in evaluation mode during the generator's steps (there: in
    training mode).

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        log_form: The generator's loss is -log(1 + discrepancy) instead of -discrepancy.
        noise_features: Size of z ~ N(0, 1).
        generator: (features, image_shape) -> generator.
        generator_steps: Steps of the generator in a turn, each with a z of its own.
        generator_lr: Learning rate of the generator's Adam, which continues from turn to turn
            and falls as the student's does.
        generator_betas: Betas of that Adam.
        augmentation: Of the images before teacher and student judge them; None for none.
        student_loss: (student logits, teacher logits, labels) -> scalar; the discrepancy if not
            given.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: An option is out of range.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> DFAD(teacher, student, (3, 32, 32)).synthesizer.noise_features
        256
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        log_form: bool = False,
        noise_features: PositiveInt = 256,
        generator: Callable[..., nn.Module] = Generator,
        generator_steps: PositiveInt = 1,
        generator_lr: NonNegativeFloat = 1e-3,
        generator_betas: tuple[float, float] = (0.9, 0.999),
        augmentation: Callable[..., Any] | None = None,
        student_loss: Callable[..., Any] = L1Logits(),
        optimizer: Callable[..., Any] = partial(MOMENTUM_SGD, lr=0.1, weight_decay=5e-4),
        scheduler: Callable[..., Any] = partial(step_decay, milestones=(0.2, 0.4), decay=0.1),
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        synthesizer = OnlineSynthesizer(
            generator(noise_features, image_shape),
            noise_features,
            partial(disagree, log_form=log_form),
            generator_steps,
            generator_lr,
            generator_betas,
            augmentation,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)


def disagree(
    images: Tensor,
    targets: Tensor,
    teacher: FrozenTeacher,
    student: nn.Module,
    warm_up: bool,
    log_form: bool,
) -> dict[str, Tensor]:
    """The negative discrepancy, or its logarithm, for the generator."""
    discrepancy = F.l1_loss(student(images), teacher(images))
    loss = -discrepancy.log1p() if log_form else -discrepancy
    return {"loss": loss, "discrepancy": discrepancy}
