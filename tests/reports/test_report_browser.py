"""The report in a real browser: headless Chromium, with JavaScript and without."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTH, HEIGHT = 1000, 2400


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("needs chromium or google-chrome on PATH, and there is none")


def _browse(chromium: str, folder: Path, page: Path, *options: str) -> str:
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def _screenshot(chromium: str, folder: Path, page: Path) -> Any:
    from matplotlib.image import imread

    shot = folder / "shot.png"
    _browse(chromium, folder, page, f"--screenshot={shot}", f"--window-size={WIDTH},{HEIGHT}")
    return imread(shot)


def _without_scripts(folder: Path, page: Path) -> Path:
    """A page that shows ``page`` in a frame in which no script may run."""
    frame = folder / "frame.html"
    frame.write_text(
        "<!DOCTYPE html><title>frame</title><style>body{margin:0}iframe{border:0;display:block}"
        f'</style><iframe sandbox src="{page.as_uri()}" width="{WIDTH}" height="{HEIGHT}">'
        "</iframe>",
        encoding="utf-8",
    )
    return frame


@pytest.mark.timeout(240)
def test_text_and_figures_are_there(chromium: str, one_report: Path, tmp_path: Path) -> None:
    dom = _browse(chromium, tmp_path, one_report, "--dump-dom")
    assert "<title>Run list-scheduled</title>" in dom
    for words in ("mean JCT", "What the metrics mean", "Jobs served worst"):
        assert words in dom
    assert dom.count("<svg") >= 10
    assert dom.count("<path") > 100


@pytest.mark.timeout(240)
def test_it_looks_the_same_without_javascript(
    chromium: str, one_report: Path, tmp_path: Path
) -> None:
    seen = _screenshot(chromium, tmp_path, one_report)
    assert seen.shape[:2] == (HEIGHT, WIDTH)
    assert len(np.unique(seen.reshape(-1, seen.shape[2]), axis=0)) > 50  # not one flat colour
    inked = (seen[..., :3].min(axis=2) < 0.5).mean(axis=1)
    assert (inked > 0).mean() > 0.3  # text or drawing all the way down
    bare = _screenshot(chromium, tmp_path, _without_scripts(tmp_path, one_report))
    assert (np.abs(bare - seen).max(axis=2) > 0.1).mean() < 0.001
