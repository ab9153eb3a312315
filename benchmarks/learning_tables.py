"""Tables from the results of ``learning.py``: means over seeds, with intervals.

Seeds differ in data, network and evaluated samples. Of AUCs and gaps the tables show the mean and
the range over seeds; of differences between two networks, which are taken seed by seed, the mean
and Student's t interval at 95 % (two-sided); with one seed there is none. Gaps to the Bayes score
are taken on the same samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

Result = dict[str, Any]
OLD_START = "dense"
BASE = "longer"
"""How the variant's name begins that the others are held against."""


def tables(reports: Sequence[dict[str, Any]]) -> str:
    """Return all tables, as Markdown. Of two like runs the later report's counts."""
    done = [r for report in reports for r in report["results"] if "error" not in r]
    latest = {
        (r["name"], None if r["group"].startswith("near") else r["planned_steps"]): r
        for r in done
        if r.get("start") != OLD_START
    }
    # Of an older start of the network's layers: measured, but not what is there now.
    results = list(latest.values())
    parts = [
        _near(results),
        _compared(results, "samples", "At equal samples"),
        _compared(results, "flops", "With more samples, at no more operations"),
        _visible(results),
        _views(results),
        _pairs(results),
        _compared([r for r in done if r.get("start") == OLD_START], "samples", "With dense starts"),
        _bounds(done),
        _runs(reports),
    ]
    return "\n\n".join(part for part in parts if part)


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (NaN with one value)."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.nan
    deviation = float(np.std(values, ddof=1)) / math.sqrt(count)
    return float(np.mean(values)), float(stdtrit(count - 1, 0.975)) * deviation


def shown(values: Sequence[float], places: int = 4) -> str:
    """Return ``mean ± half``, without leading zeros."""
    mean, half = mean_and_half(values)
    text = short(mean, places)
    return text if math.isnan(half) else f"{text} ± {short(half, places)}"


def ranged(values: Sequence[float]) -> str:
    """Return ``mean (least to most)``."""
    mean = short(float(np.mean(values)))
    if len(values) < 2:
        return mean
    return f"{mean} ({short(min(values))} to {short(max(values))})"


def short(value: float, places: int = 4) -> str:
    """Return a number without its leading zero."""
    text = f"{value:.{places}f}"
    for sign in ("", "-"):
        text = text.replace(f"{sign}0.", f"{sign}.", 1) if text.startswith(f"{sign}0.") else text
    return text


def gap(result: Result, at: int = 0) -> float:
    """Return how far below the Bayes score's AUC the network's is, on the same samples."""
    found = result["evaluations"][at]
    return float(found["bayes_score_auc"] - found["auc"])


def _of_group(results: Iterable[Result], group: str) -> dict[str, list[Result]]:
    rows: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result["group"] == group:
            rows[result["variant"]].append(result)
    return rows


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _aucs(rows: Sequence[Result], at: int = 0) -> list[float]:
    return [float(r["evaluations"][at]["auc"]) for r in rows]


def _near(results: Sequence[Result]) -> str:
    rows = []
    for length in (64, 256, 1024):
        for runs in _of_group(results, f"near-{length}").values():
            seconds = max(r["seconds"] for r in runs)
            rows.append(
                [
                    length,
                    len(runs),
                    short(runs[0]["evaluations"][0]["bayes_auc"]),
                    ranged(_aucs(runs)),
                    ranged([gap(r) for r in runs]),
                    f"{max(r['steps'] for r in runs):,}",
                    f"{max(r['samples'] for r in runs):,}",
                    f"{max(r['flops'] for r in runs) / 1e12:.1f}",
                    f"{seconds:.0f} s on {' and '.join(sorted({r['device'] for r in runs}))}",
                ]
            )
    head = ("events", "seeds", "Bayes AUC", "AUC", "gap", "steps", "samples", "TFLOPs")
    return _table("How near", (*head, "longest run"), rows) if rows else ""


