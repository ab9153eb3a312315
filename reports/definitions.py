"""What every metric means: the one list that tables, reports and ``docs/metrics.md`` speak from.

The words are the project's glossary. A name with ``[*]`` stands for one metric per GPU type, such
as ``utilisation[v100]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", ""]
Topic = Literal["Time", "Cluster", "Serving", "Fairness", "Jobs"]
TOPICS: tuple[Topic, ...] = ("Time", "Cluster", "Serving", "Fairness", "Jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: ``unit`` ('' for a pure number), what it is, which way is better, and
    the ``topic`` under which a report shows it.
    """

    name: str
    unit: str
    meaning: str
    formula: str
    better: Better = ""
    topic: Topic = "Time"

    @property
    def title(self) -> str:
        """The name as people read it, such as ``mean JCT``."""
        return _TITLES.get(self.name, self.name.replace("_", " "))


_TITLES = {
    "makespan_s": "makespan",
    "allocation_ratio[*]": "allocation ratio, by GPU type",
    "utilisation[*]": "utilisation, by GPU type",
    "mean_fragmentation": "mean fragmentation",
    "gpu_hours_held": "GPU-hours held",
    "gpu_hours_lost": "GPU-hours lost",
    "gpu_hours_overhead": "GPU-hours of overhead",
    "gpu_hours_done": "GPU-hours of work done",
    "serving_ratio": "used by online services",
    "serving_gpu_hours": "GPU-hours of online services",
    "serving_wait_gpu_s": "waited for by online services",
    "sla_violation_gpu_s": "violation of the service level",
    "reclaimed_gpus": "GPUs given up to services",
    "max_scale_in_s": "longest scale-in",
    "mean_rho": "mean rho",
    "p50_rho": "median rho",
    "p99_rho": "p99 rho",
    "max_rho": "worst rho",
    "unfair_fraction": "fraction of jobs with rho above 1",
    "jain_users": "Jain index over users",
    "jain_vcs": "Jain index over virtual clusters",
    "jain_slowdown": "Jain index over slowdowns",
}
_OF = {"mean": "mean", "median": "median", "p50": "median", "p90": "p90", "p99": "p99"}


def _spread(
    stem: str,
    unit: str,
    words: str,
    meaning: str,
    formula: str,
    parts: str,
    topic: Topic = "Time",
) -> list[Metric]:
    metrics = []
    for part in parts.split():
        name = f"{part}_{stem}"
        _TITLES[name] = f"{_OF[part]} {words}"
        metrics.append(
            Metric(
                name=name,
                unit=unit,
                meaning=meaning,
                formula=f"{_OF[part]} of {formula}",
                better="lower",
                topic=topic,
            )
        )
    return metrics


