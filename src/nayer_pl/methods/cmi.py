"""CMI: Contrastive Model Inversion for Data-Free Knowledge Distillation.

Fang et al., IJCAI 2021, arXiv 2105.08584.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import COSINE, MOMENTUM_SGD
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.losses.functional import contrastive_loss
from nayer_pl.losses.inversion import InversionLoss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.teacher import FrozenTeacher, Layers, TeacherFeatures
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.augmentation import RandomResizedPart, Share
from nayer_pl.synthesis.generators import Generator, dcgan_reset_
from nayer_pl.synthesis.synthesizer import Synthesizer


class CMI(DataFreeDistillation):
    """Images must be told apart: from each other and from those of earlier rounds.

    Every round has a generator of its own; its weights and its noise z are optimized together. A
    head on the teacher's features learns to tell images apart: a part of an image should have the
    embedding of the whole image, and not that of any other one. The generator's images are
    optimized for the same (InfoNCE), so they spread.

    As in the published code (zju-vipa/CMI), features are the spatial means of the inputs of the
    teacher's BatchNorms; the head is Linear, ReLU, Linear and the unit sphere, and is trained all
    along; gradients flow through the part only; new and earlier images have equal weight. Other
    than there, the features of earlier images are not stored: the teacher computes them once a
    round, of images drawn from the memory bank; and every class is wanted equally often. In the
    paper there is no average of statistics over rounds.

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        noise_features: Size of z, which starts as N(0, 1).
        generator: (features, image_shape) -> generator.
        generator_steps: Optimization steps in a round.
        generator_lr: Learning rate of generator, z and head.
        generator_betas: Betas of the Adam of generator and z, which starts afresh in every round;
            the head's continues, with PyTorch's betas.
        bn_weight: Weight of the BatchNorm statistics term.
        ce_weight: Weight of the label term.
        adv_weight: Weight of the adversarial term, which is left out in warm-up.
        cr_weight: Weight of the contrastive term; 0 leaves it out.
        cr_temperature: Temperature of the contrastive term.
        negatives: Most earlier images in the contrastive term.
        layers: BatchNorms that features are taken from: "all", or "stages" for the last one at each
            resolution (the head has as many rows and columns as there are features).
        embedding_features: Size of the head's output.
        part: Smallest and largest share of an image's area that the part has; it is mirrored if
            the augmentation mirrors.
        bn_momentum: Weight of earlier rounds in the statistics term.
        augmentation: Of the images before teacher and student judge them; None for none.
        round_size: Most labels in one round.
        student_loss: (student logits, teacher logits, labels) -> scalar.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: The teacher has no BatchNorm, or an option is out of range.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> CMI(teacher, student, (3, 32, 32), layers="stages").synthesizer.features.count
        112
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        noise_features: PositiveInt = 256,
        generator: Callable[..., nn.Module] = Generator,
        generator_steps: PositiveInt = 200,
        generator_lr: NonNegativeFloat = 1e-3,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        bn_weight: NonNegativeFloat = 1.0,
        ce_weight: NonNegativeFloat = 0.5,
        adv_weight: NonNegativeFloat = 0.5,
        cr_weight: NonNegativeFloat = 0.8,
        cr_temperature: PositiveFloat = 0.1,
        negatives: NonNegativeInt = 4096,
        layers: Layers = "all",
        embedding_features: PositiveInt = 256,
        part: tuple[Share, Share] = (0.25, 1.0),
        bn_momentum: Annotated[float, Ge(0), Lt(1)] = 0.0,
        augmentation: Callable[..., Any] | None = None,
        round_size: PositiveInt = 256,
        student_loss: Callable[..., Any] = KLDivergence(),
        optimizer: Callable[..., Any] = partial(MOMENTUM_SGD, lr=0.1),
        scheduler: Callable[..., Any] = COSINE,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        frozen_teacher.require_norms()  # features too come from BatchNorms
        synthesizer = ContrastiveSynthesizer(
            generator(noise_features, image_shape),
            torch.zeros(round_size, noise_features),
            InversionLoss(frozen_teacher, bn_weight, ce_weight, adv_weight, bn_momentum),
            (cr_weight, cr_temperature),
            TeacherFeatures(frozen_teacher, image_shape, layers),
            RandomResizedPart(part, getattr(augmentation, "flip", False)),
            generator_steps,
            generator_lr,
            generator_betas,
            negatives,
            embedding_features,
            augmentation,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)


