import base64
import io
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image

from nayer_pl.report.groups import Method, Section, sections
from nayer_pl.report.render import (
    AXES, COLORS, SAMPLE_WIDTH, draw, draw_axes, page, points, shrink, styles,
)  # fmt: skip
from nayer_pl.report.runs import Evaluation, LeftOut, Run


def run(seed, curve, real=False, teacher=0.9):
    config = {"model_name": "m", "seed": seed, "data": {"name": "d"}}
    summary = {"teacher_accuracy": teacher, f"seconds_{'training' if real else 'synthesis'}": 1.0}
    return Run(str(seed), config, summary, tuple(Evaluation(*each) for each in curve))


RUNS = [
    run(0, [(10, 0.5, 4.0, 30), (20, 0.7, 8.0, 60), (30, 0.8, 9.0, 90)]),
    run(1, [(10, 0.7, 6.0, 30), (20, 0.9, 10.0, 60)]),
]


def drawn(runs, axis="seconds"):
    ax = Figure().subplots()
    draw_axes(ax, Section("title", [Method("nayer", runs, {})], {}), axis)
    return ax


def test_points__means_by_student_updates():
    first, second = points(RUNS, "seconds")  # the second seed has no third evaluation
    assert first == pytest.approx((10, 5.0, 0.6, 0.02**0.5))
    assert second == pytest.approx((20, 9.0, 0.8, 0.02**0.5))
    assert [point.x for point in points(RUNS, "steps")] == [30, 60]
    assert [point.deviation for point in points(RUNS[:1], "seconds")] == [0, 0, 0]
    assert points([run(0, [(10, 0.5, None, None)])], "seconds") == []


@pytest.mark.parametrize("axis", AXES)
def test_draw_axes__points_in_percent(axis):
    line, teacher = drawn(RUNS, axis).lines
    expected = points(RUNS, axis)
    assert line.get_label() == "nayer"
    assert list(line.get_xdata()) == [point.x for point in expected]
    assert list(line.get_ydata()) == pytest.approx([100 * point.accuracy for point in expected])
    assert teacher.get_ydata() == pytest.approx([90, 90])


@pytest.mark.parametrize(
    ("accuracies", "teacher", "limits", "ticks"),
    [
        ((0.4, 0.55), 0.758, (37, 78.8), [40, 50, 60, 70]),  # 100 classes, far from 100 %
        ((0.1, 0.97), 0.996, (7, 100), [20, 40, 60, 80, 90, 95, 98, 99, 100]),
        ((0.0, 0.3), None, (0, 33), [0, 10, 20, 30]),
    ],
)
def test_draw_axes__limits(accuracies, teacher, limits, ticks):
    curve = [(10 * (i + 1), each, 4.0 + i, 30) for i, each in enumerate(accuracies)]
    ax = drawn([run(0, curve, teacher=teacher)])
    low, high = ax.get_ylim()
    assert (low, high) == pytest.approx(limits)
    assert [tick for tick in ax.get_yticks() if low <= tick <= high] == ticks


@pytest.mark.parametrize(("count", "marked"), [(1, 1), (15, 15), (16, 8), (300, 15)])
def test_draw_axes__markers(count, marked):
    line = drawn([run(0, [(i, 0.5, float(i), i) for i in range(1, count + 1)])]).lines[0]
    assert len(line.get_xdata()) == count
    assert len(range(0, count, line.get_markevery())) == marked


def test_styles():
    free = [Method(str(i), [run(i, [])], {}) for i in range(2 * len(COLORS))]
    real = [Method(f"real {i}", [run(i, [], real=True)], {}) for i in range(2)]
    found = styles([*free, *real])
    looks = {
        label: (s["color"], str(s["linestyle"]), s.get("marker")) for label, s in found.items()
    }
    assert len(set(looks.values())) == len(free) + len(real)
    assert {looks[method.label][0] for method in real}.isdisjoint(COLORS)
    assert styles([*real, *free[::-1]]) == found  # the order of results does not matter


def luminance(color):
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(*colors):
    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


def png(width=600, height=300):
    content = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(content, "png")
    return content.getvalue()


@pytest.fixture(scope="module")
def found(config, distilled):
    curve = (Evaluation(10, 0.5, 5.0, 60), Evaluation(20, 0.8, 11.0, 120))
    real = {"student_accuracy": 0.9, "seconds_training": 3.0}
    runs = [Run("kd", config("kd"), real, curve)]
    runs.append(Run("f", config("<b>bold</b>", data="fashion_mnist"), distilled(0.6), curve))
    for seed in (0, 1):
        for method, accuracy, picture in (("nayer", 0.8, png()), ("zskt", 0.7, b"cut off")):
            made = config(method, seed)
            runs.append(Run(f"{method}{seed}", made, distilled(accuracy), curve, picture))
    return sections(runs)


@pytest.fixture(scope="module")
def text(found):
    return page("A & B", found, [LeftOut("runs/dfq_seed2", "not finished")])


class Reader(HTMLParser):
    """Every element with its attributes, and the texts; what is opened must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.texts = [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))


def test_page__one_file(text):
    reader = Reader(text)
    assert not re.search(r"http|@import|url\(", text)
    assert not {"script", "link", "iframe"} & reader.tags
    assert all(source.startswith("data:image/") for source in reader.sources)


def test_page__content(text):
    texts = Reader(text).texts
    for name in ("nayer", "zskt", "kd (real images)", "<b>bold</b>"):
        assert texts.count(name) == 3  # two tables and the settings
    titles = {"digits, wrn16_1 to wrn16_1", "fashion_mnist, wrn16_1 to wrn16_1", "A & B"}
    assert titles <= set(texts)
    assert {"runs/dfq_seed2", ": not finished"} <= set(texts)
    assert {"80.0 ± 0.0", "88.9 ± 0.0", "0, 1", "not reached"} <= set(texts)
    for table in re.findall("<table>.*?</table>", text, re.DOTALL):
        rows = re.findall("<tr.*?</tr>", table, re.DOTALL)
        assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1


def test_page__samples(text):
    (source,) = (s for s in Reader(text).sources if s.startswith("data:image/png"))
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert image.size == (SAMPLE_WIDTH, SAMPLE_WIDTH // 2)
    assert shrink(b"no picture") is None
    with Image.open(io.BytesIO(shrink(png(30, 20)))) as image:
        assert image.size == (30, 20)


def test_page__contrast(text):
    """WCAG 2: 4.5 to 1 for text, in light and dark, and 3 to 1 for lines on white."""
    schemes = re.findall(r":root \{(.*?)\}", text)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        assert min(contrast(colors[x], colors["paper"]) for x in ("ink", "soft", "warn")) >= 4.5
    assert min(contrast(color, "#ffffff") for color in COLORS) >= 3


@pytest.mark.parametrize("file_format", ["png", "svg"])
def test_draw__deterministic(found, file_format):
    assert draw(found, file_format) == draw(found, file_format)
