"""What the cache saves in serving, and what is left of it behind a loopback port.

    python benchmarks/serving.py [--device cpu] [--out benchmarks/results/serving.json] [--no-http]

First, without HTTP: one user with a full history and 1, 10, 100 or 1000 candidates, three ways that
take turns: the whole network for each candidate (copies of the history in batches of whatever size
is fastest; of some of the candidates, since one costs what another does), the history encoded and
then all candidates scored, and the candidates alone against a cache that is there. Ratios are
formed turn by turn; quoted is their median, with the smallest and the largest, beside the ratio of
operations that ``models.serve.flops`` predicts. On a CPU the clock is processor time with one
thread; on CUDA it is wall time between synchronisations.

Then, on a CPU and with the extra ``serve``: ``tandem serve`` as a process of its own with one
thread on 127.0.0.1, asked by 1 or 8 clients of this process over connections that stay open.
Servers with batches of up to 32 and of 1 are asked in turn. Latencies and rates are the clients',
in wall time, on a machine that has the clients' and others' work to do as well (its load stands
beside them); the processor time that the server takes for a request is its own. About two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.batch import Batch
from models.bench.measure import alternately, clock_of
from models.bench.peaks import device_name
from models.config import PAPER, TINY, LongerConfig
from models.longer.execution import PARTS, Execution
from models.longer.kvcache import Events, encode
from models.longer.network import Longer
from models.longer.scoring import Candidates, score
from models.serve.figures import summary
from models.serve.flops import encode_flops, score_flops, speedup
from models.serve.version import publish_state
from models.sparse import EmbeddingTable, TableSet

CONFIGS = {
    "tiny": TINY,
    "paper": PAPER,
    # Four globals, three of them kept: the sizes for which the page of the network has a table.
    "paper, one row a candidate": replace(PAPER, num_cross=0, num_cls=2),
}
CANDIDATES = (1, 10, 100, 1000)
ITEMS = 10_000
REQUEST_TIME_S = 1.7e9


class Case:
    """A network with trained rows, one user with a full history, and candidates, on a device."""

    def __init__(self, config: LongerConfig, device: torch.device, half: bool) -> None:
        execution = Execution(half=PARTS) if half else None
        self.config, self.device = config, device
        self.network = Longer(config, execution=execution).to(device).eval()
        self.tables = TableSet(
            EmbeddingTable(name, getattr(config, f"{name}_dim"), 1, scale=1.0, device=device)
            for name in ("item", "category", "user", "cross")
        )
        for name in self.tables.tables:
            rows = self.tables(name, torch.arange(ITEMS, device=device))
            rows.backward(torch.ones_like(rows))  # type: ignore[no-untyped-call]
        self.tables.apply(0)

    def columns(self, count: int, seed: int) -> dict[str, Any]:
        """Events of a history, or candidates, as they are sent."""
        draw = np.random.default_rng(seed)
        ages = np.sort(draw.uniform(0, 1e7, count))[::-1]
        return {
            "item": draw.integers(0, ITEMS, count).tolist(),
            "category": draw.integers(0, 100, count).tolist(),
            "action": draw.integers(0, self.config.num_actions, count).tolist(),
            "time_s": (REQUEST_TIME_S - ages).round(2).tolist(),
            "cross": draw.integers(0, ITEMS, (count, self.config.num_cross)).tolist(),
        }

    def ids(self, values: Any) -> torch.Tensor:
        """Return ids on the device."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def events(self, seed: int) -> Events:
        """Return a full history."""
        sent = self.columns(self.config.max_length, seed)
        times = torch.tensor(sent["time_s"], dtype=torch.float64, device=self.device)
        return Events(
            item=self.ids(sent["item"]),
            category=self.ids(sent["category"]),
            action=self.ids(sent["action"]),
            age_s=REQUEST_TIME_S - times,
        )

    def candidates(self, count: int) -> Candidates:
        """Return candidates."""
        sent = self.columns(count, 1)
        cross = self.ids(sent["cross"]).view(count, self.config.num_cross)
        return Candidates(
            item=self.ids(sent["item"]), category=self.ids(sent["category"]), cross=cross
        )

    def lookup(self) -> Any:
        """Return the tables as a server has them."""
        from models.serve.version import Version  # noqa: PLC0415  after publishing

        with tempfile.TemporaryDirectory() as folder:
            publish_state(folder, self.network, self.tables)
            return Version.open(folder, device=self.device).tables


