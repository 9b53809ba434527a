"""DAFL: Data-Free Learning of Student Networks.

Chen et al., ICCV 2019, arXiv 1904.01186.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import MOMENTUM_SGD, step_decay
from nayer_pl.errors import InputError
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.losses.functional import activation_loss, class_balance_loss, onehot_loss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.hooks import frozen, layer_inputs
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime.options import checked
from nayer_pl.synthesis.generators import Generator
from nayer_pl.synthesis.synthesizer import OnlineSynthesizer


class DAFL(DataFreeDistillation):
    """The generator imitates what training data did to the teacher: three terms, no adversary.

    The teacher should be sure of a class, whichever it is (one-hot), its features should be large
    (activation), and over a batch it should see every class as often (information entropy). The
    student learns by plain distillation. The plan should be interleaved.

    Paper and published code differ; terms and weights are the code's. Activation is the mean, not
    the sum, over features. The entropy is not divided by the number of classes, and the code takes
    logarithms to base 10: its 5 is 5 / ln 10 here. As in the paper, the student sees images of a z
    of its own (in the code: those of the generator's step). Images are in [0, 1] (there:
    standardized by a last BatchNorm in the generator).

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images to make.
        onehot_weight: Weight of the cross-entropy with what the teacher sees.
        activation_weight: Weight of the mean absolute feature; 0 leaves it out.
        balance_weight: Weight of the entropy over classes, in nats.
        noise_features: Size of z ~ N(0, 1).
        generator: (features, image_shape) -> generator.
        generator_steps: Steps of the generator in a turn, each with a z of its own.
        generator_lr: Learning rate of the generator's Adam, which continues from turn to turn; it
            does not fall.
        generator_betas: Betas of that Adam.
        augmentation: Of the images before teacher and student judge them; None for none.
        student_loss: (student logits, teacher logits, labels) -> scalar.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: The teacher has no last linear layer, whose inputs are the features, or an
            option is out of range.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> DAFL(teacher, student, (3, 32, 32)).synthesizer.noise_features
        100
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        onehot_weight: NonNegativeFloat = 1.0,
        activation_weight: NonNegativeFloat = 0.1,
        balance_weight: NonNegativeFloat = 2.17,
        noise_features: PositiveInt = 100,
        generator: Callable[..., nn.Module] = Generator,
        generator_steps: PositiveInt = 1,
        generator_lr: NonNegativeFloat = 0.02,
        generator_betas: tuple[float, float] = (0.9, 0.999),
        augmentation: Callable[..., Any] | None = None,
        student_loss: Callable[..., Any] = KLDivergence(temperature=1.0),
        optimizer: Callable[..., Any] = partial(MOMENTUM_SGD, lr=0.1, weight_decay=5e-4),
        scheduler: Callable[..., Any] = partial(step_decay, milestones=(0.4, 0.8), decay=0.1),
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        weights = onehot_weight, activation_weight, balance_weight
        head = last_linear(teacher, image_shape) if activation_weight else None
        synthesizer = OnlineSynthesizer(
            generator(noise_features, image_shape),
            noise_features,
            partial(imitate_data, weights=weights, head=head),
            generator_steps,
            generator_lr,
            generator_betas,
            augmentation,
            follow_student=False,
        )
        common = student_loss, optimizer, scheduler, seed, check_teacher, compile
        super().__init__(frozen_teacher, student, synthesizer, *common)


def imitate_data(
    images: Tensor,
    targets: Tensor,
    teacher: FrozenTeacher,
    student: nn.Module,
    warm_up: bool,
    weights: tuple[float, float, float],
    head: str | None,
) -> dict[str, Tensor]:
    """The weighted sum of the three terms (equation 6), and each of them.

    `head` names the teacher's last linear layer; None leaves the activation term out.
    """
    if head is None:
        logits = teacher(images)
    else:
        logits, inputs = layer_inputs(teacher.classifier, images, [head])
    terms = {"onehot": onehot_loss(logits), "balance": class_balance_loss(logits)}
    loss = weights[0] * terms["onehot"] + weights[2] * terms["balance"]
    if head is not None:
        terms["activation"] = activation_loss(inputs[head])
        loss = loss + weights[1] * terms["activation"]
    return {"loss": loss, **terms}


def last_linear(net: Classifier, image_shape: Sequence[int]) -> str:
    """Name, within the network, of the linear layer that puts out the logits.

    Raises:
        InputError: The linear layer that is called last does not, or there is none.
    """
    names = [name for name, layer in net.network.named_modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad(), frozen(net):
        logits, inputs = layer_inputs(net, net.dummy_images(image_shape), names)
    last = next(reversed(inputs), None)
    if last is None or net.network.get_submodule(last).out_features != logits.shape[1]:
        raise InputError(
            "The teacher does not end in a linear layer, so it has no features for the activation "
            "term; set activation_weight=0 to leave it out, or choose a method that needs none: "
            "DFAD works with every teacher, ZSKT with one that has feature maps, NAYER with one "
            "that has BatchNorms."
        )
    return last
