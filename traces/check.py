"""Can this trace be trusted? Findings on a workload, and on how it fits an inventory.

Users of trace-driven schedulers are bitten by the same defects again and again: jobs no node can
hold, clocks that run backwards, rows that are there twice, run times that are missing or cut off,
more work than the machines can do. ``check`` looks for each, says how many jobs it concerns, shows
examples, and what to do. What the loader repaired is part of the answer. It changes nothing. Left
out: whether the trace is typical of anything.

An *error* means that a replay cannot be right for those jobs, a *warning* that its result may not
mean what it seems to, a *note* is good to know. ``docs/traces/check.md`` lists the codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from traces.cluster import ClusterSpec
from traces.demand import demand_over_time, pool_loads
from traces.feasibility import Infeasible, Misfit, infeasible, misfit
from traces.scale import gpu_seconds, span_s
from traces.schema import JOB_COLUMNS
from traces.workload import Workload

__all__ = ["CODES", "Finding", "Infeasible", "Misfit", "Report", "check", "infeasible", "misfit"]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_EXAMPLES = 3
_DAY_S = 86_400.0
_HOUR_S = 3_600.0

# What each code means and what to do about it; the report and the documentation print it.
CODES: dict[str, str] = {
    "no-jobs": "nothing to replay: look at what the loader set aside",
    "infeasible-type": "add nodes of that type, or map the trace's GPU types to yours",
    "infeasible-gpus": "use a larger inventory, or sample the trace without these jobs",
    "infeasible-node": "use nodes with more GPUs, or let these jobs span nodes",
    "infeasible-cpu": "use nodes with more CPUs, or clear cpu_milli where CPUs are no limit",
    "infeasible-memory": "use nodes with more memory, or clear memory_mib where it is no limit",
    "start-before-submit": "two clocks were mixed: replay by submit_s, and don't trust start_s",
    "out-of-order": "nothing: jobs are sorted by submission",
    "negative-time": "nothing: second 0 need not be the first submission",
    "one-instant": "give arrivals of your own: nothing can be said about load or queues over time",
    "gap": "cut the trace at the gap, or replay a window: averages over the span mean little",
    "beyond-span": "look at the tail: a few such jobs decide makespan and utilisation",
    "duplicate": "nothing if users submit the same job again; else deduplicate before loading",
    "empty-columns": "policies that need these columns can't use this trace",
    "partial-columns": "metrics by these columns cover only part of the jobs",
    "unknown-duration": "give a rate model or a bound, or replay without these jobs",
    "zero-length": "slowdown is undefined for these jobs: use bounded slowdown",
    "left-censored": "their submission is a bound: start the statistics later",
    "right-censored": "their run time is a bound: leave them out of completion statistics",
    "overload": "the queue grows as long as jobs come: add GPUs, or stretch time (scale to a load)",
    "load": "compare it with what the publisher says",
    "idle": "jobs hardly ever wait, so policies look alike: use fewer GPUs or compress time",
    "peak": "above the inventory's GPUs somebody must wait",
    "one-user": "fairness between users says little here",
    "one-vc": "fairness between virtual clusters says little here",
    "repaired": "see the format's page for the rule",
    "loader": "see the format's page",
}
_MISFIT_CODES = {
    "unknown_type": "infeasible-type",
    "too_many_gpus": "infeasible-gpus",
    "single_node": "infeasible-node",
    "cpu": "infeasible-cpu",
    "memory": "infeasible-memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found: how bad, its code, how many rows it concerns, what, and some examples."""

    severity: Severity
    code: str
    count: int
    text: str
    examples: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """What to do about it."""
        return CODES[self.code]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings on one trace, the worst first; ``cluster`` is what it was checked against."""

    path: str
    format: str
    jobs: int
    cluster: str | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error among the findings."""
        return not any(f.severity == "error" for f in self.findings)

    def counts(self) -> dict[Severity, int]:
        """Findings by severity."""
        seen = Counter(f.severity for f in self.findings)
        return {severity: seen[severity] for severity in SEVERITIES}

    def text(self) -> str:
        """Return the report for people: one paragraph per finding and a verdict."""
        name = self.path or "workload"
        head = f"{name} ({self.format})" if self.format else name
        against = f", on {self.cluster}" if self.cluster else ", without an inventory"
        lines = [f"{head}: {self.jobs} jobs{against}"]
        for finding in self.findings:
            lines.append(f"{finding.severity:<8} {finding.code:<20} {finding.text}")
            lines += [f"{'':29} e.g. {example}" for example in finding.examples]
            if finding.severity != "note":
                lines.append(f"{'':29} to do: {finding.advice}")
        counts = ", ".join(f"{n} {s}{'s' * (n != 1)}" for s, n in self.counts().items())
        verdict = "can be replayed" if self.ok else "some jobs cannot be replayed"
        lines.append(f"{counts}: {verdict}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for programs: JSON types only."""
        findings = [
            {**asdict(f), "examples": list(f.examples), "advice": f.advice} for f in self.findings
        ]
        return {
            "path": self.path,
            "format": self.format,
            "jobs": self.jobs,
            "cluster": self.cluster,
            "ok": self.ok,
            "counts": dict(self.counts()),
            "findings": findings,
        }


def check(workload: Workload, spec: ClusterSpec | None = None) -> Report:
    """Look for what makes a replay of ``workload`` (on ``spec``) untrustworthy."""
    findings = list(_loader(workload))
    if len(workload):
        findings += _clocks(workload)
        findings += _run_times(workload)
        findings += _columns(workload)
        findings += _duplicates(workload)
        findings += _dominance(workload)
        findings += _demand(workload)
        if spec is not None:
            findings += _fit(workload, spec)
            findings += _load(workload, spec)
    else:
        findings.append(Finding(severity="error", code="no-jobs", count=0, text="no jobs"))
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    return Report(
        path=workload.source.path,
        format=workload.source.format,
        jobs=len(workload),
        cluster=None if spec is None else spec.describe(),
        findings=tuple(findings),
    )


Mask = npt.NDArray[np.bool_]


def _on_jobs(
    workload: Workload,
    bad: Mask,
    severity: Severity,
    code: str,
    text: str,
    columns: Sequence[str] = (),
) -> Iterator[Finding]:
    """Yield one finding on the jobs where ``bad`` holds, if any; ``text`` follows their number."""
    count = int(bad.sum())
    if count:
        rows = workload.table.loc[np.flatnonzero(bad)[:_EXAMPLES], ["job_id", *columns]]
        examples = tuple(
            " ".join([str(row["job_id"]), *(f"{c}={row[c]}" for c in columns)])
            for row in rows.to_dict("records")
        )
        yield Finding(
            severity=severity,
            code=code,
            count=count,
            text=f"{_jobs(count, len(workload))}: {text}",
            examples=examples,
        )


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _jobs(count: int, total: int) -> str:
    return f"{_count(count, 'job')} ({_percent(count / total)})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _seconds(time_s: float) -> str:
    return f"{time_s:.10g} s"


def _loader(workload: Workload) -> Iterator[Finding]:
    for repair in workload.source.repairs:
        yield Finding(
            severity="note",
            code="repaired",
            count=repair.rows,
            text=f"{_count(repair.rows, 'row')}: {repair.rule}",
            examples=(repair.example,) if repair.example else (),
        )
    for note in workload.source.notes:
        yield Finding(severity="note", code="loader", count=len(workload), text=note)


def _clocks(workload: Workload) -> Iterator[Finding]:
    table = workload.table
    submit = table["submit_s"].to_numpy(dtype=np.float64)
    early = (table["start_s"] < table["submit_s"]) & ~table["left_censored"]
    yield from _on_jobs(
        workload,
        early.to_numpy(dtype=bool),
        "warning",
        "start-before-submit",
        "started before it was submitted",
        ("submit_s", "start_s"),
    )
    if workload.rows_out_of_order:
        text = f"{_count(workload.rows_out_of_order, 'row')}: after a row of later submission"
        yield Finding(
            severity="note", code="out-of-order", count=workload.rows_out_of_order, text=text
        )
    yield from _on_jobs(
        workload, submit < 0, "note", "negative-time", "submitted before second 0", ("submit_s",)
    )
    span = span_s(workload)
    if len(workload) > 1 and span == 0:
        text = f"all {len(workload)} jobs are submitted at {_seconds(submit[0])}"
        yield Finding(severity="warning", code="one-instant", count=len(workload), text=text)
        return
    yield from _gaps(workload, submit, span)
    long = (table["duration_s"] > span) & ~table["right_censored"]
    if span > 0:
        recorded = bool(table["start_s"].notna().any())
        yield from _on_jobs(
            workload,
            long.to_numpy(dtype=bool),
            "warning" if recorded else "note",
            "beyond-span",
            f"ran longer than the {_seconds(span)} between first and last submission",
            ("duration_s",),
        )


def _gaps(workload: Workload, submit: npt.NDArray[np.float64], span: float) -> Iterator[Finding]:
    """Silences far beyond the usual gap that together make up a tenth of the span or more."""
    gaps = np.diff(submit)
    wide = gaps >= max(_HOUR_S, span / 100, 20 * span / len(submit))
    silent = float(gaps[wide].sum()) / span if span > 0 else 0.0
    if silent >= 0.1:
        ids = workload.table["job_id"]
        places = np.flatnonzero(wide)
        longest = places[np.argsort(-gaps[places], kind="stable")][:_EXAMPLES]
        examples = tuple(f"{gaps[i] / _DAY_S:.3g} days before {ids.iloc[i + 1]}" for i in longest)
        text = f"{_count(len(places), 'gap')} without a submission: {silent:.0%} of the span"
        yield Finding(
            severity="warning", code="gap", count=len(places), text=text, examples=examples
        )


def _run_times(workload: Workload) -> Iterator[Finding]:
    table = workload.table
    unknown = table["duration_s"].isna().to_numpy(dtype=bool)
    pending = int((table["status"] == "pending").to_numpy(dtype=bool)[unknown].sum())
    counted = bool(table["total_steps"].notna().to_numpy(dtype=bool)[unknown].any())
    yield from _on_jobs(
        workload,
        unknown,
        "error" if unknown.all() and not counted else "warning",
        "unknown-duration",
        "no run time" + (f" ({pending} never ran)" if pending else ""),
    )
    zero = (table["duration_s"] == 0).fillna(False).to_numpy(dtype=bool)
    yield from _on_jobs(workload, zero, "note", "zero-length", "ran for 0 s")
    for side, says in (("left", "began before the trace"), ("right", "outlived the trace")):
        censored = table[f"{side}_censored"].to_numpy(dtype=bool)
        severity: Severity = "warning" if censored.mean() > 0.05 else "note"
        yield from _on_jobs(workload, censored, severity, f"{side}-censored", says)


def _columns(workload: Workload) -> Iterator[Finding]:
    nullable = [c.name for c in JOB_COLUMNS if c.nullable and c.name != "duration_s"]
    share = workload.table[nullable].isna().mean()
    empty = share[share == 1].index.tolist()
    if empty:
        text = "nothing in " + ", ".join(empty)
        yield Finding(severity="note", code="empty-columns", count=len(workload), text=text)
    partial = share[(share > 0) & (share < 1)]
    if len(partial):
        most = round(float(partial.max()) * len(workload))
        text = "null in part: " + ", ".join(
            f"{name} {_percent(part)}" for name, part in partial.items()
        )
        yield Finding(severity="note", code="partial-columns", count=most, text=text)


def _duplicates(workload: Workload) -> Iterator[Finding]:
    """Equal rows but for the id; where the ids are the publisher's own, they are likely jobs."""
    content = workload.table.drop(columns="job_id").dropna(axis=1, how="all")
    again = content.duplicated().to_numpy(dtype=bool)
    made_up = str(workload.table["job_id"].iloc[0]) == "job-000000"
    severity: Severity = "warning" if made_up and again.mean() > 0.01 else "note"
    yield from _on_jobs(
        workload, again, severity, "duplicate", "equal to another in all but the id"
    )


def _dominance(workload: Workload) -> Iterator[Finding]:
    """One user or virtual cluster with more than half of the jobs or of the GPU-seconds."""
    work = pd.Series(gpu_seconds(workload)).fillna(0.0)
    for column, code in (("user", "one-user"), ("vc", "one-vc")):
        owner = workload.table[column]
        known = owner.notna()
        if int(known.sum()) < 10:
            continue
        jobs = owner[known].value_counts(normalize=True)
        by_work = work[known].groupby(owner[known]).sum()
        shares = [(jobs, "jobs")]
        if by_work.sum() > 0:
            shares.append((by_work / by_work.sum(), "GPU-seconds"))
        for share, what in shares:
            if share.max() > 0.5:
                name = share.idxmax()
                text = f"{column} {name} has {_percent(float(share.max()))} of the {what}"
                count = int((owner == name).fillna(False).sum())
                yield Finding(severity="note", code=code, count=count, text=text)


def _demand(workload: Workload) -> Iterator[Finding]:
    demand = demand_over_time(workload)
    if demand.peak_s is not None:
        span = span_s(workload)
        first = float(workload.table["submit_s"].iloc[0])
        mean = f", {demand.mean(first, first + span) / 1000:.1f} on average" if span > 0 else ""
        peak = f"{demand.peak / 1000:g} GPUs at once at {_seconds(demand.peak_s)}"
        text = f"{peak} if nobody waited{mean}"
        yield Finding(severity="note", code="peak", count=len(workload), text=text)


def _fit(workload: Workload, spec: ClusterSpec) -> Iterator[Finding]:
    verdict = infeasible(workload, spec)
    ranks = np.flatnonzero(verdict.mask)
    by_code: dict[str, list[int]] = {}
    for rank in ranks.tolist():
        reason = verdict.reason(rank)
        assert reason is not None
        by_code.setdefault(_MISFIT_CODES[reason.code], []).append(rank)
    for code in sorted(by_code):
        mine = by_code[code]
        ids = workload.table["job_id"]
        yield Finding(
            severity="error",
            code=code,
            count=len(mine),
            text=f"{_jobs(len(mine), len(workload))}: can never run on this inventory",
            examples=tuple(f"{ids.iloc[r]} {verdict.reason(r)}" for r in mine[:_EXAMPLES]),
        )


def _load(workload: Workload, spec: ClusterSpec) -> Iterator[Finding]:
    loads = pool_loads(workload, spec)
    for pool in loads:
        whole = pool is loads[-1]
        name = "the whole inventory" if whole else "|".join(pool.gpu_types)
        text = f"load {pool.load:.3g} of the {pool.num_gpus} GPUs of {name}"
        over = pool.load > 1
        if over or whole:
            severity: Severity = "warning" if over else "note"
            code = "overload" if over else "idle" if pool.load < 0.05 else "load"
            yield Finding(severity=severity, code=code, count=pool.jobs, text=text)
