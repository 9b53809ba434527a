"""`report.html`: one page that needs nothing but itself."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from nayer_pl.report import curves, pictures
from nayer_pl.report.columns import COST, NOTES, QUALITY
from nayer_pl.report.groups import Section, gaps
from nayer_pl.report.run import LeftOut

WIDTH = 400  # pixels of a grid of samples


def page(title: str, sections: Sequence[Section], left_out: Sequence[LeftOut]) -> str:
    """Tables, curves and samples of every section, with style and pictures inside."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        sections=[_content(section) for section in sections],
        left_out=left_out,
        tables=(("Accuracy", QUALITY), ("Cost", COST)),
        notes=NOTES,
        colors=list(enumerate(curves.COLORS)),
    )


def _content(section: Section) -> dict[str, Any]:
    """What the template shows of a section."""
    styles = curves.styles(section.methods)
    panels = [pictures.panel(section, axis) for axis in curves.AXES]
    return {
        "section": section,
        "gaps": gaps(section),
        "panels": [Markup(panel) for panel in panels if panel],
        "legend": [
            (method.name, Markup(pictures.swatch(style)))
            for method, style in zip(section.methods, styles, strict=True)
        ],
        "teacher": Markup(pictures.swatch(curves.TEACHER)),
        "samples": _samples(section),
    }


def _samples(section: Section) -> list[tuple[str, int, str]]:
    """Method, seed and picture of the first run of each method that has one."""
    found = []
    for method in section.methods:
        run = next((run for run in method.runs if run.picture is not None), None)
        if run is not None and run.picture is not None:
            picture = smaller(run.picture)
            if picture is not None:
                found.append((method.label, run.seed, picture))
    return found


def smaller(picture: bytes) -> str | None:
    """A picture at most `WIDTH` pixels wide, as a data URL; None if it is none."""
    try:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
    except (OSError, SyntaxError, ValueError):  # cut off, or not a picture
        return None
    if image.width > WIDTH:
        height = max(1, round(image.height * WIDTH / image.width))
        image = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
