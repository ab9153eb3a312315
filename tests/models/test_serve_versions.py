"""Versions: published from a run, opened whole or refused, swapped, kept and retired."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

import tandem
from models.baselines import BASELINES
from models.data.sampler import Sampler
from models.errors import ModelError
from models.longer.execution import Execution
from models.longer.network import Longer
from models.serve.refusal import UnknownVersion
from models.serve.version import Version, check_servable, publish_state
from models.serve.versions import Versions
from models.sparse.published import Published, path_of, publish, retire, versions
from models.train.config import build
from models.train.step import train_step
from models.train.trainer import Habits, train
from tests import traincases
from tests.servecases import CONFIG, Model, damage, running, until
from tests.traincases import strictly

# --- from training to serving ---------------------------------------------------------------------


def test_a_version_has_every_bit_of_the_state_it_was_published_from(tmp_path: Path) -> None:
    config = replace(traincases.CONFIG, execution=Execution(half=frozenset({"cross"})))
    sampler = Sampler(num_samples=100, global_batch=12, seed=5)
    with strictly():
        state = config.state(build(config, 3), 3)
        for step in range(3):
            batches = [traincases.DATA.batch(sampler.at(step, rank, 3)) for rank in range(3)]
            train_step(state, batches)
        assert publish_state(tmp_path, state.network, state.tables) == 1
        version = Version.open(tmp_path)
        assert (version.number, version.step, version.config) == (1, 2, config.model)
        assert version.network.execution.half == {"cross"}
        assert not version.network.training
        for name, value in state.network.state_dict().items():
            assert torch.equal(version.network.state_dict()[name], value)
        batch = traincases.DATA.batch(range(40))
        state.network.eval()
        with torch.no_grad():
            logits = state.network(batch, state.tables)
            assert torch.equal(version.network(batch, version.tables), logits)
        train_step(state, batches)  # goes on; the version does not
        state.network.eval()
        with torch.no_grad():
            assert torch.equal(version.network(batch, version.tables), logits)
            assert not torch.equal(state.network(batch, state.tables), logits)


def test_a_run_publishes_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    published: list[int] = []
    habits = Habits(
        eval_samples=0, publish=lambda state: published.append(state.step), publish_every=2
    )
    with strictly():
        asked: dict[str, Any] = {"seed": 3, "out": tmp_path / "run", "habits": habits}
        train(traincases.CONFIG, traincases.DATA, steps=5, **asked)
        assert published == [2, 4, 5]
        train(traincases.CONFIG, traincases.DATA, steps=6, resume=True, **asked)
        assert published == [2, 4, 5, 6]
        # A run that is over publishes what it ended with.
        train(traincases.CONFIG, traincases.DATA, steps=6, resume=True, **asked)
        assert published == [2, 4, 5, 6, 6]


def test_a_publish_that_fails_ends_the_run_where_it_can_go_on(tmp_path: Path) -> None:
    from models.train.state import checkpoints

    def full(state: object) -> None:
        raise ModelError("cannot publish: No space left on device", where="versions")

    asked: dict[str, Any] = {"steps": 5, "seed": 3, "out": tmp_path / "run"}
    with strictly():
        habits = Habits(eval_samples=0, publish=full, publish_every=2)
        with pytest.raises(ModelError, match="No space left"):
            train(traincases.CONFIG, traincases.DATA, habits=habits, **asked)
        assert checkpoints(tmp_path / "run" / "checkpoints")[-1] == 2
        resumed = train(
            traincases.CONFIG, traincases.DATA, habits=Habits(eval_samples=0), resume=True, **asked
        )
    assert resumed.state.step == 5


def test_the_command_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "versions"
    run = ["train", "--steps", "5", "--batch", "8", "--length", "8", "--eval-samples", "0"]
    run += ["--threads", "1", "--out", str(tmp_path / "run"), "--publish", str(folder)]
    assert tandem.main([*run, "--publish-every", "2", "--publish-keep", "2"]) == 0
    assert versions(folder) == [2, 3]
    opened = Version.open(folder)
    assert (opened.number, opened.step, opened.config.max_length) == (3, 4, 8)
    assert Version.open(folder, 2).step == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--publish-every", "2"], "says nothing by itself; expected --publish DIR beside it"),
        (["--publish", "v", "--publish-keep", "0"], "no version would stay"),
        (["--publish", "v", "--publish-every", "-1"], "publish_every: bad setting"),
        (["--publish", "v", "--network", "din"], "network: has no cache and cannot be served"),
    ],
)
def test_what_cannot_be_published_is_known_before_training(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "--steps", "1", "--length", "8", "--out", str(tmp_path / "run")]
    assert tandem.main([*run, *options]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_which_networks_can_be_served(tmp_path: Path) -> None:
    model = Model()
    for name in BASELINES:
        network = BASELINES[name](CONFIG)
        if isinstance(network, Longer):
            check_servable(name)
            publish_state(tmp_path, network, model.tables)
            opened = Version.open(tmp_path)
            assert opened.config == network.config
            assert opened.config.merge == 1
        else:
            with pytest.raises(ModelError, match="has no cache and cannot be served"):
                check_servable(name)
            with pytest.raises(ModelError, match="has no cache and cannot be served"):
                publish_state(tmp_path, network, model.tables)
    assert versions(tmp_path) == [1]


# --- what does not fit ----------------------------------------------------------------------------


def about(**changes: object) -> dict[str, Any]:
    from models.serve.version import _about

    return _about(Longer(CONFIG)) | changes


def test_parts_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    model = Model()
    dense = model.network.state_dict()
    some = {name: value for name, value in dense.items() if name != "head.norm.bias"}
    wide = dense | {"head.norm.bias": torch.zeros(3)}
    odd = dense | {"spare": torch.zeros(3)}
    other_tables = Model(replace(CONFIG, user_dim=3)).tables
    nan = {name: value * float("nan") for name, value in dense.items()}
    half = {name: value.bfloat16() for name, value in dense.items()}
    shape = about()["model"]
    for number, (tensors, tables, said, words) in enumerate(
        [
            (dense, model.tables, None, "does not say what network it is"),
            (dense, model.tables, about(network="din"), "does not say what network it is"),
            (dense, model.tables, about(model=None), "does not say what network it is"),
            (dense, model.tables, about(model=shape | {"x": 1}), "a setting .* is unknown"),
            (dense, model.tables, about(model=shape | {"heads": 0}), "heads: is no size"),
            (dense, model.tables, about(model=shape | {"d": 8}), "tensors of another network"),
            (some, model.tables, about(), "head.norm.bias: the tensors of another network"),
            (wide, model.tables, about(), r"head.norm.bias: .*\(found \(3,\)\); expected \(12,\)"),
            (odd, model.tables, about(), "spare: .*expected no such tensor"),
            (half, model.tables, about(), "a precision that is not served .found 'torch.bfloat16"),
            (dense, other_tables, about(), "table 'user': .* fit the network .found 3.; .* of 8"),
            (nan, model.tables, about(), "v000012: gives scores that are not finite"),
        ]
    ):
        assert publish(tmp_path, tensors, tables, about=said) == number + 1
        with pytest.raises(ModelError, match=words):
            Version.open(tmp_path)


# --- swapping -------------------------------------------------------------------------------------


def test_a_newer_version_takes_over_and_the_one_before_can_be_named(tmp_path: Path) -> None:
    told: list[set[int]] = []
    Model(seed=1).publish(tmp_path)
    held = Versions(tmp_path, keep=2, changed=told.append)
    first = held.current
    assert (first.number, held.reload()) == (1, False)
    for seed in (2, 3):
        Model(seed=seed).publish(tmp_path)
    assert held.reload()
    assert [v.number for v in held.held] == [3, 1]  # the newest; what was between is passed over
    assert held.named(None) is held.current
    assert held.named(1) is first
    with pytest.raises(UnknownVersion, match=r"version: unknown version .found 2.*one of 3, 1"):
        held.named(2)
    Model(seed=4).publish(tmp_path)
    retire(tmp_path, keep=1)
    assert held.reload()
    assert [v.number for v in held.held] == [4, 3]
    assert told == [{1}, {1, 3}, {3, 4}]
    # A folder that empties, or falls back, changes nothing.
    shutil.rmtree(path_of(tmp_path, 4))
    assert not held.reload()
    assert held.current.number == 4


def test_a_version_that_cannot_be_used_leaves_the_one_that_serves(tmp_path: Path) -> None:
    Model(seed=1).publish(tmp_path)
    held = Versions(tmp_path)
    Model(seed=2).publish(tmp_path)
    damage(tmp_path, 2)
    assert not held.reload()
    (failure,) = held.failures
    assert failure.version == 2
    assert "cut short or damaged" in failure.problem
    assert held.current.number == 1
    Model(seed=3).publish(tmp_path)
    damage(tmp_path, 3, "table-0.bin")
    whole = Model(seed=4)
    whole.publish(tmp_path)
    damage(tmp_path, 4, "manifest.json")
    # A server that starts now takes the newest that is whole, as one that runs stays on it.
    assert Versions(tmp_path).current.number == 1
    assert whole.publish(tmp_path) == 5
    assert held.reload()
    assert held.current.number == 5
    assert [f.version for f in Versions(tmp_path).failures] == []


def test_a_failed_version_is_tried_again_when_asked_or_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Model(seed=1).publish(tmp_path)
    held = Versions(tmp_path)
    Model(seed=2).publish(tmp_path)
    tries = []
    original = Version.open

    def failing(folder: Path, number: int, **settings: Any) -> Version:
        tries.append(number)
        raise RuntimeError("out of memory\nand a long report")

    monkeypatch.setattr(Version, "open", failing)
    for _ in range(3):
        held.reload(again=False)
    assert tries == [2]
    assert held.failures[0].problem.endswith("v000002: cannot be loaded: out of memory")
    held.reload()
    assert tries == [2, 2]
    manifest = path_of(tmp_path, 2) / "manifest.json"
    os.utime(manifest, ns=(1, 1))
    held.reload(again=False)
    assert tries == [2, 2, 2]
    monkeypatch.setattr(Version, "open", original)
    assert held.reload()
    assert held.failures == []


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a folder with published versions"):
        Versions(tmp_path / "none")
    Model().publish(tmp_path)
    damage(tmp_path, 1)
    with pytest.raises(ModelError, match="cut short or damaged"):
        Versions(tmp_path)
    with pytest.raises(ModelError, match="keep: no version would be held"):
        Versions(tmp_path, keep=0)


def test_a_thread_looks_for_newer_versions(tmp_path: Path) -> None:
    Model(seed=1).publish(tmp_path)
    held = Versions(tmp_path)
    with pytest.raises(ModelError, match="no time between looks"):
        held.watch(0)
    held.watch(0.01)
    try:
        Model(seed=2).publish(tmp_path)
        until(lambda: held.current.number == 2)
    finally:
        held.close()


def test_nothing_that_goes_wrong_ends_the_thread_that_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Model(seed=1).publish(tmp_path)
    held = Versions(tmp_path)
    opens, is_dir = Version.open, Path.is_dir
    looks = 0

    def failing(folder: Path, number: int, **settings: Any) -> Version:
        if number == 2:
            raise ZeroDivisionError
        return opens(folder, number, **settings)

    def refusing(path: Path) -> bool:
        nonlocal looks
        looks += path.name == "v000001"
        if path.name == "v000001" and looks == 2:
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Version, "open", failing)
    Model(seed=2).publish(tmp_path)
    held.watch(0.01)
    try:
        until(lambda: held.failures != [])
        assert held.failures[0].problem.endswith("v000002: cannot be loaded: ZeroDivisionError")
        monkeypatch.setattr(Path, "is_dir", refusing)
        until(lambda: looks > 2)
        Model(seed=3).publish(tmp_path)
        until(lambda: held.current.number == 3)
    finally:
        held.close()
    looks = 1
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        held.reload()
    assert held.current.number == 3


def test_a_reader_never_sees_halves(tmp_path: Path) -> None:
    """One publishes and retires, another opens: what opens is one state, dense and sparse."""
    tables = Model().tables
    marks = {name: table.state().records.clone() for name, table in tables.tables.items()}

    def state(number: int) -> dict[str, torch.Tensor]:
        for name, table in tables.tables.items():
            old = table.state()
            records = torch.full_like(marks[name], float(number))
            table.restore(
                type(old)(
                    ids=old.ids,
                    count=old.count,
                    last_step=old.last_step,
                    admitted=old.admitted,
                    records=records,
                )
            )
        return {"w": torch.full((1000,), float(number))}

    publish(tmp_path, state(1), tables)

    def publisher() -> None:
        for number in range(2, 24):
            publish(tmp_path, state(number), tables)
            retire(tmp_path, keep=2)

    seen = set()
    thread = Thread(target=publisher)
    with running(thread):
        while thread.is_alive():
            try:
                opened = Published.open(tmp_path)
            except ModelError as error:  # retired while it was being opened
                assert "cannot be read" in str(error)
                continue
            found = {float(x) for x in opened.dense["w"]}
            for name in tables.tables:
                found |= {float(x) for x in opened.tables(name, torch.arange(5)).flatten()}
            assert found == {float(opened.version)}
            seen.add(opened.version)
    assert len(seen) > 2


def test_old_versions_are_retired(tmp_path: Path) -> None:
    model = Model()
    for _ in range(4):
        model.publish(tmp_path)
    assert retire(tmp_path, keep=2) == [1, 2]
    assert retire(tmp_path, keep=2) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v000003", "v000004"]
    assert model.publish(tmp_path) == 5
    with pytest.raises(ModelError, match="no version would stay"):
        retire(tmp_path, keep=0)
    manifest = json.loads((path_of(tmp_path, 5) / "manifest.json").read_text())
    assert manifest["about"]["network"] == "longer"
