"""The service on a loopback port: under load, while versions change, and until a signal.

Every server is ended by the test that started it; every wait has an end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

import tandem
from models.errors import ModelError
from models.serve.http import build_app
from models.serve.server import Server, bound
from models.serve.service import Service, Settings
from models.serve.versions import Versions
from tests.servecases import Model, body, damage, running, until

DEADLINE_S = 30


@contextmanager
def serving(folder: Path, settings: Settings) -> Iterator[tuple[Service, int]]:
    """Serve a folder on a free port from a thread of this process."""
    ready = Event()
    with bound("127.0.0.1", 0) as listening, Service(Versions(folder), settings) as service:
        server = Server(build_app(service), ready.set)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        with running(thread):
            try:
                assert ready.wait(DEADLINE_S)
                yield service, listening.getsockname()[1]
            finally:
                server.should_exit = True


class Client:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)

    def post(self, path: str, sent: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(sent), headers)
        return self._answer()

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        self._connection.request("GET", path)
        return self._answer()

    def _answer(self) -> tuple[int, dict[str, Any]]:
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        self._connection.close()


class Load:
    """Clients that ask until told to stop, and hold every answer to the version it names."""

    def __init__(self, port: int, models: dict[int, Model], *, clients: int) -> None:
        self.port = port
        self.asked = [body(n, events=n % 21 or 1, candidates=1 + n % 9) for n in range(12)]
        self.right = {
            number: [model.logits(asked) for asked in self.asked]
            for number, model in models.items()
        }
        self.seen: Counter[int] = Counter()
        self.wrong: list[object] = []
        self.stop = Event()
        self.threads = [Thread(target=self._ask, args=(n,)) for n in range(clients)]

    def _ask(self, number: int) -> None:
        client = Client(self.port)
        try:
            while not self.stop.is_set() and not self.wrong:
                number += 1
                self._one(client, number % len(self.asked), whole=number % 3 > 0)
        except (OSError, ValueError) as error:
            self.wrong.append(error)
        finally:
            client.close()

    def _one(self, client: Client, which: int, *, whole: bool) -> None:
        asked = self.asked[which]
        if not whole:  # encode first, then score against what is kept
            status, found = client.post("/v1/encode", without(asked, "candidates"))
            if status != 200:
                self.wrong.append((status, found))
                return
            asked = without(asked, "history")
        status, found = client.post("/v1/score", asked)
        if status != 200:
            self.wrong.append((status, found))
            return
        right = self.right[found["version"]][which]
        if np.abs(np.array(found["logits"]) - right).max() > 1e-12:
            self.wrong.append((which, found, right))
        self.seen[found["version"]] += 1

    def wait_for(self, number: int) -> None:
        """Wait until a version, unless it is one that is damaged, has answered a few times."""
        if number % 3:
            until(lambda: bool(self.wrong) or self.seen[number] > 10, DEADLINE_S)


def without(asked: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in asked.items() if key != name}


def swap_under_load(folder: Path, *, clients: int, versions: int, hold_s: float) -> Load:
    """Publish versions, some of them damaged, while clients ask; return what they saw."""
    models = {number: Model(seed=number) for number in range(1, versions + 1)}
    models[1].publish(folder)
    with serving(folder, Settings(max_wait_ms=1, max_batch=8)) as (service, port):
        load = Load(port, models, clients=clients)
        service.versions.watch(0.02)
        with running(*load.threads):
            try:
                for number in range(2, versions + 1):
                    load.wait_for(number - 1)
                    time.sleep(hold_s)
                    models[number].publish(folder)
                    if number % 3 == 0:  # it may be taken up before it is damaged, or not
                        damage(folder, number)
                load.wait_for(versions)
            finally:
                load.stop.set()
        stats = service.stats()
    assert stats["refused"] == {}
    assert stats["batches"]["mean_requests"] > 1
    return load


def test_versions_change_under_load_and_no_request_notices(tmp_path: Path) -> None:
    load = swap_under_load(tmp_path, clients=4, versions=5, hold_s=0)
    assert load.wrong == []
    assert {1, 2, 4, 5} <= set(load.seen)


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """Were a version's scores given under the name of another, the clients would say so."""
    Model(seed=1).publish(tmp_path)
    with serving(tmp_path, Settings()) as (_, port):
        load = Load(port, {1: Model(seed=2)}, clients=1)
        with running(*load.threads):
            until(lambda: bool(load.wrong), DEADLINE_S)
    assert load.seen.total() == 1


