"""The table of ``docs/theory.md`` is what ``benchmarks/theory.py`` wrote, and within 1 %."""

from __future__ import annotations

import json
from pathlib import Path

from tests.theory.cases import CASES


def test_the_page_has_the_measured_numbers(repo: Path) -> None:
    text = (repo / "benchmarks" / "results" / "theory.json").read_text(encoding="utf-8")
    results = json.loads(text)
    page = (repo / "docs" / "theory.md").read_text(encoding="utf-8")
    assert set(results) <= {str(case) for case in CASES}
    for name, row in results.items():
        assert line(name, row) in page
        assert abs(row["mean"] / row["theory"] - 1) <= 0.01


def line(name: str, row: dict[str, float | str]) -> str:
    """One row of the table."""
    mean, theory = float(row["mean"]), float(row["theory"])
    return (
        f"| {name} | {row['what']} | {theory:.4f} | {mean:.4f} ± {float(row['half_width_95']):.4f}"
        f" | {100 * (mean / theory - 1):+.2f} % | {float(row['plain_mean']):.4f}"
        f" | {int(row['jobs']):,} |"
    )
