"""DeepInversion: Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion.

Yin et al., CVPR 2020, arXiv 1912.08795.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import COSINE, MOMENTUM_SGD
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.losses.functional import jensen_shannon, total_variation
from nayer_pl.losses.inversion import InversionLoss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.augmentation import RollFlip
from nayer_pl.synthesis.synthesizer import Synthesizer


class DeepInversion(DataFreeDistillation):
    """No generator: the pixels themselves are optimized, from noise.

    The teacher should see the target label and its BatchNorms the statistics that they know, in
    images that are smooth (section 3.2). With `adv_weight` it is Adaptive DeepInversion (section
    3.3): teacher and student should also disagree.

    Pixels are held in the teacher's normalized units, for which the published step sizes and
    weights are meant. They start as N(0, 1) in every round, and before each step they are clipped
    to what an image in [0, 1] can be, as the authors' code does for ImageNet (for CIFAR-10 it does
    not). In each step the judges see them rolled by a few pixels, and mirrored or not.

    Paper and published code (NVlabs/DeepInversion, cifar10) differ. The priors are norms of the
    whole batch, as in the code. The competition is the paper's Jensen-Shannon divergence; the code
    takes its Kullback-Leibler divergences the other way round, of probabilities that it keeps
    between 0.01 and 0.99. The images of the best step are kept; what the code keeps under that
    name are those of the last one.

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        image_steps: Optimization steps in a round.
        image_lr: Learning rate of the pixels' Adam, in normalized units; it starts afresh in every
            round.
        image_betas: Betas of that Adam.
        ce_weight: Weight of the label term.
        tv_weight: Weight of total variation, an image prior.
        l2_weight: Weight of the norm of the pixels, an image prior.
        bn_weight: Weight of the BatchNorm statistics term.
        adv_weight: Weight of the competition, which is left out in warm-up; 0 for plain
            DeepInversion.
        adv_temperature: Temperature of the competition.
        bn_momentum: Weight of earlier rounds in the statistics term; none in the paper.
        augmentation: Of the images before teacher and student judge them; the paper's jitter by
            default. None for none.
        round_size: Most labels in one round.
        student_loss: (student logits, teacher logits, labels) -> scalar.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: The teacher has no statistics to match, or an option is out of range.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> DeepInversion(teacher, student, (3, 32, 32), round_size=8).synthesizer.pixels.shape
        torch.Size([8, 3, 32, 32])
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        image_steps: PositiveInt = 2000,
        image_lr: PositiveFloat = 0.05,
        image_betas: tuple[float, float] = (0.9, 0.999),
        ce_weight: NonNegativeFloat = 1.0,
        tv_weight: NonNegativeFloat = 2.5e-5,
        l2_weight: NonNegativeFloat = 3e-8,
        bn_weight: NonNegativeFloat = 10.0,
        adv_weight: NonNegativeFloat = 10.0,
        adv_temperature: PositiveFloat = 3.0,
        bn_momentum: Annotated[float, Ge(0), Lt(1)] = 0.0,
        augmentation: Callable[..., Any] | None = RollFlip(),
        round_size: PositiveInt = 256,
        student_loss: Callable[..., Any] = KLDivergence(),
        optimizer: Callable[..., Any] = partial(MOMENTUM_SGD, lr=0.1),
        scheduler: Callable[..., Any] = COSINE,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        adversary = partial(competition, temperature=adv_temperature)
        inversion = InversionLoss(
            frozen_teacher, bn_weight, ce_weight, adv_weight, bn_momentum, adversary
        )
        synthesizer = PixelSynthesizer(
            torch.zeros(round_size, *image_shape),
            PriorLoss(inversion, tv_weight, l2_weight),
            teacher,
            image_steps,
            image_lr,
            image_betas,
            augmentation,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)


def competition(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """One less the Jensen-Shannon divergence of student and teacher (section 3.3); a scalar."""
    return 1 - jensen_shannon(student_logits, teacher_logits, temperature).mean()


class PriorLoss(nn.Module):
    """The loss of inversion, and two priors of the pixels in the teacher's units."""

    def __init__(self, inversion: InversionLoss, tv_weight: float, l2_weight: float) -> None:
        super().__init__()
        self.inversion, self.tv_weight, self.l2_weight = inversion, tv_weight, l2_weight

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: FrozenTeacher,
        student: nn.Module,
        warm_up: bool,
    ) -> dict[str, Tensor]:
        """The weighted sum of all terms, and the terms."""
        pixels = teacher.classifier.normalize(images)
        terms = self.inversion(images, targets, teacher, student, warm_up)
        terms |= {"tv": total_variation(pixels), "l2": torch.linalg.vector_norm(pixels)}
        priors = self.tv_weight * terms["tv"] + self.l2_weight * terms["l2"]
        return {**terms, "loss": terms["loss"] + priors}


class PixelSynthesizer(Synthesizer):
    """Optimizes pixels in the teacher's normalized units.

    `pixels` is the memory for those of a round, [round_size, C, H, W].

    Example:
        >>> teacher = Classifier(nn.Identity(), mean=[0.5], std=[0.2])
        >>> parts = torch.full((4, 1, 8, 8), 99.0), lambda *_: {}, teacher
        >>> PixelSynthesizer(*parts, 200, 0.05, (0.9, 0.999)).generate(torch.tensor([0, 1])).mean()
        tensor(1., grad_fn=<MeanBackward0>)
    """

    lr_name = "image_lr"
    transient = ("pixels",)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        pixels: Tensor,
        criterion: PriorLoss,
        teacher: Classifier,
        steps: int,
        lr: float,
        betas: tuple[float, float],
        augmentation: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(criterion, steps, augmentation, len(pixels))
        self.pixels = nn.Parameter(pixels)
        self.lr, self.betas = lr, (betas[0], betas[1])
        self.register_buffer("mean", teacher.mean, persistent=False)
        self.register_buffer("std", teacher.std, persistent=False)

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam of the pixels."""
        return [Adam([self.pixels], lr=self.lr, betas=self.betas, fused=True)]

    @torch.no_grad()
    def start_round(self, targets: Tensor, teacher: FrozenTeacher, bank: Any) -> None:
        """Start from noise."""
        self.pixels.normal_(generator=self.rng)

    def generate(self, targets: Tensor) -> Tensor:
        """The pixels as images, clipped to what an image can be; rounding may lead just outside."""
        with torch.no_grad():
            self.pixels.clamp_((0 - self.mean) / self.std, (1 - self.mean) / self.std)
        return self.pixels[: len(targets)] * self.std + self.mean

    def finish_round(self, optimizers: Sequence[Any], backward: Callable[[Tensor], None]) -> None:
        """No round takes over Adam's averages from another."""
        optimizers[0].optimizer.state.clear()
        self.criterion.inversion.batchnorm.update_average()

    def compile_steps(self) -> None:
        """What follows the random roll."""
        self.criterion.forward = torch.compile(self.criterion.forward, dynamic=False)
