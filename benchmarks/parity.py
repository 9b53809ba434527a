"""Does speed cost accuracy? The same seeds in plain float32, as shipped, and in bfloat16.

python benchmarks/parity.py [--experiment digits] [--seeds 0 1 2] [--ways plain ...] [--out DIR]
    [-- override ...]

- plain: float32, and instead of every fast form of ours the one that it stands for.
- fast: float32, as shipped.
- bfloat16: as on a machine that multiplies it. Where this one does not, what convolutions, products
  and BatchNorms take and give is rounded to bfloat16, as autocast does, and computed in float32.

A seed's three students have the same teacher, trained in plain float32.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning.pytorch.plugins.precision import Precision
from measuring import ROOT, machine, mean_and_spread
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nayer_pl import fastest_precision
from nayer_pl.app.main import register_configs
from nayer_pl.app.train import train
from nayer_pl.networks.teacher import ChannelMoments
from nayer_pl.synthesis.generators import UpsampledConv


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """What the fast forms stand for."""

    def upsampled(conv: nn.Conv2d, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(conv, F.interpolate(x, scale_factor=2))

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return mean, variance

    with (
        patch.object(UpsampledConv, "forward", upsampled),
        patch.object(ChannelMoments, "apply", moments),
        patch("nayer_pl.networks.teacher.folded", lambda teacher, *_: teacher),
        # A GPU's convolutions would round float32 to TF32.
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        yield


class Rounded(TorchFunctionMode):
    """Rounds what matrix products and BatchNorms take and give to bfloat16, gradients too."""

    ROUNDED = (F.conv2d, F.linear, F.batch_norm, torch.baddbmm, torch.matmul)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func not in self.ROUNDED:
            return func(*args, **(kwargs or {}))
        first = func in (F.batch_norm,)  # its weights and statistics stay float32
        rounded = [_round(a) if i == 0 or not first else a for i, a in enumerate(args)]
        return _round(func(*rounded, **(kwargs or {})))


def _round(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value


class EmulatedBfloat16(Precision):
    """A Trainer's precision on a machine that does not multiply bfloat16."""

    precision = "32-true"

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        """Around every step."""
        with Rounded():
            yield


NATIVE = fastest_precision() == "bf16-mixed"
PRECISION = {
    "plain": ["trainer.precision=32-true"],
    "fast": ["trainer.precision=32-true"],
    "bfloat16": ["trainer.precision=bf16-mixed"]
    if NATIVE
    else ["trainer.precision=null", f"+trainer.plugins=[{{_target_:{__name__}.EmulatedBfloat16}}]"],
}


def student(experiment: str, way: str, seed: int, out: Path, overrides: list[str]) -> dict:
    """One run; its summary, read if it is there already."""
    run_dir = out / way / f"seed{seed}"
    if not (run_dir / "summary.json").exists():
        options = [f"experiment={experiment}", f"seed={seed}", f"run_dir={run_dir}", "logger=csv"]
        options += [f"paths.teachers={out / 'teachers'}/seed{seed}", *overrides]
        options += PRECISION[way]
        cfg = compose("train", options)
        with plain_forms() if way == "plain" else contextlib.nullcontext():
            train(cfg)
    return json.loads((run_dir / "summary.json").read_text())


def main() -> None:
    """Run what is not there yet under --out, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=PRECISION, default=list(PRECISION))
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    out = (arguments.out or Path(f"runs/parity_{arguments.experiment}")).resolve()
    register_configs(ROOT / "conf")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = {
            way: [
                student(arguments.experiment, way, seed, out, arguments.overrides)
                for seed in arguments.seeds
            ]
            for way in arguments.ways
        }
    emulated = "" if NATIVE else " (rounding emulated)"
    print(f"\n{machine()}{emulated}\n\n| | student, % | agreement, % | label seen, % |")
    print("|---|---|---|---|")
    for way, runs in found.items():
        cells = [
            mean_and_spread([run[key] for run in runs], 100, 1)
            for key in ("student_accuracy", "agreement", "label_agreement")
        ]
        print(f"| {way} | {' | '.join(cells)} |")
    (out / "parity.json").write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
