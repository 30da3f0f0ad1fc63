"""playback: the sweep in the engine's order, gradients appear when they are computed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from xml.etree import ElementTree as ET

import pytest

import gpugrad as gg
from gpugrad.graph.playback import narrate

SVG = "{http://www.w3.org/2000/svg}"


def gradients(picture: str) -> list[str]:
    found = ET.fromstring(picture).iter(f"{SVG}text")
    return [(t.text or "").replace("\u2212", "-") for t in found if t.get("class") == "gradient"]


def test_the_story_of_the_figure(figure) -> None:
    assert narrate(gg.graph.capture(figure.L, vars(figure))) == [
        "the forward pass has run; every sum of gradients starts at 0",
        "the gradient of L = c · e with respect to itself is 1",
        "L = c · e receives 1\nc += 5; e += -2",
        "e = a + d receives -2\na += -2; d += -2",
        "d = 2 · b receives -2\nb += -4",
    ]


def test_sums_as_they_stood(figure) -> None:
    loss = figure.L + 0.1 * figure.c**2
    story = narrate(gg.graph.capture(loss, vars(figure)))
    assert [line.split("\n")[1] for line in story if "c +=" in line] == [
        "c += -0.4",
        "c += 5, now 4.6; e += -2",
    ]


def test_frames_reveal_one_step_at_a_time(figure) -> None:
    graph = gg.graph.capture(figure.L, vars(figure))
    frames = graph.frames()
    assert [sorted(gradients(f)) for f in frames] == [
        [],
        ["1"],
        ["-2", "1", "5"],
        ["-2", "-2", "-2", "1", "5"],
        ["-2", "-2", "-2", "-4", "1", "5"],
    ]
    assert frames[-1] == graph.svg()
    current = [re.findall(r'class="node now".*?<text[^>]*>(.*?)</text>', f) for f in frames[:-1]]
    assert current == [[], [], ["L = c · e"], ["e = a + d"]]


def test_every_gradient_of_any_graph_appears_once(root) -> None:
    graph = gg.graph.capture(root)
    frames = graph.frames()
    counts = [len(gradients(f)) for f in frames]
    assert len(frames) == len(graph.steps) + 2
    assert counts[:2] == [0, 1]
    assert counts == sorted(counts)
    assert counts[-1] == 1 + sum(bool(e.gradient) for e in graph.edges)


def test_the_page_stands_alone_and_is_escaped(figure) -> None:
    page = gg.graph.capture(figure.L, {"</script><b>": figure.a}).html("a < b")
    assert page.count("</script>") == 1
    assert "<title>a &lt; b</title>" in page
    assert not re.findall(r"""(?:src|href)=|url\((?!#arrow)""", page)
    captions = json.loads(re.search(r"const captions = (.*);", page)[1])
    assert len(captions) == 5
    assert any("</script><b>" in caption for caption in captions)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_the_script_walks_through_all_steps(figure, tmp_path) -> None:
    page = gg.graph.capture(figure.L, vars(figure)).html()
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    steps = re.findall(r'data-step="(\d+)"', page)
    program = f"""
    const make = step => ({{
      dataset: {{ step }}, later: false, now: false,
      classList: {{ contains: () => false }},
      toggleAttribute(name, on) {{ this.later = on; }},
    }});
    const marked = {json.dumps(steps)}.map(make);
    const parts = {{}};
    const document = {{
      querySelectorAll: () => marked,
      getElementById: id => parts[id] ||= {{ classList: {{ toggle() {{}} }} }},
    }};
    {script}
    const seen = [];
    for (let i = 0; i < 6; i++) {{
      seen.push([Number(parts.slider.value), marked.filter(m => !m.later).length]);
      document.onkeydown({{ key: "ArrowRight", preventDefault() {{}} }});
    }}
    console.log(JSON.stringify(seen));
    """
    (tmp_path / "page.js").write_text(program)
    out = subprocess.run(["node", tmp_path / "page.js"], capture_output=True, text=True, check=True)
    marks = [sum(int(step) <= at for step in steps) for at in range(5)]
    assert json.loads(out.stdout) == [[i, marks[i]] for i in range(5)] + [[4, marks[4]]]
    assert marks[0] == 0


def test_without_gradients_there_is_nothing_to_play(figure) -> None:
    graph = gg.graph.capture(figure.L, gradients=False)
    with pytest.raises(ValueError, match="captured with gradients=False"):
        graph.html()
