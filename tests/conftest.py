import logging
import runpy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from omegaconf import DictConfig
from running import CLASSES, ROOT, SHAPE, TinyNet, TinySource, composed
from torch import Tensor

from nayer_pl import (
    NAYER,
    Classifier,
    Plan,
    RandomCropFlip,
    RealDataModule,
    SyntheticDataModule,
)
from nayer_pl.bank import SynthesisRound


@pytest.fixture(scope="session", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, no login, no cache of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("NAYER_PL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    # A run of another rank is quiet, and Hydra's logging switches off the loggers that it finds.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("nayer_pl") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)
            logger.disabled, logger.propagate = False, True


@pytest.fixture
def tiny_classifier() -> Callable[..., Classifier]:
    def make(**options: object) -> Classifier:
        net = Classifier(TinyNet(**options), mean=[0.4], std=[0.3])  # type: ignore[arg-type]
        net.train()
        for _ in range(3):  # running statistics that are not the initial ones
            net(torch.rand(32, *SHAPE))
        return net

    return make


@pytest.fixture
def tiny_method(tiny_classifier: Callable[..., Classifier]) -> Callable[..., NAYER]:
    def make(**options: object) -> NAYER:
        defaults: dict[str, object] = {
            "teacher": tiny_classifier(),
            "student": tiny_classifier(),
            "image_shape": SHAPE,
            "label_text": torch.randn(CLASSES, 5),
            "noisy_features": 16,
            "generator_steps": 4,
            "round_size": 12,
            "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
            "check_teacher": False,  # it was never trained
        }
        return NAYER(**{**defaults, **options})  # type: ignore[arg-type]

    return make


@pytest.fixture
def tiny_data() -> Callable[..., SyntheticDataModule]:
    def make(plan: dict[str, int] | None = None, **options: object) -> SyntheticDataModule:
        sizes = {
            "epochs": 2, "warmup_epochs": 1, "warmup_rounds": 2, "rounds_per_epoch": 1,
            "kd_steps": 3, "round_size": 12, "batch_size": 8, **(plan or {}),
        }  # fmt: skip
        defaults: dict[str, object] = {"source": TinySource(evaluation=24)}
        return SyntheticDataModule(SHAPE, CLASSES, Plan(**sizes), **{**defaults, **options})  # type: ignore[arg-type]

    return make


@pytest.fixture
def tiny_real_data() -> Callable[..., RealDataModule]:
    source = TinySource(train=24, evaluation=24)
    return partial(RealDataModule, source, 8, RandomCropFlip(1), epochs=2, num_classes=CLASSES)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    def run(
        method: NAYER, data: SyntheticDataModule, ckpt_path: Path | None = None, **options: object
    ) -> Trainer:
        trainer = Trainer(
            **{
                "max_epochs": data.max_epochs, "accelerator": "cpu", "logger": False,
                "enable_checkpointing": False, "enable_progress_bar": False,
                "enable_model_summary": False, "log_every_n_steps": 1,
                "default_root_dir": tmp_path, **options,
            }  # type: ignore[arg-type]
        )  # fmt: skip
        trainer.fit(method, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def watch_rounds() -> Callable[[Any], list[SimpleNamespace]]:
    """A list to which every synthesis round of a method is added.

    Each has `targets`, `warm_up`, the images `made` at every step and `kept` at the end, and by
    name the loss `terms` of every step.
    """

    def watch(method: Any) -> list[SimpleNamespace]:
        rounds: list[SimpleNamespace] = []
        generate, optimize = method.synthesizer.generate, method._optimize_images

        def watched_generate(targets: Tensor) -> Tensor:
            images = generate(targets)
            rounds[-1].made.append(images.detach().clone())
            return images

        def watched_optimize(item: SynthesisRound) -> tuple[Tensor, dict[str, Tensor]]:
            rounds.append(SimpleNamespace(targets=item.targets, warm_up=item.warm_up, made=[]))
            rounds[-1].kept, rounds[-1].terms = optimize(item)
            return rounds[-1].kept, rounds[-1].terms

        method.synthesizer.generate, method._optimize_images = watched_generate, watched_optimize
        return rounds

    return watch


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    """Compose conf/train.yaml in an empty working directory."""
    with composed(tmp_path) as compose_here:
        yield compose_here


@pytest.fixture
def type_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """`python train.py ...` in this process, with another function for the training itself.

    Without one (None) it is the real thing, and saves the seconds that a process needs to start.
    """
    monkeypatch.chdir(tmp_path)

    def run(
        training: Callable[[DictConfig], float | None] | None, *arguments: str
    ) -> tuple[int, str]:
        if training is not None:
            train = lambda cfg: ({"student_accuracy": training(cfg)}, {})  # noqa: E731
            monkeypatch.setattr("nayer_pl.app.train.train", train)
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        status, last = 0, ""
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as exit:  # a text is what Python would print before it ends with 1
            status, last = (1, exit.code) if isinstance(exit.code, str) else (exit.code or 0, "")
        printed = capsys.readouterr()
        return status, printed.out + printed.err + last

    return run
