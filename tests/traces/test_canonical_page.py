"""The page on the canonical tables says what the schema says."""

from __future__ import annotations

from pathlib import Path

from traces.schema import JOB_COLUMNS, JOB_DEFAULTS, NODE_COLUMNS, Column


def row(column: Column) -> str:
    null = "yes" if column.nullable else "no"
    meaning = column.meaning.replace("|", "\\|")
    return f"| `{column.name}` | {column.dtype} | {column.unit or '-'} | {null} | {meaning} |"


def default(name: str) -> str:
    value = JOB_DEFAULTS[name]
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"| `{name}` | `{shown}` |"


def test_the_tables_are_the_schema(repo: Path) -> None:
    page = (repo / "docs" / "traces" / "canonical.md").read_text(encoding="utf-8")
    cells = [line for line in page.splitlines() if line.startswith("| `")]
    assert cells == [
        *map(row, JOB_COLUMNS),
        *map(default, JOB_DEFAULTS),
        *map(row, NODE_COLUMNS),
    ]
