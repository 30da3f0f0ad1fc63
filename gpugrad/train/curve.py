"""The loss curve as a picture: SVG written here, PNG through matplotlib."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..text import atomic_write

Points = Sequence[tuple[float, float]]  # (step, loss)

WIDTH, HEIGHT = 800, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 150, 40, 50
COLOURS = {"train": "#8ab4d8", "validation": "#c0392b"}
_GREY = "#666666"
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # which no escape makes XML
_STYLE = f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12"'


def write_svg(
    path: str | os.PathLike[str],
    curves: Mapping[str, Points],
    levels: Mapping[str, float],
    title: str = "",
) -> None:
    """Write curves of loss over steps, and dashed horizontal levels, as an SVG picture."""
    with atomic_write(path) as file:
        file.write(svg(curves, levels, title).encode())


def svg(curves: Mapping[str, Points], levels: Mapping[str, float], title: str = "") -> str:
    """Return the picture that `write_svg` writes. Points that are not finite are left out."""
    finite = {name: _finite(points) for name, points in curves.items()}
    steps = [x for points in finite.values() for x, _ in points] or [0.0]
    losses = [y for points in finite.values() for _, y in points] + list(levels.values()) or [0.0]
    x_ticks, y_ticks = ticks(0.0, max(steps)), ticks(min(losses), max(losses))
    x_low, x_high = 0.0, max(max(steps), x_ticks[-1], 1.0)
    y_low, y_high = min(y_ticks[0], min(losses)), max(y_ticks[-1], max(losses))

    def x_of(step: float) -> float:
        return _LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def y_of(loss: float) -> float:
        return HEIGHT - _BOTTOM - (loss - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {_STYLE}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(left, 24, title, anchor="start", size=14),
    ]
    for tick in x_ticks:
        parts.append(_line(x_of(tick), bottom, x_of(tick), bottom + 5))
        parts.append(_text(x_of(tick), bottom + 20, f"{tick:g}"))
    for tick in y_ticks:
        parts.append(_line(left, y_of(tick), right, y_of(tick), "#e5e5e5"))
        parts.append(_text(left - 8, y_of(tick) + 4, f"{tick:g}", anchor="end"))
    parts.append(_line(left, bottom, right, bottom))
    parts.append(_text((left + right) / 2, HEIGHT - 10, "step"))
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<g transform="rotate(-90 18 {middle})">{_text(18, middle, "nats per token")}</g>'
    )
    for name, level in levels.items():
        parts.append(_line(left, y_of(level), right, y_of(level), _GREY, dashed=True))
        parts.append(_text(right + 6, y_of(level) + 4, f"{name} {level:.3f}", anchor="start"))
    for name, points in finite.items():
        if not points:
            continue
        colour = COLOURS.get(name, _GREY)
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for row, (name, points) in enumerate(finite.items()):
        last = f" {points[-1][1]:.3f}" if points else ""
        parts.append(
            _text(right - 8, _TOP + 16 * (row + 1), name + last, "end", 12, COLOURS.get(name))
        )
    return "\n".join([*parts, "</svg>", ""])


def require_matplotlib() -> None:
    """Raise ModuleNotFoundError that says what to install, unless matplotlib is there."""
    _pyplot_figure()


def write_png(
    path: str | os.PathLike[str],
    curves: Mapping[str, Points],
    levels: Mapping[str, float],
    title: str = "",
) -> None:
    """Write the same picture as PNG (extra `plot`)."""
    figure = _pyplot_figure()(figsize=(WIDTH / 100, HEIGHT / 100), dpi=150)
    axes = figure.add_subplot()
    for name, points in curves.items():
        steps, losses = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, losses, label=name, color=COLOURS.get(name, _GREY))
    for name, level in levels.items():
        axes.axhline(level, linestyle="--", color=_GREY)
        axes.annotate(f"{name} {level:.3f}", (1.01, level), xycoords=("axes fraction", "data"))
    axes.set_title(title, parse_math=False)  # the name of a file may hold dollar signs
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight")


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return about `count` round numbers, a step of 1, 2 or 5 times a power of ten apart.

    The first is at most `low`, the last at least `high`.
    """
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m * count >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last == first:
        last += 1
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str = _GREY, dashed: bool = False
) -> str:
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "middle", size: int = 12, colour: str | None = None
) -> str:
    shown = escape(_NO_XML.sub("\ufffd", text), quote=False)
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{colour or "#333333"}">{shown}</text>'
    )


def _pyplot_figure() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a loss curve as PNG needs matplotlib, which is not installed: "
            'pip install "gpugrad[plot]"; the SVG needs nothing'
        ) from error
