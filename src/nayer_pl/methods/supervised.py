"""Ordinary training on real images: how a teacher comes to be."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics.classification import MulticlassAccuracy

from nayer_pl.data.datamodule import RealDataModule
from nayer_pl.distillation.guards import NonFiniteGuard
from nayer_pl.distillation.rank_state import RankState
from nayer_pl.distillation.reporting import count_parameters, validation_metrics
from nayer_pl.distillation.student import StudentUpdater
from nayer_pl.errors import InputError
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.registry import described
from nayer_pl.runtime import distributed
from nayer_pl.runtime.options import checked

NESTEROV_SGD = partial(SGD, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)


class Supervised(LightningModule):
    """Cross-entropy with the labels of real images.

    Args:
        network: Images in [0, 1], [B, C, H, W] -> logits [B, num_classes]; trained as a whole.
        label_smoothing: Share of the target that is spread over all classes.
        optimizer: Parameters -> optimizer; a partial of one of torch's classes.
        scheduler: Optimizer -> learning-rate schedule over all steps; likewise.

    Raises:
        InputError: An option is out of range.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> network = Classifier(create_model("wrn16_1", num_classes=3), mean=[0.5], std=[0.2])
        >>> Supervised(network, label_smoothing=0.1).label_smoothing
        0.1
    """

    @checked
    def __init__(
        self,
        network: Classifier,
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        optimizer: Callable[..., Any] = NESTEROV_SGD,
        scheduler: Callable[..., Any] = CosineAnnealingLR,
    ) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing
        loss = partial(F.cross_entropy, label_smoothing=label_smoothing)
        self.updater = StudentUpdater(loss, optimizer, scheduler)
        self.updater.guard = NonFiniteGuard("training loss", "step")
        self.accuracy = MulticlassAccuracy(average="micro", validate_args=False)
        self.rank_state = RankState(self)
        self._loss = torch.zeros(())

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss on images [B, C, H, W] in [0, 1] and labels [B]."""
        images, labels = batch
        loss = self.updater.loss(self.network(images), labels)
        self._loss = loss.detach()
        self.updater.mean_loss.update(self._loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keep a loss or gradient that is not finite away from the network."""
        step = self.trainer.global_step + 1
        self.updater.guard.watch_step(self, optimizer, self.network, self._loss, step)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss."""
        loss = self.updater.take_mean()
        if loss is not None:
            self.log("train/loss", loss, prog_bar=True)

    def on_validation_start(self) -> None:
        """Evaluate the network that all ranks have in common, which is the one that is exported."""
        distributed.all_reduce_batchnorm(self.network)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Count right answers."""
        images, labels = batch
        self.accuracy.update(self.network(images).argmax(1), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy, a fraction in [0, 1]."""
        self.log("val/accuracy", self.accuracy.compute(), prog_bar=True)
        self.accuracy.reset()

    # Lightning

    def setup(self, stage: str) -> None:
        """Choose the faster layout for convolutions."""
        self.to(memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        """Train the whole network, also one that was loaded for use.

        Raises:
            InputError: It does not fit the data set.
        """
        self.network.train()
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, RealDataModule):
            return
        outputs = self.network.num_classes(data.image_shape)
        if data.num_classes not in (None, outputs):
            raise InputError(
                f"The network has {outputs} outputs, but the data set has {data.num_classes} "
                "classes; they must be the same."
            )

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule that is stepped after every batch."""
        return schedule_steps(self, self.updater, self.network)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what each rank has to itself; nothing after a step that was not finite."""
        self.updater.guard.check()
        self.rank_state.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        self.rank_state.load(checkpoint)

    def on_train_start(self) -> None:
        """Restore the global random numbers."""
        self.rank_state.finish_loading()

    # What checkpoints, callbacks and the application ask

    def run_identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this run."""
        return {"method": type(self).__name__, "network": described(self.network)}

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary."""
        found = validation_metrics(self.trainer, "accuracy")
        return {**found, "parameters": count_parameters(self.network)}

    @property
    def exported_classifier(self) -> Classifier:
        """The network that the run is for."""
        return self.network


def schedule_steps(module: Any, updater: StudentUpdater, network: nn.Module) -> Any:
    """What `configure_optimizers` returns for a schedule over all steps of a run.

    Raises:
        InputError: The run has no end.
    """
    # Estimating opens the first epoch's batches for good; a saved schedule knows its length.
    resumed = module.rank_state.resumed
    steps = 1 if resumed else module.trainer.estimated_stepping_batches
    if steps == math.inf:
        raise InputError("max_epochs must be a number of epochs, not without an end.")
    optimizer, schedule = updater.configure(network, int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
