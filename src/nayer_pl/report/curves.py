"""Accuracy against what it cost, drawn for paper and for the page."""

import io
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nayer_pl.report.groups import Method, Section
from nayer_pl.report.run import Evaluation, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"seconds": "seconds of synthesis and distillation", "steps": "synthesis steps"}

# Told apart by people who see few colours, too (Okabe and Ito, and two of Tol's), and by marker.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
INK, FAINT = "#1f2328", "#d0d7de"  # text and lines of the frame; the page has its own for them

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "nayer_pl",
}


class Point(NamedTuple):
    """The mean over the seeds that have an evaluation after these updates."""

    updates: int
    x: float
    accuracy: float
    deviation: float


def points(runs: Sequence[Run], axis: str) -> list[Point]:
    """The curve of a method: its seeds' evaluations, those after as many student updates together.

    Args:
        runs: its seeds.
        axis: "seconds" or "steps", what the mean is taken of beside the accuracy.
    """
    together: dict[int, list[Evaluation]] = {}
    for run in runs:
        for each in run.evaluations:
            if getattr(each, axis) is not None:
                together.setdefault(each.updates, []).append(each)
    most = max(map(len, together.values()), default=0)
    found = []
    for updates, evaluations in sorted(together.items()):
        accuracies = [each.accuracy for each in evaluations]
        if len(evaluations) == most:  # a mean over other seeds would jump
            x = statistics.fmean(getattr(each, axis) for each in evaluations)
            deviation = statistics.stdev(accuracies) if most > 1 else 0.0
            found.append(Point(updates, x, statistics.fmean(accuracies), deviation))
    return found


def styles(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """How each method is drawn: data-free ones in colour, those that see real images in ink."""
    found = []
    coloured = inked = 0
    for method in methods:
        if method.sees_real_images:
            dash = DASHES[(inked + 1) % len(DASHES)]
            style = {"color": INK, "linestyle": dash, "marker": None}
            inked += 1
        else:
            turn, place = divmod(coloured, len(COLOURS))
            dash = DASHES[turn % len(DASHES)]
            style = {"color": COLOURS[place], "linestyle": dash, "marker": MARKERS[place]}
            coloured += 1
        found.append({"linewidth": 1.4, "markersize": 3.5, **style})
    return found


def draw_axes(ax: "Axes", section: Section, axis: str) -> bool:
    """Draw one panel; False if there is nothing to draw in it."""
    drawn = False
    for method, style in zip(section.methods, styles(section.methods), strict=True):
        curve = points(method.runs, axis)
        if curve:
            drawn = True
            x, y = [p.x for p in curve], [100 * p.accuracy for p in curve]
            below = [100 * max(0.0, p.accuracy - p.deviation) for p in curve]
            above = [100 * min(1.0, p.accuracy + p.deviation) for p in curve]
            ax.fill_between(x, below, above, color=style["color"], alpha=0.15, linewidth=0)
            ax.plot(x, y, label=method.label, **style)
    known = [r.summary["teacher_accuracy"] for r in section.runs if r.number("teacher_accuracy")]
    if known and drawn:
        ax.axhline(100 * statistics.fmean(known), color=INK, linewidth=0.7)
    ax.set_yscale("function", functions=(_stretch, _unstretch))
    lowest = min((p for line in ax.lines for p in line.get_ydata()), default=0.0)  # type: ignore[arg-type]
    ticks = [t for t in (0, 20, 40, 60, 80, 90, 95, 98, 99, 100) if t >= lowest - 20]
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.set_ylim(max(0.0, lowest - 3), 100)
    ax.set_xlim(left=0)
    ax.set_xlabel(AXES[axis])
    ax.grid()
    return drawn


def _stretch(percent: Any) -> Any:
    """Towards 100 % the same step takes more room: half as many errors is as much everywhere."""
    import numpy as np

    return -np.log(100.8 - np.minimum(percent, 100.0))


def _unstretch(value: Any) -> Any:
    import numpy as np

    return 100.8 - np.exp(-value)


def paper_figure(sections: Sequence[Section]) -> "Figure":
    """Both panels of every section, as wide as two columns of a paper."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.3 * len(sections)), layout="constrained", dpi=200)
        for part, section in zip(figure.subfigures(len(sections), 1, squeeze=False)[:, 0], sections, strict=True):
            axes = part.subplots(1, len(AXES), sharey=True)
            for ax, axis in zip(axes, AXES, strict=True):
                draw_axes(ax, section, axis)
            axes[0].set_ylabel("accuracy, %")
            part.suptitle(section.title, fontsize=9)
            handles, labels = axes[0].get_legend_handles_labels()
            part.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        return figure


def png(sections: Sequence[Section]) -> bytes:
    """`report.png`."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context(STYLE):
        paper_figure(sections).savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def panel(section: Section, axis: str) -> str | None:
    """One panel as SVG for the page, None if there is nothing in it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        ax = figure.subplots()
        if not draw_axes(ax, section, axis):
            return None
        ax.set_ylabel("accuracy, %")
        return _svg(figure)


def swatch(style: Mapping[str, Any]) -> str:
    """What a method's line looks like, as SVG for a legend."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(0.42, 0.16))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        ax.plot([0, 0.5, 1], [0, 0, 0], markevery=[1], **style)
        ax.set_xlim(-0.05, 1.05)
        return _svg(figure)


def _svg(figure: "Figure") -> str:
    """SVG to stand in a page that knows the colours by name (`--c0`, `--ink`, `--faint`)."""
    content = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # the same in every figure
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    names = {INK: "ink", FAINT: "faint"} | {c: f"c{i}" for i, c in enumerate(COLOURS)}
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("#000000", "var(--ink)")
