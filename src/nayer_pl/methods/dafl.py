"""DAFL: Data-Free Learning of Student Networks.

Chen et al., ICCV 2019, arXiv 1904.01186.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nayer_pl.distillation.online import OnlineDistillation, stepping_down
from nayer_pl.errors import InputError, require_not_negative
from nayer_pl.losses.functional import class_balance_loss, class_loss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.hooks import frozen, layer_inputs


class DAFL(OnlineDistillation):
    """The generator makes what a teacher's training data did to it: three terms, and no opponent.

    The teacher should be sure of a class, whichever it is (one-hot), its features should be large
    (activation), and over a batch it should see every class as often (information entropy). The
    student learns by plain distillation.

    Paper and published code differ; terms and weights are the code's. Activation is the mean, not
    the sum, over features. The entropy is not divided by the number of classes, and the code takes
    logarithms to base 10: its 5 is 5 / ln 10 here. As in the paper, the student sees images of a z
    of its own (in the code: those of the generator's step). Images are in [0, 1] (there:
    standardized by a last BatchNorm in the generator).

    Args:
        teacher, student, image_shape: see `OnlineDistillation`, which also takes `online`.
        onehot_weight, activation_weight, balance_weight: of the three terms.
        generator_lr: of the generator's Adam; it does not fall.
        temperature: of the distillation loss.
        learning_rate, weight_decay: of the student's SGD.
        milestones: shares of the distillation epochs after which the student's learning rate falls.
        decay: what it is multiplied by then.
        online: the generator's other arguments, seed and so on of `OnlineDistillation`.

    Raises:
        InputError: the teacher has no last linear layer, whose inputs are the features.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        onehot_weight: float = 1.0,
        activation_weight: float = 0.1,
        balance_weight: float = 2.17,
        generator_lr: float = 0.02,
        temperature: float = 1.0,
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        milestones: Sequence[float] = (0.4, 0.8),
        decay: float = 0.1,
        **online: Any,
    ) -> None:
        super().__init__(
            teacher,
            student,
            image_shape,
            generator_lr=generator_lr,
            temperature=temperature,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **online,
        )
        require_not_negative(
            onehot_weight=onehot_weight,
            activation_weight=activation_weight,
            balance_weight=balance_weight,
        )
        self.onehot_weight, self.activation_weight = onehot_weight, activation_weight
        self.balance_weight = balance_weight
        self.milestones, self.decay = tuple(milestones), decay
        self.head = last_linear(teacher, image_shape) if activation_weight else ""

    def judge(self, images: Tensor) -> dict[str, Tensor]:
        """The weighted sum of the three terms (equation 6), and each of them."""
        if self.activation_weight:
            logits, inputs = layer_inputs(self.teacher, images, [self.head])
        else:
            logits = self.ask_teacher(images)
        terms = {"onehot": onehot_loss(logits), "balance": class_balance_loss(logits)}
        loss = self.onehot_weight * terms["onehot"] + self.balance_weight * terms["balance"]
        if self.activation_weight:
            terms["activation"] = activation_loss(inputs[self.head])
            loss = loss + self.activation_weight * terms["activation"]
        return {"loss": loss, **terms}

    def student_schedule(self, optimizer: Optimizer, epochs: int) -> LRScheduler:
        """Steps down."""
        return stepping_down(optimizer, epochs, self.milestones, self.decay)

    def on_train_epoch_start(self) -> None:
        """The generator's learning rate stays where it is."""


def onehot_loss(teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher itself sees (equation 2)."""
    return class_loss(teacher_logits, teacher_logits.detach().argmax(1))


def activation_loss(features: Tensor) -> Tensor:
    """The negative mean absolute value of features [B, d] (equation 3)."""
    return -features.abs().mean()


def last_linear(net: Classifier, image_shape: Sequence[int]) -> str:
    """Name, within the network, of the linear layer that puts out the logits.

    Raises:
        InputError: the linear layer that is called last does not, or there is none.
    """
    names = [name for name, layer in net.network.named_modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad(), frozen(net):
        logits, inputs = layer_inputs(net, net.dummy_images(image_shape), names)
    last = next(reversed(inputs), None)
    if last is None or net.network.get_submodule(last).out_features != logits.shape[1]:
        raise InputError(
            "The teacher does not end in a linear layer, so it has no features for the activation "
            "term; set model.activation_weight=0 to go without it, or choose a method that does "
            "without it: model=dfad works with every teacher, model=zskt with one that has feature "
            "maps, model=nayer with one that has BatchNorms."
        )
    return last
