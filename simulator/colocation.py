"""Training beside an online service, on a recorded demand and a recorded inventory.

Three settings of one cluster and one service, each a run directory:

- *alone*: the service, and nothing else;
- *apart*: the service keeps as many GPUs as it ever needs, training has the others;
- *shared*: training fills what the service does not need at the moment, and gives way.

The training is made up, since no public trace has elastic jobs beside a service, and stated here:
:class:`Training`. It offers more work than there is room for, so what is filled is what the policy
can fill. The cluster is an inventory whose GPU types are partly hidden, so all are equally fast and
communication costs nothing.

Source of the idea: EasyScale (SC'23): elastic jobs in a production cluster beside online services,
utilisation +62.1 % without a violation of service levels. Neither its demand nor its jobs are
public: this is not that experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.model import Costs, Model
from policies.services import Diurnal, Service, demand_of
from simulator.run import simulate, stream
from traces import ClusterSpec, UsageError, Workload, load_cluster
from traces.steps import Steps

DAY_S = 86_400.0
FOR_EVER_S = 1e12
SETTINGS = ("alone", "apart", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Made-up elastic jobs, arriving evenly at random (Poisson) from second 0.

    ``load``: GPU time asked for, over what the service leaves on average. Jobs have ``workers``
    logical workers, chosen evenly by GPU time, and a lognormal run time on as many GPUs (median
    ``median_s``, log-deviation ``sigma``, at most ``most_s``). ``guaranteed``: share of jobs with a
    quarter of their GPUs guaranteed; the others are opportunistic. ``mixing``: share of jobs that
    may mix GPU types.
    """

    load: float = 1.2
    workers: tuple[int, ...] = (16, 32, 64)
    median_s: float = 4 * 3600.0
    sigma: float = 1.0
    most_s: float = 2 * DAY_S
    guaranteed: float = 0.2
    mixing: float = 0.5

    def jobs(self, gpus: float, span_s: float, rng: np.random.Generator) -> Workload:
        """Draw the jobs of a span that offer ``load`` times ``gpus`` GPUs; the first come at 0 s.

        As much as is served in a few hours is there from the beginning.
        """
        sizes = np.array(self.workers)
        # Evenly by GPU time: a size is the rarer the larger it is.
        chance = (1.0 / sizes) / (1.0 / sizes).sum()
        draws = np.exp(rng.normal(np.log(self.median_s), self.sigma, size=100_000))
        mean_s = float(np.minimum(draws, self.most_s).mean())
        mean_gpu_s = float(sizes @ chance) * mean_s
        first = int(gpus / float(sizes @ chance)) + 1
        later = int(rng.poisson(self.load * gpus * span_s / mean_gpu_s))
        count = first + later
        submit = np.concatenate([np.zeros(first), np.sort(rng.uniform(0.0, span_s, later))])
        workers = rng.choice(sizes, size=count, p=chance)
        run_s = np.minimum(
            np.exp(rng.normal(np.log(self.median_s), self.sigma, size=count)), self.most_s
        )
        guaranteed = rng.random(count) < self.guaranteed
        mixes = rng.random(count) < self.mixing
        rows: list[dict[str, object]] = [
            {
                "job_id": f"job{i:05d}",
                "submit_s": round(float(submit[i]), 3),
                "duration_s": round(float(run_s[i]), 3),
                "num_gpus": int(workers[i]),
                "num_workers": int(workers[i]),
                "max_gpus": int(workers[i]),
                "min_gpus": int(workers[i]) // 4 if guaranteed[i] else 0,
                "mixes_types": bool(mixes[i]),
                "priority": "guaranteed" if guaranteed[i] else "opportunistic",
            }
            for i in range(count)
        ]
        return Workload.from_jobs(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is run: one service of GPUs of ``gpu_type`` on ``spec``, for ``span_s`` seconds.

    ``pause_s``: what every start and every change of size costs. ``give_way_s``, ``linger_s``: as
    in :class:`policies.services.Service`.
    """

    spec: ClusterSpec
    demand: Steps | Diurnal
    text: str
    gpu_type: str
    span_s: float
    training: Training = Training()
    policy: str = "easyscale"
    pause_s: float = 20.0
    give_way_s: float = 30.0
    linger_s: float = 300.0
    seed: int = 0

    def service(self, setting: str) -> Service:
        """The service, as it is in a setting."""
        return Service(
            demand=self._reserved() if setting == "apart" else self.demand,
            gpu_type=self.gpu_type,
            give_way_s=self.give_way_s,
            linger_s=FOR_EVER_S if setting == "apart" else self.linger_s,
            text=self.text,
        )

    def demand_steps(self) -> Steps:
        """The demand within the span."""
        service = self.service("shared")
        times, gpus = [], []
        for time_s, count in service.changes(0.0):
            if time_s >= self.span_s:
                break
            times.append(max(time_s, 0.0))
            gpus.append(1000 * count)
        return Steps(times_s=np.array(times), values=np.array(gpus, dtype=np.int64))

    def _reserved(self) -> Steps:
        """The same demand, but for one second in the beginning in which it is at its peak."""
        steps = self.demand_steps()
        later = steps.times_s > 1.0
        return Steps(
            times_s=np.concatenate([[0.0, 1.0], steps.times_s[later]]),
            values=np.concatenate([[steps.peak, steps.at(1.0)], steps.values[later]]),
        )

    def jobs(self) -> Workload:
        """The training."""
        mean = self.demand_steps().mean(0.0, self.span_s) / 1000.0
        left = self.spec.num_gpus - mean
        return self.training.jobs(left, self.span_s, stream(self.seed, "training"))


def study(
    demand: str,
    cluster: str,
    *,
    days: float = 1.0,
    gpu_type: str | None = None,
    policy: str = "easyscale",
    pause_s: float = 20.0,
    give_way_s: float = 30.0,
    linger_s: float = 300.0,
    seed: int = 0,
) -> Study:
    """Read what the arguments name; see :class:`Study`. ``gpu_type``: default the most numerous.

    Raises :class:`UsageError` and ``DataError`` as the parts do.
    """
    if not 0.0 < days < float("inf"):
        raise UsageError(f"days is {days}; expected above 0")
    spec = load_cluster(cluster)
    counts = spec.gpus_by_type()
    return Study(
        spec=spec,
        demand=demand_of(demand),
        text=demand,
        gpu_type=gpu_type or max(counts, key=lambda t: counts[t]),
        span_s=days * DAY_S,
        policy=policy,
        pause_s=pause_s,
        give_way_s=give_way_s,
        linger_s=linger_s,
        seed=seed,
    )


def run_settings(of: Study, out: Path, *, overwrite: bool = False) -> Iterator[tuple[str, Path]]:
    """Run each setting in turn into ``out/SETTING``; yield (setting, directory) when it is done."""
    jobs = of.jobs()
    model = Model(costs=Costs(start_s=of.pause_s, rescale_s=of.pause_s))
    for setting in SETTINGS:
        path = out / setting
        simulate(
            jobs.head(0) if setting == "alone" else jobs,
            of.spec,
            policy=of.policy,
            model=model,
            services=[of.service(setting)],
            seed=of.seed,
            until_s=of.span_s,
            out=path,
            overwrite=overwrite,
            name=setting,
            misfits="reject",
        )
        yield setting, path


def say(of: Study, line: Callable[[str], object]) -> None:
    """Say what is run, line by line."""
    steps, training = of.demand_steps(), of.training
    mean = steps.mean(0.0, of.span_s) / 1000.0
    least, peak = int(steps.values.min()) // 1000, steps.peak // 1000
    sizes = ", ".join(map(str, training.workers))
    line(f"cluster: {of.spec.describe()}; all types taken as equally fast")
    line(f"service: {of.text}: {mean:,.1f} {of.gpu_type} on average, {least:,} to {peak:,}")
    line(
        f"training, made up: {len(of.jobs()):,} elastic jobs over {of.span_s / DAY_S:g} days that"
        f" offer {training.load:g} times what the service leaves; {sizes} logical workers,"
        f" {training.guaranteed:.0%} guaranteed, {training.mixing:.0%} may mix types"
    )
    line(
        f"policy {of.policy}; every start and change of size costs {of.pause_s:g} s; jobs leave"
        f" within {of.give_way_s:g} s, devices come back after {of.linger_s:g} s"
    )
