"""The two commands of the README, and the pinned versions they install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SCRIPTS = ("scripts/demo", "scripts/env", "scripts/test", "scripts/test-slow", ".ci/run")


def pins(repo: Path) -> dict[str, str]:
    """Name to version of ``constraints.txt``; fails on a line that is no plain pin."""
    found: dict[str, str] = {}
    for line in (repo / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line)
            assert match, f"constraints.txt: {line!r} is not NAME==VERSION"
            found[canonicalize_name(match[1])] = match[2]
    return found


def declared(repo: Path, *extras: str) -> list[Requirement]:
    """What ``pyproject.toml`` asks for, with these extras."""
    with (repo / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    asked = [Requirement(text) for text in texts]
    return [r for r in asked if canonicalize_name(r.name) != "tandem-lab"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_sound(repo: Path, script: str) -> None:
    path = repo / script
    assert os.access(path, os.X_OK)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_readme_names_both_commands(repo: Path) -> None:
    readme = (repo / "README.md").read_text(encoding="utf-8")
    assert "./scripts/demo" in readme
    assert "./scripts/test" in readme


def test_ci_runs_the_command_of_the_readme(repo: Path) -> None:
    assert (repo / ".ci" / "run").read_text(encoding="utf-8").endswith("\nexec ./scripts/test\n")


def test_a_machine_without_a_python_is_told_so(repo: Path, tmp_path: Path) -> None:
    # A copy of the scripts alone, on a PATH where every Python is too old.
    (tmp_path / "bin").mkdir()
    (tmp_path / "scripts").mkdir()
    for name in ("env", "test"):
        copy = tmp_path / "scripts" / name
        copy.write_bytes((repo / "scripts" / name).read_bytes())
        copy.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((repo / name).read_bytes())
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        old = tmp_path / "bin" / name
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
    done = subprocess.run(
        [str(tmp_path / "scripts" / "test")],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_every_declared_dependency_is_pinned_within_its_range(repo: Path) -> None:
    pinned = pins(repo)
    assert pinned["torch"] == "2.13.0"
    for requirement in declared(repo, "train", "serve", "test", "dev"):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt: {name} is missing"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} is not {pinned[name]}"


def test_every_transitive_dependency_is_pinned(repo: Path) -> None:
    pinned = pins(repo)
    todo = declared(repo, "train", "serve", "test", "dev")
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in ("", *requirement.extras)
        )
        if name in seen or not wanted:
            continue
        seen.add(name)
        assert name in pinned, f"constraints.txt: {name} is missing"
        for text in metadata.requires(name) or []:
            below = Requirement(text)
            if below.marker is None or any(
                below.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                below.marker = None
                todo.append(below)
    if sys.version_info[:2] == (3, 11):  # other versions need a few less
        assert not set(pinned) - seen
