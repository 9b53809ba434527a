"""What a report shows: curves of accuracy against its cost, and one page with everything."""

import base64
import io
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import StrictUndefined, Template
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from PIL import Image

from nayer_pl.report.groups import Method, Section
from nayer_pl.report.runs import LeftOut, Run
from nayer_pl.report.tables import NOTES, TABLES, table

AXES = {"seconds": "seconds of synthesis and distillation", "steps": "synthesis steps"}

# Distinguishable by color-blind readers (after Okabe and Ito, and Tol) and by marker, and dark
# enough for thin lines on white.
COLORS = [
    "#0072b2", "#d55e00", "#009e73", "#c46a9b", "#b97f00", "#2e97d4", "#882255", "#73731f",
]  # fmt: skip
SOLID, DASHED, DOTTED = "-", (0, (4, 2)), (0, (1, 1.5))
DATA_FREE = cycler(linestyle=[SOLID, DASHED, DOTTED]) * cycler(color=COLORS, marker=[*"os^DvPXp"])
BASELINES = cycler(linestyle=[DASHED, DOTTED, SOLID]) * cycler(color=["black"])
MOST_MARKERS = 15  # on a line
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#d0d7de",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "svg.hashsalt": "nayer_pl",  # or the same figure would differ from call to call
}
SAMPLE_WIDTH = 400  # pixels of a grid of samples, at most


def mean_curve(runs: Sequence[Run], axis: str) -> pd.DataFrame:
    """The curve of a method: evaluations of its seeds, averaged by student updates.

    The columns are "updates", the cost "x" ("seconds" or "steps" of the runs), "accuracy" in [0, 1]
    and its sample standard "deviation".
    """
    evaluations = pd.concat([run.curve for run in runs]).dropna(subset=[axis]).groupby("updates")
    means = evaluations.agg(
        x=(axis, "mean"), accuracy=("accuracy", "mean"), deviation=("accuracy", "std")
    )
    seeds = evaluations.size()  # a mean over fewer of them would make the curve jump
    return means[seeds == seeds.max()].fillna(0.0).reset_index()


def line_styles(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """Line style by label: data-free methods in color, baselines in black.

    In the order of names, not of results: the same methods look the same in every figure.
    """
    data_free = sorted(method.label for method in methods if not method.uses_real_images)
    baselines = sorted(method.label for method in methods if method.uses_real_images)
    return dict([*zip(data_free, DATA_FREE()), *zip(baselines, BASELINES())])  # noqa: B905


def draw(sections: Sequence[Section], file_format: str) -> bytes:
    """Two panels for every section, as "png" or "svg"; equal for equal runs.

    The figure is as wide as two columns of a paper.
    """
    columns, heights = [], []
    for section in sections:
        lines = [line for method in section.methods for line in _legend_label(method).splitlines()]
        columns.append(max(1, min(6, 100 // (8 + max(map(len, lines))))))
        heights.append(2.9 + 0.17 * (len(lines) + 1) / columns[-1])  # inches, with the legend
    content = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, sum(heights)), layout="constrained", dpi=200)
        parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, section, ncols in zip(parts, sections, columns, strict=True):
            axes = part.subplots(1, len(AXES), sharey=True)
            for ax, axis in zip(axes, AXES, strict=True):
                draw_axes(ax, section, axis)
            axes[0].set_ylabel("accuracy, %")
            part.suptitle(section.title, fontsize=9)
            legend = axes[0].get_legend_handles_labels()
            part.legend(*legend, loc="outside lower center", ncols=ncols, frameon=False)
        about = {"png": {"Software": None}, "svg": {"Date": None}}[file_format]
        figure.savefig(content, format=file_format, metadata=about)
    return content.getvalue()


def _legend_label(method: Method) -> str:
    return textwrap.fill(method.name, 90)


def draw_axes(ax: Axes, section: Section, axis: str) -> None:
    """Draw one panel: the curve of each method, and the accuracy of the teacher."""
    styles = line_styles(section.methods)
    for method in section.methods:
        curve, style = mean_curve(method.runs, axis), styles[method.label]
        if len(curve):
            y, spread = 100 * curve["accuracy"], 100 * curve["deviation"]
            below, above = (y - spread).clip(lower=0), (y + spread).clip(upper=100)
            every = -(-len(curve) // MOST_MARKERS)
            ax.fill_between(curve["x"], below, above, color=style["color"], alpha=0.15, linewidth=0)
            ax.plot(curve["x"], y, label=_legend_label(method), markevery=every, **style)
    teachers = [100 * t for run in section.runs if (t := run.numbers.get("teacher_accuracy"))]
    if not ax.lines:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center")
    elif teachers:
        ax.axhline(statistics.fmean(teachers), label="teacher", color="black", linewidth=0.7)
    shown = [100 * accuracy for run in section.runs for accuracy in run.curve["accuracy"]]
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
    template = Template(
        Path(__file__).with_name("page.html").read_text("utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return template.render(
        title=title, sections=sections, left_out=left_out, notes=NOTES, tables=TABLES, table=table,
        curves=lambda section: _data_url("svg+xml", draw([section], "svg")), samples=samples,
    )  # fmt: skip


def samples(section: Section) -> Iterator[tuple[str, str]]:
    """Caption and picture (a data URL) of the first run of each method that has a readable one."""
    for method in section.methods:
        for run in method.runs:
            try:
                image = Image.open(io.BytesIO(run.picture or b"")).convert("RGB")
            except (OSError, SyntaxError, ValueError):  # none, cut off, or not a picture
                continue
            image.thumbnail((SAMPLE_WIDTH, 100 * SAMPLE_WIDTH), Image.Resampling.LANCZOS)
            content = io.BytesIO()
            image.save(content, "png", optimize=True)
            yield f"{method.label}, seed {run.seed}", _data_url("png", content.getvalue())
            break


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