def _compared(results: Sequence[Result], group: str, title: str) -> str:
    rows = _equal_samples(results) if group == "samples" else _no_more_flops(results)
    if group == "flops":  # runs with the whole budget, where there are some
        rows |= _of_group(results, group)
    if not rows:
        return ""
    first = next((name for name in rows if name.startswith(BASE)), None)
    of_seed = {r["seed"]: r["evaluations"][0]["auc"] for r in rows[first]} if first else {}
    made = []
    for variant, runs in sorted(rows.items(), key=lambda row: -float(np.mean(_aucs(row[1])))):
        differences = [
            r["evaluations"][0]["auc"] - of_seed[r["seed"]] for r in runs if r["seed"] in of_seed
        ]
        made.append(
            [
                variant,
                len(runs),
                ranged(_aucs(runs)),
                ranged([gap(r) for r in runs]),
                "" if variant == first or not differences else shown(differences),
                f"{np.mean([r['samples'] for r in runs]) / 1000:,.0f}",
                f"{np.mean([r['flops'] for r in runs]) / 1e12:.2f}",
                f"{runs[0]['parameters']:,}",
            ]
        )
    head = ("variant", "seeds", "AUC", "gap to Bayes", "AUC against LONGER", "samples / 1000")
    return _table(title, (*head, "TFLOPs", "dense parameters"), made)


def _pairs(results: Sequence[Result]) -> str:
    """Run by run: they find the XOR or they do not, so a mean says little."""
    runs = [r for r in results if r["group"] == "pairs"]
    made = [
        [
            r["variant"],
            r["seed"],
            short(r["evaluations"][0]["auc"]),
            short(r["evaluations"][0]["bayes_score_auc"]),
            f"{r['samples'] / 1000:,.0f}",
            f"{r['flops'] / 1e12:.2f}",
        ]
        for r in sorted(runs, key=lambda r: (r["seed"], -r["evaluations"][0]["auc"]))
    ]
    head = ("variant", "seed", "AUC", "Bayes score", "samples / 1000", "TFLOPs")
    return _table("Pairs", head, made) if made else ""


def _base_samples(results: Sequence[Result]) -> int:
    """Samples of the base's runs at equal samples, 0 if there is none."""
    base = [
        r["samples"] for r in results if r["group"] == "samples" and r["variant"].startswith(BASE)
    ]
    return max(set(base), key=base.count) if base else 0


def _equal_samples(results: Sequence[Result]) -> dict[str, list[Result]]:
    wanted = _base_samples(results)
    return _of_group((r for r in results if not wanted or r["samples"] == wanted), "samples")