@pytest.mark.slow
def test_versions_change_under_load_for_longer(tmp_path: Path) -> None:
    load = swap_under_load(tmp_path, clients=16, versions=40, hold_s=0.5)
    assert load.wrong == []
    assert load.seen.total() > 1000  # whatever else the machine does
    assert {number for number in range(1, 41) if number % 3} <= set(load.seen)


# --- the command ----------------------------------------------------------------------------------


@contextmanager
def command(repo: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run ``tandem serve`` and yield it with its port, once it says that it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tandem", "serve", *options, "--port", "0", "--threads", "1"],
        cwd=repo,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # or "" when it ends
        assert line.startswith("serving version "), process.communicate(timeout=DEADLINE_S)
        yield process, int(line.rpartition(":")[2])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=DEADLINE_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_after_what_is_in_flight(
    repo: Path, tmp_path: Path, number: signal.Signals
) -> None:
    model = Model()
    model.publish(tmp_path)
    asked = body(1)
    answers: list[tuple[int, dict[str, Any]]] = []
    with command(repo, str(tmp_path), "--max-wait-ms", "600") as (process, port):
        client = Client(port)
        assert client.get("/health") == (200, {"status": "ok", "version": 1})
        waiting = Thread(target=lambda: answers.append(client.post("/v1/score", asked)))
        with running(waiting):
            time.sleep(0.2)  # it is waiting for company now
            process.send_signal(number)
        client.close()
        said, complained = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    assert (said, complained) == ("stopped\n", "")
    ((status, found),) = answers
    assert status == 200
    assert np.abs(np.array(found["logits"]) - model.logits(asked)).max() < 1e-12


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "versions"
    Model().publish(folder)
    (tmp_path / "none").mkdir()
    with bound("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for options, code, words in (
            ([str(folder), "--port", port], 1, "in use; expected a free port, or 0 for any"),
            ([str(folder), "--port", "65536"], 1, "no such port (found 65536)"),
            ([str(folder), "--host", "no.such.host.invalid"], 1, "cannot be listened on"),
            ([str(tmp_path / "none")], 1, "expected a folder with published versions"),
            ([str(folder), "--max-batch", "0"], 1, "max_batch: bad setting"),
            ([str(folder), "--poll", "-1", "--port", "0"], 1, "poll_s: no time between looks"),
            ([str(folder), "--keep", "0", "--port", "0"], 1, "keep: no version would be held"),
            ([str(folder), "--max-body-mib", "0"], 1, "nothing could be asked"),
            ([str(folder), "--device", "nowhere"], 1, "device nowhere: cannot be used"),
            ([str(folder), "--port", "x"], 2, "invalid int value: 'x'"),
            ([], 2, "required: DIR"),
        ):
            assert tandem.main(["serve", *options]) == code
            err = capsys.readouterr().err
            assert words in err
            assert err.startswith("tandem: error: ")
            assert err.count("\n") == 1
    damage(folder, 1)
    assert tandem.main(["serve", str(folder), "--port", "0"]) == 1
    assert "cut short or damaged" in capsys.readouterr().err


def test_the_version_of_an_address_is_bound_as_given() -> None:
    with bound("127.0.0.1", 0) as first:
        host, port = first.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)
        with pytest.raises(ModelError, match="cannot be listened on: Address already in use"):
            bound(host, port)
