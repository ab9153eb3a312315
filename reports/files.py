"""A file is written whole or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TextIO

from traces.errors import UsageError


@contextmanager
def writing(out: Path, *, compressed: bool = False) -> Iterator[TextIO]:
    """Give a text file to write that becomes ``out`` when the block ends without an exception.

    ``compressed`` writes gzip without a time in its header, so equal content is equal bytes.
    Raises :class:`traces.errors.UsageError` when ``out`` cannot be written.
    """
    if out.is_dir():
        raise UsageError(f"--out {out}: is a directory; name a file")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as raw:
                if compressed:
                    with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed, _text(packed) as file:
                        yield file
                else:
                    with _text(raw) as file:
                        yield file
            temporary.replace(out)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--out {out}: cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _text(raw: IO[bytes] | gzip.GzipFile) -> TextIO:
    return TextIOWrapper(raw, encoding="utf-8", newline="\n")