class ContrastiveSynthesizer(Synthesizer):
    """A new generator in every round, and a head that learns to tell images apart.

    `latents` is the memory for z, [round_size, noise_features]; `contrast` is the weight and the
    temperature of the contrastive term.

    Example:
        >>> teacher = FrozenTeacher(Classifier(nn.BatchNorm2d(1), mean=[0.5], std=[0.2]))
        >>> views = TeacherFeatures(teacher, (1, 8, 8), "all"), RandomResizedPart()
        >>> parts = Generator(6, (1, 8, 8)), torch.zeros(4, 6), InversionLoss(teacher, 1, 0, 0, 0)
        >>> numbers = 200, 1e-3, (0.5, 0.999), 4096, 256
        >>> ContrastiveSynthesizer(*parts, (0.8, 0.1), *views, *numbers).head[-1].out_features
        256
    """

    transient = ("generator", "latents")

    def __init__(
        self,
        generator: nn.Module,
        latents: Tensor,
        criterion: InversionLoss,
        contrast: tuple[float, float],
        features: TeacherFeatures,
        part: RandomResizedPart,
        steps: int,
        lr: float,
        betas: tuple[float, float],
        negatives: int,
        embedding_features: int,
        augmentation: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(criterion, steps, augmentation, len(latents))
        self.generator, self.latents = generator, nn.Parameter(latents)
        self.lr, self.betas = lr, (betas[0], betas[1])
        self.weight, self.temperature = contrast
        self.features, self.part, self.negatives = features, part, negatives
        self._earlier: tuple[Tensor, Tensor] | None = None
        out = nn.Linear(features.count, embedding_features)
        self.head = nn.Sequential(nn.Linear(features.count, features.count), nn.ReLU(), out)

    def configure_optimizers(self) -> list[Optimizer]:
        """One Adam: of the generator and z, and of the head."""
        groups: list[dict[str, Any]] = [
            {"params": [*self.generator.parameters(), self.latents], "betas": self.betas},
            {"params": list(self.head.parameters())},
        ]
        return [Adam(groups, lr=self.lr, fused=True)]

    @torch.no_grad()
    def start_round(self, targets: Tensor, teacher: FrozenTeacher, bank: Any) -> None:
        """Recall earlier images, then draw a generator and z."""
        self._earlier = self._recall(bank) if self.weight else None
        dcgan_reset_(self.generator, self.rng)
        self.latents.normal_(generator=self.rng)

    def generate(self, targets: Tensor) -> Tensor:
        """Images of z; of the labels only the number counts."""
        return self.generator(self.latents[: len(targets)])

    def loss(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: FrozenTeacher,
        student: nn.Module,
        warm_up: bool,
    ) -> dict[str, Tensor]:
        """The terms of inversion, and the contrastive one."""
        whole, part = self._views(images)
        terms = self.criterion(whole, targets, teacher, student, warm_up)
        if self._earlier is not None:
            wholes, parts = self.features.last(), self.features(part)
            wholes = torch.cat([wholes, self._earlier[0]])
            parts = torch.cat([parts, self._earlier[1]])
            embedded = [F.normalize(self.head(features)) for features in (parts, wholes)]
            terms["cr"] = contrastive_loss(
                embedded[0], embedded[1].detach(), len(whole), self.temperature
            )
            terms["loss"] = terms["loss"] + self.weight * terms["cr"]
        return terms

    def finish_round(self, optimizers: Sequence[Any], backward: Callable[[Tensor], None]) -> None:
        """Only the head takes over Adam's averages from another round."""
        adam = optimizers[0].optimizer
        for parameter in adam.param_groups[0]["params"]:
            adam.state.pop(parameter, None)
        self.criterion.batchnorm.update_average()
        self.features.forget()
        self._earlier = None

    def compile_steps(self) -> None:
        """The generator alone: views are drawn at random, and earlier images become more."""
        self.generate = torch.compile(self.generate, dynamic=False)  # type: ignore[method-assign]

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.augment(images), self.part(images, self.rng)

    def _recall(self, bank: MemoryBank) -> tuple[Tensor, Tensor]:
        """Features of both views of earlier images, [n, features] each; n may be 0."""
        device, size = self.latents.device, len(self.latents)
        chosen = torch.randperm(len(bank), device=device, generator=self.rng)
        chosen = chosen[: self.negatives].to(bank.device)
        found = [torch.empty(2, 0, self.features.count, device=device)]
        for first in range(0, len(chosen), size):
            images = bank.images[chosen[first : first + size]].to(device) / 255
            found.append(torch.stack([self.features(view) for view in self._views(images)]))
        wholes, parts = torch.cat(found, dim=1)
        return wholes, parts
