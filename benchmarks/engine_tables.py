"""The tables of ``docs/executor/benchmarks.md``, written anew from what ``engine.py`` measured.

    python benchmarks/engine_tables.py

Each table of the page stands between ``<!-- NAME -->`` and ``<!-- end -->``; a table whose part was
not measured stays as it is. Text around them has no numbers of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "executor" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = {"": RESULTS / "engine.json", "gpu ": RESULTS / "engine-nvidia-h100.json"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(found: dict[str, Any]) -> str:
    """A ratio and its quartiles."""
    low, high = found["quartiles"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def data_parallel(part: dict[str, Any]) -> str:
    """Sides by processes and batch."""
    rows = [
        ("D1 over D0", "D1_over_D0"),
        ("D1 over stock", "D1_over_stock"),
        ("D0 over stock", "D0_over_stock"),
        ("D1 over D0, wall time", "D1_over_D0_wall"),
    ]
    cells = [[said, *(spread(c[key]) for c in part.values())] for said, key in rows]
    step = ["a step of stock, ms", *(f"{1e3 * c['stock_step_s']:.0f}" for c in part.values())]
    return table(["", *part], [*cells, step])


def switch(part: dict[str, Any]) -> str:
    """Switches by batch."""
    rows = [
        [
            "one switch, of a micro-batch",
            *(f"{100 * c['switch_over_micro_batch']:.1f} %" for c in part.values()),
        ]
    ]
    for workers in (1, 4):
        key = f"{workers} workers over plain"
        said = f"{workers} logical worker{'s' * (workers > 1)} over a plain loop"
        rows.append([said, *(spread(c[key]) for c in part.values())])
    micro = (f"{1e3 * c['micro_batch_s']:.0f}" for c in part.values())
    return table(["", *part], [*rows, ["a micro-batch, ms", *micro]])


def memory(part: dict[str, Any]) -> str:
    """Memory over one logical worker, and the floors."""
    many = [n for n in next(iter(part.values()))["over_one"] if n != "1"]
    rows = []
    for name, found in part.items():
        size = f"{found['mib']['1']:.0f} MiB, {found['gradient_mib']:.1f} of them gradient"
        rows.append([f"{name} ({size})", *(f"{found['over_one'][n]:.2f}" for n in many)])
        floors = (found["floor_over_one"][n] for n in many)
        rows.append(["floor", *(f"{low:.2f} or {high:.2f}" for low, high in floors)])
    return table(["logical workers", *many], rows)


def changes(parts: dict[str, Any]) -> str:
    """Seconds of rescales and recoveries."""
    tiny, large = parts["tiny"]["results"], parts["large"]["results"]
    rows = [["a step", f"{tiny['step_s']:.2g}", f"{large['step_s']:.2g}"]]
    for said, key in (
        ("from the command to the first step on two devices", "grow_s"),
        ("of them, training stood", "grow_pause_s"),
        ("from two devices to one", "shrink_s"),
        ("from a kill to the first step after it", "recovery_s"),
    ):
        rows.append([said, *(f"{found[key]['median']:.2g}" for found in (tiny, large))])
    rows.append(
        ["training stood, over the time of the wire", "", f"{large['pause_over_wire']:.2g}"]
    )
    return table(["", "`tiny` LONGER", f"{large['state_mib']:.0f} MiB of state"], rows)


def reduction(part: dict[str, Any]) -> str:
    """Bytes sent over a ring by worker map."""
    by_ratio: dict[str, list[str]] = {}
    for where, found in part["per_gradient_byte"].items():
        by_ratio.setdefault(f"{found['ratio']:.2g}", []).append(where)
    cells = sorted(by_ratio.items())
    return table(
        ["ranks on devices", *(", ".join(where) for _, where in cells)],
        [["over a ring", *(ratio for ratio, _ in cells)]],
    )


def tables(part: dict[str, Any]) -> str:
    """Sharded tables over whole ones."""
    sides = [(n, kind) for n in part for kind in ("mirrored", "single")]
    head = [f"{n} devices, {'mirrors' if kind == 'mirrored' else 'none'}" for n, kind in sides]
    rows = [
        [said, *(f"{part[n][key][kind]:.2f}" for n, kind in sides)]
        for said, key in (
            ("rows on the fullest device", "rows_over_whole"),
            ("bytes sent", "bytes_over_whole"),
        )
    ]
    times = (spread(part[n]["time"][kind]["processor_over_whole"]) for n, kind in sides)
    return table(["", *head], [*rows, ["processor time of a step, all devices", *times]])


def machine(record: dict[str, Any]) -> str:
    """Where and how busy."""
    of, loads = record["machine"], [load for p in record["parts"].values() for load in p["load"]]
    on = f"{of['cores']} cores of {of['architecture']} ({of['cpu_capability']})"
    on = f"one {of['gpu']}, {on}" if "gpu" in of else on
    return f"Measured on {on}, torch {of['torch']}, load {min(loads):.0f} to {max(loads):.0f}."


def texts(record: dict[str, Any]) -> dict[str, str]:
    """The tables of one file by name."""
    parts = record["parts"]
    found = {"machine": machine(record)}
    for make in (data_parallel, switch, memory, reduction, tables):
        if make.__name__ in parts:
            found[make.__name__] = make(parts[make.__name__]["results"])
    if {"tiny", "large"} <= parts.keys():
        found["changes"] = changes(parts)
    return found


def main() -> None:
    """Write the page's tables."""
    page = PAGE.read_text(encoding="utf-8")
    for prefix, path in MEASURED.items():
        for name, text in texts(json.loads(path.read_text(encoding="utf-8"))).items():
            pattern = re.compile(rf"(<!-- {prefix}{name} -->\n).*?(<!-- end -->)", re.DOTALL)
            page, put = pattern.subn(lambda found, t=text: f"{found[1]}{t}\n{found[2]}", page)  # type: ignore[misc]
            if not put and not prefix:
                raise SystemExit(f"{PAGE.name} has no place for {name}")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
