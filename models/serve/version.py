"""A version that can be served: the network and the tables of one training step, checked.

``publish_state`` hands the state that training has to the folder of versions, dense and sparse side
together (``models.sparse.published``), and says beside it what network it is. ``Version.open``
builds that network again and fills it. A version whose parts do not fit each other, or whose scores
are not finite, is refused before anybody is served by it.

Only LONGER is served, and the plain Transformer, which is LONGER that merges nothing; the other
baselines have no cache. Leaves out: weights quantised for serving; what is
served is what was trained, in the precision in which it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from models.config import LongerConfig
from models.errors import ModelError
from models.longer.execution import Execution
from models.longer.kvcache import Events, encode
from models.longer.network import Longer
from models.longer.scoring import Candidates, score
from models.sparse.published import Published, ServingTables, path_of, publish
from models.sparse.tableset import TableSet

SERVABLE = ("longer", "transformer")
_NETWORK = "longer"  # what the plain Transformer is, too: LONGER that merges nothing


def check_servable(network: str) -> None:
    """Raise ModelError unless networks of this name can be served."""
    if network not in SERVABLE:
        _refuse_network(network)


def _refuse_network(network: str) -> NoReturn:
    raise ModelError(
        "has no cache and cannot be served",
        where="network",
        value=network,
        expected=" or ".join(SERVABLE),
    )


def publish_state(folder: str | Path, network: nn.Module, tables: TableSet) -> int:
    """Publish a network and its tables, of one step, as the next version; return its number.

    Raises ModelError for a network that is not servable, and as
    ``models.sparse.published.publish``; the versions are then as they were.
    """
    if not isinstance(network, Longer):
        _refuse_network(type(network).__name__)
    return publish(folder, network.state_dict(), tables, about=_about(network))


def _about(network: Longer) -> dict[str, Any]:
    return {
        "network": _NETWORK,
        "model": asdict(network.config),
        "half": sorted(network.execution.half),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version in memory, ready to score on a device."""

    number: int
    step: int
    network: Longer
    tables: ServingTables

    @property
    def config(self) -> LongerConfig:
        """The network's shape."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Where the network and the tables are."""
        return self.network.globals.cls.device

    @staticmethod
    def open(
        folder: str | Path,
        number: int | Literal["latest"] = "latest",
        *,
        device: torch.device | str = "cpu",
    ) -> Version:
        """Open and check a version.

        Raises ModelError if it is unknown, cut short, damaged or of another schema, if it does not
        say what network it is, if tensors or tables do not fit that network, or if a score is not
        finite.
        """
        published = Published.open(folder, number)
        where = path_of(folder, published.version)
        config, execution = _network_of(published.about, where)
        network = _filled(config, execution, published.dense, where)
        _check_tables(published.tables.dims, config, where)
        version = Version(
            number=published.version,
            step=published.step,
            network=network.to(device).eval(),
            tables=published.tables.to(device),
        )
        _check_scores(version, where)
        return version


def _network_of(about: Any, where: Path) -> tuple[LongerConfig, Execution]:
    """Return what the manifest says the network is."""
    named = isinstance(about, dict) and about.get("network") == _NETWORK
    if not named or not isinstance(about.get("model"), dict):
        raise ModelError(
            "does not say what network it is",
            where=where,
            value=about,
            expected="a version that `tandem train --publish` made",
        )
    model, known = about["model"], {f.name for f in fields(LongerConfig)}
    unknown = sorted(set(model) - known)
    if unknown:
        raise ModelError(
            "a setting of the network is unknown",
            where=where,
            value=unknown[0],
            expected="a version made by this release",
        )
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items()}
    return LongerConfig(**settings), Execution(half=frozenset(about.get("half", ())))


def _filled(
    config: LongerConfig, execution: Execution, dense: Mapping[str, Tensor], where: Path
) -> Longer:
    """Return the network with these tensors, in their precision."""
    network = Longer(config, execution=execution)
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | dense.keys()):
        if name not in dense or name not in wanted or dense[name].shape != wanted[name].shape:
            raise ModelError(
                "the tensors of another network",
                where=f"{where}, {name}",
                value=tuple(dense[name].shape) if name in dense else "no such tensor",
                expected=str(tuple(wanted[name].shape)) if name in wanted else "no such tensor",
            )
    dtype = dense["globals.cls"].dtype
    if dtype not in {torch.float32, torch.float64}:
        raise ModelError(
            "parameters of a precision that is not served",
            where=where,
            value=str(dtype),
            expected="float32 (parts of the network may compute in bfloat16) or float64",
        )
    network.to(dtype).load_state_dict(dict(dense))
    return network


def _check_tables(dims: Mapping[str, int], config: LongerConfig, where: Path) -> None:
    for table in ("item", "category", "user", "cross"):
        wanted = getattr(config, f"{table}_dim")
        if dims.get(table) != wanted:
            raise ModelError(
                "a table does not fit the network",
                where=f"{where}, table {table!r}",
                value=dims.get(table, "no such table"),
                expected=f"rows of {wanted}",
            )


def _check_scores(version: Version, where: Path) -> None:
    """Score one candidate for a user with a full group of events: also warms the kernels up."""
    config, device = version.config, version.device
    ids = torch.zeros(min(config.merge, config.max_length), dtype=torch.int64, device=device)
    events = Events(item=ids, category=ids, action=ids, age_s=ids.double())
    one = ids[:1]
    cross = one.new_zeros((1, config.num_cross))
    cache = encode(version.network, one[0], events, version.tables)
    candidates = Candidates(item=one, category=one, cross=cross)
    logit = score(version.network, cache, candidates, version.tables)
    if not bool(torch.isfinite(logit).all()):
        raise ModelError("gives scores that are not finite", where=where, value=logit.item())
