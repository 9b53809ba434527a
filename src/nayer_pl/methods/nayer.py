"""NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge Distillation.

Tran et al., CVPR 2024, arXiv 2310.00258.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from nayer_pl.distillation.descent import descend
from nayer_pl.distillation.inversion import InversionDistillation
from nayer_pl.errors import InputError, require, require_not_negative
from nayer_pl.networks.classifier import Classifier
from nayer_pl.synthesis.conditioning import LabelConditioning, NoiseConditioning
from nayer_pl.synthesis.generators import Generator, reset_parameters_
from nayer_pl.synthesis.label_text import LabelText

Conditioning = Literal["lte", "onehot", "noise"]


class NAYER(InversionDistillation):
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
        teacher, student: see `InversionDistillation`, which also takes `inversion`.
        image_shape: (C, H, W) of the images to make.
        label_text: the label-text embeddings [num_classes, d], or what encodes them; only
            `conditioning="lte"` needs it.
        conditioning: "lte", "onehot" (the label without its meaning), or "noise" (no label).
        reset_noisy_layer: draw it anew for every round (NAYER) or only once.
        labels_per_layer: K of the noisy layer; None for one layer per full set of classes.
        noisy_features: size of the noisy layer's output.
        generator: features, image_shape -> generator.
        generator_steps: optimization steps in a round.
        generator_lr, generator_betas: of the Adam that starts afresh in every round.
        generator_life: epochs until the generator starts from scratch.
        bn_weight, ce_weight, adv_weight, bn_momentum: see `InversionDistillation`.
        round_size: most labels in one round.
        inversion: augmentation, temperature, learning rate, seed and so on.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        label_text: Tensor | LabelText | None = None,
        conditioning: Conditioning = "lte",
        reset_noisy_layer: bool = True,
        labels_per_layer: int | None = None,
        noisy_features: int = 1000,
        generator: Callable[[int, Sequence[int]], nn.Module] = Generator,
        generator_steps: int = 30,
        generator_lr: float = 4e-3,
        generator_betas: tuple[float, float] = (0.5, 0.999),
        generator_life: int = 10,
        bn_weight: float = 10.0,
        ce_weight: float = 0.5,
        adv_weight: float = 1.33,
        bn_momentum: float = 0.9,
        round_size: int = 400,
        **inversion: Any,
    ) -> None:
        super().__init__(
            teacher, student, bn_weight, ce_weight, adv_weight, bn_momentum, round_size, **inversion
        )
        require(generator_steps >= 1, "model.generator_steps", "at least 1", generator_steps)
        require_not_negative(generator_lr=generator_lr)
        require(generator_life >= 1, "model.generator_life", "at least 1 epoch", generator_life)
        wanted = " or ".join(get_args(Conditioning))
        require(conditioning in get_args(Conditioning), "model.conditioning", wanted, conditioning)
        self.generator_steps, self.generator_life = generator_steps, generator_life
        self.generator_lr = generator_lr
        self.generator_betas = (generator_betas[0], generator_betas[1])
        self.redraws = reset_noisy_layer
        classes = teacher.num_classes(image_shape)
        self.conditioning: LabelConditioning | NoiseConditioning
        if conditioning == "noise":
            self.conditioning = NoiseConditioning(noisy_features)
        else:
            self.conditioning = LabelConditioning(
                torch.eye(classes)
                if conditioning == "onehot"
                else _embeddings(label_text, classes),
                noisy_features,
                round_size,
                classes if labels_per_layer is None else labels_per_layer,
                reset_noisy_layer,
            )
        self.generator = generator(noisy_features, image_shape)

    def on_fit_start(self) -> None:
        """Give this rank a noisy layer of its own, if it keeps the first one."""
        super().on_fit_start()
        if isinstance(self.conditioning, LabelConditioning) and not (self.redraws or self.resumed):
            self.conditioning.noisy_layer.reset_parameters(self.rng)

    def on_train_epoch_start(self) -> None:
        """Start the generator from scratch at the end of its life, and when distillation begins."""
        epoch, warm_up = self.current_epoch, self.datamodule.plan.warmup_epochs
        if epoch > 0 and (epoch % self.generator_life == 0 or epoch == warm_up):
            reset_parameters_(self.generator)
            self.conditioning.reset_parameters()

    def own_state(self) -> dict[str, Any]:
        """Not the noisy layer if every round draws it anew."""
        state = super().own_state()
        if self.redraws:
            for name in [name for name in state["parts"] if "noisy_layer" in name.split(".")]:
                del state["parts"][name]
        return state

    def synthesis_optimizers(self) -> list[Optimizer]:
        """Adam of the generator, with the noisy layer and the BatchNorm before it."""
        parameters = [*self.conditioning.parameters(), *self.generator.parameters()]
        return [Adam(parameters, lr=self.generator_lr, betas=self.generator_betas, fused=True)]

    def steps_to_compile(self) -> list[str]:
        """The generator's step in two graphs, because crops are drawn between them."""
        return [*super().steps_to_compile(), "_make", "invert"]

    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One round (NAYER, algorithm 1): the images of the step with the lowest loss."""
        optimizer = self.all_optimizers()[1]
        self.conditioning.start_round(targets, self.rng)

        def judge(images: Tensor) -> dict[str, Tensor]:
            return self.invert(self.augment(images), targets, warm_up)

        images, history = descend(
            self, optimizer, self.generator_steps, lambda: self._make(targets), judge
        )
        optimizer.optimizer.state.clear()  # no round takes over Adam's averages from another
        self.statistics.finish_round()
        return images, history

    def _make(self, targets: Tensor) -> Tensor:
        return self.generator(self.conditioning(targets))


def _embeddings(label_text: Tensor | LabelText | None, classes: int) -> Tensor:
    if label_text is None:
        raise InputError("conditioning='lte' needs label_text: embeddings, or a LabelText.")
    names = None if isinstance(label_text, Tensor) else len(label_text.names)
    if names is not None and names != classes:
        raise InputError(
            f"There are {names} class names, but the teacher has {classes} outputs; give one name "
            "per output, in the order of the labels, as data.class_names."
        )
    embeddings = label_text if isinstance(label_text, Tensor) else label_text.embeddings()
    if embeddings.ndim != 2 or len(embeddings) != classes:
        raise InputError(
            f"Label text must be [{classes}, d], a row per output of the teacher, not "
            f"{list(embeddings.shape)}."
        )
    return embeddings
