"""The host does not wait for the device in a generator step, nor in a student's between reports.

So longer rounds and epochs wait no more often. With a GPU, CUDA itself says when it was waited for.
Everywhere else every operation is looked at: does it hand the host something that only the device
knows?
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nayer_pl import RandomCropFlip
from nayer_pl.callbacks import PhaseProgressBar

ON_GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
)
Note = Callable[[str], None]

WAITS = {
    "a number": lambda x: x.sum().item(),
    "a list": lambda x: x.tolist(),
    "a copy on the host": lambda x: x.cpu(),
    "a number from the host": lambda x: torch.tensor(1.0, device=x.device),
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
def counting(device: str) -> Iterator[Counter[str]]:
    """Count how often the host waits for the device, or would, by line of the program."""
    waits: Counter[str] = Counter()

    def note(what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "torch" not in Path(f.filename).parts]
        line = next(frame for frame in reversed(frames) if frame.filename != __file__)
        waits[f"{what}: {Path(line.filename).name}:{line.lineno}"] += 1

    def show(message: Any, *_: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            note("a wait for CUDA")

    if device == "cpu":
        with ReadingOperations(note), Copies(note):
            yield waits
        return
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["cpu", ON_GPU])
def waits(request, tiny_method, tiny_data, fit, tmp_path, monkeypatch) -> Callable[..., Counter]:
    """The waits of a whole run, with everything that looks at it."""
    # A CPU has nothing to wait for and looks at every gradient; a GPU does not.
    monkeypatch.setattr("nayer_pl.distillation.guards.NonFiniteGuard.SYNCHRONOUS", ())
    augmentation = RandomCropFlip(1)

    def run(steps: int = 2, updates: int = 4, every: int = 50) -> Counter:
        with counting(request.param) as found:
            fit(
                tiny_method(generator_steps=steps, augmentation=augmentation),
                tiny_data({"kd_steps": updates}, augmentation=augmentation),
                accelerator=request.param, devices=1, log_every_n_steps=every,
                enable_progress_bar=True, logger=CSVLogger(tmp_path),
                callbacks=[PhaseProgressBar(terminal=True)],
            )  # fmt: skip
        return found

    return run


def test_run(waits):
    short = waits()
    assert waits(steps=5) == short
    assert waits(updates=9) == short
    assert (waits(every=2) - short).total() >= 2  # two more reports are seen


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("name", [*WAITS, *CONTINUES])
def test_counting(device, name):
    x = torch.randn(4, device=device)
    with counting(device) as found:
        {**WAITS, **CONTINUES}[name](x)
    assert bool(found) == (name in WAITS)
