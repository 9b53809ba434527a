"""What makes images: the part of a method that a synthesis round trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.augmentation import Augmentation

Criterion = Callable[[Tensor, Tensor, FrozenTeacher, nn.Module, bool], dict[str, Tensor]]
"""(images, targets, teacher, student, warm_up) -> loss terms by name, "loss" among them."""


class Synthesizer(nn.Module, ABC):
    """Makes images by gradient descent: owns a generator or pixels, their loss and randomness.

    A synthesis round is: `start_round`; then `steps` times `generate`, `loss` and a step of the
    first optimizer; then `finish_round`. The images of the step with the lowest loss are kept
    (`DataFreeDistillation` does all of that).

    Args:
        criterion: Judges images; see `Criterion`.
        steps: Optimization steps in a round.
        augmentation: Applied to images before they are judged; None for none.
        round_size: Most images in a round; None for no limit.

    Example:
        >>> class Pixels(Synthesizer):
        ...     def __init__(self):
        ...         super().__init__(lambda images, *_: {"loss": -images.mean()}, steps=10)
        ...         self.pixels = nn.Parameter(torch.zeros(4, 1, 8, 8))
        ...
        ...     def configure_optimizers(self):
        ...         return [Adam([self.pixels], lr=0.1)]
        ...
        ...     def generate(self, targets):
        ...         return self.pixels[: len(targets)].sigmoid()
        >>> Pixels().generate(torch.tensor([0, 1])).shape
        torch.Size([2, 1, 8, 8])
    """

    class_conditional = True
    """Whether images are made for target labels; if not, the teacher's answers are their labels."""
    lr_name = "generator_lr"
    """The option to lower when synthesis fails."""
    transient: tuple[str, ...] = ()
    """Submodules and parameters that every round draws again, so that no checkpoint needs them."""
    student_images: Callable[[int], Tensor] | None = None
    """Makes this number of fresh images for a step of the student; None takes them of the bank."""
    rng: torch.Generator
    """Random numbers of this rank's noise, on its device; there once a trainer has set it up."""

    @checked
    def __init__(
        self,
        criterion: Callable[..., Any],
        steps: PositiveInt,
        augmentation: Callable[..., Any] | None = None,
        round_size: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.criterion: Any = criterion
        self.steps, self.round_size = steps, round_size
        self.augmentation: Augmentation | None = augmentation

    @abstractmethod
    def generate(self, targets: Tensor) -> Tensor:
        """Target labels [B] -> images in [0, 1], [B, C, H, W], with a gradient."""

    @abstractmethod
    def configure_optimizers(self) -> list[Optimizer]:
        """The optimizer of a round's steps, and others that `finish_round` uses."""

    def loss(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: FrozenTeacher,
        student: nn.Module,
        warm_up: bool,
    ) -> dict[str, Tensor]:
        """Loss terms by name, scalars; "loss" is what a step minimizes.

        Args:
            images: What `generate` returned, [B, C, H, W].
            targets: Target labels, [B].
            teacher: Judges the images.
            student: Frozen, in evaluation mode.
            warm_up: Whether the student has learned nothing yet, so that its opinion is moot.
        """
        return self.criterion(self.augment(images), targets, teacher, student, warm_up)

    def augment(self, images: Tensor) -> Tensor:
        """Augment images with this rank's own random numbers."""
        return images if self.augmentation is None else self.augmentation(images, self.rng)

    # Moments of a run; a method overrides what it needs

    def start_run(self) -> None:
        """Called once at the beginning of a run, but not of one that is resumed."""

    def start_epoch(self, epoch: int, warmup_epochs: int, optimizers: Sequence[Optimizer]) -> None:
        """Called before every epoch, with the student's optimizer and then this one's own."""

    def start_round(self, targets: Tensor, teacher: FrozenTeacher, bank: Any) -> None:
        """Draw the randomness of a round; `bank` holds the images of earlier rounds."""

    def finish_round(self, optimizers: Sequence[Any], backward: Callable[[Tensor], None]) -> None:
        """Called after the last step, with the optimizers of `configure_optimizers`."""

    def compile_steps(self) -> None:
        """Let `torch.compile` fuse what a step does, method by method."""


class OnlineSynthesizer(Synthesizer):
    """A generator of noise that is trained all along; every student step sees images of its own.

    The plan should be interleaved (`Plan.interleaved`): a round is a turn of the generator. The
    bank serves pictures and counts only, and holds one round.

    Args:
        generator: Noise z [B, noise_features] -> images in [0, 1], [B, C, H, W].
        noise_features: Size of z ~ N(0, 1).
        criterion: Judges images; see `nayer_pl.synthesis.synthesizer.Criterion`.
        steps: Steps in a turn, each with a z of its own.
        lr: Learning rate of its Adam, which continues from turn to turn.
        betas: Betas of that Adam.
        augmentation: Applied to images before they are judged; None for none.
        follow_student: Whether the learning rate falls as the student's does.
        round_size: Most images in a turn; None for no limit.

    Example:
        >>> generator = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
        >>> bright = lambda images, *_: {"loss": -images.mean()}
        >>> made = OnlineSynthesizer(generator, 6, bright, steps=1, lr=1e-3, betas=(0.9, 0.999))
        >>> made.rng = torch.Generator()
        >>> made.student_images(5).shape
        torch.Size([5, 1, 8, 8])
    """

    class_conditional = False

    @checked
    def __init__(
        self,
        generator: nn.Module,
        noise_features: PositiveInt,
        criterion: Callable[..., Any],
        steps: PositiveInt,
        lr: NonNegativeFloat,
        betas: tuple[float, float],
        augmentation: Callable[..., Any] | None = None,
        follow_student: bool = True,
        round_size: PositiveInt | None = None,
    ) -> None:
        super().__init__(criterion, steps, augmentation, round_size)
        self.generator, self.noise_features = generator, noise_features
        self.lr, self.betas, self.follow_student = lr, betas, follow_student

    def generate(self, targets: Tensor) -> Tensor:
        """Fresh images; of the labels only the number counts."""
        return self.sample(len(targets))

    def sample(self, count: int) -> Tensor:
        """Fresh images in [0, 1], [count, C, H, W]."""
        device = next(self.generator.parameters()).device
        z = torch.randn(count, self.noise_features, device=device, generator=self.rng)
        return self.generator(z)

    def student_images(self, count: int) -> Tensor:
        """Images of a z of their own, without a gradient."""
        with torch.no_grad():
            return self.sample(count)

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam of the generator."""
        betas = (self.betas[0], self.betas[1])
        return [Adam(self.generator.parameters(), lr=self.lr, betas=betas, fused=True)]

    def start_epoch(self, epoch: int, warmup_epochs: int, optimizers: Sequence[Optimizer]) -> None:
        """Let the generator's learning rate fall with the student's."""
        if self.follow_student:
            student = optimizers[0].param_groups[0]
            optimizers[1].param_groups[0]["lr"] = self.lr * (student["lr"] / student["initial_lr"])