def whole(case: Case, events: Events, asked: Candidates, batch: int, lookup: Any) -> torch.Tensor:
    """The whole network for each candidate, the history copied for each of a batch."""
    found = []
    for start in range(0, len(asked.item), batch):
        rows = slice(start, start + batch)
        count = len(asked.item[rows])
        copies = Batch(
            offsets=torch.arange(count + 1) * len(events),
            item=events.item.repeat(count),
            category=events.category.repeat(count),
            action=events.action.repeat(count),
            age_s=events.age_s.repeat(count),
            candidate_item=asked.item[rows],
            candidate_category=asked.category[rows],
            user=asked.item.new_full((count,), 5),
            cross=asked.cross[rows],
            label=torch.zeros(count, device=case.device),
        )
        with torch.no_grad():
            found.append(case.network(copies, lookup))
    return torch.cat(found)


def fastest_batch(case: Case, events: Events, lookup: Any, most: int) -> int:
    """Return how many candidates at once suit the whole network best."""
    asked, clock = case.candidates(most), clock_of(case.device)
    least = 1 if case.device.type == "cpu" else 64  # one at a time takes a GPU for ever
    sizes = [size for size in (1, 4, 16, 64, 256) if least <= size <= most]
    calls = {
        str(size): _synchronised(
            lambda size=size: whole(case, events, asked, size, lookup), case.device
        )
        for size in sizes
    }
    alternately(calls, 1, clock)
    taken = alternately(calls, 3, clock)
    return min(sizes, key=lambda size: min(taken[str(size)]))


