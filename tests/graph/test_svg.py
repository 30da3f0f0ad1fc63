"""svg: valid XML, the numbers of the textbook's figure, labels inside, deterministic."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

import gpugrad as gg
from gpugrad.graph.svg import text_width

SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: str, kind: str | None = None) -> list[str]:
    found = ET.fromstring(picture).iter(f"{SVG}text")
    return [t.text or "" for t in found if kind is None or t.get("class") == kind]


def test_the_figure_has_values_above_and_gradients_below(figure) -> None:
    picture = gg.graph.capture(figure.L, vars(figure)).svg()
    edges = [g for g in ET.fromstring(picture).iter(f"{SVG}g") if g.get("class") == "edge"]
    assert len(edges) == 7  # six operands and the result
    shown = []
    for edge in edges:
        value, *gradient = edge.findall(f"{SVG}text")
        assert value.get("class") == "value"
        if gradient:
            assert float(value.get("y")) < float(gradient[0].get("y"))
        shown.append((value.text, *(g.text for g in gradient)))
    assert sorted(shown) == sorted(
        [
            ("2",),
            ("1", "\u22124"),
            ("3", "\u22122"),
            ("2", "\u22122"),
            ("\u22122", "5"),
            ("5", "\u22122"),
            ("\u221210", "1"),
        ]
    )


def test_any_graph(root) -> None:
    graph = gg.graph.capture(root)
    picture = graph.svg()
    assert picture == gg.graph.capture(root).svg() == graph._repr_svg_()
    tree = ET.fromstring(picture)
    width, height = float(tree.get("width")), float(tree.get("height"))
    for text in tree.iter(f"{SVG}text"):
        half = text_width(text.text, float(text.get("font-size"))) / 2
        assert float(text.get("x")) - half >= 0
        assert float(text.get("x")) + half <= width
        assert 0 < float(text.get("y")) < height
    nodes = [g for g in tree.iter(f"{SVG}g") if g.get("class") == "node"]
    assert len(nodes) == len(graph.vertices)
    for node in nodes:  # the title fits its box
        box, title = node.find(f"{SVG}rect"), node.find(f"{SVG}text")
        assert text_width(title.text, float(title.get("font-size"))) <= float(box.get("width"))


def test_names_are_escaped_and_cut(figure) -> None:
    names = {"<script>&\"'": figure.a, "x" * 500: figure.b, "\x00\n中文": figure.c}
    found = texts(gg.graph.capture(figure.L, names).svg())
    assert "<script>&\"'" in found
    assert "x" * 43 + "…" in found
    assert "  中文" in found


def test_a_fan_out_shows_its_sum(figure) -> None:
    loss = figure.L + 0.1 * figure.c**2
    totals = texts(gg.graph.capture(loss, vars(figure)).svg(), "gradient total")
    assert totals == ["∇ = 4.6"]


def test_files(figure, tmp_path) -> None:
    for suffix, start in (
        (".svg", "<svg"),
        (".html", "<!DOCTYPE"),
        (".dot", "digraph"),
        (".mmd", "flow"),
    ):
        path = tmp_path / "new" / f"figure{suffix}"
        gg.graph.draw(figure.L, path, vars(figure))
        assert path.read_text().startswith(start)
    with pytest.raises(ValueError, match=r"figure.png has to end in .svg, .html, .dot, .mmd"):
        gg.graph.draw(figure.L, tmp_path / "figure.png")


def test_no_references_outside(figure) -> None:
    picture = gg.graph.capture(figure.L).svg()
    assert set(re.findall(r"https?://[^\"']*", picture)) == {"http://www.w3.org/2000/svg"}


def test_the_limit(figure, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"graph: 7 vertices are more than .* \(limit=6\)"):
        gg.graph.draw(figure.L, tmp_path / "figure.svg", limit=6)
    assert not list(tmp_path.iterdir())
    gg.graph.draw(figure.L, tmp_path / "figure.svg", limit=7)
    gg.graph.draw(figure.L, tmp_path / "figure.dot", limit=6)
