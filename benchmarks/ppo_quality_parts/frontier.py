"""A plot of scores against KL as an SVG of a few lines: one colour a method, one dot a setting, bars for the intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 60, 50, 20, 170
COLOURS = ("#0b6e4f", "#b23a48", "#28559a", "#c77d0a", "#6b6b6b")


class Dot(NamedTuple):
    """The mean of a setting over seeds, and half the width of its interval, each way."""

    x: float
    y: float
    dx: float
    dy: float


def drawn(series: dict[str, Sequence[Dot]], *, x_label: str, y_label: str) -> str:
    """The picture as text."""
    dots = [dot for line in series.values() for dot in line]
    x_span = 0.0, 1.05 * max(dot.x + dot.dx for dot in dots)
    low, high = min(dot.y - dot.dy for dot in dots), max(dot.y + dot.dy for dot in dots)
    y_span = low - 0.1 * (high - low), high + 0.1 * (high - low)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_span[0]) / (x_span[1] - x_span[0]) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_span[0]) / (y_span[1] - y_span[0]) * (HEIGHT - BOTTOM - TOP)

    parts = [_axes(x_span, y_span, place, x_label, y_label)]
    for i, (name, line) in enumerate(series.items()):
        parts.append(_series(name, sorted(line), COLOURS[i % len(COLOURS)], place, TOP + 20 + 22 * i))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def _axes(x_span, y_span, place, x_label: str, y_label: str) -> str:
    (x0, y0), (x1, y1) = place(x_span[0], y_span[0]), place(x_span[1], y_span[1])
    parts = [f'<path d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}" fill="none" stroke="#333"/>']
    for i in range(6):
        x, y = (span[0] + (span[1] - span[0]) * i / 5 for span in (x_span, y_span))
        parts.append(
            f'<text x="{place(x, y_span[0])[0]:.1f}" y="{y0 + 18:.1f}" text-anchor="middle">{x:.1f}</text>'
        )
        parts.append(
            f'<text x="{x0 - 8:.1f}" y="{place(x_span[0], y)[1] + 4:.1f}" text-anchor="end">{y:.2f}</text>'
        )
    parts.append(f'<text x="{(x0 + x1) / 2:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x_label}</text>')
    turned = f"rotate(-90 14 {(y0 + y1) / 2:.1f})"
    parts.append(
        f'<text x="14" y="{(y0 + y1) / 2:.1f}" text-anchor="middle" transform="{turned}">{y_label}</text>'
    )
    return "\n".join(parts)


def _series(name: str, line: Sequence[Dot], colour: str, place, legend_y: float) -> str:
    points = " ".join("{:.1f},{:.1f}".format(*place(dot.x, dot.y)) for dot in line)
    parts = [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.6"/>']
    for dot in line:
        x, y = place(dot.x, dot.y)
        (left, low), (right, high) = (
            place(dot.x - dot.dx, dot.y - dot.dy),
            place(dot.x + dot.dx, dot.y + dot.dy),
        )
        parts.append(
            f'<path d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" opacity="0.5"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    parts.append(f'<circle cx="{WIDTH - RIGHT + 20}" cy="{legend_y}" r="4" fill="{colour}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT + 32}" y="{legend_y + 4}">{name}</text>')
    return "\n".join(parts)
