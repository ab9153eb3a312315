"""The pages about metrics and the run log say what the code says."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from reports.definitions import METRICS
from traces.runlog import END_REASONS, EVENT_KINDS, EXECUTED, TABLES, columns_of

Row = tuple[str, ...]


def _rows(text: str) -> list[Row]:
    """Cells of all body rows of the tables in a page; code marks are dropped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [
        tuple(c.strip().replace("`", "").replace("\\|", "|") for c in line[1:-1].split(" | "))
        for line in lines
    ]
    return [row for row in cells if not set(row[0]) <= {"-", ":", "|"}]


def test_every_metric_has_its_definition(repo: Path) -> None:
    rows = _rows((repo / "docs" / "metrics.md").read_text(encoding="utf-8"))
    found = [row for row in rows if len(row) == 5 and row[0] != "metric"]
    assert found == [(m.name, m.unit, m.better, m.meaning, m.formula) for m in METRICS]


def _type(arrow: pa.DataType) -> str:
    """The type as the page has it: labels are strings, however they are stored."""
    if pa.types.is_dictionary(arrow):
        return "string"
    return f"list of {arrow.value_type}" if pa.types.is_list(arrow) else str(arrow)


@pytest.mark.parametrize("table", [*TABLES, *EXECUTED])
def test_every_column_of_the_run_log_is_documented(repo: Path, table: str) -> None:
    text = (repo / "docs" / "run-log.md").read_text(encoding="utf-8")
    part = text.split(f"## {table}.parquet", 1)[1].split("\n## ", 1)[0]
    found = [row for row in _rows(part) if row[0] != "column"]
    assert found == [(c.name, _type(c.type), c.unit, c.meaning) for c in columns_of(table)]


def test_words_of_the_run_log_are_explained(repo: Path) -> None:
    text = (repo / "docs" / "run-log.md").read_text(encoding="utf-8")
    for word in (*EVENT_KINDS, *END_REASONS):
        assert f"`{word}`" in text, word
