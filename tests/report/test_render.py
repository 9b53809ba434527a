import base64
import io
import re
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image

from nayer_pl.report.groups import Method, Section, sections
from nayer_pl.report.render import (
    COLORS,
    SAMPLE_WIDTH,
    draw,
    draw_axes,
    line_styles,
    mean_curve,
    page,
)
from nayer_pl.report.runs import LeftOut


def test_mean_curve(make_run):
    first = make_run(curve=[(10, 0.5, 4.0, 30), (20, 0.7, 8.0, 60), (30, 0.8, 9.0, 90)])
    second = make_run(curve=[(10, 0.7, 6.0, 30), (20, 0.9, 10.0, 60)])  # without the third
    means = mean_curve([first, second], "seconds").to_numpy()
    assert means[0] == pytest.approx((10, 5.0, 0.6, 0.02**0.5))
    assert means[1] == pytest.approx((20, 9.0, 0.8, 0.02**0.5))
    assert len(means) == 2
    assert [*mean_curve([first], "seconds")["deviation"]] == [0, 0, 0]
    assert mean_curve([make_run(curve=[(10, 0.5, None, None)])], "seconds").empty


@pytest.mark.parametrize(
    ("accuracies", "teacher", "limits", "ticks"),
    [
        ((0.4, 0.55), 0.758, (37, 78.8), [40, 50, 60, 70]),  # 100 classes, far from 100 %
        ((0.1, 0.97), 0.996, (7, 100), [20, 40, 60, 80, 90, 95, 98, 99, 100]),
        ((0.0, 0.3), None, (0, 33), [0, 10, 20, 30]),
    ],
)
def test_draw_axes(make_run, accuracies, teacher, limits, ticks):
    curve = [(i, each, 4.0, 5 * i) for i, each in enumerate(accuracies, 1)]
    method = Method("nayer", [make_run({"teacher_accuracy": teacher}, curve)])
    ax = Figure().subplots()
    draw_axes(ax, Section("title", [method], {}), "steps")
    line, *teachers = ax.lines
    assert line.get_xydata().ravel() == pytest.approx(
        [5, 100 * accuracies[0], 10, 100 * accuracies[1]]
    )
    assert [each.get_ydata()[0] for each in teachers] == ([100 * teacher] if teacher else [])
    low, high = ax.get_ylim()
    assert (low, high) == pytest.approx(limits)
    assert [tick for tick in ax.get_yticks() if low <= tick <= high] == ticks


def test_line_styles(make_run):
    free = [Method(str(i), [make_run()]) for i in range(2 * len(COLORS))]
    real = [Method(f"real {i}", [make_run({"seconds_training": 1.0})]) for i in range(2)]
    found = line_styles([*free, *real])
    looks = {(s["color"], str(s["linestyle"]), s.get("marker")) for s in found.values()}
    assert len(looks) == len(free) + len(real)
    assert {found[method.label]["color"] for method in real}.isdisjoint(COLORS)
    assert line_styles([*real, *free[::-1]]) == found  # the order of results does not matter


def png(width, height):
    content = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(content, "png")
    return content.getvalue()


def test_page(make_run, distilled):
    curve = [(10, 0.5, 5.0, 60), (20, 0.8, 11.0, 120)]
    pictures = {"nayer": png(600, 300), "zskt": b"cut off", "dfq": png(30, 20)}
    runs = [
        make_run({"student_accuracy": 0.9, "seconds_training": 3.0}, curve, method="kd"),
        make_run(distilled(0.6), curve, method="<b>bold</b>", data="fashion_mnist"),
        *(
            make_run(distilled(0.8), curve, picture, method=method, seed=seed)
            for method, picture in pictures.items()
            for seed in (0, 1)
        ),
    ]
    content = "A & B", sections(runs), [LeftOut("runs/dfq_seed2", "not finished")]
    text = page(*content)
    assert text == page(*content)
    assert draw(content[1], "png") == draw(content[1], "png")

    root = ElementTree.fromstring(text)  # the page is XML, too
    assert not re.search(r"http|@import|url\(|<script|<link|<iframe|href=", text)
    sources = [image.get("src") for image in root.iter("img")]
    assert all(source.startswith("data:image/") for source in sources)
    pictures = [s.partition("png;base64,")[2] for s in sources if "png" in s[:20]]
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    assert sorted(sizes) == [(30, 20), (SAMPLE_WIDTH, SAMPLE_WIDTH // 2)]

    texts = [element.text for element in root.iter() if element.text]
    titles = [element.text for element in root.iter("h2")]
    assert titles == ["digits, wrn16_1 to wrn16_1", "fashion_mnist, wrn16_1 to wrn16_1"]
    for name in ("nayer", "zskt", "kd (real images)", "<b>bold</b>"):
        assert texts.count(name) == 3  # two tables and the settings
    assert {"A & B", "80.0 ± 0.0", "88.9 ± 0.0", "0, 1", "not reached"} <= set(texts)
    assert "runs/dfq_seed2: not finished" in map("".join, (li.itertext() for li in root.iter("li")))
    for table in root.iter("table"):
        assert len({len(row) for row in table.iter("tr")}) == 1
