"""Download public traces from their publishers: resumed, verified, and put in place at the end.

A download goes to ``<name>.part`` and is renamed only when it is whole and its checksum is right,
so a file of the right name is a good file. What is interrupted is taken up again where it stopped
(HTTP ``Range``, with ``If-Range`` so that a file changed in between starts anew). Addresses and
checksums stand in :mod:`traces.publishers`. Standard library only.

Left out: mirrors, parallel connections, proxies with passwords, unpacking of archives.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from traces.errors import DataError, UsageError
from traces.publishers import RemoteFile, find_publication

_BLOCK = 1 << 18
_LFS_POINTER = b"version https://git-lfs"
_RETRIED = (429, 500, 502, 503, 504)


class Progress(Protocol):
    """Told after every block how many bytes of a file are here, and how many there are if known."""

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Take note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """One file in place: ``verdict`` says in words what its checksum was compared with."""

    path: Path
    size: int
    sha256: str
    verdict: str
    resumed_from: int = 0
    was_there: bool = False


class _InterruptedError(Exception):
    """The connection ended early, or the server asks to come back: worth another attempt."""


def fetch(
    name: str,
    directory: Path | str,
    *,
    force: bool = False,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
) -> list[Fetched]:
    """Download all files of the publication ``name`` into ``directory``, which is made.

    Raises :class:`UsageError` for an unknown name, :class:`DataError` for what cannot be had.
    """
    publication = find_publication(name)
    return [
        download(file, directory, force=force, progress=progress, timeout_s=timeout_s)
        for file in publication.files
    ]


def download(
    file: RemoteFile,
    directory: Path | str,
    *,
    force: bool = False,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
    attempts: int = 4,
    pause: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download one file; a file already there with the right checksum is left alone.

    ``timeout_s`` is how long the server may be silent; ``attempts`` connections are tried, with
    pauses of 1, 2, 4... seconds. ``force`` replaces a file that is there. Raises
    :class:`DataError` when the server refuses, the size or the publisher's checksum is not right,
    or a file of that name is there and is another; what was there before is then still there.
    """
    if urllib.parse.urlsplit(file.url).scheme not in ("http", "https"):
        raise UsageError(f"address {file.url!r}: expected http:// or https://")
    target = Path(directory) / file.name
    if target.is_dir():
        raise DataError("a directory has the name of the download", file=target)
    if target.exists() and not force:
        return _already_there(file, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    resumed_from = part.stat().st_size if part.exists() else 0
    for attempt in range(1, attempts + 1):
        try:
            kept = _transfer(file, part, progress, timeout_s)
            resumed_from = min(resumed_from, kept) if attempt == 1 else resumed_from
            break
        except _InterruptedError as reason:
            if attempt == attempts:
                kept = part.stat().st_size if part.exists() else 0
                raise DataError(
                    f"download stopped after {kept} bytes, {attempts} attempts: {reason}; the same"
                    " command takes it up from there",
                    file=file.url,
                ) from reason
            pause(float(2 ** (attempt - 1)))
    return _put_in_place(file, part, target, resumed_from)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _already_there(file: RemoteFile, target: Path) -> Fetched:
    digest = sha256_of(target)
    size = target.stat().st_size
    if file.sha256_by == "publisher" and digest != file.sha256:
        raise DataError(
            f"is there already and is not the publisher's file (sha256 {digest[:12]}...)",
            file=target,
            expected=f"sha256 {file.sha256[:12]}...; --force downloads it again",
        )
    verdict = _verdict(file, digest)
    return Fetched(path=target, size=size, sha256=digest, verdict=verdict, was_there=True)


def _put_in_place(file: RemoteFile, part: Path, target: Path, resumed_from: int) -> Fetched:
    size = part.stat().st_size
    with part.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            _forget(part)
            raise DataError(
                "the server sent a Git LFS pointer instead of the file (its LFS quota may be used"
                " up); try again later",
                file=file.url,
            )
    digest = sha256_of(part)
    if file.sha256_by == "publisher" and digest != file.sha256:
        _forget(part)
        raise DataError(
            f"checksum is not the publisher's ({size} bytes, sha256 {digest}); the download was"
            " discarded",
            file=file.url,
            expected=f"sha256 {file.sha256}",
        )
    part.replace(target)
    _validator_file(part).unlink(missing_ok=True)
    return Fetched(
        path=target,
        size=size,
        sha256=digest,
        verdict=_verdict(file, digest),
        resumed_from=resumed_from,
    )


def _verdict(file: RemoteFile, digest: str) -> str:
    if not file.sha256:
        return "no published checksum"
    if digest == file.sha256:
        whose = "the publisher's" if file.sha256_by == "publisher" else "our tested copy's"
        return f"checksum is {whose}"
    return "no published checksum; differs from our tested copy: the publisher may have changed it"


def _transfer(file: RemoteFile, part: Path, progress: Progress | None, timeout_s: float) -> int:
    """Bring ``part`` to its full length; returns how many bytes of it were kept."""
    validator = _read_validator(part, file.url)
    start = part.stat().st_size if part.exists() else 0
    if start and not validator and file.sha256_by != "publisher":
        start = 0  # Nothing could tell whether the rest belongs to this beginning.
    headers = {"User-Agent": "tandem-lab", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    # The scheme was checked: http or https only.
    request = urllib.request.Request(file.url, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return _receive(file, part, answer, start, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:
                return _range_refused(error, part, start)
            raise _refusal(file, error) from error
    except urllib.error.URLError as error:
        raise _InterruptedError(f"no connection: {error.reason}") from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _InterruptedError(str(error) or type(error).__name__) from error


def _receive(
    file: RemoteFile,
    part: Path,
    answer: http.client.HTTPResponse,
    start: int,
    progress: Progress | None,
) -> int:
    if answer.status == 206:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _forget(part)
            raise _InterruptedError("the server sent another range than was asked for")
    else:
        start = 0
    length = answer.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else None
    if file.size is not None and total is not None and total != file.size:
        raise DataError(
            f"the server offers {total} bytes", file=file.url, expected=f"{file.size} bytes"
        )
    etag = answer.headers.get("ETag", "")
    weak = etag.startswith("W/")
    validator = etag if etag and not weak else answer.headers.get("Last-Modified", "")
    _validator_file(part).write_text(json.dumps({"url": file.url, "validator": validator}))
    done = start
    with part.open("ab" if start else "wb") as sink:
        while block := answer.read(_BLOCK):
            sink.write(block)
            done += len(block)
            if progress is not None:
                progress(file.name, done, total)
        sink.flush()
        os.fsync(sink.fileno())
    wanted = total if total is not None else file.size
    if wanted is not None and done < wanted:
        raise _InterruptedError(f"the connection ended after {done} of {wanted} bytes")
    if wanted is not None and done > wanted:
        _forget(part)
        raise DataError(f"the server sent {done} bytes", file=file.url, expected=f"{wanted} bytes")
    return start


def _range_refused(error: urllib.error.HTTPError, part: Path, start: int) -> int:
    """Judge a 416: the part is the whole file already, or it must start anew."""
    if error.headers.get("Content-Range", "") == f"bytes */{start}":
        return start
    _forget(part)
    raise _InterruptedError("the file there is shorter than what was downloaded before")


def _refusal(file: RemoteFile, error: urllib.error.HTTPError) -> Exception:
    if error.code in _RETRIED:
        return _InterruptedError(f"the server answers {error.code} {error.reason}")
    hints = {
        401: "it wants a login",
        403: "it refuses; GitHub does so when a repository's Git LFS quota is used up",
        404: "it has no such file; the publisher may have moved it",
        410: "the publisher has removed it",
    }
    hint = hints.get(error.code, str(error.reason))
    return DataError(f"the server answers {error.code}: {hint}", file=file.url)


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_validator(part: Path, url: str) -> str:
    try:
        found = json.loads(_validator_file(part).read_text())
    except (OSError, ValueError):
        return ""
    if not isinstance(found, dict) or found.get("url") != url:
        return ""
    return str(found.get("validator", ""))


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)
