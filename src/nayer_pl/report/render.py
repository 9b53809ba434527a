"""What a report shows: curves of accuracy against its cost, and one page with everything."""

import base64
import io
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from PIL import Image

from nayer_pl.report.groups import Method, Section
from nayer_pl.report.runs import Evaluation, LeftOut, Run
from nayer_pl.report.tables import NOTES, TABLES, table

AXES = {"seconds": "seconds of synthesis and distillation", "steps": "synthesis steps"}

# Distinguishable by color-blind readers (after Okabe and Ito, and Tol) and by marker, and dark
# enough for thin lines on white.
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#c46a9b", "#b97f00", "#2e97d4", "#882255", "#73731f",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
MOST_MARKERS = 15  # on a line
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#d0d7de",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "nayer_pl",  # or the same figure would differ from call to call
}
SAMPLE_WIDTH = 400  # pixels of a grid of samples, at most


class Point(NamedTuple):
    """Means over the seeds of a method after some student updates: cost `x` and accuracy.

    The accuracy is in [0, 1], the deviation is its sample standard deviation.
    """

    updates: int
    x: float
    accuracy: float
    deviation: float


def points(runs: Sequence[Run], axis: str) -> list[Point]:
    """The curve of a method: evaluations of its seeds, averaged by student updates.

    Args:
        runs: its seeds.
        axis: "seconds" or "steps", the cost.
    """
    together: dict[int, list[Evaluation]] = defaultdict(list)
    for run in runs:
        for each in run.evaluations:
            if getattr(each, axis) is not None:
                together[each.updates].append(each)
    most = max(map(len, together.values()), default=0)
    found = []
    for updates, evaluations in sorted(together.items()):
        if len(evaluations) == most:  # a mean over fewer seeds would make the curve jump
            accuracies = [each.accuracy for each in evaluations]
            x = statistics.fmean(getattr(each, axis) for each in evaluations)
            deviation = statistics.stdev(accuracies) if most > 1 else 0.0
            found.append(Point(updates, x, statistics.fmean(accuracies), deviation))
    return found


def styles(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """Line style by label: data-free methods in color, baselines in black.

    In the order of names, not of results: the same methods look the same in every figure.
    """
    found: dict[str, dict[str, Any]] = {}
    labels = sorted(method.label for method in methods if not method.uses_real_images)
    baselines = sorted(method.label for method in methods if method.uses_real_images)
    for i, label in enumerate(labels):
        turn, place = divmod(i, len(COLORS))
        style = {"color": COLORS[place], "marker": MARKERS[place], "markersize": 3.5}
        found[label] = {**style, "linestyle": DASHES[turn % len(DASHES)]}
    for i, label in enumerate(baselines, 1):
        found[label] = {"color": "black", "linestyle": DASHES[i % len(DASHES)]}
    return found


def figure(sections: Sequence[Section]) -> Figure:
    """Two panels for every section, as wide as two columns of a paper."""
    columns, heights = [], []
    for section in sections:
        lines = [line for method in section.methods for line in _legend_label(method).splitlines()]
        columns.append(max(1, min(6, 100 // (8 + max(map(len, lines))))))
        heights.append(2.9 + 0.17 * (len(lines) + 1) / columns[-1])  # inches, with the legend
    made = Figure(figsize=(7.2, sum(heights)), layout="constrained", dpi=200)
    parts = made.subfigures(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, section, ncols in zip(parts, sections, columns, strict=True):
        axes = part.subplots(1, len(AXES), sharey=True)
        for ax, axis in zip(axes, AXES, strict=True):
            draw_axes(ax, section, axis)
        axes[0].set_ylabel("accuracy, %")
        part.suptitle(section.title, fontsize=9)
        legend = axes[0].get_legend_handles_labels()
        part.legend(*legend, loc="outside lower center", ncols=ncols, frameon=False)
    return made


def _legend_label(method: Method) -> str:
    return textwrap.fill(method.name, 90)


def draw(sections: Sequence[Section], file_format: str) -> bytes:
    """The figure of these sections as "png" or "svg"; equal for equal runs."""
    content = io.BytesIO()
    about = {"png": {"Software": None}, "svg": {"Date": None}}[file_format]
    with rc_context(STYLE):
        figure(sections).savefig(content, format=file_format, metadata=about)
    return content.getvalue()


def draw_axes(ax: Axes, section: Section, axis: str) -> None:
    """Draw one panel: the curve of each method, and the accuracy of the teacher."""
    looks = styles(section.methods)
    for method in section.methods:
        curve = points(method.runs, axis)
        if curve:
            x, y = [p.x for p in curve], np.array([100 * p.accuracy for p in curve])
            spread = np.array([100 * p.deviation for p in curve])
            below, above = np.clip((y - spread, y + spread), 0, 100)
            every, style = -(-len(curve) // MOST_MARKERS), looks[method.label]
            ax.fill_between(x, below, above, color=style["color"], alpha=0.15, linewidth=0)
            ax.plot(x, y, label=_legend_label(method), markevery=every, linewidth=1.4, **style)
    teachers = [100 * t for run in section.runs if (t := run.number("teacher_accuracy"))]
    if not ax.lines:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center")
    elif teachers:
        ax.axhline(statistics.fmean(teachers), label="teacher", color="black", linewidth=0.7)
    shown = [100 * each.accuracy for run in section.runs for each in run.evaluations]
    _set_scales(ax, min(shown, default=0.0), max(shown + teachers, default=100.0))
    ax.set_xlabel(AXES[axis])
    ax.grid()


def _set_scales(ax: Axes, lowest: float, highest: float) -> None:
    """Stretch accuracy towards 100 %: there the same step halves the errors. Log cost."""
    ax.set_yscale(
        "function",
        functions=(
            lambda percent: -np.log(100.8 - np.minimum(percent, 100.0)),
            lambda stretched: 100.8 - np.exp(-stretched),
        ),
    )
    even, near_100 = MaxNLocator(6, steps=[1, 2, 5, 10]), (0, 20, 40, 60, 80, 90, 95, 98, 99, 100)
    ax.yaxis.set_major_locator(FixedLocator(near_100) if highest > 90 else even)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_ylim(max(0.0, lowest - 3), min(100.0, highest + 3))
    ax.set_xscale("log", subs=[])
    left, right = ax.get_xlim()
    wide = right > 200 * left  # more numbers would touch each other
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if wide else (1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:,g}")


def page(title: str, sections: Sequence[Section], left_out: Sequence[LeftOut]) -> str:
    """`report.html`: tables, curves and samples of every section, in one file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        left_out=left_out,
        notes=NOTES,
        sections=[
            {
                "section": section,
                "tables": {name: table(section, columns) for name, columns in TABLES.items()},
                "curves": data_url("svg+xml", draw([section], "svg")),
                "samples": samples(section),
            }
            for section in sections
        ],
    )


def samples(section: Section) -> list[tuple[str, str]]:
    """Caption and picture (a data URL) of the first run of each method that has a readable one."""
    found = []
    for method in section.methods:
        for run in method.runs:
            picture = shrink(run.picture) if run.picture else None
            if picture:
                caption = f"{method.label}, seed {run.seed}"
                found.append((caption, data_url("png", picture)))
                break
    return found


def shrink(picture: bytes) -> bytes | None:
    """The picture at most `SAMPLE_WIDTH` pixels wide, as PNG; None if it cannot be read."""
    try:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
    except (OSError, SyntaxError, ValueError):  # cut off, or not a picture
        return None
    image.thumbnail((SAMPLE_WIDTH, 100 * SAMPLE_WIDTH), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return content.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """A picture as the source of an image element, inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