def _no_more_flops(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The base, and what was trained on more samples with no more operations."""
    least = _base_samples(results)
    rows = _of_group(results, "samples")
    base = [r for name in rows if name.startswith(BASE) for r in rows[name]]
    most = max((r["flops"] for r in base if r["samples"] == least), default=0)
    return {
        name: kept
        for name, runs in rows.items()
        if (
            kept := [
                r
                for r in runs
                if (name.startswith(BASE) and r["samples"] == least)
                or (r["samples"] > least and r["flops"] <= 1.02 * most)
            ]
        )
    }


def exponent(lengths: Sequence[float], aucs: Sequence[float]) -> float:
    """Return the slope of log(AUC - 1/2) over log(length), NaN at or below 1/2."""
    above = np.asarray(aucs) - 0.5
    if (above <= 0).any():
        return math.nan
    slope, _ = np.polyfit(np.log(lengths), np.log(above), 1)
    return float(slope)


def _visible(results: Sequence[Result]) -> str:
    rows = _of_group(results, "visible")
    if len(rows) < 2:
        return ""
    lengths = sorted(map(int, rows))
    made = [
        [
            seen,
            len(rows[str(seen)]),
            short(rows[str(seen)][0]["evaluations"][0]["bayes_auc"]),
            shown(_aucs(rows[str(seen)])),
            shown([gap(r) for r in rows[str(seen)]]),
        ]
        for seen in lengths
    ]
    bayes = exponent(lengths, [rows[str(n)][0]["evaluations"][0]["bayes_auc"] for n in lengths])
    seeds = set.intersection(*({r["seed"] for r in rows[str(n)]} for n in lengths))
    fitted = [
        exponent(
            lengths,
            [
                next(r for r in rows[str(n)] if r["seed"] == seed)["evaluations"][0]["auc"]
                for n in lengths
            ],
        )
        for seed in sorted(seeds)
    ]
    made.append(["exponent", len(fitted), short(bayes, 3), shown(fitted, 3), ""])
    return _table("A network for each view", ("visible", "seeds", "Bayes", "AUC", "gap"), made)


def _views(results: Sequence[Result]) -> str:
    made = []
    for length in (64, 256, 1024):
        for runs in _of_group(results, f"near-{length}").values():
            views = sorted(range(len(runs[0]["evaluations"])), key=lambda i: _seen(runs[0], i))
            for i in views:
                bayes = short(runs[0]["evaluations"][i]["bayes_auc"])
                made.append([length, _seen(runs[0], i), bayes, shown(_aucs(runs, i))])
            seen = [_seen(runs[0], i) for i in views]
            fitted = [exponent(seen, [r["evaluations"][i]["auc"] for i in views]) for r in runs]
            bayes = exponent(seen, [runs[0]["evaluations"][i]["bayes_auc"] for i in views])
            if not any(map(math.isnan, fitted)):
                made.append([length, "exponent", short(bayes, 3), shown(fitted, 3)])
    head = ("trained on", "visible", "Bayes", "AUC")
    return _table("One network, shorter views", head, made) if made else ""


def _seen(result: Result, at: int) -> int:
    return int(result["evaluations"][at]["visible"])


def _bounds(results: Sequence[Result]) -> str:
    """Every evaluation against Bayes + 3 sigma, and those that must be one half."""
    every = [(r, e) for r in results for e in r["evaluations"]]
    above = [(r, e) for r, e in every if e["auc"] > e["bayes_auc"] + 3 * e["auc_deviation"]]
    silent = [e for r, e in every if r["group"] == "silent"]
    most = max((e["auc"] - e["bayes_auc"]) / e["auc_deviation"] for _, e in every)
    lines = [
        "### Bounds",
        "",
        f"- {len(every)} evaluations, {len(above)} above the Bayes AUC by more than three "
        f"deviations; the highest is {most:+.2f} deviations from it.",
    ]
    if silent:
        away = max(abs(e["auc"] - 0.5) / e["auc_deviation"] for e in silent)
        lines.append(
            f"- {len(silent)} evaluations that see nothing: AUC "
            f"{min(e['auc'] for e in silent):.4f} to {max(e['auc'] for e in silent):.4f}, "
            f"at most {away:.2f} deviations from one half."
        )
    return "\n".join(lines)


def _runs(reports: Sequence[dict[str, Any]]) -> str:
    """What was run where, and what was not."""
    lines = ["### Runs", ""]
    for report in reports:
        on, failed = report["machine"], [r for r in report["results"] if "error" in r]
        early = [
            r["name"] for r in report["results"] if r.get("steps", 0) < r.get("planned_steps", 0)
        ]
        lines.append(
            f"- {len(report['results']) - len(failed)} of {report['planned']} runs in "
            f"{report['wall_seconds']:.0f} s on {on['cores']} cores ({on['machine']}, {on['cpu']})"
            f" and {on['gpu'] or 'no GPU'}, torch {on['torch']}; failed: {len(failed)}; "
            f"ended early: {', '.join(early) or 'none'}; cut off: "
            f"{', '.join(report['cut_off']) or 'none'}; not begun: {len(report['not_begun'])}"
        )
    return "\n".join(lines)
