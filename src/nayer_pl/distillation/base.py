"""What every data-free method shares: rounds of synthesis, and the order of things in a run.

A method says how an image is made (`synthesize`). What else is shared is a file each: the loop
inside a round (`descent`), the student's step (`student_step`), its evaluation (`judging`), what
checkpoints hold (`state`).
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from nayer_pl.bank.datamodule import SyntheticDataModule
from nayer_pl.bank.plan import SynthesisRound, WorkItem
from nayer_pl.distillation.collapse import CollapseMonitor
from nayer_pl.distillation.divergence import not_finite
from nayer_pl.distillation.evaluation import Evaluation
from nayer_pl.distillation.results import sum_up
from nayer_pl.distillation.student_step import Distilling
from nayer_pl.errors import DivergenceError, InputError, require
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.hooks import frozen
from nayer_pl.runtime import distributed
from nayer_pl.runtime.rng import Stream, stream_seed


class DataFreeDistillation(Distilling, ABC):
    """A student learns from a teacher on images that a method makes.

    Args:
        teacher: frozen here; images in [0, 1] -> logits.
        student: images in [0, 1] -> logits of the same classes.
        temperature: of the distillation loss.
        learning_rate: of the student's SGD; falls to `min_learning_rate` along a cosine over the
            distillation epochs.
        momentum, weight_decay: of the student's SGD.
        seed: of this rank's noise, `self.rng`.
        check_teacher: stop before any synthesis if the teacher does no better than a guesser.
        compile: let `torch.compile` fuse the steps; it takes a minute or more before the first one.
    """

    wants_labels = True
    """Whether images are made for given labels; if not, theirs is what the teacher sees in them."""
    synthesis_rate = "model.generator_lr"
    """The option to lower when synthesis fails."""

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        temperature: float = 20.0,
        learning_rate: float = 0.2,
        min_learning_rate: float = 2e-4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(temperature, learning_rate, min_learning_rate, momentum, weight_decay)
        self.learn_from(teacher, student)
        self.student = student
        self.seed, self.check_teacher, self.compiles = seed, check_teacher, compile
        self.evaluation = Evaluation()
        # A mean that leaves NaN out would hide what must stop the run.
        self.synthesis_loss = MeanMetric(nan_strategy="disable")
        self._collapse = CollapseMonitor(self.synthesis_rate)
        self._results: dict[str, Any] = {}

    # What a method says; what it may say about the student's step is in `Distilling`

    @abstractmethod
    def synthesize(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Make images for these labels: one synthesis round (`descend` may do most of it).

        Args:
            targets: wanted labels, [B].
            warm_up: the student has learned nothing yet.

        Returns:
            Images in [0, 1], [B, C, H, W], and every loss term at every step, by name: [steps].
            "loss" is their weighted sum. A value that is not finite stops the run before the
            images are banked.
        """

    def synthesis_optimizers(self) -> list[Optimizer]:
        """Optimizers of what makes the images; `self.all_optimizers()[1:]` during training."""
        return []

    def steps_to_compile(self) -> list[str]:
        """Names of the methods that `compile` fuses, each as one graph."""
        return ["student_loss"]

    def compile_steps(self) -> None:
        """Functions, not modules: neither parameter names nor evaluation change."""
        for step in self.steps_to_compile():
            setattr(self, step, torch.compile(getattr(self, step), dynamic=False))

    # The two phases

    def training_step(self, item: WorkItem, _: int) -> None:
        """Do what the planned item says."""
        self.take_back_statistics()
        if isinstance(item, SynthesisRound):
            self._synthesis_round(item)
        else:
            self.distillation_step(item)

    def _synthesis_round(self, item: SynthesisRound) -> None:
        trouble = self._fill_bank(item) if len(item.targets) else None
        trouble = distributed.first_error(trouble)  # or the other ranks would wait for this one
        if trouble is not None:
            raise DivergenceError(trouble)
        distributed.sync_step_and_scaler(self.trainer)

    def _fill_bank(self, item: SynthesisRound) -> str | None:
        """Bank the images of one round; or say why they are not fit for it."""
        with frozen(self.student):
            images, history = self.synthesize(item.targets, item.warm_up)
        steps, names = torch.stack(list(history.values()), dim=1).cpu(), list(history)
        self.rounds += 1
        self.synthesis_steps += len(steps)
        trouble = not_finite(steps, names, f"round {self.rounds}", self.synthesis_rate)
        if trouble is not None:
            return trouble
        labels = item.targets if self.wants_labels else self._answers(images)
        self.datamodule.add(images, labels)
        best = dict(zip(names, steps[steps[:, names.index("loss")].argmin()].tolist(), strict=True))
        self.synthesis_loss.update(best["loss"])
        # Where rounds are single steps, they are as many as the student's.
        if not self.datamodule.plan.interleaved or self.due(self.rounds):
            self._report_round(images, labels, best)
        return None

    def _report_round(self, images: Tensor, labels: Tensor, terms: dict[str, float]) -> None:
        seen = None
        if self.wants_labels:
            seen = float((self._answers(images) == labels).float().mean())
            terms = {**terms, "label_agreement": seen}
        self._collapse.update(images, seen, self.datamodule.num_classes)
        self.show({"synthesis": terms["loss"]})
        self.record(
            {f"synthesis/{name}": value for name, value in terms.items()}
            | {"synthesis/round": self.rounds, "bank/images": len(self.datamodule.bank)}
        )

    @torch.no_grad()
    def _answers(self, images: Tensor) -> Tensor:
        return self.ask_teacher(images).argmax(1)

    # Lightning

    def setup(self, stage: str) -> None:
        """Choose the faster layout for convolutions, and let DDP see the student only."""
        distributed.check_strategy(self.trainer)
        distributed.refuse_sync_batchnorm(self.trainer, self)
        if stage == "fit":
            epochs, planned = self.trainer.max_epochs or 0, self.datamodule.max_epochs
            wanted = f"from 1 to the plan's {planned}, as Trainer(max_epochs=plan.max_epochs)"
            require(0 < epochs <= planned, "trainer.max_epochs", wanted, epochs)
        self.to(memory_format=torch.channels_last)
        distributed.limit_ddp_to(self, "student")
        seed = stream_seed(self.seed, self.global_rank, Stream.NOISE)
        device = self.trainer.strategy.root_device  # where this module is going to be
        self.rng = torch.Generator(device).manual_seed(seed)

    def configure_optimizers(self) -> Any:
        """The student's with its schedule over distillation epochs; then the method's own."""
        optimizer = self.student_optimizer()
        assert self.trainer.max_epochs is not None
        epochs = max(1, self.trainer.max_epochs - self.datamodule.plan.warmup_epochs)
        schedule = self.student_schedule(optimizer, epochs)
        return [optimizer, *self.synthesis_optimizers()], [schedule]

    def on_fit_start(self) -> None:
        """Check that the parts fit, and ask the teacher about the evaluation images, once."""
        self.train()  # a trainer leaves every network in the mode that it comes in
        shape, wanted = self.datamodule.image_shape, self.datamodule.num_classes
        for name, net in (("teacher", self.teacher), ("student", self.student)):
            outputs = net.num_classes(shape)
            if outputs != wanted:
                raise InputError(
                    f"The {name} has {outputs} outputs, but the data set has {wanted} classes; "
                    "they must be the same."
                )
        self.student.check_train_forward(shape)
        self.fold_teacher(shape)
        if self.compiles:
            self.compile_steps()
        self.examine(wanted if self.check_teacher else None)

    def on_train_epoch_end(self) -> None:
        """Leave a checked student, the same on every rank, to checkpoints; move the schedule."""
        self.report_kd_loss()
        distributed.all_reduce_batchnorm(self.student)
        if not self.datamodule.plan.is_warm_up(self.current_epoch):
            self.lr_schedulers().step()  # type: ignore[union-attr]

    def on_train_end(self) -> None:
        """Sum up, while all ranks are still there to be asked."""
        self._results = sum_up(self, self.wants_labels)

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary; empty until training has ended."""
        return self._results

    @property
    def product(self) -> Classifier:
        """What the run is for."""
        return self.student

    @property
    def datamodule(self) -> SyntheticDataModule:
        """The plan and the bank."""
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, SyntheticDataModule):
            raise InputError(
                "Data-free methods train on a SyntheticDataModule: trainer.fit(method, datamodule)."
            )
        return module
