"""ZSKT: Zero-shot Knowledge Transfer via Adversarial Belief Matching.

Micaelli and Storkey, NeurIPS 2019, arXiv 1905.09768.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from nayer_pl.distillation.guards import gradient_norm
from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.errors import InputError
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.losses.functional import attention_loss, kl_divergence
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.hooks import frozen, layer_outputs
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.generators import Generator
from nayer_pl.synthesis.synthesizer import Criterion, OnlineSynthesizer


class ZSKT(DataFreeDistillation):
    """The generator looks for images that student and teacher disagree on; the student learns them.

    A turn belongs to one batch of z (algorithm 1): after the generator's step the student takes
    its steps, ten in the paper, all on the images of that z. The generator maximizes
    KL(teacher || student). The student minimizes it together with attention transfer (equation 1).
    The plan should be interleaved.

    Paper and published code differ; this is the code. It averages the student's divergence over
    classes as well as images, and the squares of attention differences over pixels, and beta was
    chosen for that; it also clips the gradients of both networks. Not taken over: the generator's
    images are in [0, 1] instead of standardized, and the student is in evaluation mode while the
    generator looks for its weaknesses.

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        beta: Weight of attention transfer in the student's loss; 0 leaves it out.
        temperature: Temperature of the divergence that the generator maximizes.
        max_gradient_norm: Gradients of either network are clipped to this norm before a step.
        round_size: Number of z in a turn; the student sees all of them, or the first of them if
            its batches are smaller.
        noise_features: Size of z ~ N(0, 1).
        generator: (features, image_shape) -> generator.
        generator_steps: Steps of the generator in a turn, all with the same z.
        generator_lr: Learning rate of the generator's Adam, which continues from turn to turn
            and falls as the student's does.
        generator_betas: Betas of that Adam.
        augmentation: Of the images before teacher and student judge them; None for none.
        student_loss: (student logits, teacher logits, labels) -> scalar.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: With `beta`, teacher and student have no feature maps of the same resolution.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_2", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> len(ZSKT(teacher, student, (3, 32, 32)).pairs)
        3
    """

    synthesizer: "TurnSynthesizer"

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        beta: NonNegativeFloat = 250.0,
        temperature: PositiveFloat = 1.0,
        max_gradient_norm: PositiveFloat = 5.0,
        round_size: PositiveInt = 128,
        noise_features: PositiveInt = 100,
        generator: Callable[..., nn.Module] = Generator,
        generator_steps: PositiveInt = 1,
        generator_lr: NonNegativeFloat = 1e-3,
        generator_betas: tuple[float, float] = (0.9, 0.999),
        augmentation: Callable[..., Any] | None = None,
        student_loss: Callable[..., Any] = KLDivergence(temperature=1.0, mean_over_classes=True),
        optimizer: Callable[..., Any] = partial(Adam, lr=2e-3, fused=True),
        scheduler: Callable[..., Any] = CosineAnnealingLR,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        synthesizer = TurnSynthesizer(
            generator(noise_features, image_shape),
            noise_features,
            partial(diverge, temperature=temperature),
            generator_steps,
            generator_lr,
            generator_betas,
            round_size,
            augmentation,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)
        self.beta, self.max_gradient_norm = beta, max_gradient_norm
        self.pairs = paired_layers(teacher, student, image_shape) if beta else []

    def on_fit_start(self) -> None:
        """Check that a turn has enough images for the student."""
        batch_size, turn = self.datamodule.plan.batch_size, len(self.synthesizer.z)
        if batch_size > turn:
            raise InputError(
                f"ZSKT's student learns from the {turn} images of the generator's turn, but the "
                f"plan's batch_size is {batch_size}; set its round_size to the same."
            )
        super().on_fit_start()

    def student_objective(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The student's loss + beta * attention transfer (equation 1)."""
        if not self.pairs:
            return super().student_objective(images, labels)
        teacher_layers, student_layers = zip(*self.pairs, strict=True)
        with torch.no_grad():
            teacher_logits, teacher_maps = layer_outputs(
                self.teacher.classifier, images, teacher_layers
            )
        logits, student_maps = layer_outputs(self.student, images, student_layers)
        differences = [
            attention_loss(student_maps[student], teacher_maps[teacher])
            for teacher, student in self.pairs
        ]
        labels = teacher_logits.argmax(1) if labels is None else labels
        loss = self.updater.loss(logits, teacher_logits, labels)
        return loss + self.beta * torch.stack(differences).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, which is multiplied by the loss's scale where losses are scaled."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        limit = torch.full((), self.max_gradient_norm, device=self.device)
        clip_gradient(optimizer, limit if scaler is None else scaler.scale(limit))


