"""The loop of every data-free method: synthesis rounds fill a bank, the student learns from it.

Read `training_step` first: a work item of the plan is either a synthesis round or a batch for the
student, and both are written out below it. How images are made is the synthesizer's business.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torchmetrics import MeanMetric

from nayer_pl.bank.datamodule import SyntheticDataModule
from nayer_pl.bank.plan import DistillationBatch, SynthesisRound, WorkItem
from nayer_pl.distillation import reporting
from nayer_pl.distillation.base import TeacherStudentModule
from nayer_pl.distillation.guards import (
    GRADIENT,
    CollapseMonitor,
    describe_nonfinite,
    gradient_norm,
    scales_losses,
)
from nayer_pl.distillation.rank_state import DistillationState
from nayer_pl.distillation.reporting import collect_results
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
        # A mean that leaves NaN out would hide what must stop the run.
        self.synthesis_loss = MeanMetric(nan_strategy="disable")
        self.collapse = CollapseMonitor(synthesizer.lr_name)
        self.rank_state: DistillationState = DistillationState(self)
        self.student_updates = self.rounds = self.synthesis_steps = 0
        self._results: dict[str, Any] = {}

    # The loop

    def training_step(self, item: WorkItem, _: int) -> None:
        """Do what the plan's next item says."""
        if self.rank_state.buffers is not None:  # the first step of a run that was resumed
            self.rank_state.restore_batchnorm_buffers()
        if isinstance(item, SynthesisRound):
            self._synthesis_round(item)
        else:
            self._student_step(item)

    def _synthesis_round(self, item: SynthesisRound) -> None:
        """Make one round of images and bank them; on all ranks together."""
        error = self._fill_bank(item) if len(item.targets) else None
        error = distributed.first_error(error)  # or the other ranks would wait for this one
        if error is not None:
            raise DivergenceError(error)
        distributed.sync_step_and_scaler(self.trainer)

    def _fill_bank(self, item: SynthesisRound) -> str | None:
        """Bank the images of one round; or return why they are not fit for it."""
        synthesizer = self.synthesizer
        with frozen(self.student):
            images, terms, names = self._optimize_images(item)
        self.rounds += 1
        self.synthesis_steps += len(terms)
        error = describe_nonfinite(terms, names, f"round {self.rounds}", synthesizer.lr_name)
        if error is not None:
            return error
        targeted = synthesizer.class_conditional
        labels = item.targets if targeted else self.teacher.predict(images)
        self.datamodule.add(images, labels)
        lowest = terms[terms[:, names.index("loss")].argmin()].tolist()
        best = dict(zip(names, lowest, strict=True))
        self.synthesis_loss.update(best["loss"])
        # Where rounds are single steps, they are as many as the student's.
        interleaved = self.datamodule.plan.interleaved
        if not interleaved or reporting.should_log(self.trainer, self.rounds):
            self._report_round(images, labels, best)
        return None

    def _optimize_images(self, item: SynthesisRound) -> tuple[Tensor, Tensor, list[str]]:
        """Descend the synthesizer's loss.

        Returns:
            Images of the step with the lowest loss, in [0, 1], [B, C, H, W]; every loss term at
            every step, [steps, terms], on the CPU; and the names of the terms.
        """
        synthesizer, optimizers = self.synthesizer, self.all_optimizers()[1:]
        show, scaled = reporting.synthesis_display(self.trainer), scales_losses(self)
        parameters = [p for group in optimizers[0].param_groups for p in group["params"]]
        lowest = torch.full((), torch.inf, device=self.device)
        kept = torch.zeros((), device=self.device)
        history: list[dict[str, Tensor]] = []
        synthesizer.start_round(item.targets, self.teacher, self.datamodule.bank)
        for step in range(synthesizer.steps):
            if show is not None:
                show(self.trainer, step + 1, synthesizer.steps)
            images = synthesizer.generate(item.targets)
            terms = synthesizer.loss(images, item.targets, self.teacher, self.student, item.warm_up)
            # Chosen on the device: asking which loss is lower would wait for it at every step.
            loss = terms["loss"].detach()
            better = loss < lowest
            lowest = torch.where(better, loss, lowest)
            kept = torch.where(better, images.detach(), kept)
            optimizers[0].zero_grad()
            self.manual_backward(terms["loss"])
            if not scaled:
                terms = {**terms, GRADIENT: gradient_norm(parameters)}
            optimizers[0].step()
            history.append({name: term.detach() for name, term in terms.items()})
        synthesizer.finish_round(optimizers, self.manual_backward)
        every = torch.stack([torch.stack(list(terms.values())) for terms in history])
        return kept.clamp(0, 1), every.cpu(), list(history[0])

    def _student_step(self, batch: DistillationBatch) -> None:
        """One update of the student, on banked images or on fresh ones."""
        images: Tensor = batch.images
        labels: Tensor | None = batch.labels
        if self.synthesizer.student_images is not None:
            images, labels = self.synthesizer.student_images(len(images)), None
            if self.datamodule.augmentation is not None:
                images = self.datamodule.augmentation(images, self.synthesizer.rng)
        loss = self.student_objective(images, labels)
        optimizer, update = self.all_optimizers()[0], self.student_updates + 1
        optimizer.zero_grad()
        self.manual_backward(loss)
        if not scales_losses(self):
            norm = gradient_norm(self.student.parameters())
            self.updater.guard.before_step(optimizer.optimizer, loss.detach(), norm, update)
        optimizer.step()
        self.student_updates = update
        self.updater.mean_loss.update(loss.detach())
        # Reading a loss waits for the device, so it is read where it is logged anyway.
        if reporting.should_log(self.trainer, update):
            self._report_kd_loss()

    def student_objective(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """What the student minimizes on a batch, a scalar.

        Args:
            images: In [0, 1], [B, C, H, W].
            labels: Labels that the images were made for, [B]; None takes the teacher's answers.
        """
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        labels = teacher_logits.argmax(1) if labels is None else labels
        return self.updater.loss(self.student(images), teacher_logits, labels)

    # Reports

    def _report_round(self, images: Tensor, labels: Tensor, terms: dict[str, float]) -> None:
        agreement = None
        if self.synthesizer.class_conditional:
            agreement = float((self.teacher.predict(images) == labels).float().mean())
            terms = {**terms, "label_agreement": agreement}
        self.collapse.update(images, agreement, self.datamodule.num_classes)
        reporting.log_progress(self.trainer, {"synthesis": terms["loss"]})
        counts = {"synthesis/round": self.rounds, "bank/images": len(self.datamodule.bank)}
        values = {f"synthesis/{name}": value for name, value in terms.items()}
        reporting.log_metrics(self, values | counts, self.student_updates)

    def _report_kd_loss(self) -> None:
        lr = float(self.all_optimizers()[0].param_groups[0]["lr"])
        self.updater.report(self, lr, self.student_updates)

    # Lightning

    def setup(self, stage: str) -> None:
        """Choose the faster layout for convolutions, and let DDP see the student only."""
        distributed.check_strategy(self.trainer)
        distributed.refuse_sync_batchnorm(self.trainer, self)
        if stage == "fit":
            epochs, limit = self.trainer.max_epochs or 0, self.synthesizer.round_size
            self.datamodule.plan.check_run(epochs, limit)
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
        self._report_kd_loss()
        distributed.all_reduce_batchnorm(self.student)
        if not self.datamodule.plan.is_warm_up(self.current_epoch):
            self.lr_schedulers().step()  # type: ignore[union-attr]

    def on_train_end(self) -> None:
        """Collect the results, while all ranks are still there to be asked."""
        self._results = collect_results(self)

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary; empty until training has ended."""
        return self._results

    def all_optimizers(self) -> list[LightningOptimizer]:
        """The student's, then the synthesizer's."""
        found: Any = self.optimizers()
        return found if isinstance(found, list) else [found]

    @property
    def datamodule(self) -> SyntheticDataModule:
        """The plan and the bank."""
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, SyntheticDataModule):
            raise InputError(
                "Data-free methods train on a SyntheticDataModule: trainer.fit(method, datamodule)."
            )
        return module
