"""The HTML report: one file, no script, no address outside itself.

Figures are inline SVG whose text and axes take the page's colours, so one file reads on light and
on dark paper and can be mailed. What stands in it is decided in ``sections.py``; how it looks, in
``templates/``.

Leaves out: anything that needs JavaScript, such as zooming. ``timeline.py`` is for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes

from reports import style
from reports.blocks import Block, Drawing, Figure, Section
from reports.files import writing
from reports.sections import sections
from reports.subject import Subject, subjects
from traces.errors import UsageError
from traces.runlog import RunLog


def write_report(runs: Sequence[RunLog], out: Path) -> Path:
    """Write the report of one run, or of several side by side, to the HTML file ``out``.

    Raises :class:`traces.errors.UsageError` when ``out`` cannot be written, and
    :class:`traces.errors.DataError` when a run cannot be read. Returns ``out``.
    """
    with writing(out) as file:  # first of all: better to hear of a wrong path before the work
        file.write(render(runs))
    return out


def render(runs: Sequence[RunLog]) -> str:
    """Return the report as HTML text; the same runs give the same bytes."""
    if not runs:
        raise UsageError("report needs at least one run")
    shown = subjects(runs)
    return page(
        title=_title(shown),
        lead=_lead(shown),
        partial=[_partial_words(s, many=len(shown) > 1) for s in shown if s.log.partial],
        sections=sections(shown),
    )


def page(*, title: str, lead: str, partial: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a whole page: its title, a line under it, banners (``partial``), and the sections."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, _, _ = environment.loader.get_source(environment, "report.css")  # type: ignore[union-attr]
    return environment.get_template("report.html").render(
        title=title,
        lead=lead,
        partial=partial,
        sections=[_drawn(s, number) for number, s in enumerate(sections)],
        css=Markup(css),  # noqa: S704  (ours)
    )


def _title(shown: Sequence[Subject]) -> str:
    if len(shown) == 1:
        return f"Run {shown[0].label}"
    if len(shown) <= 4:
        return "Runs " + ", ".join(s.label for s in shown)
    return f"{len(shown)} runs: {shown[0].label} and others"


def _lead(shown: Sequence[Subject]) -> str:
    kinds = sorted({str(s.log.record.get("kind") or "recorded") for s in shown})
    jobs = sorted({len(s.tables.jobs) for s in shown})
    count = f"{jobs[0]:,}" if len(jobs) == 1 else f"{jobs[0]:,} to {jobs[-1]:,}"
    runs = "run" if len(shown) == 1 else "runs"
    return f"{' and '.join(kinds).capitalize()} {runs} of {count} jobs."


def _partial_words(subject: Subject, *, many: bool) -> str:
    whose = f"{subject.label}: its" if many else "Its"
    return (
        f"{whose} log ends early, at {subject.tables.end_s:,.0f} s:"
        f" {subject.metrics['finished_jobs']:,} of {len(subject.tables.jobs):,} jobs had finished."
        " Every number here is of that part alone, and long jobs are missing from the averages."
    )


def _drawn(section: Section, number: int) -> Section:
    blocks: list[Block] = []
    for place, block in enumerate(section.blocks):
        if isinstance(block, Drawing):
            name = f"f{number}-{place}"
            svg = draw(block.draw, block.width_in, block.height_in)
            blocks.append(
                Figure(
                    heading=block.heading,
                    caption=block.caption,
                    svg=inline(svg, name, f"{block.heading}. {block.caption}"),
                )
            )
        else:
            blocks.append(block)
    return Section(
        anchor=section.anchor, title=section.title, words=section.words, blocks=tuple(blocks)
    )


def draw(function: Callable[[Axes], object], width_in: float, height_in: float) -> str:
    """Call a figure function on fresh axes in the report's style; returns SVG."""
    with style.paper(width_in, height_in) as (drawing, axes):
        function(axes)
        return style.svg(drawing)


def inline(svg: str, name: str, words: str) -> Markup:
    """Make an SVG fit to stand in a page beside others.

    Ids get the prefix ``name``, ink and grid become the page's colours, the fixed size goes, and
    ``words`` are what a screen reader says.
    """
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r'<defs>\s*<style type="text/css">.*?</style>\s*</defs>', "", svg, flags=re.DOTALL)
    svg = svg.replace(style.INK, "var(--ink)").replace(style.GRID, "var(--grid)")
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-label="{escape(words)}">{body}')  # noqa: S704
