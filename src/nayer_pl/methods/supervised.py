"""Ordinary training on real images: how a teacher comes to be."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import MeanMetric

from nayer_pl.data.datamodule import RealDataModule
from nayer_pl.distillation.divergence import NonFiniteGuard, gradient_norm
from nayer_pl.distillation.rank_state import Resumable, load_metric, metric_state
from nayer_pl.distillation.results import measured
from nayer_pl.errors import InputError, require
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.registry import described
from nayer_pl.runtime import distributed


class Supervised(Resumable):
    """Cross-entropy with SGD and a cosine over all steps.

    Args:
        network: images in [0, 1] -> logits.
        learning_rate: at the first step; falls to zero.
        momentum, weight_decay: of SGD (Nesterov).
        label_smoothing: share of the target that is spread over all classes.

    Raises:
        InputError: a number that cannot be meant.
    """

    def __init__(
        self,
        network: Classifier,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        require(learning_rate > 0, "model.learning_rate", "above 0", learning_rate)
        require(0 <= momentum < 1, "model.momentum", "at least 0 and below 1", momentum)
        require(weight_decay >= 0, "model.weight_decay", "at least 0", weight_decay)
        smooth = 0 <= label_smoothing < 1
        require(smooth, "model.label_smoothing", "at least 0 and below 1", label_smoothing)
        self.network = network
        self.learning_rate, self.momentum = learning_rate, momentum
        self.weight_decay, self.label_smoothing = weight_decay, label_smoothing
        self.accuracy = MeanMetric()
        self.train_loss = MeanMetric(nan_strategy="disable")  # NaN must show
        self._watch, self._loss = NonFiniteGuard("training loss", "step"), torch.zeros(())

    def setup(self, stage: str) -> None:
        """Choose the faster layout for convolutions."""
        self.to(memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        """Train the whole network, also one that was loaded for use.

        Raises:
            InputError: it does not fit the data set.
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

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One step of SGD on images [B, C, H, W] in [0, 1] and labels [B]."""
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels, label_smoothing=self.label_smoothing)
        return self.watched(loss)

    def watched(self, loss: Tensor) -> Tensor:
        """The loss of this step, which is looked at before the network learns from it."""
        self._loss = loss.detach()
        self.train_loss.update(self._loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keep a loss or gradient that is not finite away from the network."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:  # it looks itself
            norm = gradient_norm(self.network.parameters())
            self._watch.before_step(optimizer, self._loss, norm, self.trainer.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save nothing after a step that was not finite."""
        self._watch.check()
        super().on_save_checkpoint(checkpoint)

    def on_validation_start(self) -> None:
        """Judge the network that all ranks have in common, which is the one that is exported."""
        distributed.all_reduce_batchnorm(self.network)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Count right answers."""
        images, labels = batch
        self.accuracy.update((self.network(images).argmax(1) == labels).float())

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy, a fraction in [0, 1]."""
        self.log("val/accuracy", self.accuracy.compute(), prog_bar=True)
        self.accuracy.reset()

    def on_train_epoch_end(self) -> None:
        """Log the mean loss."""
        loss = float(self.train_loss.compute())
        self.train_loss.reset()
        self._watch.check()
        self.log("train/loss", loss, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """SGD and its schedule, moved at every step."""
        sgd = SGD(
            self.network.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
            fused=True,  # it can leave a step out
        )
        # Estimating opens the first epoch's batches for good; a saved schedule knows its length.
        steps = 1 if self.resumed else self.trainer.estimated_stepping_batches
        require(steps < math.inf, "trainer.max_epochs", "a number of epochs", "without an end")
        cosine = CosineAnnealingLR(sgd, int(steps))
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def facts(self) -> dict[str, str]:
        """Method and network."""
        return {**super().facts(), "network": described(self.network)}

    def own_state(self) -> dict[str, Any]:
        """The loss so far in this epoch."""
        return {"loss": metric_state(self.train_loss)}

    def load_own_state(self, states: Sequence[dict[str, Any]], rank: int) -> None:
        """See `own_state`."""
        mine = states[rank :: self.trainer.world_size]
        load_metric(self.train_loss, [state["loss"] for state in mine])

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary."""
        return {
            **measured(self.trainer, "accuracy"),
            "parameters": sum(p.numel() for p in self.network.parameters()),
        }

    @property
    def product(self) -> Classifier:
        """What the run is for."""
        return self.network
