"""Curves of one or several runs as SVG that takes the page's own colours, light or dark."""

import io
import re
from collections.abc import Mapping, Sequence

INK, GRID = "#010203", "#040506"  # stand-ins that become the page's CSS variables
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
WIDTH, HEIGHT = 5.2, 2.6  # inches; at 390 pixels its letters still are 7 pixels high
MOST_POINTS = 2000


Points = Sequence[tuple[float, float]]


def svg(title: str, runs: Mapping[str, Points]) -> str:
    """A quantity over steps, a line a run, as an SVG element without fixed size; empty where there is nothing."""
    lines = {name: _thinned(points) for name, points in runs.items() if points}
    if not lines:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(lines.items()):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=SERIES[number % len(SERIES)], linewidth=1.4, label=name)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _themed(buffer.getvalue(), title)


def _thinned(points: Points) -> list[tuple[float, float]]:
    step = -(-len(points) // MOST_POINTS)
    return [*points[::step], *(points[-1:] if (len(points) - 1) % step else [])]


def _themed(text: str, title: str) -> str:
    """The bare element with the page's variables for colours; ids made unique by the title."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    prefix = re.sub(r"\W", "-", title)
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for stand_in, variable in [(INK, "ink"), (GRID, "line"), *((each, f"series-{n}") for n, each in enumerate(SERIES))]:
        text = text.replace(stand_in, f"var(--{variable})")
    return text
