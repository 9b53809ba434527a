"""Draw docs/overview.png: how it works, with real images of a run.

python train.py experiment=digits run_dir=runs/overview
python docs/draw_overview.py runs/overview docs/overview.png
"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from nayer_pl import load_classifier
from nayer_pl.bank.bank import read_bank

INK, BOX, TEACHER, STUDENT = "#1f2328", "#f6f8fa", "#fff1e5", "#ddf4ff"
CLASSES = (0, 3, 8)


def box(ax: Axes, x: float, y: float, wide: float, tall: float, text: str, color: str) -> None:
    """A rounded box with its lower left corner at (x, y), and text in the middle."""
    shape = FancyBboxPatch(
        (x, y), wide, tall, "round,pad=0,rounding_size=0.12", facecolor=color, edgecolor=INK, lw=0.8
    )
    ax.add_patch(shape)
    ax.text(x + wide / 2, y + tall / 2, text, ha="center", va="center", fontsize=8, color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow with a remark beside its middle."""
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=INK, lw=0.9)
    )
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        ax.text(x, y + 0.12, text, ha="center", va="bottom", fontsize=7, color=INK, style="italic")


def pictures(ax: Axes, images: torch.Tensor, x: float, y: float, size: float, columns: int) -> None:
    """A grid of images, uint8 [N, C, H, W], with its upper left corner at (x, y)."""
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        left, top = x + column * size, y - row * size
        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
        extent = (left, left + 0.93 * size, top - 0.93 * size, top)
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")


def draw(run_dir: Path) -> Figure:
    """The figure, from the bank and the student of a finished run."""
    images, labels = read_bank(run_dir / "bank")
    _, facts = load_classifier(run_dir / "student.safetensors")
    names = facts["class_names"]
    newest = {label: (labels == label).nonzero().flatten()[-6:] for label in CLASSES}
    figure = Figure(figsize=(8.4, 3.5), dpi=150, facecolor="white")
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    ax.set_axis_off()

    text = "class names\n\n" + "\n".join(f"“{names[label]}”" for label in CLASSES) + "\n…"
    box(ax, 0.0, 1.7, 1.5, 1.7, text, BOX)
    box(ax, 2.3, 1.7, 1.5, 1.7, "noisy layer\n\nnew in every\nround", BOX)
    box(ax, 4.3, 1.7, 1.3, 1.7, "generator", BOX)
    pictures(ax, torch.cat([images[newest[label][-2:]] for label in CLASSES]), 6.3, 3.4, 0.57, 2)
    arrow(ax, (1.5, 2.55), (2.3, 2.55), "label text")
    arrow(ax, (3.8, 2.55), (4.3, 2.55))
    arrow(ax, (5.6, 2.55), (6.25, 2.55), "images")

    box(ax, 4.3, 0.0, 1.3, 0.9, "teacher\n(frozen)", TEACHER)
    arrow(ax, (6.6, 1.65), (5.65, 0.75))
    arrow(ax, (4.95, 0.9), (4.95, 1.7))
    remark = (
        "Does it see the label?  Do its BatchNorms\nsee familiar statistics?  Do the two disagree?"
    )
    ax.text(4.15, 0.45, remark, ha="right", va="center", fontsize=7, style="italic", color=INK)

    ax.text(9.0, 3.52, "memory bank", ha="center", va="bottom", fontsize=8, color=INK)
    bank = torch.cat([images[newest[label]] for label in CLASSES])
    pictures(ax, bank, 8.2, 3.4, 0.28, 6)
    arrow(ax, (7.5, 2.85), (8.15, 2.85))
    box(ax, 8.3, 0.0, 1.5, 0.9, "student", STUDENT)
    arrow(ax, (9.05, 2.5), (9.05, 0.95))
    arrow(ax, (5.65, 0.35), (8.25, 0.35), "teaches, on images of the bank")
    ax.set_xlim(-0.1, 10.1)
    ax.set_ylim(-0.15, 3.85)
    return figure


if __name__ == "__main__":
    draw(Path(sys.argv[1])).savefig(sys.argv[2])
