"""NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge Distillation.

Tran et al., CVPR 2024, arXiv 2310.00258.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import COSINE, MOMENTUM_SGD
from nayer_pl.errors import InputError
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.losses.inversion import InversionLoss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.conditioning import LabelConditioning, NoiseConditioning
from nayer_pl.synthesis.generators import Generator, reset_parameters_
from nayer_pl.synthesis.label_text import LabelText
from nayer_pl.synthesis.synthesizer import Synthesizer


class NAYER(DataFreeDistillation):
    """Label text is the generator's input; a noisy layer, new for every round, makes it random.

    There is no z: all that differs between two rounds of the same labels is the noisy layer, a
    linear layer whose weights are drawn from N(0, 1) and then learned for the round's few steps,
    with the generator, by an Adam that starts afresh. One layer serves a full set of classes (K to
    1), so a round has as many of them as sets. The images of the step with the lowest loss are
    banked. The generator is carried over from round to round, until its life ends.

    Paper and published code differ; this is the code: the statistics of a round are averaged with
    those of earlier rounds, and the generator also starts from scratch when distillation begins.
    Not taken over: the lowest loss is that of the round (there, with an oversight, of all rounds so
    far), the labels of a round are balanced on every device, and each data set's label text is in
    the order of its labels.

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        label_text: Label-text embeddings [num_classes, d], or what encodes them; only
            `conditioning="lte"` needs it.
        conditioning: "lte", "onehot" (the label without its meaning), or "noise" (no label).
        reset_noisy_layer: Draw the noisy layer for every round (NAYER), or only once.
        labels_per_layer: K of the noisy layer; None for one layer per full set of classes.
        noisy_features: Size of the noisy layer's output.
        generator: (features, image_shape) -> generator.
        generator_steps: Optimization steps in a round.
        generator_lr: Learning rate of the Adam that starts afresh in every round.
        generator_betas: Betas of that Adam.
        generator_life: Epochs until the generator starts from scratch.
        bn_weight: Weight of the BatchNorm statistics term.
        ce_weight: Weight of the label term.
        adv_weight: Weight of the adversarial term, which is left out in warm-up.
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
        InputError: Label text is missing or of another number of classes, or an option is out of
            range, or the teacher has no statistics to match.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> text = torch.randn(3, 16)
        >>> method = NAYER(teacher, student, (3, 32, 32), text, generator_steps=20)
        >>> method.synthesizer.steps
        20
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        label_text: Tensor | LabelText | None = None,
        conditioning: Literal["lte", "onehot", "noise"] = "lte",
        reset_noisy_layer: bool = True,
        labels_per_layer: PositiveInt | None = None,
        noisy_features: PositiveInt = 1000,
        generator: Callable[..., nn.Module] = Generator,
        generator_steps: PositiveInt = 30,
        generator_lr: NonNegativeFloat = 4e-3,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        generator_life: PositiveInt = 10,
        bn_weight: NonNegativeFloat = 10.0,
        ce_weight: NonNegativeFloat = 0.5,
        adv_weight: NonNegativeFloat = 1.33,
        bn_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
        augmentation: Callable[..., Any] | None = None,
        round_size: PositiveInt = 400,
        student_loss: Callable[..., Any] = KLDivergence(),
        optimizer: Callable[..., Any] = MOMENTUM_SGD,
        scheduler: Callable[..., Any] = COSINE,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        loss = InversionLoss(frozen_teacher, bn_weight, ce_weight, adv_weight, bn_momentum)
        classes = teacher.num_classes(image_shape)
        inputs: LabelConditioning | NoiseConditioning
        if conditioning == "noise":
            inputs = NoiseConditioning(noisy_features)
        else:
            onehot = conditioning == "onehot"
            embeddings = torch.eye(classes) if onehot else _embeddings(label_text, classes)
            per_layer = classes if labels_per_layer is None else labels_per_layer
            inputs = LabelConditioning(
                embeddings, noisy_features, round_size, per_layer, reset_noisy_layer
            )
        synthesizer = NoisyLayerSynthesizer(
            inputs,
            generator(noisy_features, image_shape),
            loss,
            generator_steps,
            generator_lr,
            generator_betas,
            generator_life,
            round_size,
            augmentation,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)


class NoisyLayerSynthesizer(Synthesizer):
    """A generator whose input is a label, made random by a noisy layer (NAYER, algorithm 1).

    Example:
        >>> inputs = LabelConditioning(torch.eye(3), 8, batch_size=6, labels_per_layer=3)
        >>> parts = inputs, Generator(8, (1, 8, 8), width=4), lambda *_: {"loss": torch.zeros(1)}
        >>> made = NoisyLayerSynthesizer(*parts, 30, 4e-3, (0.5, 0.999), life=10, round_size=6)
        >>> made.generate(torch.tensor([0, 1, 2])).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        conditioning: LabelConditioning | NoiseConditioning,
        generator: nn.Module,
        criterion: InversionLoss,
        steps: int,
        lr: float,
        betas: tuple[float, float],
        life: int,
        round_size: int,
        augmentation: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(criterion, steps, augmentation, round_size)
        self.conditioning, self.generator = conditioning, generator
        self.lr, self.betas, self.life = lr, (betas[0], betas[1]), life
        if getattr(conditioning, "reset_noisy_layer", False):
            self.transient = ("conditioning.noisy_layer",)

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam of the generator, with the noisy layer and the BatchNorm before it."""
        parameters = [*self.conditioning.parameters(), *self.generator.parameters()]
        return [Adam(parameters, lr=self.lr, betas=self.betas, fused=True)]

    def start_run(self) -> None:
        """Give this rank a noisy layer of its own, if it keeps the first one."""
        self.conditioning.start_run(self.rng)

    def start_epoch(self, epoch: int, warmup_epochs: int, optimizers: Sequence[Optimizer]) -> None:
        """Start the generator from scratch at the end of its life, and when distillation begins."""
        if epoch > 0 and (epoch % self.life == 0 or epoch == warmup_epochs):
            reset_parameters_(self.generator)
            self.conditioning.reset_parameters()

    def start_round(self, targets: Tensor, teacher: FrozenTeacher, bank: Any) -> None:
        """Draw the noisy layer."""
        self.conditioning.start_round(targets, self.rng)

    def generate(self, targets: Tensor) -> Tensor:
        """Label text, noisy layer, generator."""
        return self.generator(self.conditioning(targets))

    def finish_round(self, optimizers: Sequence[Any], backward: Callable[[Tensor], None]) -> None:
        """No round takes over Adam's averages from another."""
        optimizers[0].optimizer.state.clear()
        self.criterion.batchnorm.update_average()

    def compile_steps(self) -> None:
        """The generator's step in two graphs, because crops are drawn between them."""
        self.generate = torch.compile(self.generate, dynamic=False)  # type: ignore[method-assign]
        self.criterion.forward = torch.compile(self.criterion.forward, dynamic=False)


def _embeddings(label_text: Tensor | LabelText | None, classes: int) -> Tensor:
    if label_text is None:
        raise InputError("conditioning='lte' needs label_text: embeddings, or a LabelText.")
    if isinstance(label_text, Tensor):
        embeddings = label_text
    elif len(label_text.names) == classes:
        embeddings = label_text.embeddings()
    else:
        raise InputError(
            f"There are {len(label_text.names)} class names, but the teacher has {classes} "
            "outputs; give one name per output, in the order of the labels."
        )
    if embeddings.ndim != 2 or len(embeddings) != classes:
        raise InputError(
            f"Label text must be [{classes}, d], a row per output of the teacher, not "
            f"{list(embeddings.shape)}."
        )
    return embeddings
