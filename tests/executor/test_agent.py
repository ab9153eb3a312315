"""The agent: many jobs side by side, lanes in the order of commands, commands that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from executor import events as e
from executor.agent import Agent, moved
from executor.errors import ExecutorError
from executor.exchange import Exchange
from executor.faults import Fault
from executor.layout import Layout
from executor.presets import model_task
from executor.reduce import BUCKET_BYTES, order_of
from executor.replica import Replica
from executor.task import TaskSpec
from tests.executorcases import digests_of, first_difference, job, on, trained
from traces.workermap import WorkerMap


def progress_of(events: list[e.Event], job_id: str) -> list[e.Progress]:
    return [x for x in events if isinstance(x, e.Progress) and x.job_id == job_id]


def test_other_jobs_go_on_while_one_rescales(agent: Agent) -> None:
    expected = digests_of(trained(agent, job("mlp", 2, 6, job_id="alone"), [(6, on(2))]))
    agent.start(job("mlp", 2, 10**6, job_id="long", digest_every=0), on(1, 1, first=2))
    agent.start(job("mlp", 2, 6, job_id="short"), on(2), pause_at=3)
    events = agent.wait(lambda x: isinstance(x, e.Progress) and x.job_id == "long" and x.step > 2)
    events += agent.settle("short")
    began = agent.jobs["long"].step
    agent.rescale("short", on(1, 1))
    events += agent.advance("short", 6)
    events += agent.wait(
        lambda x: isinstance(x, e.Progress) and x.job_id == "long" and x.step > began + 1
    )
    short = [x for x in events if x.job_id == "short"]
    assert first_difference(digests_of(short), expected) is None
    steps = [x.step for x in progress_of(events, "long")]
    assert steps == list(range(1, steps[-1] + 1))
    assert not any(isinstance(x, e.Broken | e.Rescaled) and x.job_id == "long" for x in events)
    agent.stop("long", checkpoint=False)
    agent.settle("long")


def test_a_job_begins_on_a_lane_when_the_other_has_left_it(agent: Agent) -> None:
    agent.start(job("mlp", 2, 8, job_id="first", digest_every=0), on(1, 1), pause_at=3)
    agent.start(job("mlp", 2, 8, job_id="second", digest_every=0), on(1, 1, first=1))
    events = agent.settle("first")
    assert not progress_of(events, "second")
    agent.rescale("first", on(2))
    agent.pause_at("first", 8)
    events += agent.settle("first") + agent.settle("second")
    ends = {x.job_id for x in events if isinstance(x, e.Finished)}
    assert ends == {"first", "second"}
    left = next(x.at_s for x in events if isinstance(x, e.Rescaled))
    assert progress_of(events, "second")[0].at_s > left - 1.0


def test_two_jobs_change_places(agent: Agent) -> None:
    for name, where in (("a", on(2)), ("b", on(2, first=1))):
        agent.start(job("mlp", 2, 6, job_id=name, digest_every=0), where, pause_at=2)
    agent.settle("a")
    agent.settle("b")
    agent.rescale("a", on(2, first=1))
    agent.rescale("b", on(2))
    agent.pause_at("a", 6)
    agent.pause_at("b", 6)
    events = agent.settle("a") + agent.settle("b")
    maps = {x.job_id: x.worker_map for x in events if isinstance(x, e.Rescaled)}
    assert maps == {"a": on(2, first=1), "b": on(2)}


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (on(2, 1), "does not cover all ranks"),
        (on(2, 3), "does not cover all ranks"),
        (WorkerMap.of([(0, 0), (7, 3)], [2, 2]), r"no such lane.*'7/3'"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(agent: Agent, where: WorkerMap, text: str) -> None:
    with pytest.raises(ExecutorError, match=text):
        agent.start(job("mlp", 4, 3), where)
    agent.start(job("mlp", 4, 3), on(4), pause_at=1)
    agent.settle("job")
    with pytest.raises(ExecutorError, match=text):
        agent.rescale("job", where)
    agent.advance("job", 3)


def test_commands_for_jobs_that_are_not_there_or_there_twice(agent: Agent) -> None:
    with pytest.raises(ExecutorError, match="no such job"):
        agent.rescale("nobody", on(1))
    agent.start(job("mlp", 1, 5), on(1), pause_at=1)
    with pytest.raises(ExecutorError, match="there already"):
        agent.start(job("mlp", 1, 5), on(1))
    agent.settle("job")
    agent.stop("job", checkpoint=False)
    agent.settle("job")


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("executor.nothing:task", "no such factory"),
        ("tests.executorcases:job", "required positional"),
    ],
)
def test_a_task_that_cannot_be_built_ends_its_job(agent: Agent, factory: str, text: str) -> None:
    spec = job(TaskSpec(factory=factory), 2, 3)
    with pytest.raises(ExecutorError, match=text):
        trained(agent, spec, [(3, on(1, 1))])
    assert agent.jobs["job"].over


def test_a_task_with_another_number_of_workers_is_refused(agent: Agent) -> None:
    spec = job(
        TaskSpec(factory="executor.workloads:mlp_task", settings={"num_workers": 3, "seed": 0}),
        2,
        3,
    )
    with pytest.raises(ExecutorError, match="3 logical workers; expected 2"):
        trained(agent, spec, [(3, on(1, 1))])


def test_moves_that_would_break_a_block_are_refused() -> None:
    assert moved(on(3, 1), 2, (0, 1)) == on(2, 2)
    assert moved(on(2, 2), 0, (0, 3)) == on(1, 1, 2, order=(3, 0, 1))
    assert moved(on(1, 3), 0, (0, 1)) == on(4, first=1)
    with pytest.raises(ExecutorError, match="follow each other"):
        moved(on(3, 1), 0, (0, 1))
    with pytest.raises(ExecutorError, match="follow each other"):
        moved(on(3, 1), 1, (0, 2))
    with pytest.raises(ExecutorError, match="no such rank"):
        moved(on(3, 1), 4, (0, 1))


@pytest.mark.parametrize("change", [{"kind": "melt"}, {"point": "lunch"}])
def test_unknown_faults_are_refused(change: dict[str, str]) -> None:
    values = {"kind": "kill", "point": "apply"} | change
    with pytest.raises(ExecutorError, match="unknown"):
        Fault(step=0, rank=0, **values)


def test_a_wish_to_stop_is_heard_as_long_as_the_step_computes() -> None:
    task = model_task("mlp", 2, 2).build()
    replica = Replica(task, order_of(task.parameters(), 2, BUCKET_BYTES))
    alone = Exchange("", "", 0, 1)
    replica.configure(Layout(blocks=(range(2),), index=0), alone, replica.first_contexts(range(2)))
    computed: list[int] = []
    inner = task.micro_step

    def micro_step(rank: int, batch: Any) -> Any:
        computed.append(rank)
        return inner(rank, batch)

    task.micro_step = micro_step  # type: ignore[method-assign]
    report = replica.do_step(stop=lambda: computed == [0, 1])
    assert report.stop
    assert not replica.do_step().stop
    replica.close()
