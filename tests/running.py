"""What the tests of whole runs share.

Tiny networks and data, programs that run beside the tests, and what a run leaves.
"""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from nayer_pl import build_classifier, save_classifier
from nayer_pl.app.main import register_configs
from nayer_pl.callbacks import Checkpoints
from nayer_pl.data import ImageSet

ROOT = Path(__file__).resolve().parents[1]
register_configs(ROOT / "conf")  # for every test that composes a configuration
SHAPE = (1, 8, 8)
CLASSES = 3
RANKS = "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm: enough for every part of a method to have work."""

    def __init__(self, classes: int = CLASSES, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(SHAPE[0], 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.norm2 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class TinySource:
    """So many random images of each of these splits."""

    def __init__(self, **counts: int) -> None:
        self.counts = counts

    def load(self, split: str) -> ImageSet:
        assert split in self.counts, f"a data-free run opened {split}"
        shape = (self.counts[split], *SHAPE)
        rng = torch.Generator().manual_seed(5)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
        return ImageSet(images, torch.arange(len(images)) % CLASSES)


class Program(subprocess.Popen):
    """A Python program in a session of its own, of which nothing may be left at the end."""

    def __init__(self, *words: str, cwd: Path, **env: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in RANKS}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        super().__init__(
            [sys.executable, *words], cwd=cwd, env={**inherited, "OMP_NUM_THREADS": "1", **env},
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )  # fmt: skip

    def end(self, timeout: float = 600) -> tuple[int, str]:
        """Wait for it, long enough for a busy machine: its exit status and what it said."""
        status = self.wait(timeout)
        self.log.seek(0)
        return status, self.log.read()

    def wait_for(self, there: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while not there():
            assert self.poll() is None, "it ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def left_behind(self) -> str:
        """What still runs in its session a little later."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, 0)
            words = ["ps", "-o", "stat=,args=", "-s", str(self.pid)]
            for _ in range(20):
                found = subprocess.run(words, text=True, capture_output=True).stdout.splitlines()
                running = [line for line in found if not line.startswith("Z")]
                if not running:
                    return ""
                time.sleep(0.5)
            return "\n".join(running)
        return ""

    def __exit__(self, kind: Any, *error: Any) -> None:
        left = "" if kind else self.left_behind()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(kind, *error)
        self.log.close()
        assert not left


TRAIN = str(ROOT / "train.py")


def train_py(*words: str, cwd: Path, **env: str) -> tuple[int, str]:
    """`python train.py` in a process of its own: its exit status and what it said."""
    with Program(TRAIN, *words, cwd=cwd, **env) as program:
        return program.end()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_two_ranks(script: str, *words: str, folder: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run a script of this folder twice, as two ranks; reads what they left, by name of the run."""
    meet = {"WORLD_SIZE": "2", "NODE_RANK": "0"}
    meet |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [str(ROOT / "tests" / script), str(folder), *words]
    with ExitStack() as stack:
        programs = [
            stack.enter_context(Program(*command, cwd=folder, **meet, RANK=i, LOCAL_RANK=i))
            for i in "01"
        ]
        for status, said in [program.end() for program in programs]:
            assert status == 0, said[-3000:]

    def read(name: str, ranks: int = 2) -> list[dict[str, Any]]:
        files = [folder / f"{name}_{rank}.pt" for rank in range(ranks)]
        return [torch.load(file, weights_only=False) for file in files]

    return read


def save_untrained_teacher(folder: Path, classes: int = 10) -> None:
    """`teacher.safetensors`, for tests in which nothing depends on what it knows."""
    torch.manual_seed(0)
    network = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": classes, "channels": 1}
    save_classifier(folder / "teacher.safetensors", build_classifier(network, [0.3], [0.4]))


@contextmanager
def composed(folder: Path) -> Iterator[Callable[..., DictConfig]]:
    """Compose conf/train.yaml in this working directory."""
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
    ):
        patch.chdir(folder)
        yield lambda *overrides: compose("train", overrides=[f"run_dir={folder}/run", *overrides])


class KeepAll(Checkpoints):
    """Saves after every item and epoch, and keeps all of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, minutes=0)
        self.kept: list[Path] = []

    def save(self, trainer: Trainer) -> None:
        super().save(trainer)
        self.kept.append(self.folder / f"{len(self.kept)}.ckpt")
        if trainer.is_global_zero:
            shutil.copy(self.folder / "last.ckpt", self.kept[-1])


def metrics(run: Path | str) -> list[dict[str, str]]:
    """The rows of `metrics.csv` without their times."""
    with open(Path(run) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
