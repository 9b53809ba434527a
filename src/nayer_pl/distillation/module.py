"""The loop of every data-free method: synthesis rounds fill a bank, the student learns from it.

From `training_step` down it is NAYER's algorithm 1. The plan says in which order rounds and batches
follow each other (`nayer_pl.bank.plan`); the synthesizer how images are made and judged.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from nayer_pl.bank.datamodule import SyntheticDataModule
from nayer_pl.bank.plan import DistillationBatch, SynthesisRound, WorkItem
from nayer_pl.distillation import guards, reporting
from nayer_pl.distillation.base import TeacherStudentModule
from nayer_pl.distillation.rank_state import DistillationState
from nayer_pl.distillation.student import COSINE, MOMENTUM_SGD
from nayer_pl.errors import DivergenceError, InputError
from nayer_pl.losses.distillation import KLDivergence, StudentLoss
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.hooks import frozen
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.runtime import distributed
from nayer_pl.runtime.numerics import Stream, stream_seed
from nayer_pl.synthesis.synthesizer import Synthesizer


class DataFreeDistillation(TeacherStudentModule):
    """A student learns from a teacher on images that a synthesizer makes.

    Args:
        teacher: Frozen; images in [0, 1], [B, C, H, W] -> logits [B, num_classes].
        student: Classifier with as many outputs, which learns.
        synthesizer: Makes the images.
        student_loss: (student logits, teacher logits, labels) -> scalar that the student minimizes.
        optimizer: Parameters -> optimizer of the student; a partial of one of torch's classes.
        scheduler: Optimizer -> its learning-rate schedule over distillation epochs; likewise.
        seed: Seed of this rank's noise.
        check_teacher: Stop before any synthesis if the teacher is no better than guessing.
        compile: Let `torch.compile` fuse the steps; the first ones then take a minute or more.

    Raises:
        InputError: Teacher and student share weights, or the optimizer cannot be built.

    Example:
        >>> from torch import nn
        >>> from nayer_pl.synthesis.generators import Generator
        >>> from nayer_pl.synthesis.synthesizer import OnlineSynthesizer
        >>> def disagree(images, targets, teacher, student, warm_up):
        ...     return {"loss": -(teacher(images) - student(images)).abs().mean()}
        >>> generator = Generator(16, (1, 8, 8))
        >>> images = OnlineSynthesizer(generator, 16, disagree, 5, lr=1e-3, betas=(0.9, 0.999))
        >>> teacher = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), [0.3], [0.4])
        >>> student = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
        >>> method = DataFreeDistillation(FrozenTeacher(teacher), student, images)
        >>> method.student_objective(torch.rand(4, 1, 8, 8), labels=None).shape
        torch.Size([])
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        student: Classifier,
        synthesizer: Synthesizer,
        student_loss: StudentLoss = KLDivergence(),
        optimizer: Callable[..., Any] = MOMENTUM_SGD,
        scheduler: Callable[..., Any] = COSINE,
        seed: int = 0,
        check_teacher: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(teacher, student, student_loss, optimizer, scheduler, check_teacher)
        self.automatic_optimization = False
        self.synthesizer, self.seed, self.compiled = synthesizer, seed, compile
        self.synthesis_loss = MeanMetric(nan_strategy="disable")  # NaN must show
        self.collapse = guards.CollapseMonitor(synthesizer.lr_name)
        self.rank_state: DistillationState = DistillationState(self)
        self.student_updates = self.rounds = self.synthesis_steps = 0
        self._results: dict[str, Any] = {}

    # The loop

    def training_step(self, item: WorkItem, _: int) -> None:
        """Do what the plan says next: make images and bank them, or teach the student with some."""
        if self.rank_state.buffers:  # the first step of a run that was resumed
            self.rank_state.restore_buffers()
        if isinstance(item, SynthesisRound):
            self._synthesis_round(item)
        else:
            self._student_step(item)

    def _synthesis_round(self, item: SynthesisRound) -> None:
        """Make images for target labels and bank them; all ranks end it together."""
        error = None
        if len(item.targets):  # else only other ranks have images to make
            with frozen(self.student):
                images, terms = self._optimize_images(item)
            self.rounds += 1
            self.synthesis_steps += self.synthesizer.steps
            where, lr_name = f"round {self.rounds}", self.synthesizer.lr_name
            error = guards.describe_nonfinite(terms, where, lr_name)
            if error is None:
                self._bank_images(images, item.targets, terms)
        error = distributed.first_error(error)  # or the other ranks would wait for this one
        if error is not None:
            raise DivergenceError(error)
        distributed.sync_step_and_scaler(self.trainer)

    def _optimize_images(self, item: SynthesisRound) -> tuple[Tensor, dict[str, Tensor]]:
        """Descend the synthesizer's loss.

        Returns:
            Images of the step with the lowest loss, in [0, 1], [B, C, H, W]; and every loss term at
            every step, [steps], on the CPU.
        """
        synthesizer, optimizers = self.synthesizer, self.optimizers()[1:]  # type: ignore[index]
        parameters = [p for group in optimizers[0].param_groups for p in group["params"]]
        lowest = torch.full((), torch.inf, device=self.device)
        kept = torch.zeros((), device=self.device)
        history: list[Tensor] = []
        synthesizer.start_round(item.targets, self.teacher, self.datamodule.bank)
        for step in range(synthesizer.steps):
            reporting.show_step(self.trainer, step + 1, synthesizer.steps)
            images = synthesizer.generate(item.targets)
            terms = synthesizer.loss(images, item.targets, self.teacher, self.student, item.warm_up)
            # Chosen on the device: asking which loss is lower would wait for it at every step.
            loss = terms["loss"].detach()
            better = loss < lowest
            lowest = torch.where(better, loss, lowest)
            kept = torch.where(better, images.detach(), kept)
            optimizers[0].zero_grad()
            self.manual_backward(terms["loss"])
            if not guards.scales_losses(self):
                terms = {**terms, guards.GRADIENT: guards.gradient_norm(parameters)}
            optimizers[0].step()
            history.append(torch.stack([term.detach() for term in terms.values()]))
        synthesizer.finish_round(optimizers, self.manual_backward)
        return kept.clamp(0, 1), dict(zip(terms, torch.stack(history, 1).cpu(), strict=True))

    def _bank_images(self, images: Tensor, targets: Tensor, terms: dict[str, Tensor]) -> None:
        """Bank the images of a round with their labels: their targets, or the teacher's answers."""
        labels = targets if self.synthesizer.class_conditional else self.teacher.predict(images)
        self.datamodule.add(images, labels)
        step = terms["loss"].argmin()
        best = {name: float(values[step]) for name, values in terms.items()}
        self.synthesis_loss.update(best["loss"])
        # Where rounds are single steps, they are as many as the student's.
        if not self.datamodule.plan.interleaved or reporting.should_log(self.trainer, self.rounds):
            reporting.log_round(self, images, labels, best)

    def _student_step(self, batch: DistillationBatch) -> None:
        """One update of the student, on banked images or on fresh ones."""
        images: Tensor = batch.images
        labels: Tensor | None = batch.labels
        if self.synthesizer.student_images is not None:
            images, labels = self.synthesizer.student_images(len(images)), None
            if self.datamodule.augmentation is not None:
                images = self.datamodule.augmentation(images, self.synthesizer.rng)
        loss = self.student_objective(images, labels)
        optimizer: Any = self.optimizers()[0]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        update = self.student_updates + 1
        guard = self.updater.guard
        guard.watch_step(self, optimizer.optimizer, self.student, loss.detach(), update)
        optimizer.step()
        self.student_updates = update
        self.updater.mean_loss.update(loss.detach())
        # Reading a loss waits for the device, so it is read where it is logged anyway.
        if reporting.should_log(self.trainer, update):
            reporting.log_student_loss(self)

    def student_objective(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """What the student minimizes on images [B, C, H, W] in [0, 1]; a scalar.

        Labels [B] are those that the images were made for; None takes the teacher's answers.
        """
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        labels = teacher_logits.argmax(1) if labels is None else labels
        return self.updater.loss(self.student(images), teacher_logits, labels)

    # Lightning

    def setup(self, stage: str) -> None:
        """Choose the faster layout for convolutions, and let DDP see the student only."""
        distributed.check_strategy(self.trainer)
        distributed.refuse_sync_batchnorm(self.trainer, self)
        if stage == "fit":
            epochs = self.trainer.max_epochs or 0
            self.datamodule.plan.check_run(epochs, self.synthesizer.round_size)
        self.to(memory_format=torch.channels_last)
        distributed.limit_ddp_to(self, "student")
        seed = stream_seed(self.seed, self.global_rank, Stream.NOISE)
        device = self.trainer.strategy.root_device  # where this module is going to be
        self.synthesizer.rng = torch.Generator(device).manual_seed(seed)

    def configure_optimizers(self) -> Any:
        """The student's with its schedule over distillation epochs; then the synthesizer's."""
        assert self.trainer.max_epochs is not None
        epochs = max(1, self.trainer.max_epochs - self.datamodule.plan.warmup_epochs)
        optimizer, scheduler = self.updater.configure(self.student, epochs)
        return [optimizer, *self.synthesizer.configure_optimizers()], [scheduler]

    def on_fit_start(self) -> None:
        """Check that the parts fit, and ask the teacher about the evaluation images, once."""
        self.prepare_networks(self.datamodule.image_shape, self.datamodule.num_classes)
        if self.compiled:  # functions, not modules: neither parameter names nor evaluation change
            fuse: Any = torch.compile(self.student_objective, dynamic=False)
            self.student_objective = fuse  # type: ignore[method-assign]
            self.synthesizer.compile_steps()
        if not self.rank_state.resumed:
            self.synthesizer.start_run()

    def on_train_epoch_start(self) -> None:
        """Tell the synthesizer."""
        warmup, optimizers = self.datamodule.plan.warmup_epochs, self.trainer.optimizers
        self.synthesizer.start_epoch(self.current_epoch, warmup, optimizers)

    def on_train_epoch_end(self) -> None:
        """Average BatchNorm statistics across ranks, and step the learning-rate schedule."""
        reporting.log_student_loss(self)
        distributed.all_reduce_batchnorm(self.student)
        if not self.datamodule.plan.is_warm_up(self.current_epoch):
            self.lr_schedulers().step()  # type: ignore[union-attr]

    def on_train_end(self) -> None:
        """Collect the results, while all ranks are still there to be asked."""
        self._results = reporting.collect_results(self)

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary; empty until training has ended."""
        return self._results

    @property
    def datamodule(self) -> SyntheticDataModule:
        """The plan and the bank."""
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, SyntheticDataModule):
            raise InputError(
                "Data-free methods train on a SyntheticDataModule: trainer.fit(method, datamodule)."
            )
        return module
