"""``tandem verify-bits``: equal where it should be, and able to say what differs elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import tandem
from executor.devices import DeviceLane
from executor.errors import ExecutorError
from executor.levels import Level
from executor.shards import Sharding
from executor.verify import KINDS, Battery, Collected, schedule, verify
from executor.workloads import workload
from tests.executorcases import LANES

BATTERY = Battery(
    task=workload("mlp", 5, seed=1),
    num_workers=5,
    lanes=tuple(LANES.values()),
    steps=7,
    schedules=5,
    seed=1,
)


def test_random_rescales_migrations_resumes_and_kills_keep_the_bits() -> None:
    verdict = verify(BATTERY, threads=True)
    assert verdict.differing == ()
    acts = " ".join(act for outcome in verdict.outcomes for act in outcome.acts)
    assert [kind for kind in KINDS if kind not in acts] == []
    assert all(outcome.compared > 5 * 20 for outcome in verdict.outcomes)


@pytest.mark.parametrize(("name", "steps"), [("mlp", 7), ("longer", 4)])
def test_the_order_of_the_ring_keeps_them_too(name: str, steps: int) -> None:
    battery = replace(BATTERY, task=workload(name, 5, seed=1), reduction="ring", steps=steps)
    verdict = verify(replace(battery, schedules=2), threads=True)
    assert verdict.differing == ()
    tree = verify(replace(battery, schedules=1, reduction="tree"), threads=True)
    assert verdict.digest != tree.digest


@pytest.mark.parametrize("mirrored", [True, False])
def test_sharded_tables_are_held_against_whole_ones(
    mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executor.rows import Rows

    seen = []
    agree = Rows.agree

    def noted(rows: Rows, step: int) -> None:
        seen.append(rows._shards)
        agree(rows, step)

    monkeypatch.setattr(Rows, "agree", noted)
    tables = replace(
        BATTERY,
        task=workload("rows", 5, seed=1),
        steps=5,
        schedules=1,
        sharding=Sharding(mirrored=mirrored),
    )
    assert verify(tables, threads=True).differing == ()
    assert {shards.mirrored for shards in seen} == {mirrored}
    assert max(shards.size for shards in seen) > 1


def test_a_task_without_tables_cannot_be_sharded() -> None:
    with pytest.raises(ExecutorError, match="no sparse tables to shard"):
        verify(replace(BATTERY, sharding=Sharding(), schedules=1), threads=True)


def test_sharded_rows_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: devices that fold partial sums of rows in an order of their own."""
    from executor import sparse

    right = sparse.partial_sums

    def wrong(parts: Any, block: range, num_ranks: int) -> Any:
        del num_ranks
        return right(parts, range(block.stop), block.stop)

    monkeypatch.setattr(sparse, "partial_sums", wrong)
    task = workload("rows", 5, seed=1)
    tables = replace(BATTERY, task=task, steps=5, sharding=Sharding(), schedules=1)
    verdict = verify(tables, threads=True)
    assert verdict.differing
    assert all("table/" in (found.difference or (0, ""))[1] for found in verdict.differing)


def test_a_schedule_comes_from_its_seed() -> None:
    import numpy as np

    one, again, other = (
        [str(act) for act in schedule(BATTERY, np.random.default_rng(seed))] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_the_first_step_and_tensor_that_differ_are_named() -> None:
    found = Collected()
    found.by_step = {1: {"a": "0", "b": "0"}, 2: {"a": "1", "b": "0"}, 3: {"a": "9"}}
    reference = {1: {"a": "0", "b": "0"}, 2: {"a": "1", "b": "1"}, 3: {"a": "2", "b": "1"}}
    assert found.difference(reference) == (2, "b")


@pytest.mark.parametrize("change", [{"steps": 1}, {"num_workers": 0}, {"kinds": ("melt",)}])
def test_bad_batteries_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ExecutorError):
        replace(BATTERY, **change)  # type: ignore[arg-type]


@pytest.mark.slow
def test_mixed_capabilities_agree_under_d2_and_not_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same lanes, the same schedules: D2 keeps the bits, D0 does not, and says where."""
    lanes = "cpu-default,cpu-avx2,cpu-avx512"
    command = ["verify-bits", "--task", "mlp", "--workers", "4", "--steps", "6", "--lanes", lanes]
    assert tandem.main([*command, "--level", "D2", "--schedules", "6"]) == 0
    assert "equal" in capsys.readouterr().out
    assert tandem.main([*command, "--level", "D0", "--schedules", "6", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["differing"] > 0
    assert (
        told["schedules"][0]["difference"] is None or len(told["schedules"][0]["difference"]) == 2
    )


def test_the_level_is_agreed_before_anything_runs() -> None:
    lanes = (
        DeviceLane(name="a", gpu_type="cpu-default", capability="default"),
        DeviceLane(name="b", gpu_type="cpu-avx2", capability="avx2"),
    )
    with pytest.raises(ValueError, match="D1"):
        verify(replace(BATTERY, lanes=lanes, level=Level.D1))


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem.main(["verify-bits", "--task", "mpl"]) == 1
    assert "did you mean 'mlp'" in capsys.readouterr().err
