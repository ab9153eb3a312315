"""EasyScale's published trace experiment again, and what of its gains survives.

Two sections for each reading of the workload. *As published*: the artifact's own policies in the
artifact's own world (rounds of 60 s, the speed of the plan that the scheduler chose, 20 s charged
once per job), beside the published numbers. *Honest*: one world for everybody, in which every start
and every change of size costs the same seconds and the best worker map decides the speed, with
baselines that a cluster would really run, so that the gain over each of them can be read off.

Sources: EasyScale (SC'23), Figure 14, and its artifact (published average JCT and makespan). The
workload and the profile are files that the caller names; the profile is fitted, not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path

import numpy as np

from policies.contract import Policy
from policies.inter.easyscale import PAPER_ROUND_S, EasyScale
from policies.inter.yarncs import YarnCs
from policies.model import Costs, Model
from policies.registry import make_policy
from simulator.artifact import ArtifactModel
from simulator.run import Result, simulate
from traces import Profile, Workload, load, load_cluster
from traces.feasibility import infeasible
from traces.profile_sources import load_profile

CLUSTER = "4x8:v100,2x8:p100,2x8:t4"
PAUSE_S = 20.0  # what the artifact charges once per job


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One bar of Figure 14: average JCT and makespan, seconds."""

    name: str
    jct_s: float
    makespan_s: float


YARN = Published(name="one job at a time (YARN-CS)", jct_s=8904.9685, makespan_s=16560.0)
HOMO = Published(name="EasyScale, preferred types", jct_s=1070.5008, makespan_s=6720.0)
HETER = Published(name="EasyScale, mixed types", jct_s=676.7497, makespan_s=6000.0)

