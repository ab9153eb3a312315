"""How figures look: palette, line styles, axes, and SVG that is the same bytes every time.

Colours are Okabe and Ito's, which people with the common colour deficiencies tell apart; yellow is
left out because it vanishes on white. Lines differ in dash as well as colour, areas in hatch.
Text and axes are drawn in :data:`INK` and :data:`GRID`, which the HTML report replaces by variables
so that one drawing reads on light and on dark paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK = "#1b1f24"
GRID = "#c9ced6"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PINK, SKY, GREY = "#cc79a7", "#56b4e9", "#8a9099"
PALETTE = (BLUE, ORANGE, GREEN, PINK, RED, SKY, GREY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++")
STACK = (SKY, ORANGE, GREEN, PINK, GREY, BLUE, RED)

_RC: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a user may be called $x^
    "svg.hashsalt": "tandem",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
    "path.simplify": True,
}


def line(index: int) -> dict[str, Any]:
    """Colour and dash of the ``index``-th line; 28 differ before they repeat."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index % len(DASHES)]}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeUnit:
    """A unit for a time axis: its name and how many seconds it has."""

    name: str
    seconds: float


def time_unit(span_s: float) -> TimeUnit:
    """Return the unit in which a span is a number people can hold in mind."""
    for name, seconds in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if span_s >= 3 * seconds:
            return TimeUnit(name=name, seconds=seconds)
    return TimeUnit(name="seconds", seconds=1.0)


_DURATIONS = (
    (1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"), (36_000, "10 h"),
    (259_200, "3 d"), (2_592_000, "30 d"), (31_536_000, "1 y"),
)  # fmt: skip


def duration_axis(ax: Axes, low_s: float, high_s: float) -> None:
    """Make x a logarithmic axis of durations, ticked in words (1 min, 1 h, 3 d)."""
    ax.set_xscale("log")
    low_s = max(low_s, 1e-3)
    ticks = [(s, name) for s, name in _DURATIONS if low_s / 2 <= s <= high_s * 2]
    ax.set_xlim(low_s / 1.2, max(high_s, low_s * 10) * 1.2)
    if len(ticks) >= 2:
        ax.set_xticks([s for s, _ in ticks], [name for _, name in ticks])
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())


@contextmanager
def paper(width_in: float = 7.4, height_in: float = 3.0) -> Iterator[tuple[Figure, Axes]]:
    """Give a new figure with one ``Axes``; inside the block the report's style holds.

    No pyplot, so no global state is left behind. Draw and render inside the block.
    """
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # Names in any script are welcome: the browser has the fonts that the layout lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .*")
        drawing = Figure(figsize=(width_in, height_in), layout="constrained")
        yield drawing, drawing.add_subplot()


def legend(ax: Axes, *, beside: bool = False, title: str | None = None) -> None:
    """Draw the legend, if there is anything to tell apart, above or beside the axes."""
    if not ax.get_legend_handles_labels()[0]:
        return
    if beside:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, title=title)
    else:
        ax.legend(loc="best", title=title)


def nothing(ax: Axes, words: str) -> None:
    """Say in the figure that there is nothing to draw, and why."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes)


def svg(drawing: Figure) -> str:
    """Render a figure as SVG without date, author or external address."""
    buffer = io.StringIO()
    with mpl.rc_context(_RC):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=170)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', _shorter, text)
    return re.sub(r"[ \t]*\n[ \t]*", "\n", text)


def _shorter(path: re.Match[str]) -> str:
    """A hundredth of a point is finer than any screen; six decimals double the file."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path[0])


def png(drawing: Figure, dpi: int = 110) -> bytes:
    """Render a figure as PNG on white (for documents that cannot hold SVG)."""
    buffer = io.BytesIO()
    with mpl.rc_context(_RC):
        drawing.savefig(
            buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None}
        )
    return buffer.getvalue()


def thin(values: NDArray[np.float64], points: int = 400) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return x and y of a distribution function through at most about ``points`` of its steps.

    The extremes are kept, and steps are closer together in both tails.
    """
    x = np.sort(values)
    n = len(x)
    if n > points:
        even = np.linspace(0, n - 1, points // 2)
        tail = np.geomspace(1, n, points // 4) - 1
        pick = np.unique(np.concatenate([even, tail, n - 1 - tail]).round().astype(np.int64))
    else:
        pick = np.arange(n)
    return x[pick], (pick + 1) / n


def label(name: str) -> str:
    """Make any name a legend entry: one line, not long, and shown even if it begins with ``_``."""
    short = axis_words([" ".join(name.split())], 32)[0]
    return f"\u200b{short}" if short.startswith("_") else short


def axis_words(names: Sequence[str], width: int = 18) -> list[str]:
    """Shorten long names for tick labels, keeping both ends."""
    half = (width - 1) // 2
    return [n if len(n) <= width else f"{n[:half]}…{n[-half:]}" for n in names]