METRICS: tuple[Metric, ...] = (
    *_spread(
        "jct_s", "s", "JCT",
        "job completion time of finished jobs",
        "finish_s - submit_s", "mean median p90 p99",
    ),
    *_spread(
        "queueing_s", "s", "queueing delay",
        "time finished jobs spent waiting, before the first start and between runs",
        "queueing_s", "mean median p90 p99",
    ),
    Metric(
        name="makespan_s", unit="s", better="lower",
        meaning="from the first submission (rejected jobs aside) to the last completion",
        formula="max finish_s - min submit_s",
    ),
    *_spread(
        "slowdown", "", "slowdown",
        "JCT over duration, of finished jobs with a known duration above 0",
        "jct_s / duration_s", "mean p50 p99",
    ),
    *_spread(
        "bounded_slowdown", "", "bounded slowdown",
        "slowdown in which a job shorter than 10 s counts as 10 s long, and nothing as faster"
        " than 1",
        "max(1, jct_s / max(duration_s, 10 s))", "mean p50 p99",
    ),
    Metric(
        name="allocation_ratio", topic="Cluster", unit="", better="higher",
        meaning="GPUs held by jobs or used by online services over GPUs in service, averaged over"
        " time from the first submission to the last end (shares of a GPU as fractions)",
        formula="∫ held GPUs dt / ∫ GPUs in service dt",
    ),
    Metric(
        name="utilisation", topic="Cluster", unit="", better="higher",
        meaning="the same, counting only time in which the held GPUs make progress: start,"
        " restore, migration and rescale costs are not busy time; a service's GPUs are busy",
        formula="∫ progressing GPUs dt / ∫ GPUs in service dt",
    ),
    Metric(
        name="allocation_ratio[*]", topic="Cluster", unit="", better="higher",
        meaning="allocation ratio of one GPU type", formula="as allocation_ratio",
    ),
    Metric(
        name="utilisation[*]", topic="Cluster", unit="", better="higher",
        meaning="utilisation of one GPU type", formula="as utilisation",
    ),
    Metric(
        name="mean_fragmentation", topic="Cluster", unit="", better="lower",
        meaning="idle GPUs that a typical job cannot use (FGD measure), over GPUs in service,"
        " averaged over time; each sample holds until the next",
        formula="∫ fragmented GPUs dt / ∫ GPUs in service dt, over the sampled time",
    ),
    Metric(
        name="gpu_hours_held", topic="Cluster", unit="GPU h",
        meaning="attained service of all jobs", formula="sum of service_gpu_s / 3600",
    ),
    Metric(
        name="gpu_hours_lost", topic="Cluster", unit="GPU h", better="lower",
        meaning="progress thrown away by preemptions and failures, as work at rate 1",
        formula="sum of lost_gpu_s / 3600",
    ),
    Metric(
        name="gpu_hours_overhead", topic="Cluster", unit="GPU h", better="lower",
        meaning="held without progress: start, restore and migration costs",
        formula="sum of overhead_gpu_s / 3600",
    ),
    Metric(
        name="gpu_hours_done", topic="Cluster", unit="GPU h", better="higher",
        meaning="work done by jobs, as GPU time at rate 1 (of an elastic job: a GPU of the"
        " preferred type per logical worker), less what was lost",
        formula="sum over intervals of (end_s - begin_s) x rate x GPUs at rate 1 / 3600 -"
        " gpu_hours_lost",
    ),
    Metric(
        name="serving_ratio", topic="Serving", unit="",
        meaning="GPUs used by online services over GPUs in service, averaged over time",
        formula="∫ serving GPUs dt / ∫ GPUs in service dt",
    ),
    Metric(
        name="serving_gpu_hours", topic="Serving", unit="GPU h",
        meaning="GPU time that online services used", formula="sum of (end_s - ready_s) / 3600",
    ),
    Metric(
        name="serving_wait_gpu_s", topic="Serving", unit="GPU s", better="lower",
        meaning="GPU-seconds for which online services waited for GPUs they had asked for",
        formula="sum of (ready_s or end_s) - asked_s",
    ),
    Metric(
        name="sla_violation_gpu_s", topic="Serving", unit="GPU s", better="lower",
        meaning="of these, what is beyond the time within which jobs had to give way (--scale-in)",
        formula="sum of max(0, wait - give_way_s)",
    ),
    Metric(
        name="reclaimed_gpus", topic="Serving", unit="GPUs",
        meaning="times that a job gave up a GPU for an online service", formula="count",
    ),
    *_spread(
        "scale_in_s", "s", "scale-in",
        "time in which a job left a GPU for an online service, over GPUs that it then used",
        "ready_s - asked_s of reclaimed GPUs", "mean p50 p99", "Serving",
    ),
    Metric(
        name="max_scale_in_s", topic="Serving", unit="s", better="lower",
        meaning="the longest of these", formula="max of ready_s - asked_s of reclaimed GPUs",
    ),
    *_spread(
        "rho", "", "rho",
        "finish-time fairness of finished jobs: the time a job took over the time it would have"
        " taken with its fair share of the cluster; above 1 it was served worse than fairly",
        "T_shared / T_ideal, where T_shared = jct_s, T_ideal = duration_s x max(1, contention),"
        " and contention is the time average, over the job's life, of GPUs asked for by all active"
        " jobs / GPUs of the cluster",
        "mean p50 p99", "Fairness",
    ),
    Metric(
        name="max_rho", topic="Fairness", unit="", better="lower",
        meaning="rho of the job that was treated worst", formula="max of rho",
    ),
    Metric(
        name="unfair_fraction", topic="Fairness", unit="", better="lower",
        meaning="finished jobs whose rho is above 1 (by more than rounding), over those with a rho",
        formula="count(rho > 1 + 1e-9) / count(rho)",
    ),
    Metric(
        name="jain_users", topic="Fairness", unit="", better="higher",
        meaning="evenness of service among users: 1 if every user held the same fraction of the"
        " GPU time asked for, 1/n if one of n users got all of it",
        formula="(Σx)² / (n Σx²), x = Σ service_gpu_s / Σ GPUs asked for x time in the system,"
        " per user",
    ),
    Metric(
        name="jain_vcs", topic="Fairness", unit="", better="higher",
        meaning="the same among virtual clusters", formula="as jain_users, per virtual cluster",
    ),
    Metric(
        name="jain_slowdown", topic="Fairness", unit="", better="higher",
        meaning="evenness of slowdown among finished jobs",
        formula="(Σx)² / (n Σx²), x = slowdown of a job",
    ),
    Metric(
        name="submitted_jobs", topic="Jobs", unit="jobs",
        meaning="jobs submitted, rejected ones included", formula="count",
    ),
    Metric(
        name="finished_jobs", topic="Jobs", unit="jobs",
        meaning="jobs that finished", formula="count",
    ),
    Metric(
        name="failed_jobs", topic="Jobs", unit="jobs", better="lower",
        meaning="jobs that failed for good", formula="count",
    ),
    Metric(
        name="running_jobs", topic="Jobs", unit="jobs",
        meaning="jobs still running when the log ends", formula="count",
    ),
    Metric(
        name="waiting_jobs", topic="Jobs", unit="jobs",
        meaning="jobs still waiting when the log ends", formula="count",
    ),
    Metric(
        name="rejected_jobs", topic="Jobs", unit="jobs",
        meaning="jobs that this cluster can never run", formula="count",
    ),
    Metric(
        name="unsubmitted_jobs", topic="Jobs", unit="jobs",
        meaning="jobs of the trace that the log ends before", formula="count",
    ),
    Metric(
        name="preemptions", topic="Jobs", unit="", better="lower",
        meaning="times a running job was stopped by the policy", formula="sum over jobs",
    ),
    Metric(
        name="migrations", topic="Jobs", unit="", better="lower",
        meaning="times a running job was moved to other devices", formula="sum over jobs",
    ),
    Metric(
        name="resizes", topic="Jobs", unit="", better="lower",
        meaning="times an elastic job was given more, fewer or other GPUs", formula="sum over jobs",
    ),
    Metric(
        name="failures", topic="Jobs", unit="",
        meaning="times a job lost its devices", formula="sum over jobs",
    ),
)  # fmt: skip

_BY_NAME = {m.name: m for m in METRICS}


def definition(name: str) -> Metric:
    """Return the definition of a metric; ``utilisation[v100]`` is found under its ``[*]`` form.

    Raises :class:`KeyError` for a name that is no metric.
    """
    if "[" in name:
        name = name[: name.index("[")] + "[*]"
    return _BY_NAME[name]


def title(name: str) -> str:
    """Return a metric's name as people read it, with the GPU type where it has one."""
    if "[" in name:
        stem, kind = name.rstrip("]").split("[", 1)
        return f"{definition(stem).title}, {kind}"
    return definition(name).title
