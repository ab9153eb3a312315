"""Saved states and published versions: whole or refused, and the same bits afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.sparse import (
    EmbeddingTable,
    Eviction,
    Published,
    RowAdagrad,
    RowAdam,
    TableSet,
    Tiers,
    load_tables,
    publish,
    save_tables,
    versions,
)
from models.sparse.arrayfile import read_arrays, replacing, write_arrays


def long(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def fresh(tiers: Tiers | None = None, **settings: Any) -> TableSet:
    rule = Eviction(every_steps=3, idle_steps=2, max_ids=9)
    more: dict[str, Any] = {"eviction": rule, "admit_after": 2, "tiers": tiers} | settings
    return TableSet(
        [
            EmbeddingTable("item", 3, 5, optimizer=RowAdam(lr=0.1), **more),
            EmbeddingTable("user/id", 2, 5, optimizer=RowAdagrad(lr=0.1)),
        ]
    )


def train(tables: TableSet, batches: Sequence[Sequence[int]], first: int = 0) -> None:
    for step, ids in enumerate(batches, first):
        rows = tables("item", long(ids))
        loss = (rows.sin() * torch.arange(rows.numel()).reshape(rows.shape)).sum()
        loss = loss + (tables("user/id", -long(ids)) ** 3).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        tables.apply(step)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


BATCHES = st.lists(st.lists(st.integers(-6, 6), min_size=1, max_size=8), min_size=2, max_size=7)


@settings(max_examples=30)
@given(BATCHES, st.integers(0, 6))
def test_a_run_that_is_resumed_is_the_run(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    straight = fresh()
    train(straight, batches)
    save_tables(straight, folder / "straight")
    before = fresh(Tiers(hot_rows=2, host_rows=1))
    train(before, batches[:cut])
    save_tables(before, folder / "state")
    after = fresh(Tiers(hot_rows=1))
    load_tables(after, folder / "state")
    assert after.step == before.step
    train(after, batches[cut:], first=min(cut, len(batches)))
    save_tables(after, folder / "resumed")
    assert digest(folder / "straight") == digest(folder / "resumed")


def test_a_state_that_lacks_one_bit_would_be_found_out(tmp_path: Path) -> None:
    straight, other = fresh(), fresh()
    train(straight, [[1, 1, 2, 2], [1]])
    train(other, [[1, 1, 2, 2], [1]])
    save_tables(straight, tmp_path / "a")
    save_tables(other, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    table = other.tables["item"]
    row = table._entries[2, table._index.find(long([1]))]
    record = table._store.read(row)
    record[0, -1] = torch.nextafter(record[0, -1], torch.tensor(2.0))  # the last float of its state
    table._store.write(row, record)
    save_tables(other, tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_the_order_of_ids_in_a_state_is_canonical(tmp_path: Path) -> None:
    tables = fresh()
    train(tables, [[5, -3, 2, 5, 2, -3], [2**62, 0, -(2**63)]])
    save_tables(tables, tmp_path / "a")
    _, arrays = read_arrays(tmp_path / "a", b"TANDEMTB", 1)
    assert arrays["item/ids"].tolist() == [-(2**63), -3, 0, 2, 5, 2**62]
    assert arrays["item/admitted"].tolist() == [False, True, False, True, True, False]
    assert arrays["item/records"].shape == (3, 3 + 6)


ON_ITS_OWN = """
import sys
import torch
from models.sparse import EmbeddingTable, RowAdagrad, RowAdam, TableSet, Tiers, save_tables

torch.set_num_threads(int(sys.argv[2]))
device = sys.argv[3]
torch.use_deterministic_algorithms(True)
draw = torch.Generator().manual_seed(1)
sizes = torch.tensor([1e-3, 1e-5, 1e-7, 1e-8])
tables = TableSet(
    [
        EmbeddingTable("a", 19, 5, optimizer=RowAdagrad(lr=0.1), tiers=Tiers(hot_rows=500),
            device=device),
        EmbeddingTable("b", 32, 5, optimizer=RowAdam(lr=0.1), device=device),
    ]
)
for step in range(4):
    ids = torch.randint(0, 3000, (8_000,), generator=draw) // 3
    for name, table in tables.tables.items():
        rows = tables(name, ids)
        whole = torch.randint(-(2**20), 2**20, rows.shape, generator=draw)
        whole = whole * sizes[torch.randint(0, 4, (len(ids), 1), generator=draw)]
        rows.backward(whole.to(device))
    tables.apply(step)
