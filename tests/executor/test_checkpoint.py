"""Checkpoints: resumed anywhere with the same bits; damaged, foreign or half written refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from executor import checkpoint as files
from executor import events as e
from executor.agent import Agent
from executor.errors import ExecutorError
from executor.faults import Fault
from executor.messages import Habits
from tests.executorcases import Digests, digests_of, first_difference, job, on, trained

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def saved(agent: Agent, folder: Path) -> Path:
    """The checkpoint of ``mlp`` with 4 workers after step 3, made once."""
    if not files.checkpoints(folder):
        agent.start(job("mlp", 4, STEPS, folder=str(folder)), on(1, 3), pause_at=3)
        agent.settle("job")
        agent.stop("job")
        events = agent.settle("job")
        (stopped,) = [event for event in events if isinstance(event, e.Stopped)]
        assert stopped.checkpoint == str(files.path_of(folder, 3))
    return files.path_of(folder, 3)


def copied(agent: Agent, folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / saved(agent, folder).name
    shutil.copy(saved(agent, folder), path)
    return path


@pytest.mark.parametrize("name", ["mlp", "longer"])
def test_a_job_resumes_on_other_devices_with_the_same_bits(
    agent: Agent, tmp_path: Path, name: str
) -> None:
    expected = digests_of(trained(agent, job(name, 5, STEPS, job_id="whole"), [(STEPS, on(5))]))
    agent.start(job(name, 5, STEPS, folder=str(tmp_path)), on(2, 3), pause_at=3)
    agent.settle("job")
    agent.stop("job", checkpoint=True)
    agent.settle("job")
    spec = job(name, 5, STEPS, folder=str(tmp_path), resume=True)
    found = digests_of(trained(agent, spec, [(STEPS, on(1, 1, 2, 1))]))
    assert sorted(found) == [4, 5, 6]
    wanted: Digests = {step: expected[step] for step in found}
    assert first_difference(found, wanted) is None


def test_checkpoints_are_written_on_demand_and_periodically(agent: Agent, tmp_path: Path) -> None:
    spec = job("mlp", 2, STEPS, folder=str(tmp_path), checkpoint_every=2, keep=3)
    agent.start(spec, on(1, 1), pause_at=3)
    events = agent.settle("job")
    agent.checkpoint("job")
    events += agent.settle("job")
    assert files.checkpoints(tmp_path) == [2, 3]
    events += agent.advance("job", STEPS)
    assert files.checkpoints(tmp_path) == [3, 4, 6]
    told = [event.step for event in events if isinstance(event, e.Checkpointed)]
    assert told == [2, 3, 4, 6]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_whoever_wants_a_checkpoint_is_told_why_there_is_none(agent: Agent, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.write_text("in the way")
    agent.start(job("mlp", 2, STEPS, folder=str(folder)), on(1, 1), pause_at=3)
    agent.settle("job")
    agent.checkpoint("job")
    (told,) = [event for event in agent.settle("job") if isinstance(event, e.Checkpointed)]
    assert (told.step, told.path) == (3, None)
    assert "cannot be written" in str(told.reason)
    events = agent.advance("job", STEPS)
    assert isinstance(events[-1], e.Finished)


def test_a_checkpoint_says_whose_it_is(agent: Agent, folder: Path) -> None:
    held = files.read(saved(agent, folder))
    assert held.step == 3
    assert held.identity["order"]["kind"] == "tree"
    assert len(held.identity["order"]["buckets"]) > 1
    assert sorted(held.contexts) == [0, 1, 2, 3]
    assert all(len(data) < 20_000 for data in held.contexts.values())
    json.dumps(held.identity)


@pytest.mark.parametrize("place", [0.01, 0.3, 0.7, 0.999])
def test_a_flipped_byte_is_found(agent: Agent, folder: Path, tmp_path: Path, place: float) -> None:
    path = copied(agent, folder, tmp_path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(ExecutorError, match=path.name):
        files.read(path)
    spec = job("mlp", 4, STEPS, folder=str(tmp_path), resume=True)
    with pytest.raises(ExecutorError, match=path.name):
        trained(agent, spec, [(STEPS, on(4))])
    assert agent.jobs["job"].over
    assert path.exists()


def test_a_checkpoint_of_another_version_or_cut_short_is_refused(
    agent: Agent, folder: Path, tmp_path: Path
) -> None:
    path = copied(agent, folder, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:8] + (99).to_bytes(4, "little") + data[12:])
    with pytest.raises(ExecutorError, match="schema"):
        files.read(path)
    path.write_bytes(data[:-100])
    with pytest.raises(ExecutorError, match="cut short"):
        files.read(path)


@pytest.mark.parametrize(("other", "text"), [("name", "job_id"), ("seed", "task")])
def test_a_checkpoint_of_another_job_is_refused(
    agent: Agent, folder: Path, tmp_path: Path, other: str, text: str
) -> None:
    copied(agent, folder, tmp_path)
    name, seed = ("another", 3) if other == "name" else ("job", 4)
    spec = job("mlp", 4, STEPS, job_id=name, seed=seed, folder=str(tmp_path), resume=True)
    with pytest.raises(ExecutorError, match=rf"{text}: the checkpoint is of another job"):
        trained(agent, spec, [(STEPS, on(4))])


def test_the_order_of_reduction_is_that_of_the_checkpoint(
    agent: Agent, folder: Path, tmp_path: Path
) -> None:
    copied(agent, folder, tmp_path)
    spec = replace(job("mlp", 4, 4, folder=str(tmp_path), resume=True), bucket_bytes=10**6)
    before = files.read(files.path_of(folder, 3)).identity["order"]
    agent.start(replace(spec, steps=5), on(4), pause_at=4)
    agent.settle("job")
    agent.stop("job")
    agent.settle("job")
    assert files.read(files.path_of(tmp_path, 4)).identity["order"] == before


def test_another_order_of_reduction_than_the_checkpoints_is_refused(
    agent: Agent, folder: Path, tmp_path: Path
) -> None:
    copied(agent, folder, tmp_path)
    spec = job("mlp", 4, STEPS, folder=str(tmp_path), resume=True)
    with pytest.raises(ExecutorError, match=r"another order of reduction.*ring.*expected tree"):
        trained(agent, replace(spec, reduction="ring"), [(STEPS, on(4))])
    trained(agent, replace(spec, reduction="tree"), [(STEPS, on(4))])


def test_a_full_disk_leaves_the_last_good_one_and_the_job_goes_on(
    agent: Agent, tmp_path: Path
) -> None:
    fault = Fault(kind="full-disk", step=4, rank=0, point="checkpoint")
    spec = job("mlp", 2, 5, folder=str(tmp_path), checkpoint_every=2, faults=[fault])
    events = trained(agent, spec, [(5, on(1, 1))])
    told = {event.step: event for event in events if isinstance(event, e.Checkpointed)}
    assert told[2].path is not None
    assert told[4].path is None
    assert "No space left" in str(told[4].reason)
    assert files.checkpoints(tmp_path) == [2]
    assert any(isinstance(event, e.Finished) for event in events)


def test_a_writer_killed_half_way_leaves_the_last_good_one(agent: Agent, tmp_path: Path) -> None:
    expected = digests_of(trained(agent, job("mlp", 2, 5, job_id="whole"), [(5, on(2))]))
    faults = [
        Fault(kind="kill", step=4, rank=0, point="checkpoint"),
        Fault(kind="kill", step=4, rank=1, point="micro-step"),
    ]
    spec = job("mlp", 2, 5, folder=str(tmp_path), checkpoint_every=2, faults=faults)
    found = digests_of(trained(agent, spec, [(5, on(1, 1))]))
    assert found[5] == expected[5]


def test_habits_out_of_range_are_refused() -> None:
    with pytest.raises(ExecutorError, match="deadline_s"):
        Habits(deadline_s=0)
    with pytest.raises(ExecutorError, match=r"checkpoint_every.*folder"):
        Habits(checkpoint_every=3)
