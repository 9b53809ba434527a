"""What every data-free method shares: two phases, the student's step, evaluation, logging.

A method says how an image is made (`synthesise`); everything else is here.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import MeanMetric

from nayer_pl import ranks
from nayer_pl.errors import DivergenceError, InputError
from nayer_pl.memory.datamodule import SyntheticDataModule
from nayer_pl.memory.plan import DistillationBatch, SynthesisRound, WorkItem
from nayer_pl.methods.divergence import not_finite
from nayer_pl.methods.evaluation import Evaluation, stop_at_chance
from nayer_pl.methods.results import sum_up
from nayer_pl.methods.state import DistillationState
from nayer_pl.networks.classifier import Classifier, frozen
from nayer_pl.networks.folding import folded
from nayer_pl.synthesis.losses import distillation_loss

log = logging.getLogger(__name__)


class DataFreeDistillation(DistillationState, ABC):
    """A student learns from a teacher on images that a method makes.

    Args:
        teacher: frozen here; images in [0, 1] -> logits.
        student: images in [0, 1] -> logits of the same classes.
        temperature: of the distillation loss.
        learning_rate: of the student's SGD; falls to `min_learning_rate` along a cosine over the
            distillation epochs.
        momentum, weight_decay: of the student's SGD.
        check_teacher: stop before any synthesis if the teacher does no better than a guesser.
        compile: let `torch.compile` fuse the steps; it takes a minute or more before the first one.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        temperature: float = 20.0,
        learning_rate: float = 0.2,
        min_learning_rate: float = 2e-4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if teacher is student:
            raise InputError("Teacher and student are the same object; build two.")
        if not student.normalises:
            student.normalise_like(teacher)
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints leave the teacher out
        self.teacher = teacher.freeze()
        self.student = student
        self.temperature = temperature
        self.learning_rate, self.min_learning_rate = learning_rate, min_learning_rate
        self.momentum, self.weight_decay = momentum, weight_decay
        self.student_updates = 0
        self.rounds = 0
        self.evaluation = Evaluation()
        self.check_teacher, self.compiles = check_teacher, compile
        self._results: dict[str, Any] = {}
        # A mean that leaves NaN out would hide what must stop the run.
        self.kd_loss = MeanMetric(nan_strategy="disable")
        self.synthesis_loss = MeanMetric(nan_strategy="disable")

    # What a method says

    @abstractmethod
    def synthesise(self, targets: Tensor, warm_up: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Make images for these labels: one synthesis round.

        Args:
            targets: wanted labels, [B].
            warm_up: the student has learned nothing yet.

        Returns:
            Images in [0, 1], [B, C, H, W], and every loss term at every step, by name: [steps].
            "loss" is their weighted sum. A value that is not finite stops the run before the
            images are banked.
        """

    def synthesis_optimizers(self) -> list[Optimizer]:
        """Optimizers of what makes the images; `self.optimizers()[1:]` during training."""
        return []

    # The two phases

    def training_step(self, item: WorkItem, _: int) -> None:
        """Do what the planned item says."""
        self.take_back_statistics()
        if isinstance(item, SynthesisRound):
            self._synthesis_round(item)
        else:
            self._distillation_step(item)

    def _synthesis_round(self, item: SynthesisRound) -> None:
        trouble = self._fill_bank(item) if len(item.targets) else None
        trouble = ranks.first_of_all(trouble)  # or the other ranks would wait for this one
        if trouble is not None:
            raise DivergenceError(trouble)
        ranks.level(self.trainer)

    def _fill_bank(self, item: SynthesisRound) -> str | None:
        """Bank the images of one round; or say why they are not fit for it."""
        with frozen(self.student):
            images, history = self.synthesise(item.targets, item.warm_up)
        self.rounds += 1
        steps = torch.stack(list(history.values()), dim=1).cpu()
        trouble = not_finite(steps, list(history), f"round {self.rounds}")
        if trouble is not None:
            return trouble
        self.datamodule.add(images, item.targets)
        best = steps[steps[:, list(history).index("loss")].argmin()].tolist()
        terms = dict(zip(history, best, strict=True))
        self.synthesis_loss.update(terms["loss"])
        self._show({"synthesis": terms["loss"]})
        self.record(
            {f"synthesis/{name}": value for name, value in terms.items()}
            | {"synthesis/round": self.rounds, "bank/images": len(self.datamodule.bank)}
        )
        return None

    def _distillation_step(self, batch: DistillationBatch) -> None:
        loss = self._distillation_loss(batch.images)
        optimizer = self._optimizers()[0]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.student_updates += 1
        self.kd_loss.update(loss.detach())
        # Reading a loss waits for the device, so it is read where it is logged anyway.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.student_updates % every == 0:
            self._report_kd_loss()

    def _distillation_loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = self._ask_teacher(images)
        return distillation_loss(self.student(images), teacher_logits, self.temperature)

    def _report_kd_loss(self) -> None:
        if not self.kd_loss.update_count:
            return
        value = float(self.kd_loss.compute())
        self.kd_loss.reset()
        if not math.isfinite(value):
            raise DivergenceError(
                f"The distillation loss became {value} before student update "
                f"{self.student_updates} (epoch {self.current_epoch}); the last checkpoint is from "
                "before that. Lower model.learning_rate."
            )
        self._show({"kd": value})
        self.record({"distillation/loss": value, "distillation/learning_rate": self._lr()})

    def on_train_epoch_end(self) -> None:
        """Leave a checked student, the same on every rank, to checkpoints; move the schedule."""
        self._report_kd_loss()
        ranks.average_statistics(self.student)
        if not self.datamodule.plan.is_warm_up(self.current_epoch):
            self.lr_schedulers().step()  # type: ignore[union-attr]

    # Evaluation

    def on_fit_start(self) -> None:
        """Check that the parts fit, and ask the teacher about the evaluation images, once."""
        self.student.train()  # a trainer leaves every network in the mode that it comes in
        shape, wanted = self.datamodule.image_shape, self.datamodule.num_classes
        for name, net in (("teacher", self.teacher), ("student", self.student)):
            outputs = net.num_classes(shape)
            if outputs != wanted:
                raise InputError(
                    f"The {name} has {outputs} outputs, but the data set has {wanted} classes; "
                    "they must be the same."
                )
        # A bound method: as an attribute, a copy of the teacher would be saved and moved about.
        self._ask_teacher = folded(self.teacher, shape).forward
        self._compile_steps()
        if self.datamodule.has_real_images:
            batches = self.datamodule.evaluation_batches()
            accuracy, images = self.evaluation.ask(self.teacher, batches, self._prepare)
            if self.trainer.is_global_zero:
                log.info(
                    "The teacher is right on %.2f %% of %s evaluation images.",
                    100 * accuracy, f"{images:,}",
                )  # fmt: skip
            if self.check_teacher:
                stop_at_chance(accuracy, images, wanted)

    def steps_to_compile(self) -> list[str]:
        """Names of the methods that `compile` fuses, each as one graph."""
        return ["_distillation_loss"]

    def _compile_steps(self) -> None:
        # Functions, not modules: neither parameter names nor evaluation change.
        if self.compiles:
            for name in self.steps_to_compile():
                setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def _prepare(self, batch: list[Tensor]) -> Any:
        on_device = [tensor.to(self.device) for tensor in batch]
        return self.datamodule.on_after_batch_transfer(on_device, 0)

    def on_validation_start(self) -> None:
        """Judge the student that all ranks have in common."""
        ranks.average_statistics(self.student)

    def validation_step(self, batch: tuple[Tensor, Tensor], i: int) -> None:
        """Compare the student with the labels and with the teacher."""
        self.evaluation.update(i, *batch, self.student, self.teacher)

    def on_validation_epoch_end(self) -> None:
        """Log fractions in [0, 1]; accuracies only where there are real labels."""
        values = self.evaluation.compute()
        if self.trainer.sanity_checking:
            return
        metrics = {f"val/{name}": value for name, value in values.items()}
        self.log_dict(metrics, logger=False)
        short = {"agreement": "agree", "student_accuracy": "acc"}
        self._show({short[name]: value for name, value in values.items() if name in short})
        self.record({**metrics, "epoch": self.current_epoch})

    def on_train_end(self) -> None:
        """Sum up, while all ranks are still there to be asked."""
        self._results = sum_up(self)

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary; empty until training has ended."""
        return self._results

    @property
    def product(self) -> Classifier:
        """What the run is for."""
        return self.student

    # Lightning

    def setup(self, stage: str) -> None:
        """Choose the faster layout for convolutions, and let DDP see the student only."""
        ranks.check_strategy(self.trainer)
        ranks.check_norms(self.trainer, self)
        self.to(memory_format=torch.channels_last)
        ranks.share_only(self, "student")

    def configure_optimizers(self) -> Any:
        """SGD of the student with a cosine over distillation epochs; then the method's own."""
        sgd = SGD(
            self.student.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        total = self.trainer.max_epochs or self.datamodule.plan.max_epochs
        epochs = max(1, total - self.datamodule.plan.warmup_epochs)
        cosine = CosineAnnealingLR(sgd, epochs, eta_min=self.min_learning_rate)
        return [sgd, *self.synthesis_optimizers()], [cosine]

    def train(self, mode: bool = True) -> "DataFreeDistillation":
        """As `nn.Module.train`, but the teacher's BatchNorm never leaves evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    # Small things

    @property
    def datamodule(self) -> SyntheticDataModule:
        """The plan and the bank."""
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, SyntheticDataModule):
            raise InputError(
                "Data-free methods train on a SyntheticDataModule: trainer.fit(method, datamodule)."
            )
        return module

    def _optimizers(self) -> list[LightningOptimizer]:
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def _lr(self) -> float:
        return float(self._optimizers()[0].param_groups[0]["lr"])

    def _show(self, values: Mapping[str, float]) -> None:
        """On the progress bar only; as numbers, for logged tensors are read back at every item."""
        self.trainer.progress_bar_metrics.update({k: float(v) for k, v in values.items()})

    def show_step(self, step: int, steps: int) -> None:
        """Tell the progress bar how far this round is, if it wants to know."""
        show = getattr(self.trainer.progress_bar_callback, "show_step", None)
        if show is not None:
            show(self.trainer, step, steps)

    def record(self, values: Mapping[str, Any]) -> None:
        """To every logger, against student updates: `trainer.global_step` counts more."""
        plain = {name: float(value) for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics(
                {**plain, "student_updates": self.student_updates}, self.student_updates
            )