save_tables(tables, sys.argv[1])
"""


def digest_on_its_own(out: Path, repo: Path, threads: int, device: str = "cpu", **more: str) -> str:
    command = [sys.executable, "-W", "error", "-c", ON_ITS_OWN, str(out), str(threads), device]
    subprocess.run(command, cwd=repo, env=os.environ | more, check=True)
    return digest(out)


def test_kernels_and_threads_do_not_change_a_bit(tmp_path: Path, repo: Path) -> None:
    """Another CPU capability runs other kernels; another number of threads splits the work."""
    plain = digest_on_its_own(tmp_path / "a", repo, 1, ATEN_CPU_CAPABILITY="default")
    assert plain == digest_on_its_own(tmp_path / "b", repo, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_bits_of_the_cpu(tmp_path: Path, repo: Path) -> None:
    more = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    gpu = [digest_on_its_own(tmp_path / n, repo, 1, "cuda", **more) for n in "ab"]
    assert gpu == [digest_on_its_own(tmp_path / "c", repo, 1)] * 2


# --- damage ---------------------------------------------------------------------------------------


def small(tmp_path: Path) -> tuple[Path, TableSet]:
    tables = fresh()
    train(tables, [[1, 1]])
    save_tables(tables, tmp_path / "state")
    return tmp_path / "state", tables


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path, tables = small(tmp_path)
    whole = path.read_bytes()
    bad = tmp_path / "bad"
    before = tables.tables["item"].state().records.clone()
    for at in range(len(whole)):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(ModelError, match="bad: "):
            load_tables(tables, bad)
    for size in range(0, len(whole), 7):
        bad.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="bad: "):
            load_tables(tables, bad)
    bad.write_bytes(whole + b"x")
    with pytest.raises(ModelError, match="cut short or damaged"):
        load_tables(tables, bad)
    assert torch.equal(before, tables.tables["item"].state().records)
    load_tables(tables, path)


def test_a_file_that_is_cut_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tables = small(tmp_path)
    whole, stat = path.read_bytes(), Path.stat
    bad = tmp_path / "bad"

    def stat_before_the_cut(path: Path, **how: Any) -> os.stat_result:
        return stat(tmp_path / "state" if path == bad else path, **how)

    monkeypatch.setattr(Path, "stat", stat_before_the_cut)
    for size in range(len(whole)):
        bad.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"bad: (cut short|damaged)"):
            load_tables(tables, bad)
    bad.write_bytes(whole)
    load_tables(tables, bad)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path, tables = small(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + struct.pack("<I", 2) + whole[12:])
    with pytest.raises(ModelError, match=r"another schema version \(found 2\); expected 1"):
        load_tables(tables, path)
    path.write_bytes(b"SOMETHIN" + whole[8:])
    with pytest.raises(ModelError, match="another kind of file"):
        load_tables(tables, path)
    with pytest.raises(ModelError, match="No such file"):
        load_tables(tables, tmp_path / "none")
    path.write_bytes(whole)
    one = TableSet([EmbeddingTable("item", 3, 5)])
    with pytest.raises(ModelError, match=r"other tables.*expected item"):
        load_tables(one, path)
    with pytest.raises(ModelError, match=r"table 'item': saved with another admit_after \(found 2"):
        load_tables(fresh(admit_after=3), path)
    tables("item", long([1]))
    with pytest.raises(ModelError, match="look-ups are waiting"):
        save_tables(tables, path)
    with pytest.raises(ModelError, match="look-ups are waiting"):
        publish(tmp_path / "versions", {}, tables)
    assert path.read_bytes() == whole


def test_a_state_that_does_not_fit_its_table_is_refused() -> None:
    tables = fresh()
    train(tables, [[1, 2, 2]])
    table, state = tables.tables["item"], tables.tables["item"].state()
    fields = {c: getattr(state, c) for c in ("ids", "count", "last_step", "admitted", "records")}
    for change in (
        {"ids": state.ids.flip(0)},
        {"count": state.count[:1]},
        {"records": state.records[:, :4]},
        {"admitted": ~state.admitted, "records": state.records[:0]},
    ):
        with pytest.raises(ModelError, match="table 'item'"):
            table.restore(type(state)(**(fields | change)))
    assert torch.equal(table.state().records, state.records)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tables = small(tmp_path)
    whole = path.read_bytes()
    train(tables, [[1, 3]], first=1)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match="cannot be written: No space left"):
        save_tables(tables, path)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    save_tables(tables, path)
    assert path.read_bytes() != whole


def test_arrays_of_every_kind_come_back(tmp_path: Path) -> None:
    arrays = {
        "half": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "bits": torch.tensor([[True], [False]]),
        "turned": torch.arange(6, dtype=torch.int16).reshape(2, 3).T,
    }
    with replacing(tmp_path / "x") as file:
        write_arrays(file, b"ARRAYS__", 1, {"a": [1, None]}, arrays)
    meta, found = read_arrays(tmp_path / "x", b"ARRAYS__", 1)
    assert meta == {"a": [1, None]}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert torch.equal(found[name].nan_to_num(), array.nan_to_num())
    wrong = {"z": torch.zeros(1, dtype=torch.complex64)}
    with pytest.raises(ModelError, match="z: cannot be saved"), replacing(tmp_path / "x") as file:
        write_arrays(file, b"ARRAYS__", 1, None, wrong)
    assert read_arrays(tmp_path / "x", b"ARRAYS__", 1)[0] == meta


# --- versions -------------------------------------------------------------------------------------


def test_serving_reads_what_training_had(tmp_path: Path) -> None:
    tables = fresh()
    folder = tmp_path / "made" / "versions"
    assert versions(folder) == []
    with pytest.raises(ModelError, match=r"unknown version.*a folder with published versions"):
        Published.open(folder)
    ids = long([1, 2, 3, 99, -(2**63), 2**63 - 1, 0, -1]).reshape(2, 4)
    dense = {"w": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16()}
    seen = {}
    for number, batch in enumerate([[1, 1, 2], [2, 3, 3]], 1):
        train(tables, [batch], first=number)
        assert publish(folder, dense, tables) == number
        with torch.no_grad():
            seen[number] = {name: tables(name, ids) for name in ("item", "user/id")}
        dense = {"w": dense["w"] * 2}
    assert versions(folder) == [1, 2]
    assert Published.open(folder).version == 2
    for number in (1, 2):
        opened = Published.open(folder, number)
        assert opened.step == number
        assert list(opened.dense) == ["w"]
        assert opened.dense["w"].dtype == torch.bfloat16
        for name, rows in seen[number].items():
            assert torch.equal(opened.tables(name, ids), rows)
            assert torch.equal(opened.tables.to("cpu")(name, ids), rows)
    assert not torch.equal(seen[1]["item"], seen[2]["item"])
    with pytest.raises(ModelError, match=r"unknown version \(found 3\); expected one of \[1, 2\]"):
        Published.open(folder, 3)
    with pytest.raises(ModelError, match="unknown table"):
        opened.tables("x", ids)
    with pytest.raises(ModelError, match="expected int64"):
        opened.tables("item", ids.float())
    assert opened.tables("item", long([])).shape == (0, 3)


@pytest.mark.parametrize("call", range(1, 8))
def test_a_publish_that_fails_leaves_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The disk refuses the n-th flush: dense, two tables, manifest, the folder, the name."""
    tables = fresh()
    train(tables, [[1, 1]])
    assert publish(tmp_path, {"w": torch.ones(2)}, tables) == 1
    train(tables, [[2, 2]], first=1)
    calls = []

    def failing(handle: int) -> None:
        calls.append(handle)
        if len(calls) == call:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    if call > 6:
        assert publish(tmp_path, {"w": torch.zeros(2)}, tables) == 2
        return
    with pytest.raises(ModelError, match="cannot publish: Input/output error"):
        publish(tmp_path, {"w": torch.zeros(2)}, tables)
    monkeypatch.undo()
    # Before the rename the old version is the latest; after it the new one is there, and whole.
    done = call == 6
    assert versions(tmp_path) == [1, 2][: 1 + done]
    assert Published.open(tmp_path).dense["w"].tolist() == ([0, 0] if done else [1, 1])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert publish(tmp_path, {"w": torch.zeros(2)}, tables) == 2 + done


