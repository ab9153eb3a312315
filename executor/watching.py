"""The live view of an execution in a terminal: lanes, jobs, losses, the queue and its reasons.

Drawn a few times a second while the driver waits; what it shows is read from the driver's view and
the agent, and it asks the policy why the first waiting jobs wait. Nothing is drawn where stderr is
no terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from executor.cluster import LocalCluster
from executor.execute import Watch
from policies.driver import Driver

_EVERY_S = 0.25
_SHOWN = 6


@contextmanager
def watching(console: Console, policy: str) -> Iterator[Watch | None]:
    """Give what draws the view, or None where there is no terminal to draw it on."""
    if not console.is_terminal:
        yield None
        return
    last = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def watch(driver: Driver, cluster: LocalCluster, now_s: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _EVERY_S:
                last = now
                live.update(drawn(driver, cluster, now_s, policy), refresh=True)

        yield watch


def drawn(driver: Driver, cluster: LocalCluster, now_s: float, policy: str) -> RenderableType:
    """Return the view as rich renders it."""
    counts = driver.counts
    title = (
        f"{policy}: {now_s:.0f} s, {counts.finished} of {len(driver.workload)} jobs finished,"
        f" {len(driver.view.running)} running, {len(driver.view.waiting)} waiting"
    )
    return Group(title, _lanes(driver, cluster), _jobs(cluster), _queue(driver))


def _lanes(driver: Driver, cluster: LocalCluster) -> Table:
    table = Table("lane", "type", "job", "logical workers", box=None, pad_edge=False)
    held = {
        gpu: (stay.job.job_id, ranks)
        for stay in cluster.stays.values()
        for gpu, ranks in stay.worker_map.blocks()
    }
    lent = {} if driver.lender is None else driver.lender.held()
    for place, lane in cluster.agent.lanes.items():
        nobody = "-" if place not in lent else "(online service)"
        job_id, ranks = held.get(place, (nobody, range(0)))
        workers = f"{ranks.start}..{ranks.stop - 1}" if ranks else ""
        table.add_row(lane.name, lane.gpu_type, job_id, workers)
    return table


def _jobs(cluster: LocalCluster) -> Table:
    table = Table("job", "step", "of", "s/step", "loss", box=None, pad_edge=False)
    for stay in cluster.stays.values():
        elastic = stay.job.elastic
        steps = elastic.total_steps if elastic is not None else None
        each_s = f"{stay.step_s[-1]:.3f}" if stay.step_s else "-"
        loss = f"{stay.loss:.4f}" if stay.loss == stay.loss else "-"
        table.add_row(stay.job.job_id, f"{stay.at:,}", f"{steps or 0:,.0f}", each_s, loss)
    return table


def _queue(driver: Driver) -> Table:
    table = Table("waiting", "why", box=None, pad_edge=False)
    view = driver.view
    for number, job in enumerate(view.waiting):
        if number == _SHOWN:
            table.add_row("...", f"{len(view.waiting) - _SHOWN} more")
            break
        table.add_row(job.job_id, driver.policy.explain(view, job).text)
    return table