class TurnSynthesizer(OnlineSynthesizer):
    """All images of a turn are of the same z, the student's too.

    Example:
        >>> parts = Generator(6, (1, 8, 8), width=4), 6, lambda *_: {}
        >>> made = TurnSynthesizer(*parts, 1, 1e-3, (0.9, 0.999), round_size=4)
        >>> torch.equal(made.student_images(3), made.student_images(3))
        True
    """

    z: Tensor

    def __init__(
        self,
        generator: nn.Module,
        noise_features: int,
        criterion: Criterion,
        steps: int,
        lr: float,
        betas: tuple[float, float],
        round_size: int,
        augmentation: Callable[..., Any] | None = None,
    ) -> None:
        how = criterion, steps, lr, betas, augmentation
        super().__init__(generator, noise_features, *how, round_size=round_size)
        self.register_buffer("z", torch.zeros(round_size, noise_features))

    def start_round(self, targets: Tensor, teacher: FrozenTeacher, bank: Any) -> None:
        """Draw the z of this turn."""
        self.z.normal_(generator=self.rng)

    def sample(self, count: int) -> Tensor:
        """The first images of this turn, in [0, 1], [count, C, H, W]."""
        return self.generator(self.z[:count])


def diverge(
    images: Tensor,
    targets: Tensor,
    teacher: FrozenTeacher,
    student: nn.Module,
    warm_up: bool,
    temperature: float,
) -> dict[str, Tensor]:
    """The negative divergence of student and teacher, for the generator."""
    divergence = kl_divergence(student(images), teacher(images), temperature).mean()
    return {"loss": -divergence, "divergence": divergence}


def clip_gradient(optimizer: Optimizer, limit: Tensor) -> None:
    """Scale the gradient of all parameters together down to a norm of `limit`, a scalar."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    factor = (limit / gradient_norm(parameters)).clamp(max=1)  # 1 too where the norm is 0
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def paired_layers(
    teacher: Classifier, student: Classifier, image_shape: Sequence[int]
) -> list[tuple[str, str]]:
    """Names of the teacher's and the student's last layer at each resolution that both have."""
    theirs, own = last_layers(teacher, image_shape), last_layers(student, image_shape)
    pairs = [(theirs[size], own[size]) for size in theirs if size in own]
    if not pairs:
        raise InputError(
            "Teacher and student have no feature maps of the same resolution, so attention cannot "
            f"be transferred (teacher: {_sizes(theirs)}; student: {_sizes(own)}); set beta=0 to "
            "leave it out, or choose a method that needs none: DFAD works with every teacher, DAFL "
            "with one that ends in a linear layer, NAYER with one that has BatchNorms."
        )
    return pairs


def last_layers(net: Classifier, image_shape: Sequence[int]) -> dict[tuple[int, ...], str]:
    """For every resolution (H, W) the name of the last layer with a convolution in it.

    Of a residual network that is the end of each stage. A single pixel has no attention.
    """
    layers = [
        name
        for name, module in net.network.named_modules()
        if name and any(isinstance(part, nn.Conv2d) for part in module.modules())
    ]
    with torch.no_grad(), frozen(net):
        _, maps = layer_outputs(net, net.dummy_images(image_shape), layers)
    sizes = {name: tuple(out.shape[2:]) for name, out in maps.items() if isinstance(out, Tensor)}
    return {size: name for name, size in sizes.items() if len(size) == 2 and size != (1, 1)}


def _sizes(layers: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in layers) or "none"
