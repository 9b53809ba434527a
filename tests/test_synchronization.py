"""The host does not wait for the device between generator steps, nor between reports of the loss.

With a GPU, CUDA itself says when it was waited for. Everywhere else every operation is looked at:
does it hand the host something that only the device knows?
"""

import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nayer_pl import RandomCropFlip
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.callbacks import PhaseProgressBar

STEPS, UPDATES, EVERY = 4, 12, 5  # of a round; of an epoch; between two reports
PLAN = {"epochs": 2, "warmup_epochs": 1, "warmup_rounds": 2, "kd_steps": UPDATES}
ROUNDS = 2 + 2

ON_GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
)
Note = Callable[[str], None]

WAITS = {
    "a number": lambda x: x.sum().item(),
    "a decision": lambda x: 1 if x[0] > 0 else 2,
    "a list": lambda x: x.tolist(),
    "a text": lambda x: f"{x[0]:.2f}",
    "a copy on the host": lambda x: x.cpu(),
    "a number from the host": lambda x: torch.tensor(1.0, device=x.device),
    "a comparison": lambda x: torch.equal(x, x + 1),
    "where it is positive": lambda x: (x > 0).nonzero(),
    "a selection": lambda x: x[x > 0],
    "a replaced selection": lambda x: x.clone().index_put_((x > 0,), x[:1]),
    "its different values": lambda x: x.unique(),
    "a wait within a gradient": lambda x: torch.func.grad(lambda y: y[y > 0].sum())(x),
}
CONTINUES = {
    "a constant": lambda x: torch.full((), torch.inf, device=x.device),
    "chosen by position": lambda x: x[torch.randint(4, (2,), device=x.device)],
    "chosen by value": lambda x: torch.where(x > 0, x, 0.0),
    "a gradient": lambda x: torch.func.grad(lambda y: y.square().sum())(x),
}


class ReadingOperations(TorchDispatchMode):
    """Notes operations whose result, or the shape of it, depends on values: the host has to ask."""

    ASKING = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            masks = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
            filled = len(args) > 2 and args[2].ndim == 0  # one value wherever the mask is true
            asks = masks and not filled
        else:
            asks = not self.ASKING.isdisjoint(func.tags)
        if asks:
            self.note(str(packet))
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Notes copies to the host and back; without a second device they are no operation at all."""

    TO_HOST = (Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__)
    FROM_HOST = (torch.tensor, torch.as_tensor)

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sent = func in self.FROM_HOST and not isinstance(args[0], Tensor) and kwargs.get("device")
        if func in self.TO_HOST or sent:
            self.note(func.__name__)
        return func(*args, **kwargs)


@contextmanager
def watching(device: str, note: Note) -> Iterator[None]:
    """Call `note` whenever the host waits for the device, or would."""
    if device == "cpu":
        with ReadingOperations(note), Copies(note):
            yield
        return

    def show(message: Any, *_: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            note("a wait for CUDA")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Journal(Callback):
    """Where in the run it is, and what the host read there.

    A place reaches to where the next one begins, so Lightning's own work is part of it.
    """

    def __init__(self) -> None:
        self.here = ("before training", 0)
        self.visited: Counter[str] = Counter()
        self.reads: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))

    def note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "torch" not in Path(f.filename).parts]
        line = next(frame for frame in reversed(frames) if frame.filename != __file__)
        kind, number = self.here
        self.reads[kind][number].append(f"{what}: {Path(line.filename).name}:{line.lineno}")

    def enter(self, kind: str, number: int) -> None:
        self.here = (kind, number)
        self.visited[kind] += 1

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        method.synthesizer.generator.register_forward_pre_hook(lambda *_: self._next_step())

    def _next_step(self) -> None:
        step = self.here[1] + 1
        self.enter("generator step" if step < STEPS else "last generator step and banking", step)

    def on_train_batch_start(
        self, trainer: Trainer, method: LightningModule, item: Any, i: int
    ) -> None:
        if isinstance(item, SynthesisRound):
            self.enter("before the first generator step", 0)
        elif self.here[0] != "student update":
            self.enter("student update", method.student_updates + 1)

    def on_train_batch_end(
        self, trainer: Trainer, method: LightningModule, outputs: Any, item: Any, i: int
    ) -> None:
        if i + 1 == trainer.num_training_batches:
            self.enter("between epochs", 0)
        elif isinstance(item, DistillationBatch):
            self.enter("student update", method.student_updates + 1)


@pytest.fixture(params=["cpu", ON_GPU])
def journal(request, tiny_method, tiny_data, fit, tmp_path, monkeypatch) -> Journal:
    """Of a whole run, with everything that looks at it."""
    # A CPU has nothing to wait for and looks at every gradient; a GPU does not.
    monkeypatch.setattr("nayer_pl.distillation.guards.NonFiniteGuard.SYNCHRONOUS", ())
    journal, augmentation = Journal(), RandomCropFlip(1)
    with watching(request.param, journal.note):
        fit(
            tiny_method(generator_steps=STEPS, augmentation=augmentation),
            tiny_data(PLAN, augmentation=augmentation),
            accelerator=request.param, devices=1, log_every_n_steps=EVERY,
            enable_progress_bar=True, logger=CSVLogger(tmp_path),
            callbacks=[PhaseProgressBar(terminal=True), journal],
        )  # fmt: skip
    return journal


def test_reads__generator_steps(journal):
    assert journal.visited["generator step"] == ROUNDS * (STEPS - 1)
    assert not journal.reads["generator step"]
    assert journal.reads["last generator step and banking"][STEPS]  # reads are seen where they are


def test_reads__student_updates(journal):
    assert journal.visited["student update"] == 2 * UPDATES
    reads = journal.reads["student update"]
    assert sorted(reads) == [5, 10, 15, 20], dict(reads)


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("name", [*WAITS, *CONTINUES])
def test_watching(device, name):
    noted = []
    x = torch.randn(4, device=device)
    with watching(device, noted.append):
        {**WAITS, **CONTINUES}[name](x)
    assert bool(noted) == (name in WAITS)
