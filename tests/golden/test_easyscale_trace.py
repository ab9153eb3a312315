"""EasyScale's trace experiment: the published numbers, and what the honest table must say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tandem
from simulator.reproduce import Reading, readings, say

# Average JCT and makespan, s: as worked out with the artifact's own loop and the same times.
EXPECTED = ((9002.2, 16560.0), (1057.9, 6660.0), (675.7, 5880.0))


@pytest.fixture(scope="module")
def both(shared_data: Path) -> list[Reading]:
    folder = shared_data / "easyscale"
    return list(readings(folder / "workload.csv", folder / "profile_fitted.json"))


def test_the_artifact_comes_out(both: list[Reading]) -> None:
    names, _ = both
    assert names.jobs == 62
    assert not names.rejected
    for row, (jct_s, makespan_s) in zip(names.published, EXPECTED, strict=True):
        assert row.jobs == 62
        assert row.jct_s == pytest.approx(jct_s, rel=0.03)
        assert row.makespan_s == pytest.approx(makespan_s, rel=0.03)
        assert row.published is not None
        assert row.jct_s == pytest.approx(row.published.jct_s, rel=0.03)
        assert row.makespan_s == pytest.approx(row.published.makespan_s, rel=0.03)


def test_repaired_beats_the_artifact_and_every_baseline(both: list[Reading]) -> None:
    for reading in both:
        mean = {row.policy: row.jct_s for row in reading.honest}
        last = {row.policy: row.makespan_s for row in reading.honest}
        assert mean["easyscale"] < 0.6 * mean["easyscale:version=paper"]
        assert mean["easyscale"] == min(mean.values())
        assert last["easyscale"] < 1.03 * min(last.values())


def test_all_rows_are_read_both_ways(both: list[Reading]) -> None:
    _, rows = both
    assert (rows.jobs, rows.rejected) == (68, 1)
    assert all(row.jobs == 67 for row in (*rows.published, *rows.honest))


def test_the_table_says_what_survives(both: list[Reading]) -> None:
    lines: list[str] = []
    say(both[0], lines.append)
    text = "\n".join(lines)
    assert "Of the published 8.3x (preferred) and 13.2x (mixed) there survive" in text
    assert all(row.name in text for row in both[0].honest)
    page = Path(__file__).resolve().parents[2] / "docs" / "easyscale.md"
    shown = page.read_text(encoding="utf-8")
    assert all(line in shown for line in lines if line)
    other = replace(both[0].honest[0], jct_s=1.0)
    lines.clear()
    say(replace(both[0], honest=(other, *both[0].honest[1:])), lines.append)
    assert not all(line in shown for line in lines if line)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["nowhere.csv", "--profile", "nowhere.json"], 1, "nowhere.json"),
        (["nowhere.csv"], 2, "--profile"),
    ],
)
def test_files_that_are_not_there(
    argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = tandem.main(["reproduce", "easyscale-trace", *argv])
    except SystemExit as stop:
        found = int(stop.code or 0)
    assert found == code
    assert words in capsys.readouterr().err


def test_the_page_quotes_the_benchmark(repo: Path) -> None:
    found = json.loads((repo / "benchmarks" / "results" / "elastic.json").read_text())
    page = (repo / "docs" / "easyscale.md").read_text(encoding="utf-8")
    gain = found["draws"]["gain_of_easyscale_over"]["easyscale:version=paper"]
    assert len(found["draws"]["workloads"]) == 20
    assert gain["worst"] > 1.0
    assert f"{gain['mean']:.2f}x | {gain['low']:.2f} to {gain['high']:.2f}" in page
    philly = found["philly"]["policies"]
    assert philly["easyscale"]["jobs"] == 20_000
    assert all(
        f"{row['mean_jct_h']:.1f} h | {row['median_jct_h']:.2f} h" in page
        for row in philly.values()
    )
    assert all(f"{row['p99_ms']:.1f} ms" in page for row in found["latency"])


def test_the_page_quotes_the_curve(repo: Path) -> None:
    found = json.loads((repo / "benchmarks" / "results" / "easyscale_curve.json").read_text())
    page = (repo / "docs" / "easyscale.md").read_text(encoding="utf-8")
    preferred = found["as the artifact plans, preferred types"]["mean_distance_gpus"]
    mixed = found["as the artifact plans, mixed types"]["mean_distance_gpus"]
    assert f"off by {preferred:.1f} GPUs on" in page
    assert f"by {mixed:.1f} with mixed ones" in page
