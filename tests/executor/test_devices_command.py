"""``tandem devices``, and the fingerprint and the comparison behind it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import tandem
from executor.comparing import Comparison
from executor.devices import CAPABILITIES
from executor.fingerprint import differences, fingerprint
from executor.levels import Level
from executor.machine import Gpu, Machine

MACHINE = Machine(
    cpu_model="a CPU",
    capabilities=CAPABILITIES,
    cores=(0, 1),
    memory_mib=24_000,
    gpus=(Gpu(index=0, model="Tesla T4", memory_mib=15_360, multiprocessors=40),),
    torch_version="2.13.0",
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.machine.probe", lambda: MACHINE)


@pytest.mark.usefixtures("machine")
def test_the_command_names_machine_and_lanes(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem.main(["devices", "cpu-avx2x3:slowdown=2,cuda:0:sm=25%"]) == 0
    said = capsys.readouterr().out
    assert "cuda:0: Tesla T4, 15,360 MiB, 40 multiprocessors" in said
    assert "cpu-avx2-slow2" in said
    assert "slowed 2 times" in said
    assert "25% of the multiprocessors" in said
    assert "lanes share cores: 3 are wanted and 2 are there" in said


@pytest.mark.usefixtures("machine")
def test_json_holds_the_fingerprint_and_the_lanes(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem.main(["devices", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["machine"] == fingerprint(MACHINE)
    assert [lane["gpu_type"] for lane in values["lanes"]] == ["t4"]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("lanes", "code"), [("cpu-sse", 2), ("cuda:3", 1), ("cpu:sm=5%", 2)])
def test_errors_are_one_line(lanes: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem.main(["devices", lanes]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


@pytest.mark.usefixtures("machine")
def test_a_comparison_says_where_types_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {"cpu-avx2": {"gelu": "a", "add": "b"}, "cpu-default": {"gelu": "c", "add": "b"}}
    found = Comparison(level=Level.D1, digests=digests)
    monkeypatch.setattr("executor.comparing.compare", lambda *_: found)
    assert tandem.main(["devices", "cpu-avx2,cpu-default", "--compare", "D1"]) == 0
    assert "cpu-avx2 and cpu-default differ in 1 of 2 checks: gelu" in capsys.readouterr().out
    same = replace(found, level=Level.D2, digests=dict.fromkeys(digests, digests["cpu-avx2"]))
    monkeypatch.setattr("executor.comparing.compare", lambda *_: same)
    assert tandem.main(["devices", "cpu-avx2,cpu-default", "--compare", "D2"]) == 0
    assert "at D2, cpu-avx2 and cpu-default agree in all 2 checks" in capsys.readouterr().out


def test_a_fingerprint_is_of_what_measurements_depend_on() -> None:
    print_ = fingerprint(MACHINE)
    assert fingerprint(replace(MACHINE, memory_mib=24_010)) == print_  # the same whole GiB
    for change in (
        {"torch_version": "2.14.0"},
        {"cpu_model": "another"},
        {"gpus": ()},
        {"cores": (0,)},
        {"driver": "570.1"},
    ):
        other = fingerprint(replace(MACHINE, **change))
        assert other["sha256"] != print_["sha256"]
        assert len(differences(print_, other)) == 1
