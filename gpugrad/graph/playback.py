"""The reverse sweep step by step: frames, and a page that a browser plays without a network."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from . import svg

if TYPE_CHECKING:
    from .model import Graph, Step

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font-family: Georgia, serif; color: #241f31; margin: 1.5em; }}
  #figure {{ overflow: auto; border: 1px solid #deddda; }}
  #caption {{ min-height: 3.2em; font-size: 1.1em; white-space: pre-line; }}
  .controls button, .controls input {{ font-size: 1em; vertical-align: middle; }}
  [data-later] .gradient {{ visibility: hidden; }}
  text.gradient[data-later], text.total {{ visibility: hidden; }}
  .finished text.total {{ visibility: visible; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="controls">
  <button id="first" title="Home">|&lt;</button>
  <button id="back" title="left arrow">&lt;</button>
  <button id="play" title="space">play</button>
  <button id="next" title="right arrow">&gt;</button>
  <button id="last" title="End">&gt;|</button>
  <input id="slider" type="range" min="0" value="0">
</p>
<p id="caption"></p>
<div id="figure">
{figure}</div>
<script>
const captions = {captions};
const last = captions.length - 1;
const get = id => document.getElementById(id);
let step = 0, timer = null;
function show(to) {{
  step = Math.max(0, Math.min(last, to));
  for (const element of document.querySelectorAll("[data-step]")) {{
    const own = Number(element.dataset.step);
    if (element.classList.contains("node")) element.classList.toggle("now", own === step);
    else element.toggleAttribute("data-later", own > step);
  }}
  get("figure").classList.toggle("finished", step === last);
  get("slider").value = step;
  get("caption").textContent = `${{step}} of ${{last}}: ${{captions[step]}}`;
}}
function stop() {{ clearInterval(timer); timer = null; get("play").textContent = "play"; }}
function play() {{
  if (timer) return stop();
  if (step === last) show(0);
  get("play").textContent = "pause";
  timer = setInterval(() => {{ show(step + 1); if (step === last) stop(); }}, 1200);
}}
get("slider").max = last;
get("slider").oninput = event => {{ stop(); show(Number(event.target.value)); }};
const moves = {{ first: () => 0, back: () => step - 1, next: () => step + 1, last: () => last }};
for (const [id, to] of Object.entries(moves)) get(id).onclick = () => {{ stop(); show(to()); }};
get("play").onclick = play;
const keys = {{ Home: "first", ArrowLeft: "back", ArrowRight: "next", End: "last", " ": "play" }};
document.onkeydown = event => {{
  if (keys[event.key]) {{ event.preventDefault(); get(keys[event.key]).onclick(); }}
}};
show(0);
</script>
</body>
</html>
"""


def page(graph: Graph, title: str, limit: int) -> str:
    """Return a page with the figure, its controls and a caption per step."""
    captions = json.dumps(narrate(graph)).replace("<", "\\u003c")  # no </script> inside
    figure = svg.render(graph, limit=limit)
    return PAGE.format(title=escape(title), figure=figure, captions=captions)


def frames(graph: Graph, limit: int) -> list[str]:
    """Return one picture per step, the first without any gradient, the last with the sums."""
    return svg.render_steps(graph, [*range(len(narrate(graph)) - 1), None], limit)


def narrate(graph: Graph) -> list[str]:
    """Return what happens in each step: the forward pass, the root's own gradient, every node."""
    if not graph.steps:
        raise ValueError("graph: there is no reverse sweep to play: captured with gradients=False")
    root = graph.vertices[-1]
    return [
        "the forward pass has run; every sum of gradients starts at 0",
        f"the gradient of {root.title} with respect to itself is {root.gradient}",
        *(_told(graph, step) for step in graph.steps),
    ]


def _told(graph: Graph, step: Step) -> str:
    vertex = graph.vertices[step.vertex]
    passed = []
    for edge, total in step.changes:
        source = graph.vertices[graph.edges[edge].source]
        name = source.name or source.title
        part = graph.edges[edge].gradient
        passed.append(f"{name} += {part}" + (f", now {total}" if total not in ("", part) else ""))
    received = vertex.gradient or "the gradients of its outputs"
    return f"{vertex.title} receives {received}\n{'; '.join(passed)}"
