"""Draw docs/overview.png: how it works, with label text, images and figures of a run.

python train.py experiment=digits run_dir=runs/overview
python docs/draw_overview.py runs/overview docs/overview.png
"""

import json
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from omegaconf import OmegaConf

from nayer_pl.app.instantiate import build
from nayer_pl.bank.bank import read_bank

INK, BOX, TEACHER, STUDENT = "#1f2328", "#f6f8fa", "#fff1e5", "#ddf4ff"
CLASSES = (0, 3, 5)
ROWS = (3.15, 2.4, 1.65)  # lower edge of each class's row
TALL = 0.62


def box(
    ax: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, color: str
) -> None:
    """Draw a rounded box with text in its middle."""
    style = "round,pad=0,rounding_size=0.1"
    ax.add_patch(FancyBboxPatch(corner, *size, style, facecolor=color, edgecolor=INK, lw=0.8))
    middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    ax.text(*middle, text, ha="center", va="center", fontsize=8, color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow."""
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "color": INK, "lw": 0.9}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))


def remark(ax: Axes, x: float, y: float, text: str, **where: str) -> None:
    """Write small text; centered unless `where` says otherwise."""
    ax.text(x, y, text, fontsize=7, color=INK, **{"ha": "center", "va": "center", **where})


def picture(ax: Axes, pixels: torch.Tensor, x: float, y: float, size: tuple[float, float]) -> None:
    """Draw an array with its lower left corner at (x, y): gray bytes, or floats in color."""
    gray = pixels.dtype == torch.uint8
    colors = {"cmap": "gray", "vmin": 0, "vmax": 255} if gray else {"cmap": "PuOr"}
    ax.imshow(pixels, extent=(x, x + size[0], y, y + size[1]), interpolation="nearest", **colors)


def draw(run_dir: Path) -> Figure:
    """The figure, from the files of a finished run with label text."""
    config = OmegaConf.load(run_dir / "config.yaml")
    summary = json.loads((run_dir / "summary.json").read_text())
    label_text = build(config.model.label_text)
    embeddings = label_text.embeddings()
    images, labels = read_bank(run_dir / "bank")
    figure = Figure(figsize=(8.6, 3.7), dpi=150, facecolor="white")
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    ax.set_axis_off()

    for label, y in zip(CLASSES, ROWS, strict=True):
        prompt = config.prompts[0].replace("{name}", f"{label_text.names[label]}")
        remark(ax, 0.0, y + 0.46, f"“{prompt}”", ha="left")
        picture(ax, embeddings[label, None, :40], 0.0, y + 0.08, (1.75, 0.2))
        arrow(ax, (1.82, y + 0.18), (2.3, y + 0.18))
        newest = images[(labels == label).nonzero().flatten()[-12:]].flip(0)
        for i, image in enumerate(newest[:2]):
            picture(ax, image[0], 5.55 + 0.66 * i, y, (TALL, TALL))
        for i, image in enumerate(newest):
            row, column = divmod(i, 6)
            corner = 8.0 + 0.34 * column, y + 0.34 * (1 - row) - 0.02
            picture(ax, image[0], *corner, (0.31, 0.31))
    middle = ROWS[1] + TALL / 2
    remark(ax, 0.9, 4.02, "label text of every class\n(constant)")
    torch.manual_seed(0)
    picture(ax, torch.randn(24, 14), 2.35, ROWS[2], (1.25, 2.12))
    remark(ax, 2.97, 4.02, "noisy layer\n(drawn for every round)")
    arrow(ax, (3.67, middle), (3.97, middle))
    box(ax, (4.02, 2.0), (1.1, 1.4), "generator", BOX)
    arrow(ax, (5.17, middle), (5.5, middle))
    remark(ax, 6.2, 4.02, "images of a round")
    arrow(ax, (6.92, middle), (7.95, middle))
    remark(ax, 7.42, middle + 0.22, "of the best\nstep")
    remark(ax, 9.0, 4.02, "memory bank")

    box(ax, (4.02, 0.1), (2.85, 0.85), "", TEACHER)
    ax.text(5.45, 0.68, "teacher (frozen)", ha="center", va="center", fontsize=8, color=INK)
    seen = f"sees the target label in {summary['label_agreement']:.1%} of all images"
    remark(ax, 5.45, 0.34, seen)
    arrow(ax, (6.2, 1.6), (6.2, 1.0))
    arrow(ax, (4.57, 1.0), (4.57, 1.95))
    remark(ax, 4.65, 1.48, "loss", ha="left")
    losses = (
        "Generator and noisy layer are trained so that the\n"
        "teacher sees the label, its BatchNorms see familiar\n"
        "statistics, and the student still disagrees."
    )
    remark(ax, 0.0, 0.53, losses, ha="left")
    box(ax, (8.0, 0.1), (2.01, 0.85), "", STUDENT)
    ax.text(9.0, 0.68, "student", ha="center", va="center", fontsize=8, color=INK)
    remark(ax, 9.0, 0.34, f"{summary['student_accuracy']:.1%} on real images")
    arrow(ax, (9.0, 1.55), (9.0, 1.0))
    arrow(ax, (6.92, 0.53), (7.95, 0.53))
    remark(ax, 7.42, 0.7, "teaches")
    ax.set_xlim(-0.1, 10.15)
    ax.set_ylim(-0.05, 4.3)
    return figure


if __name__ == "__main__":
    draw(Path(sys.argv[1])).savefig(sys.argv[2])
