"""The wheel holds the six rooms, the front door and nothing else.

It is built without isolation, so without a network, from a copy of what would be committed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOMS = ("executor", "models", "policies", "reports", "simulator", "traces")
BESIDE = ("LICENSE", "README.md", "pyproject.toml", "tandem.py")
# Folders that a build from the checkout would see, and must not pack.
NOT_PACKED = ("tests", "benchmarks", "docs", "examples", "scripts")


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    copy = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in BESIDE:
        shutil.copy(repo / name, copy / name)
    for name in (*ROOMS, *NOT_PACKED):
        if (repo / name).is_dir():
            shutil.copytree(repo / name, copy / name, ignore=skip)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", "."],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "out").iterdir()
    assert built.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def metadata_of(wheel: zipfile.ZipFile, name: str) -> bytes:
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(path)


def test_it_holds_every_source_file_and_no_other(wheel: zipfile.ZipFile, repo: Path) -> None:
    packed = {n for n in wheel.namelist() if ".dist-info/" not in n}
    wanted = {"tandem.py"}
    for room in ROOMS:
        wanted |= {p.relative_to(repo).as_posix() for p in (repo / room).rglob("*.py")}
        wanted.add(f"{room}/py.typed")
    templates = repo / "reports" / "templates"
    wanted |= {p.relative_to(repo).as_posix() for p in templates.glob("*") if p.is_file()}
    assert packed == wanted


def test_every_folder_of_a_room_is_a_package(repo: Path) -> None:
    # A folder without __init__.py would be left out of the wheel with all it holds.
    for room in ROOMS:
        for path in (repo / room).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path.parent.relative_to(repo)


def test_its_metadata_say_what_it_is(wheel: zipfile.ZipFile) -> None:
    metadata: Message = message_from_bytes(metadata_of(wheel, "METADATA"))
    assert metadata["Name"] == "tandem-lab"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "train",
        "serve",
        "gpu",
        "ray",
        "test",
        "dev",
    }
    required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert not any(r.startswith(("torch", "ray", "nvidia")) for r in required)
    assert b"Apache License" in metadata_of(wheel, "licenses/LICENSE")
    assert metadata_of(wheel, "top_level.txt").decode().split() == sorted([*ROOMS, "tandem"])


def test_it_offers_the_command(wheel: zipfile.ZipFile) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(metadata_of(wheel, "entry_points.txt").decode())
    assert entry_points["console_scripts"]["tandem"] == "tandem:main"
