"""The curves as files hold them: PNG for paper, SVG in the colors of the page."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from nayer_pl.report.curves import AXES, COLORS, FAINT, INK, draw_axes
from nayer_pl.report.groups import Section

STYLE: Any = {
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


def paper_figure(sections: Sequence[Section]) -> Figure:
    """Both panels of every section, as wide as two columns of a paper."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.3 * len(sections)), layout="constrained", dpi=200)
        for part, section in zip(
            figure.subfigures(len(sections), 1, squeeze=False)[:, 0], sections, strict=True
        ):
            axes = part.subplots(1, len(AXES), sharey=True)
            for ax, axis in zip(axes, AXES, strict=True):
                draw_axes(ax, section, axis)
            axes[0].set_ylabel("accuracy, %")
            part.suptitle(section.title, fontsize=9)
            handles, names = axes[0].get_legend_handles_labels()
            columns = max(1, min(6, 100 // (8 + max(map(len, names), default=0))))
            labels = [textwrap.fill(name, 90) for name in names]
            part.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        return figure


def png(sections: Sequence[Section]) -> bytes:
    """`report.png`."""
    content = io.BytesIO()
    with rc_context(STYLE):
        paper_figure(sections).savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def panel(section: Section, axis: str) -> str | None:
    """One panel as SVG for the page, None if there is nothing in it."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.2), layout="constrained")
        ax = figure.subplots()
        if not draw_axes(ax, section, axis):
            return None
        ax.set_ylabel("accuracy, %")
        return _svg(figure)


def swatch(style: Mapping[str, Any]) -> str:
    """What a method's line looks like, as SVG for a legend."""
    with rc_context(STYLE):
        figure = Figure(figsize=(0.42, 0.16))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        ax.plot([0, 0.5, 1], [0, 0, 0], markevery=[1], **style)
        ax.set_xlim(-0.05, 1.05)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """SVG to stand in a page that knows the colors by name (`--c0`, `--ink`, `--faint`)."""
    content = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # the same in every figure
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    names = {INK: "ink", FAINT: "faint"} | {c: f"c{i}" for i, c in enumerate(COLORS)}
    for color, name in names.items():
        text = text.replace(color, f"var(--{name})")
    return text.replace("#000000", "var(--ink)")