def test_two_publishers_do_not_take_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = fresh()
    assert publish(tmp_path, {}, tables) == 1
    monkeypatch.setattr("models.sparse.published.versions", lambda folder: [])  # what the other saw
    assert publish(tmp_path, {}, tables) == 2
    monkeypatch.undo()
    assert [Published.open(tmp_path, v).version for v in versions(tmp_path)] == [1, 2]


def test_a_version_that_was_damaged_is_refused(tmp_path: Path) -> None:
    tables = fresh()
    train(tables, [[1, 1]])
    publish(tmp_path, {"w": torch.ones(2)}, tables)
    for path in sorted((tmp_path / "v000001").iterdir()):
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 if path.suffix == ".json" else 11):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
            with pytest.raises(ModelError, match="v000001"):
                Published.open(tmp_path)
        path.write_bytes(whole[:-3])
        with pytest.raises(ModelError, match="v000001"):
            Published.open(tmp_path)
        path.unlink()
        with pytest.raises(ModelError, match="No such file"):
            Published.open(tmp_path)
        path.write_bytes(whole)
    manifest = tmp_path / "v000001" / "manifest.json"
    listed = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(listed | {"schema": 2}))
    with pytest.raises(ModelError, match="another schema version"):
        Published.open(tmp_path)


def test_dense_values_that_are_not_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dense 'w': not a tensor"):
        publish(tmp_path, {"w": 1}, fresh())  # type: ignore[dict-item]
    assert versions(tmp_path) == []


def test_the_example_of_the_page_runs(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repo / "docs" / "models" / "sparse.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "sparse.md", "exec"), {})  # noqa: S102
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tables.bin", "versions"]
