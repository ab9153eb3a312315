"""Toy policies that are wrong on purpose: what they are told, and what they leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from policies import (
    ClusterView,
    Draft,
    JobState,
    PlanError,
    Policy,
    PolicyError,
    StarvationError,
)
from policies.inter.fifo import BestEffort
from policies.plan import Plan
from simulator import simulate
from simulator.cluster import Checkpoints
from traces import Allocation, TandemError, UsageError, Workload

CLUSTER = "2x2:a,1x2:b"  # nodes 0 and 1 have two a each, node 2 two b


def jobs(*rows: dict[str, object]) -> Workload:
    """Jobs on type a, 10 s long, submitted at 3 s, unless they say otherwise."""
    defaults = {"submit_s": 3.0, "duration_s": 10.0, "num_gpus": 2, "gpu_type": "a"}
    return Workload.from_jobs([{"job_id": f"j{i}", **defaults, **r} for i, r in enumerate(rows)])


@dataclass(frozen=True, kw_only=True)
class Gives(Policy):
    """Gives every waiting job the same thing."""

    thing: Any
    name: ClassVar[str] = "gives"

    def plan(self, view: ClusterView) -> Plan:
        return Plan(dict.fromkeys(view.waiting, self.thing))


def told(tmp_path: Path, policy: Policy, workload: Workload) -> TandemError:
    """Run into the fault; nothing may be left behind."""
    with pytest.raises(TandemError) as caught:
        simulate(workload, CLUSTER, policy=policy, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in str(caught.value)
    return caught.value


WHOLE_NODE = Allocation(((0, 0b11),))


@pytest.mark.parametrize(
    ("thing", "row", "fault"),
    [
        (Allocation(((0, 0b1),)), {}, "is given 1 GPUs; its gang is 2"),
        (Allocation(((0, 0b11), (1, 0b1))), {}, "is given 3 GPUs; its gang is 2"),
        (Allocation(((2, 0b11),)), {}, "is put on b; it may use a"),
        (Allocation(((1, 0b1), (2, 0b1))), {}, "GPU types are mixed"),
        (Allocation(((7, 0b11),)), {}, "there is no node with index 7"),
        (Allocation(((-1, 0b11),)), {}, "there is no node with index -1"),
        (Allocation(((0, 0b101),)), {}, "there is no GPU 2 on node a-0000, which has 2"),
        (Allocation(((0, 0b1), (0, 0b10))), {}, "its nodes are named out of order or twice"),
        (Allocation(((1, 0b1), (0, 0b1))), {}, "its nodes are named out of order or twice"),
        (Allocation(((0, 0b1), (1, 0b1))), {"single_node": True}, "it must stay on one"),
        (Allocation(((0, 0b11), (1, 0))), {}, "is given a node without any GPU of it"),
        (Allocation(()), {}, "is given 0 GPUs; its gang is 2"),
        (Allocation(()), {"num_gpus": 0}, "is given no node"),
        (Allocation(((0, 0), (1, 0))), {"num_gpus": 0}, "it must stay on one"),
        (Allocation(((0, 0b11),), 500), {}, "is given 500/1000 of a GPU, not 1000"),
        (Allocation(((0, 0),), 500), {"num_gpus": 1, "gpu_milli": 500}, "is given 0 GPUs"),
        (Allocation(((0, -1),)), {}, "not an Allocation of (node, GPU mask) shares"),
        (Allocation(((0, 1.5),)), {}, "not an Allocation"),  # type: ignore[arg-type]
        (Allocation(((0,),)), {}, "not an Allocation"),  # type: ignore[arg-type]
        (Allocation(None), {}, "not an Allocation"),  # type: ignore[arg-type]
        (((0, 0b11),), {}, "not an Allocation"),
        ((((0, 0b11),), 1000), {}, "not an Allocation"),
        ("node 0", {}, "not an Allocation"),
        (3, {}, "not an Allocation"),
        (None, {}, "stops nothing"),
    ],
    ids=str,
)
def test_impossible_allocations(
    tmp_path: Path, thing: object, row: dict[str, object], fault: str
) -> None:
    error = told(tmp_path, Gives(thing=thing), jobs(row))
    assert isinstance(error, PlanError)
    assert str(error).startswith("policy 'gives' returned an impossible plan at 3 s: job j0 (")
    assert fault in str(error)
    assert error.exit_code == 1


def test_two_jobs_on_the_same_gpus(tmp_path: Path) -> None:
    error = told(tmp_path, Gives(thing=WHOLE_NODE), jobs({}, {}))
    assert "at 3 s: job j1 (2 a): GPU 0 of node a-0000 is not free" in str(error)


def test_a_gpu_that_is_busy_since_earlier(tmp_path: Path) -> None:
    error = told(tmp_path, Gives(thing=WHOLE_NODE), jobs({}, {"submit_s": 5.0}))
    assert "at 5 s: job j1 (2 a): GPU 0 of node a-0000 is not free" in str(error)


def test_a_share_of_a_gpu_that_is_full(tmp_path: Path) -> None:
    half: dict[str, object] = {"num_gpus": 1, "gpu_milli": 600}
    error = told(tmp_path, Gives(thing=Allocation(((0, 0b1),), 600)), jobs(half, half))
    assert "job j1" in str(error)
    assert "GPU 0 of node a-0000 has 400/1000 free, 600 are needed" in str(error)


@dataclass(frozen=True, kw_only=True)
class Fifo(BestEffort):
    """A policy that is right until a subclass makes it wrong."""

    name: ClassVar[str] = "toy"


ENDED: list[JobState] = []


@dataclass(frozen=True, kw_only=True)
class StopsTheDead(Fifo):
    """Stops the job that it first saw, long after its end."""

    to: Allocation | None = None

    def plan(self, view: ClusterView) -> Draft:
        draft = super().plan(view)
        ENDED.extend(draft.changes)
        if view.finished:
            draft.changes[ENDED[0]] = self.to
        return draft


@pytest.mark.parametrize("to", [None, WHOLE_NODE])
def test_a_job_that_has_ended(tmp_path: Path, to: Allocation | None) -> None:
    ENDED.clear()
    error = told(tmp_path, StopsTheDead(to=to), jobs({}, {"submit_s": 20.0}))
    assert "'toy' returned an impossible plan at 13 s: job j0" in str(error)
    assert "concerns a job that has ended" in str(error)


@dataclass(frozen=True, kw_only=True)
class MovesToo(Fifo):
    """Moves a running job to where another one runs."""

    def plan(self, view: ClusterView) -> Draft:
        draft = super().plan(view)
        if len(view.running) == 2:
            first, second = view.running
            draft.changes[first] = second.allocation
        return draft


def test_a_move_onto_busy_gpus(tmp_path: Path) -> None:
    error = told(tmp_path, MovesToo(), jobs({}, {}, {"submit_s": 4.0}))
    assert "at 4 s: job j0 (2 a): GPU 0 of node a-0001 is not free" in str(error)


@dataclass(frozen=True, kw_only=True)
class Raises(Fifo):
    """Raises in one of its methods from 5 s on."""

    where: str = "plan"
    remembers: ClassVar[bool] = True

    def _now_and_then(self, method: str, now: float) -> None:
        if method == self.where and now >= 5.0:
            raise KeyError("queue")

    def plan(self, view: ClusterView) -> Draft:
        self._now_and_then("plan", view.now)
        return super().plan(view)

    def order(self, job: JobState, now: float) -> float:
        self._now_and_then("order", now)
        return 0.0

    def remember(self, job: JobState, now: float, event: str) -> int:
        self._now_and_then("remember", now)
        return 0

    def changes_at(self, job: JobState, now: float) -> float:
        self._now_and_then("changes_at", now)
        return float("inf")


@pytest.mark.parametrize("where", ["plan", "order", "remember", "changes_at"])
def test_a_policy_that_raises(tmp_path: Path, where: str) -> None:
    error = told(tmp_path, Raises(where=where), jobs({}, {"submit_s": 5.0}))
    assert isinstance(error, PolicyError)
    assert "policy 'toy' failed at 5 s:" in str(error)
    assert "raised KeyError: 'queue' (test_faults.py, line" in str(error)


@pytest.mark.parametrize("answer", [None, {}, [], "start j0"])
def test_what_is_no_plan(tmp_path: Path, answer: object) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Answers(Fifo):
        def plan(self, view: ClusterView) -> Draft:
            return answer  # type: ignore[return-value]

    error = told(tmp_path, Answers(), jobs({}))
    assert str(error) == f"policy 'toy' failed at 3 s: plan() returned {answer!r}, which is no Plan"


@pytest.mark.parametrize("key", ["j0", None, 3])
def test_a_plan_about_what_is_no_job(tmp_path: Path, key: object) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Names(Fifo):
        def plan(self, view: ClusterView) -> Draft:
            draft = view.draft()
            draft.changes[key] = WHOLE_NODE  # type: ignore[index]
            return draft

    error = told(tmp_path, Names(), jobs({}))
    assert str(error).startswith("policy 'toy' failed at 3 s: ")
    assert repr(key) in str(error)


@dataclass(frozen=True, kw_only=True)
class Idle(Policy):
    """Starts nothing, ever."""

    every_s: float | None = None
    name: ClassVar[str] = "idle"

    @property
    def interval_s(self) -> float | None:
        return self.every_s

    def plan(self, view: ClusterView) -> Draft:
        return view.draft()


@pytest.mark.parametrize("every_s", [None, 60.0])
def test_a_policy_that_starves_everything(tmp_path: Path, every_s: float | None) -> None:
    error = told(tmp_path, Idle(every_s=every_s), jobs({}, {"submit_s": 7.0}))
    assert isinstance(error, StarvationError)
    assert str(error).startswith("policy 'idle' starves 2 waiting jobs at ")
    assert "first in order is j0 (2 a): " in str(error)


@dataclass(frozen=True, kw_only=True)
class Picky(Fifo):
    """Serves all but j1."""

    def plan(self, view: ClusterView) -> Draft:
        draft = view.draft()
        for job in view.waiting:
            if job.job_id != "j1":
                draft.start(job)
        return draft


def test_a_policy_that_starves_one_job(tmp_path: Path) -> None:
    error = told(tmp_path, Picky(), jobs({}, {}, {"submit_s": 50.0}))
    assert str(error).startswith("policy 'toy' starves 1 waiting jobs at 60 s")
    assert "first in order is j1" in str(error)


@dataclass(frozen=True, kw_only=True)
class Flickers(Policy):
    """Starts everything in one round and stops it in the next."""

    every_s: float
    name: ClassVar[str] = "flickers"

    @property
    def interval_s(self) -> float | None:
        return self.every_s

    def plan(self, view: ClusterView) -> Draft:
        draft = view.draft()
        if view.running:
            for job in list(view.running):
                draft.stop(job)
        else:
            for job in view.waiting:
                draft.start(job)
        return draft


def test_stopping_and_starting_with_what_is_done_kept_ends() -> None:
    run = simulate(jobs({}), CLUSTER, policy=Flickers(every_s=4.0))
    # Rounds at 4 (start), 8 (stop, 4 done), 12, 16 (8 done), 20, end at 22.
    assert run.jobs["finish_s"].tolist() == [22.0]
    assert run.jobs["preemptions"].tolist() == [2]


def test_stopping_and_starting_with_nothing_kept_does_not_go_on_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policies.efforts.STOPS_IN_VAIN", 1000)
    with pytest.raises(PolicyError, match="j0 was stopped 1000 times running with no new work"):
        simulate(
            jobs({}),
            CLUSTER,
            policy=Flickers(every_s=4.0),
            checkpoints=Checkpoints(on_preempt=False),
            out=tmp_path / "run",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("every_s", [0.0, -1.0, float("nan"), float("inf")])
def test_intervals_that_are_none(tmp_path: Path, every_s: float) -> None:
    error = told(tmp_path, Idle(every_s=every_s), jobs({}))
    assert isinstance(error, UsageError)
    assert "interval_s is" in str(error)


@pytest.mark.parametrize("every_s", [0.1, 0.3, 0.6, 0.7, 1.1, 59.9, 60.0, 360.0])
def test_rounds_are_at_multiples_of_the_interval(every_s: float) -> None:
    """0.6, 59.9 and others have multiples that divide to just less than a whole number."""
    seen: list[float] = []

    @dataclass(frozen=True, kw_only=True)
    class Rounds(Fifo):
        @property
        def interval_s(self) -> float | None:
            return every_s

        def plan(self, view: ClusterView) -> Draft:
            seen.append(view.now)
            return super().plan(view)

    run = simulate(
        jobs({"duration_s": 200 * every_s}, {"submit_s": 7.3 * every_s}), CLUSTER, policy=Rounds()
    )
    steps = {i * every_s: i for i in range(1000)}
    assert all(time_s in steps for time_s in seen)
    rounds = [steps[time_s] for time_s in seen]
    assert rounds == sorted(set(rounds))
    assert all(start in steps for start in run.jobs["start_s"])


def test_a_round_takes_in_what_arrives_at_its_instant() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Rounds(Fifo):
        @property
        def interval_s(self) -> float | None:
            return 10.0

    run = simulate(jobs({"submit_s": 20.0}, {"submit_s": 20.5}), CLUSTER, policy=Rounds())
    assert run.jobs["start_s"].tolist() == [20.0, 30.0]


def test_orders_by_estimates_that_are_none() -> None:
    for policy in ("srtf:estimates=none", "sjf:estimates=none", "srsf:estimates=none"):
        with pytest.raises(UsageError, match="orders jobs by estimates"):
            simulate(jobs({}, {}), CLUSTER, policy=policy)


@pytest.mark.parametrize("sigma", ["", "x", "-1", "nan", "1000"])
def test_noise_that_is_none(sigma: str) -> None:
    with pytest.raises(UsageError, match="SIGMA from 0 to 10"):
        simulate(jobs({}), CLUSTER, policy=f"srtf:estimates=noisy:{sigma}")


def test_a_placement_that_raises(tmp_path: Path) -> None:
    from policies.placement.count import Count

    class Broken(Count):
        def place(self, request: object, free: object) -> Allocation | None:
            raise ZeroDivisionError("by nothing")

    with pytest.raises(PolicyError, match=r"'count' failed at 3 s: place\(\) raised ZeroDivision"):
        simulate(jobs({}), CLUSTER, placement=Broken(), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_our_own_faults_keep_their_traceback() -> None:
    def on_progress(_: object) -> None:
        raise ZeroDivisionError

    rows: list[dict[str, object]] = [{"submit_s": float(i), "duration_s": 0.5} for i in range(3000)]
    with pytest.raises(ZeroDivisionError):
        simulate(jobs(*rows), CLUSTER, on_progress=on_progress)
