"""The registry of trace formats: a name, and the module that reads it, imported when needed.

The contract of a format module (``traces/formats/<module>.py``):

- ``OPTIONS: tuple[Option, ...]``: what a user may set; unknown options are refused before
  ``read`` is called and defaults are filled in, so ``read`` finds every declared name in
  ``options`` (texts; see :mod:`traces.formats.options`).
- ``sniff(head: Head) -> bool``: whether the file looks like one of this format; cheap, from its
  name, first lines or column names (``head.is_dir`` for formats that are directories).
- ``read(path: Path, options: Mapping[str, str]) -> Workload``: the file's jobs; its ``Source``
  carries path, format, sha256 of the decompressed bytes, origin, zone, repairs, notes and options
  (:meth:`traces.formats.raw.Raw.source`).
- for formats with inventories (``nodes=True``) also ``sniff_nodes(head) -> bool`` and
  ``read_nodes(path: Path) -> ClusterSpec``.

Nothing is dropped silently: rows that cannot be a job are set aside with a ``Repair``, and
whatever the publishers' peers clean away is an option whose default keeps it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from traces.errors import UsageError, did_you_mean
from traces.formats.options import Option
from traces.formats.raw import Head

if TYPE_CHECKING:
    from traces.cluster import ClusterSpec
    from traces.workload import Workload

__all__ = ["FORMATS", "Format", "Head", "Option", "find_format", "recognise", "recognise_nodes"]


class FormatModule(Protocol):
    """What a format's module offers (see the package's docstring)."""

    OPTIONS: tuple[Option, ...]

    def sniff(self, head: Head) -> bool:
        """Whether the file looks like one of this format."""

    def read(self, path: Path, options: Mapping[str, str]) -> Workload:
        """Read the file's jobs."""

    def sniff_nodes(self, head: Head) -> bool:
        """Whether the file looks like an inventory of this format."""

    def read_nodes(self, path: Path) -> ClusterSpec:
        """Read the file's machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One row of the registry. ``jobs`` and ``nodes`` say what the publisher gives."""

    name: str
    title: str
    module: str
    page: str
    jobs: bool = True
    nodes: bool = False

    def load(self) -> FormatModule:
        """Import the module."""
        return cast(FormatModule, importlib.import_module(self.module))


def _format(name: str, title: str, module: str, page: str, *, nodes: bool = False) -> Format:
    return Format(
        name=name,
        title=title,
        module=f"traces.formats.{module}",
        page=f"docs/traces/{page}.md",
        nodes=nodes,
    )


# The order is the order of recognition: publishers' exact shapes first, our own last.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _format("philly-log", "Microsoft Philly, cluster_job_log (JSON)", "philly_log", "philly"),
        _format("philly", "Microsoft Philly, flat CSV of the Sia artifact", "philly", "philly"),
        _format("helios", "SenseTime Helios, cluster_log.csv", "helios", "helios"),
        _format("acme", "Shanghai AI Lab Acme, Seren and Kalos job traces", "acme", "acme"),
        _format("pai", "Alibaba PAI 2020, job and task tables", "pai", "pai", nodes=True),
        _format("openb", "Alibaba openb 2023, pods", "openb", "openb", nodes=True),
        _format("spot-gpu", "Alibaba spot-GPU 2026, jobs", "spot", "spot-gpu", nodes=True),
        _format("dlrm", "Alibaba DLRM serving 2025, instances", "dlrm", "dlrm"),
        _format("gavel", "Gavel, .trace files", "gavel", "gavel"),
        _format("tiresias", "Tiresias, job CSV", "tiresias", "tiresias"),
        _format("easyscale", "EasyScale SC'23 workload", "easyscale", "easyscale"),
        _format("canonical", "canonical CSV or Parquet", "canonical", "canonical", nodes=True),
        _format("table", "any CSV or Parquet, with a column map", "column_map", "table"),
        _format("run", "a run directory of this lab", "run", "run"),
    )
}


def find_format(name: str) -> Format:
    """Return the format of that name; raises :class:`UsageError` with the nearest names."""
    if name not in FORMATS:
        raise UsageError(f"format {name!r} is not known; {did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def recognise(head: Head) -> Format | None:
    """Return the first format whose jobs the file looks like, or None."""
    return next((f for f in FORMATS.values() if f.jobs and f.load().sniff(head)), None)


def recognise_nodes(head: Head) -> Format | None:
    """Return the first format whose inventory the file looks like, or None."""
    return next((f for f in FORMATS.values() if f.nodes and f.load().sniff_nodes(head)), None)
