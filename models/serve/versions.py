"""The versions a server holds: the newest that can be used, a few before it, and how it changes.

A new version is opened and checked beside the one that serves, and then takes its place in one
assignment; requests hold the version they began with, so a swap touches none of them. Versions that
cannot be used are remembered with the reason, and the one that serves goes on. Numbers only rise:
a folder whose newest number falls changes nothing. To go back, publish the older state again.

The folder is looked at every so many seconds by a thread, or when asked. Leaves out: loading a
version that is neither the newest nor held already; a client could fill the memory by naming old
ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from models.errors import ModelError
from models.serve.refusal import UnknownVersion
from models.serve.version import Version
from models.sparse.published import MANIFEST, path_of, versions

Opener = Callable[[int], Version]
_Made = tuple[int, int]  # inode and time of a manifest: tells whether a folder was made anew
_NOT_THERE: _Made = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A version that cannot be used, and why."""

    version: int
    problem: str


class Versions:
    """The versions of a folder that are served, on a device.

    ``keep``: how many are held, the newest among them. ``changed`` is called, by the thread that
    loaded, with the numbers that are held after each change. Raises ModelError if no version of the
    folder can be used: the newest one's problem.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        device: torch.device | str = "cpu",
        changed: Callable[[set[int]], None] | None = None,
    ) -> None:
        if keep < 1:
            raise ModelError(
                "no version would be held", where="keep", value=keep, expected="1 or more"
            )
        self.folder = Path(folder)
        self.keep = keep
        self.device = torch.device(device)
        self.changed = changed
        self._held: tuple[Version, ...] = ()  # newest first; replaced, never changed
        self._failed: dict[int, tuple[_Made, ModelError]] = {}
        self._loading = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        if not self.reload():
            self._nothing_to_serve()

    def _nothing_to_serve(self) -> None:
        if not self._failed:
            Version.open(self.folder)  # says what is wrong with the folder
        raise self._failed[max(self._failed)][1]

    @property
    def current(self) -> Version:
        """The version of requests that name none."""
        return self._held[0]

    @property
    def held(self) -> tuple[Version, ...]:
        """All versions that may be named, newest first."""
        return self._held

    @property
    def failures(self) -> list[Failure]:
        """Versions that could not be used, by number."""
        failed = sorted(self._failed.items())
        return [Failure(version=number, problem=str(error)) for number, (_, error) in failed]

    def named(self, number: int | None) -> Version:
        """Return a version by number, or the current one. Raises UnknownVersion."""
        held = self._held
        if number is None:
            return held[0]
        for version in held:
            if version.number == number:
                return version
        raise UnknownVersion(
            "unknown version",
            where="version",
            value=number,
            expected="one of " + ", ".join(str(version.number) for version in held),
        )

    def reload(self, *, again: bool = True) -> bool:
        """Take up the newest version that can be used, if it is newer; whether one was.

        ``again``: try versions that failed before, too; otherwise only if they were made anew.
        Raises ModelError if the folder cannot be read; what is held stays.
        """
        with self._loading:
            newest = self._held[0].number if self._held else 0
            on_disk = versions(self.folder)
            self._failed = {n: why for n, why in self._failed.items() if n in on_disk}
            for number in reversed([n for n in on_disk if n > newest]):
                made = _made(self.folder, number)
                if not again and self._failed.get(number, (None,))[0] == made:
                    continue
                try:
                    version = Version.open(self.folder, number, device=self.device)
                except ModelError as error:
                    self._failed[number] = (made, error)
                    continue
                except Exception as error:  # noqa: BLE001  no version may end who looks for them
                    text = (str(error) or type(error).__name__).splitlines()[0]
                    problem = ModelError(
                        f"cannot be loaded: {text}", where=path_of(self.folder, number)
                    )
                    self._failed[number] = (made, problem)
                    continue
                self._failed.pop(number, None)
                self._held = (version, *self._held)[: self.keep]
                if self.changed is not None:
                    self.changed({version.number for version in self._held})
                return True
            return False

    def watch(self, every_s: float) -> None:
        """Look for a newer version every so many seconds, in a thread, until ``close``."""
        if not every_s > 0:
            raise ModelError(
                "no time between looks", where="poll_s", value=every_s, expected="more than 0"
            )
        assert self._watcher is None
        self._watcher = threading.Thread(
            target=self._look, args=(every_s,), name="versions", daemon=True
        )
        self._watcher.start()

    def _look(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            with suppress(ModelError):  # the folder may be there again at the next look
                self.reload(again=False)

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()


def _made(folder: Path, number: int) -> _Made:
    try:
        found = (path_of(folder, number) / MANIFEST).stat()
    except OSError:
        return _NOT_THERE
    return (found.st_ino, found.st_mtime_ns)
