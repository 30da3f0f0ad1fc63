"""The loss curve: well-formed SVG whose points lie where the numbers say."""

from __future__ import annotations

import importlib
import sys
import xml.etree.ElementTree as ET

import pytest

from gpugrad.train import curve

SVG = "{http://www.w3.org/2000/svg}"


def parse(*arguments) -> ET.Element:
    return ET.fromstring(curve.svg(*arguments))


def points_of(root: ET.Element) -> list[list[tuple[float, float]]]:
    lines = [line.get("points", "") for line in root.iter(f"{SVG}polyline")]
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]


def texts_of(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_points_are_in_the_frame_and_in_proportion():
    losses = [(0.0, 4.0), (50.0, 3.0), (100.0, 2.0)]
    ((first, middle, last),) = points_of(parse({"train": losses}, {}))
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.11)
    assert first[1] < last[1]  # y grows downwards, the loss falls
    for x, y in (first, middle, last):
        assert 0 <= x <= curve.WIDTH
        assert 0 <= y <= curve.HEIGHT


def test_levels_are_dashed_lines_at_their_height():
    root = parse({"validation": [(0.0, 3.0), (10.0, 1.0)]}, {"bigram": 3.0, "unigram": 1.0})
    dashed = [line for line in root.iter(f"{SVG}line") if line.get("stroke-dasharray")]
    ((first, last),) = points_of(root)
    assert [float(line.get("y1", 0)) for line in dashed] == [first[1], last[1]]
    assert {"bigram 3.000", "unigram 1.000", "validation 1.000"} <= set(texts_of(root))


@pytest.mark.parametrize(
    ("curves", "levels", "count"),
    [
        ({}, {}, 0),
        ({"train": [], "validation": []}, {"bigram": 2.0}, 0),
        ({"train": [(1.0, 2.0)]}, {}, 1),
        ({"train": [(0.0, 0.0), (1.0, 0.0)]}, {}, 2),
        ({"train": [(1.0, float("nan")), (2.0, float("inf")), (3.0, 2.0)]}, {}, 1),
        ({"train": [(1.0, 1e9), (2.0, -1e-9)]}, {}, 2),
    ],
    ids=["nothing", "no points", "one point", "flat", "not finite", "far apart"],
)
def test_odd_curves(curves, levels, count):
    root = parse(curves, levels)
    assert sum(map(len, points_of(root))) == count


def test_text_is_escaped():
    assert "<a> & 'b'" in texts_of(parse({}, {}, "<a> & 'b'"))


@pytest.mark.parametrize("title", ["a\x01b", "\x1b[31m", "\x00\x0b\uffff", "a\tb"], ids=ascii)
def test_characters_that_no_xml_holds_are_replaced(title):
    """A file may have such a name, a picture may not."""
    shown = "".join(c if c == "\t" or " " <= c <= "~" else "\ufffd" for c in title)
    assert shown in texts_of(parse({}, {}, title))


@pytest.mark.parametrize("title", ["x$_$.txt", "$", "a$b"])
def test_a_png_takes_dollar_signs_for_what_they_are(tmp_path, title):
    curve.write_png(tmp_path / "curve.png", {"train": [(0.0, 1.0), (1.0, 0.5)]}, {}, title)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.3, 5.4, [1, 2, 3, 4, 5, 6]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (0.012, 0.018, [0.012, 0.013, 0.014, 0.015, 0.016, 0.017, 0.018]),
        (3, 3, [3, 3.5]),
        (0, 0, [0, 0.2]),
    ],
    ids=str,
)
def test_ticks_are_round_and_cover(low, high, expected):
    assert curve.ticks(low, high) == expected


def test_files(tmp_path):
    curve.write_svg(tmp_path / "curve.svg", {"train": [(0.0, 1.0)]}, {})
    assert ET.parse(tmp_path / "curve.svg").getroot().tag == f"{SVG}svg"


def test_png_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gpugrad\[plot\]"'):
        curve.require_matplotlib()
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        curve.write_png(tmp_path / "curve.png", {}, {})
    assert list(tmp_path.iterdir()) == []


class FakeFigure:
    """Stands where matplotlib's Figure would, to see what it is asked to draw."""

    drawn: list

    def __init__(self, **options):
        type(self).drawn = []

    def add_subplot(self):
        return self

    def plot(self, steps, losses, **options):
        self.drawn.append(("plot", tuple(steps), tuple(losses)))

    def axhline(self, level, **options):
        self.drawn.append(("level", level))

    def annotate(self, *arguments, **options):
        pass

    def set_title(self, title, **options):
        self.drawn.append(("title", title))

    def set(self, **options):
        pass

    def legend(self):
        pass

    def savefig(self, file, format, **options):
        file.write(format.encode())


def test_png_is_drawn_from_the_same_numbers(tmp_path, monkeypatch):
    module = type(sys)("matplotlib.figure")
    module.Figure = FakeFigure
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    original = importlib.import_module
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name: module if name == "matplotlib.figure" else original(name),
    )
    curves = {"train": [(1.0, 2.0), (2.0, 1.0)], "validation": []}
    curve.write_png(tmp_path / "curve.png", curves, {"bigram": 1.5}, "title")
    assert (tmp_path / "curve.png").read_bytes() == b"png"
    assert FakeFigure.drawn == [
        ("plot", (1.0, 2.0), (2.0, 1.0)),
        ("plot", (), ()),
        ("level", 1.5),
        ("title", "title"),
    ]
