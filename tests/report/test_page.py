import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from nayer_pl.report.groups import sections
from nayer_pl.report.page import WIDTH, page, smaller
from nayer_pl.report.pictures import panel
from nayer_pl.report.run import Evaluation, LeftOut, Run

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Reader(HTMLParser):
    """Every element with its attributes, the texts, and whether what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]


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


def test_it_asks_nothing_of_the_network(text):
    reader = Reader(text)
    assert "http" not in text
    assert "//" not in re.sub(r"data:image/png;base64,[^\"]*", "", text)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.elements}
    for link in [*reader.attributes("src"), *reader.attributes("href")]:
        assert link.startswith(("data:image/png;base64,", "#"))


def test_every_method_data_set_and_failure_is_in_it(text):
    reader = Reader(text)
    rows = [t for t in reader.texts if t]
    for name in ("nayer", "zskt", "kd (real images)", "<b>bold</b>"):
        assert rows.count(name) >= 3  # two tables and a legend
    titles = {"digits, wrn16_1 to wrn16_1", "fashion_mnist, wrn16_1 to wrn16_1", "A & B"}
    assert titles <= set(rows)
    assert "runs/dfq_seed2" in rows
    assert ": not finished" in rows
    assert {"80.0 ± 0.0", "88.9 ± 0.0", "0, 1", "not reached"} <= set(rows)


def test_tables_are_rectangles(text):
    for table in re.findall("<table>.*?</table>", text, re.DOTALL):
        widths = {
            len(re.findall("<t[hd]", row)) for row in re.findall("<tr.*?</tr>", table, re.DOTALL)
        }
        assert len(widths) == 1


def test_curves_know_their_colours_in_light_and_dark(text):
    used = set(re.findall(r"var\((--\w+)\)", text))
    light, dark = text.split("prefers-color-scheme: dark")[0:2]
    defined = set(re.findall(r"(--\w+):", light))
    changed = set(re.findall(r"(--\w+):", dark.partition("* {")[0]))
    assert {"--c0", "--ink", "--faint"} <= used <= defined == changed


def luminance(color):
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_lines_stand_out(text, scheme):
    """WCAG 2: 4.5 to 1 for text, 3 to 1 for what is drawn."""
    part = text.split("prefers-color-scheme: dark")[scheme].partition("* {")[0]
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", part))

    def contrast(front, back):
        light, dark = sorted((luminance(colors[x]) for x in (front, back)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for back in ("paper", "card"):
        assert min(contrast(front, back) for front in ("ink", "soft")) >= 4.5
    assert contrast("warn", "warn-paper") >= 4.5
    assert contrast("ink", "warn-paper") >= 4.5
    lines = [name for name in colors if re.fullmatch(r"c\d", name)]
    assert len(lines) == 8
    assert min(contrast(line, "paper") for line in lines) >= 3


def test_ids_in_the_page_are_not_given_twice_with_different_meaning(text):
    found = {}
    for element in re.findall(r"<(?:clipPath|path|g)\b[^>]* id=\"[^\"]+\".*?>", text):
        name = re.search(r'id="([^"]+)"', element).group(1)
        assert found.setdefault(name, element) == element


def test_pictures_are_made_smaller_and_broken_ones_left_out(text):
    sources = Reader(text).attributes("src")
    assert len(sources) == 1  # one seed of the only method with a whole picture
    content = base64.b64decode(sources[0].partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (WIDTH, WIDTH // 2)
    assert smaller(b"no picture") is None
    assert smaller(png(30, 20)) is not None


def test_the_same_runs_are_drawn_the_same(found):
    assert panel(found[0], "seconds") == panel(found[0], "seconds")
