"""Ours, as a real Trainer runs it, and the published rendering of the same work, in turn."""

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from measuring import synchronize
from published import Published
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from nayer_pl import (
    NAYER,
    Classifier,
    Plan,
    RandomCropFlip,
    SyntheticDataModule,
    build_classifier,
)
from nayer_pl.app.output import quiet_lightning
from nayer_pl.bank.plan import DistillationBatch, SynthesisRound
from nayer_pl.runtime.numerics import fastest_precision
from nayer_pl.synthesis.generators import UpsampledConv

IMAGE_SHAPE, CLASSES, TEXT, FEATURES = (3, 32, 32), 10, 512, 1000


FUSED = torch.ops.mkldnn._convolution_pointwise


def fused_operations(images: Any, *arguments: Any, out_shape: Sequence[int], **_: Any) -> int:
    """Of a fused convolution; the weight comes after the images, and after a summand."""
    weights = next(shape for shape in arguments if shape[1:] != out_shape[1:])
    return conv_flop_count(images, weights, out_shape)


class SideBySide:
    """A method of ours with its data, and `published`, which starts from the same weights.

    Args:
        pair: "teacher-student", names in `nayer_pl.networks`.
        plan: of one run; its last epochs are what is measured.
        generator_steps: in a round.
        compiled: `model.compile`.
        precision: `trainer.precision`; "auto" is the fastest of this machine.
    """

    def __init__(
        self,
        pair: str,
        plan: Plan,
        generator_steps: int,
        compiled: bool = False,
        precision: str = "auto",
    ) -> None:
        seed_everything(0, verbose=False)
        quiet_lightning()
        self.plan, self.generator_steps = plan, generator_steps
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = fastest_precision() if precision == "auto" else precision
        teacher, student = (network(name) for name in pair.split("-"))
        self.datamodule = SyntheticDataModule(
            IMAGE_SHAPE, CLASSES, plan, evaluation=False, augmentation=RandomCropFlip()
        )
        label_text = torch.randn(CLASSES, TEXT)
        plain = [copy.deepcopy(net).to(self.device) for net in (teacher, student)]
        self.method = NAYER(
            teacher,
            student,
            IMAGE_SHAPE,
            label_text,
            noisy_features=FEATURES,
            generator_steps=generator_steps,
            augmentation=RandomCropFlip(),
            round_size=plan.round_size,
            check_teacher=False,
            compile=compiled,
        )
        generator = without_fast_forms(copy.deepcopy(self.method.synthesizer.generator))
        self.published = Published(
            *plain,
            generator.to(self.device),
            label_text.to(self.device),
            FEATURES,
            plan.round_size,
        )

    def run(self, callback: Callback) -> None:
        """Train, with `callback` measuring."""
        trainer = Trainer(
            devices=1,
            precision=self.precision,
            max_epochs=self.plan.max_epochs,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(self.method, datamodule=self.datamodule)

    def facts(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {
            "precision": self.precision,
            "compile": self.method.compiled,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def without_fast_forms(generator: nn.Module) -> nn.Module:
    """The same weights, upsampled and convolved one after the other, as it was published."""
    for name, layer in list(generator.named_modules()):
        if isinstance(layer, UpsampledConv):
            plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            plain.load_state_dict(layer.state_dict())
            generator.set_submodule(name, nn.Sequential(nn.Upsample(scale_factor=2), plain))
    return generator


def network(name: str) -> Classifier:
    """An untrained network: what a step costs does not depend on what it knows."""
    description = {"_target_": f"nayer_pl.networks.{name}", "num_classes": CLASSES}
    net = build_classifier(description, mean=[0.5] * 3, std=[0.25] * 3)
    with torch.no_grad():  # statistics and activations of a sane size
        net.train()(torch.rand(32, *IMAGE_SHAPE))
    return net


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes, the device included."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


class EachItem(Callback):
    """Times every work item of ours, then the published rendering of it.

    Of a kind, the first item counts operations, and the second one warms up and compiles.

    `seconds` holds pairs (ours, published) of one generator step and of one distillation step,
    `warmup` the seconds of a second item, and `operations` what one of our steps multiplies and
    adds.
    """

    def __init__(self, both: SideBySide) -> None:
        self.both = both
        self.seconds: dict[str, list[tuple[float, float]]] = {"generator": [], "distillation": []}
        self.warmup: dict[str, float] = {}
        self.operations: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, item: Any, index: int
    ) -> None:
        """Start the clock, or the counter."""
        self.kind = "generator" if isinstance(item, SynthesisRound) else "distillation"
        self.counting = contextlib.ExitStack()
        if self.kind not in self.operations:
            # Nothing is compiled while operations are counted, nor ever afterwards if it is tried.
            self.counting.enter_context(torch.compiler.set_stance("force_eager"))
            counter = FlopCounterMode(display=False, custom_mapping={FUSED: fused_operations})
            self.counter = self.counting.enter_context(counter)
        synchronize()
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, item: Any, index: int
    ) -> None:
        """Stop it, and let the other one work."""
        synchronize()
        ours = time.perf_counter() - self.started
        self.counting.close()
        theirs = seconds(lambda: self._published(item))
        steps = self.both.generator_steps if self.kind == "generator" else 1
        if self.kind not in self.operations:
            self.operations[self.kind] = self.counter.get_total_flops() / steps
        elif self.kind not in self.warmup:
            self.warmup[self.kind] = ours
        else:
            self.seconds[self.kind].append((ours / steps, theirs / steps))

    def _published(self, item: Any) -> None:
        published = self.both.published
        if isinstance(item, DistillationBatch):
            published.distil(item.images.contiguous())
        else:
            published.round(item.targets, self.both.generator_steps)
