"""What a report is made of: sections of figures, tables and facts, as plain values.

They know nothing of HTML; ``templates/report.html`` decides how each looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a table: its text, a smaller note under it, and whether it holds words."""

    text: str
    note: str = ""
    words: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure still to be drawn: a function of an ``Axes`` and a size in inches."""

    heading: str
    caption: str
    draw: Callable[[Axes], object]
    height_in: float = 2.7
    width_in: float = 8.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure, drawn."""

    heading: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; the first cell of each row names it."""

    heading: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names with one or more values each."""

    heading: str
    facts: tuple[tuple[str, tuple[str, ...]], ...]


Block = Drawing | Figure | Table | Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report under one heading."""

    anchor: str
    title: str
    words: tuple[str, ...]
    blocks: tuple[Block, ...]