# Who runs in the honest world: what it is, the policy, and how much it is told.
HONEST: tuple[tuple[str, str], ...] = (
    ("one job at a time", "yarn-cs"),
    ("gang FIFO, head of line blocks", "fifo"),
    ("gang FIFO with EASY backfill", "easy"),
    ("gang FIFO, misfits passed over", "best-effort"),
    ("gangs, least time left first", "srtf"),
    ("gangs, least service left first", "srsf"),
    ("gangs, Tiresias", "tiresias"),
    ("static share: all workers", "static-share:share=1"),
    ("static share: a half", "static-share:share=0.5"),
    ("static share: a quarter", "static-share:share=0.25"),
    ("static share: an eighth", "static-share:share=0.125"),
    ("Optimus", "optimus"),
    ("AFS-L", "afs"),
    ("EasyScale as the artifact, preferred types", "easyscale:version=paper,types=preferred"),
    ("EasyScale as the artifact, mixed types", "easyscale:version=paper"),
    ("EasyScale repaired, preferred types", "easyscale:types=preferred"),
    ("EasyScale repaired, mixed types", "easyscale"),
    ("the same, told the run times", "easyscale:estimates=true"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run. ``published``: what it is held against, in the first section.

    ``policy``: as it would be given on a command line. ``told``: the estimates of run time it had.
    """

    name: str
    policy: str
    told: str
    jobs: int
    jct_s: float
    p90_jct_s: float
    makespan_s: float
    gpu_hours: float
    starts: int
    changes: int
    published: Published | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Both sections for one reading of the workload.

    ``rejected``: jobs left out, because their gang is larger than the cluster.
    """

    rows_in_file: str
    jobs: int
    rejected: int
    published: tuple[Row, ...]
    honest: tuple[Row, ...]


def readings(
    workload: Path | str,
    profile: Path | str,
    *,
    pause_s: float = PAUSE_S,
    cluster: str = CLUSTER,
) -> Iterator[Reading]:
    """Run everything: first the jobs as the artifact's dictionary keeps them, then all rows.

    ``pause_s`` is what the honest world charges for each start and each change of size.
    """
    times = load_profile(profile)
    for text, option in (("62 names, last values", "artifact"), ("all 68 rows", "keep")):
        every = load(workload, "easyscale", options={"duplicates": option})
        # A gang that fits nowhere would be in some rows and not in others.
        fits = ~infeasible(every, load_cluster(cluster)).mask
        jobs = Workload(every.table[fits], every.source)
        yield Reading(
            rows_in_file=text,
            jobs=len(every),
            rejected=len(every) - len(jobs),
            published=tuple(_as_published(jobs, times, cluster)),
            honest=tuple(_honest(jobs, times, pause_s, cluster)),
        )


def _as_published(jobs: Workload, times: Profile, cluster: str) -> Iterator[Row]:
    costs = Costs(start_s=PAUSE_S)
    roomy = roomier(jobs)
    yarn = YarnCs(round_s=PAPER_ROUND_S)
    run = _run(jobs, cluster, yarn, Model(profile=times, costs=costs))
    yield _row(YARN.name, yarn, "yarn-cs:round_s=60", run, published=YARN)
    for bar, text in ((HOMO, ",types=preferred"), (HETER, "")):
        policy = make_policy(f"easyscale:version=paper{text}")
        assert isinstance(policy, EasyScale)
        world = ArtifactModel(profile=times, costs=costs, types=policy.types)
        run = _run(roomy, cluster, policy, world)
        yield _row(bar.name, policy, f"easyscale:version=paper{text}", run, published=bar)


def _honest(jobs: Workload, times: Profile, pause_s: float, cluster: str) -> Iterator[Row]:
    model = Model(profile=times, costs=Costs(start_s=pause_s, rescale_s=pause_s))
    for name, text in HONEST:
        policy = make_policy(text)
        paper = isinstance(policy, EasyScale) and policy.version == "paper"
        run = _run(roomier(jobs) if paper else jobs, cluster, policy, model)
        yield _row(name, policy, text, run)


def roomier(jobs: Workload) -> Workload:
    """The same jobs, allowed to hold GPUs without a logical worker, as the artifact's do."""
    table = jobs.table.copy()
    table["max_gpus"] = 2 * table["num_workers"]
    return Workload(table, replace(jobs.source))


def _run(jobs: Workload, cluster: str, policy: Policy, model: Model) -> Result:
    return simulate(jobs, cluster, policy=policy, model=model)


def _row(
    name: str, policy: Policy, text: str, run: Result, published: Published | None = None
) -> Row:
    done = run.jobs[run.jobs["status"] == "finished"]
    last_s = float(done["finish_s"].max())
    if published is not None:  # the artifact's clock counts rounds
        last_s = floor(last_s / PAPER_ROUND_S) * PAPER_ROUND_S
    told = policy.estimates if policy.estimates != "none" else "nothing"
    return Row(
        name=name,
        policy=text,
        told="run times" if told == "true" else told,
        jobs=len(done),
        jct_s=float(done["jct_s"].mean()),
        p90_jct_s=float(np.percentile(done["jct_s"], 90)),
        makespan_s=last_s,
        gpu_hours=float(done["service_gpu_s"].sum()) / 3600.0,
        starts=len(done) + int(done["preemptions"].sum()),
        changes=int(done["resizes"].sum() + done["migrations"].sum()),
        published=published,
    )


def say(reading: Reading, line: Callable[[str], object]) -> None:
    """Say one reading as two tables, line by line."""
    rejected = f"; {reading.rejected} left out: its gang fits nowhere" if reading.rejected else ""
    line(f"{reading.jobs} jobs ({reading.rows_in_file}){rejected}")
    line("")
    line("As published: the artifact's policies in the artifact's world")
    line(f"{'':<34}{'avg JCT':>9}{'published':>11}{'':>8}{'makespan':>10}{'published':>11}{'':>8}")
    for row in reading.published:
        bar = row.published
        assert bar is not None
        line(
            f"{row.name:<34}{row.jct_s:>9.1f}{bar.jct_s:>11.1f}{row.jct_s / bar.jct_s - 1:>+8.1%}"
            f"{row.makespan_s:>10.0f}{bar.makespan_s:>11.0f}"
            f"{row.makespan_s / bar.makespan_s - 1:>+8.1%}"
        )
    line("")
    paper, best = _gains(reading)
    line("Honest: every start and change charged, the same world for all; gains in average JCT")
    line(
        f"{'':<44}{'told':>10}{'avg JCT':>9}{'p90':>9}{'makespan':>10}{'GPU-h':>7}{'changes':>8}"
        f"{'paper':>8}{'repaired':>9}"
    )
    for row in reading.honest:
        line(
            f"{row.name:<44}{row.told:>10}{row.jct_s:>9.1f}{row.p90_jct_s:>9.0f}"
            f"{row.makespan_s:>10.0f}{row.gpu_hours:>7.1f}{row.changes:>8}"
            f"{row.jct_s / paper:>7.2f}x{row.jct_s / best:>8.2f}x"
        )
    line("")
    line(_survives(reading))


def _gains(reading: Reading) -> tuple[float, float]:
    by_policy = {row.policy: row.jct_s for row in reading.honest}
    return by_policy["easyscale:version=paper"], by_policy["easyscale"]


def _survives(reading: Reading) -> str:
    """What is left of the published gains, in one sentence per baseline."""
    by_policy = {row.policy: row.jct_s for row in reading.honest}
    homo = by_policy["easyscale:version=paper,types=preferred"]
    heter, repaired = _gains(reading)
    parts = [
        f"{by_policy[p] / homo:.1f}x and {by_policy[p] / heter:.1f}x over {name}"
        for name, p in (
            ("one job at a time", "yarn-cs"),
            ("gang FIFO", "fifo"),
            ("gang FIFO with backfill", "easy"),
            ("SRTF", "srtf"),
        )
    ]
    return (
        "Of the published 8.3x (preferred) and 13.2x (mixed) there survive, as the artifact plans: "
        + "; ".join(parts)
        + f". Repaired, mixed: {by_policy['yarn-cs'] / repaired:.1f}x, "
        + f"{by_policy['fifo'] / repaired:.1f}x, {by_policy['easy'] / repaired:.1f}x, "
        + f"{by_policy['srtf'] / repaired:.1f}x."
    )