def compute(name: str, device: torch.device, *, half: bool, repeats: int) -> dict[str, Any]:
    """Measure one configuration without HTTP."""
    config = CONFIGS[name]
    case = Case(config, device, half)
    lookup, events, user = case.lookup(), case.events(0), case.ids(5)
    cache = encode(case.network, user, events, lookup)
    # So many that a turn of it takes about a tenth of a second, on a core or on a GPU.
    most_whole = max(16, 32_768 // config.max_length) if device.type == "cpu" else 256
    batch = fastest_batch(case, events, lookup, most_whole)
    record: dict[str, Any] = {
        "events": config.max_length,
        "whole_batch": batch,
        "rows_per_candidate": config.num_cross + 1,
        "cache_bytes": cache.nbytes,
        "encode_flops": encode_flops(config, config.max_length),
        "score_flops": score_flops(config, config.max_length),
        "candidates": {},
    }
    for count in CANDIDATES:
        asked = case.candidates(count)
        some = min(count, most_whole)
        few = Candidates(
            item=asked.item[:some], category=asked.category[:some], cross=asked.cross[:some]
        )
        calls = {
            "whole": lambda few=few: whole(case, events, few, batch, lookup),
            "encode and score": lambda asked=asked: score(
                case.network, encode(case.network, user, events, lookup), asked, lookup
            ),
            "score": lambda asked=asked: score(case.network, cache, asked, lookup),
        }
        worst = (calls["whole"]() - calls["score"]()[:some]).abs().max()
        assert worst < (0.1 if half else 1e-4), f"scores differ by {worst}"
        taken = alternately(
            {key: _synchronised(call, device) for key, call in calls.items()},
            repeats,
            clock_of(device),
        )
        each = {
            "whole": [s / some for s in taken["whole"]],
            "encode and score": [s / count for s in taken["encode and score"]],
            "score": [s / count for s in taken["score"]],
        }
        row: dict[str, Any] = {
            key.replace(" ", "_") + "_per_s": round(1 / statistics.median(s), 1)
            for key, s in each.items()
        }
        row["whole_measured_on"] = some
        for key, predicted in (
            ("encode and score", speedup(config, config.max_length, count)),
            ("score", speedup(config, config.max_length, 10**12)),
        ):
            ratios = sorted(a / b for a, b in zip(each["whole"], each[key], strict=True))
            row[key.replace(" ", "_") + "_speedup"] = {
                "median": round(statistics.median(ratios), 2),
                "least": round(ratios[0], 2),
                "most": round(ratios[-1], 2),
                "predicted": round(predicted, 2),
            }
        record["candidates"][str(count)] = row
        print(f"{name:28} {count:5}", json.dumps(row), flush=True)
    return record


def _synchronised(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


# --- over HTTP ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server: its port and its process."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """Processor seconds that it has taken."""
        import psutil  # noqa: PLC0415  not needed without HTTP

        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def server(folder: str, *options: str) -> Iterator[Running]:
    """Run ``tandem serve``; end it afterwards."""
    command = [sys.executable, "-m", "tandem", "serve", folder, "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving"), line
        yield Running(port=int(line.rpartition(":")[2]), pid=process.pid)
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()


def bodies(case: Case, users: int, count: int, *, history: bool) -> list[bytes]:
    """Score requests for some users, ready to send."""
    made = []
    for user in range(users):
        sent, asked = case.columns(case.config.max_length, user), case.columns(count, user)
        body: dict[str, Any] = {
            "user": user,
            "request_time_s": REQUEST_TIME_S,
            "candidates": {name: asked[name] for name in ("item", "category", "cross")},
        }
        if history:
            body["history"] = {n: sent[n] for n in ("item", "category", "action", "time_s")}
        made.append(json.dumps(body).encode())
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn saw: seconds of each request, of all of it, of the server's processor."""

    taken: list[float]
    seconds: float
    cpu_s: float


def load(running: Running, requests: list[bytes], *, clients: int, seconds: float) -> Turn:
    """Send requests, each client one after another."""
    taken: list[float] = []
    failed: list[object] = []
    began, cpu = time.perf_counter(), running.cpu_s()
    until = began + seconds

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", running.port, timeout=30)
        while time.perf_counter() < until and not failed:
            number += clients
            sent = time.perf_counter()
            body = requests[number % len(requests)]
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/score", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            taken.append(time.perf_counter() - sent)
            if answer.status != 200:
                failed.append(text)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    assert not failed, failed
    whole = time.perf_counter() - began
    return Turn(taken=taken, seconds=whole, cpu_s=running.cpu_s() - cpu)


def over_http(name: str, *, seconds: float, turns: int) -> list[dict[str, Any]]:
    """Measure one configuration behind a loopback port."""
    case = Case(CONFIGS[name], torch.device("cpu"), half=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        publish_state(folder, case.network, case.tables)
        none = ("--cache-users", "0")
        with (
            server(folder) as warm,
            server(folder, "--max-batch", "1") as one_by_one,
            server(folder, *none) as cold,
            server(folder, "--max-batch", "1", *none) as cold_one_by_one,
        ):
            users = 32
            kept = bodies(case, users, 100, history=False)
            sent = bodies(case, users, 100, history=True)
            for running in (warm, one_by_one, cold, cold_one_by_one):
                once(running, sent)
            for clients in (1, 8):
                for what, requests, batched, alone in (
                    ("encoded before", kept, warm, one_by_one),
                    ("sent, never kept", sent, cold, cold_one_by_one),
                ):
                    servers = {"batches of 32": batched, "batches of 1": alone}
                    turns_of: dict[str, list[Turn]] = {key: [] for key in servers}
                    for _ in range(turns):
                        for key, running in servers.items():
                            turn = load(running, requests, clients=clients, seconds=seconds)
                            turns_of[key].append(turn)
                    row = {"config": name, "clients": clients, "history": what, "candidates": 100}
                    row["load_average"] = os.getloadavg()[0]
                    row |= {key: figures(made) for key, made in turns_of.items()}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    return rows


def once(running: Running, requests: list[bytes]) -> None:
    """Send each request once."""
    connection = HTTPConnection("127.0.0.1", running.port, timeout=30)
    for body in requests:
        connection.request("POST", "/v1/score", body, {"Content-Type": "application/json"})
        assert connection.getresponse().read()
    connection.close()


def figures(turns: list[Turn]) -> dict[str, Any]:
    """Return rates and percentiles of some turns."""
    rate = statistics.median(len(turn.taken) / turn.seconds for turn in turns)
    cpu_ms = statistics.median(1e3 * turn.cpu_s / len(turn.taken) for turn in turns)
    times = summary([one for turn in turns for one in turn.taken])
    return {
        "requests_per_s": round(rate, 1),
        "candidates_per_s": round(100 * rate),
        "server_cpu_ms_per_request": round(cpu_ms, 2),
    } | {key: None if value is None else round(value, 2) for key, value in times.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.json"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-http", action="store_true")
    parser.add_argument("--http-seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--configs", nargs="*", default=list(CONFIGS), choices=list(CONFIGS))
    args = parser.parse_args()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "device": device_name(device),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine()},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "clock": "wall" if cuda else "processor, one thread",
        "compute": {},
        "http": [],
    }
    for precision in ("float32", "bfloat16") if cuda else ("float32",):
        record["compute"][precision] = {
            name: compute(
                name,
                device,
                half=precision == "bfloat16",
                repeats=args.repeats,
            )
            for name in args.configs
        }
    if not cuda and not args.no_http and find_spec("fastapi") is not None:
        for name in ("tiny", "paper"):
            record["http"] += over_http(name, seconds=args.http_seconds, turns=3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
