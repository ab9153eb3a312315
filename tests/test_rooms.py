"""The table of rooms: who may import whom, read from the source of every file.

Imports inside functions, under ``TYPE_CHECKING``, relative ones and module names in strings (lazy
exports, registries, ``import_module``) count like any other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MAY_IMPORT: dict[str, set[str]] = {
    "traces": set(),
    "policies": {"traces"},
    "simulator": {"policies", "traces"},
    "models": set(),
    "executor": {"policies", "traces", "models"},
    "reports": {"traces"},
}
ROOMS = set(MAY_IMPORT)
SIMULATING = ("policies", "reports", "simulator", "traces")
OURS = ROOMS | {"tandem", "tests", "benchmarks", "examples"}
_MODULE_NAME = re.compile(r"^(\w+(?:\.\w+)+)(?::\w+)?$")


def imported(source: str, package: str, root: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) of everything ``source`` imports or names as our module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package.split(".")[: 1 - node.level or None]
                module = ".".join([*base, node.module or ""]).strip(".")
                yield node.lineno, module
                if not base:
                    for alias in node.names:
                        yield node.lineno, alias.name
            else:
                yield node.lineno, node.module or ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = _MODULE_NAME.match(node.value)
            if match and match[1].split(".")[0] in OURS and _is_module(root, match[1]):
                yield node.lineno, match[1]


def _is_module(root: Path, name: str) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def python_files(root: Path) -> list[tuple[str, Path]]:
    """Return (room, file) of every Python file of the six rooms."""
    return [(room, p) for room in sorted(ROOMS) for p in sorted((root / room).rglob("*.py"))]


def violations(root: Path) -> list[str]:
    """Return ``file:line: room imports module`` for every import against the table."""
    found = []
    for room, path in python_files(root):
        package = ".".join(path.relative_to(root).parent.parts)
        for line, module in imported(path.read_text(encoding="utf-8"), package, root):
            top = module.split(".")[0]
            if top in OURS and top != room and top not in MAY_IMPORT[room]:
                found.append(f"{path.relative_to(root)}:{line}: {room} imports {module}")
    return found


def test_no_room_imports_against_the_table(repo: Path) -> None:
    assert {room for room, _ in python_files(repo)} == ROOMS
    assert violations(repo) == []


@pytest.mark.parametrize(
    ("room", "source", "module"),
    [
        ("traces", "import policies\n", "policies"),
        ("policies", "from simulator.clock import Clock\n", "simulator.clock"),
        ("simulator", "def f():\n    import executor.lanes\n", "executor.lanes"),
        (
            "executor",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from simulator import X\n",
            "simulator",
        ),
        (
            "reports",
            "import importlib\nimportlib.import_module('policies.plan')\n",
            "policies.plan",
        ),
        ("models", "_WHERE = {'Job': 'traces.job'}\n", "traces.job"),
        ("simulator", "_RUN = 'reports.metrics:metrics'\n", "reports.metrics"),
        ("traces", "from tandem import main\n", "tandem"),
        ("reports", "from tests.reports import runs\n", "tests.reports"),
        ("policies", "from .. import simulator\n", "simulator"),
    ],
)
def test_the_reader_sees_a_violation(tmp_path: Path, room: str, source: str, module: str) -> None:
    for name in ("policies/plan.py", "traces/job.py", "reports/metrics.py"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text("")
    offender = tmp_path / room / "inner" / "offender.py"
    if source.startswith("from .."):
        offender = tmp_path / room / "offender.py"
    offender.parent.mkdir(parents=True, exist_ok=True)
    offender.write_text(source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{offender.relative_to(tmp_path)}:")
    assert found[0].endswith(f": {room} imports {module}")


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("executor", "import policies, traces.job\nfrom models import longer\n"),
        ("simulator", "from policies.plan import Plan\nfrom simulator import x\nfrom . import y\n"),
        ("policies", '"""Never imports simulator.x."""\nname = "traces.job"\n'),
        ("traces", 'PATH = "reports.html"\nimport json, simpy\n'),
    ],
)
def test_the_reader_passes_what_the_table_allows(tmp_path: Path, room: str, source: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "fine.py").write_text(source)
    assert violations(tmp_path) == []


def test_the_simulating_side_never_names_torch(repo: Path) -> None:
    for room, path in python_files(repo):
        if room not in SIMULATING:
            continue
        for line, module in imported(path.read_text(encoding="utf-8"), room, repo):
            assert module.split(".")[0] != "torch", f"{path.relative_to(repo)}:{line}"


def test_the_simulating_side_never_loads_torch(repo: Path) -> None:
    modules = [
        ".".join(path.relative_to(repo).with_suffix("").parts).removesuffix(".__init__")
        for room, path in python_files(repo)
        if room in SIMULATING
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'models', 'executor') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
