"""Accuracy against what it cost: the curve of each method, and a panel of all of them."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from nayer_pl.report.groups import Method, Section
from nayer_pl.report.run import Evaluation, Run

AXES = {"seconds": "seconds of synthesis and distillation", "steps": "synthesis steps"}

# Told apart by people who see few colors, too (after Okabe and Ito, and Tol), and by marker; dark
# enough to be seen as a thin line on white.
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#c46a9b", "#b97f00", "#2e97d4", "#882255", "#73731f",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
MARKERS_ON_A_LINE = 15  # at most; hundreds would be a thick line without a shape
TICKS = (0, 20, 40, 60, 80, 90, 95, 98, 99, 100)
EVEN_TICKS = range(0, 91, 10)  # for those who come nowhere near 100 %
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
INK, FAINT = "#1f2328", "#d0d7de"  # text and lines of the frame; the page has its own for them
TEACHER: dict[str, Any] = {"color": INK, "linewidth": 0.7}


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
    """How each method is drawn: data-free ones in color, those that see real images in ink.

    In the order of names, not of results: the same methods look the same in every figure.
    """
    found: dict[str, dict[str, Any]] = {}
    coloured = inked = 0
    for method in sorted(methods, key=lambda each: each.label):
        if method.sees_real_images:
            dash = DASHES[(inked + 1) % len(DASHES)]
            style = {"color": INK, "linestyle": dash, "marker": None}
            inked += 1
        else:
            turn, place = divmod(coloured, len(COLORS))
            dash = DASHES[turn % len(DASHES)]
            style = {"color": COLORS[place], "linestyle": dash, "marker": MARKERS[place]}
            coloured += 1
        found[method.label] = {"linewidth": 1.4, "markersize": 3.5, **style}
    return [found[method.label] for method in methods]


def draw_axes(ax: Axes, section: Section, axis: str) -> bool:
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
            every = -(-len(curve) // MARKERS_ON_A_LINE)
            ax.plot(x, y, label=method.name, markevery=every, **style)
    known = [r.summary["teacher_accuracy"] for r in section.runs if r.number("teacher_accuracy")]
    if known and drawn:
        ax.axhline(100 * statistics.fmean(known), label="teacher", **TEACHER)
    if not drawn:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center")
    _frame(ax, section)
    ax.set_xlabel(AXES[axis])
    return drawn


def _frame(ax: Axes, section: Section) -> None:
    """The same percents in all panels of a section."""
    shown = [100 * e.accuracy for run in section.runs for e in run.evaluations]
    lowest = min(shown, default=0.0)
    shown += [100 * (run.number("teacher_accuracy") or 0.0) for run in section.runs]
    highest = max(shown, default=100.0)
    ticks = TICKS if highest > 90 else EVEN_TICKS
    ax.set_yscale("function", functions=(_stretch, _unstretch))
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.set_ylim(max(0.0, lowest - 3), min(100.0, highest + 3))
    ax.set_xscale("log", subs=[])
    left, right = ax.get_xlim()
    far = right > 200 * left  # or the numbers would touch
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if far else (1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.grid()


def _stretch(percent: Any) -> Any:
    """Towards 100 % the same step takes more room: half as many errors is as much everywhere."""
    return -np.log(100.8 - np.minimum(percent, 100.0))


def _unstretch(value: Any) -> Any:
    return 100.8 - np.exp(-value)
