"""``tandem serve``, and what ``tandem train`` is told about publishing.

One function call each: ``models.serve.server.serve``, ``models.serve.version.publish_state``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from models.errors import ModelError

if TYPE_CHECKING:
    from models.train.config import TrainConfig
    from models.train.step import State


def add_serve(subparsers: Any) -> None:
    """Register ``tandem serve``."""
    serve = subparsers.add_parser(
        "serve",
        help="answer over HTTP from published versions",
        description="Serve the newest version of DIR, and newer ones as they come. Histories are"
        " encoded once and candidates scored against them. SIGINT and SIGTERM end it when requests"
        " in flight are answered.",
    )
    serve.add_argument("folder", metavar="DIR", help="folder of versions (tandem train --publish)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="0: any that is free (8000)")
    serve.add_argument("--device", default="cpu", help="torch's name of it (cpu)")
    serve.add_argument("--threads", type=int, metavar="N", help="of the CPU (torch's choice)")
    serve.add_argument(
        "--poll",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="between looks at DIR; 0: only when asked (2)",
    )
    serve.add_argument(
        "--keep", type=int, default=2, metavar="N", help="versions that may be named (2)"
    )
    group = serve.add_argument_group("bounds")
    for option, default, unit, does in (
        ("--max-batch", 32, "N", "requests computed together"),
        ("--max-batch-candidates", 4096, "N", "and their candidates"),
        ("--max-waiting", 1024, "N", "requests in line; more are told to come again"),
        ("--max-candidates", 10_000, "N", "of one request"),
        ("--cache-mib", 256, "MIB", "of encoded users"),
        ("--cache-users", 100_000, "N", "encoded users"),
        ("--max-body-mib", 32, "MIB", "of one request"),
    ):
        group.add_argument(
            option, type=int, default=default, metavar=unit, help=f"{does} ({default})"
        )
    group.add_argument(
        "--max-wait-ms", type=float, default=1.0, metavar="MS", help="for company in a batch (1)"
    )
    serve.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    for module in ("torch", "fastapi", "uvicorn"):
        if find_spec(module) is None:
            raise ModelError(f"serving needs {module}", expected="pip install 'tandem-lab[serve]'")
    from models.device import threads, usable_device
    from models.serve.server import serve
    from models.serve.service import Settings

    def ready(url: str, version: int) -> None:
        print(f"serving version {version} of {args.folder} on {url}", flush=True)

    with threads(args.threads):
        serve(
            args.folder,
            host=args.host,
            port=args.port,
            device=usable_device(args.device),
            poll_s=args.poll,
            keep=args.keep,
            settings=Settings(
                max_batch=args.max_batch,
                max_batch_candidates=args.max_batch_candidates,
                max_wait_ms=args.max_wait_ms,
                max_waiting=args.max_waiting,
                max_candidates=args.max_candidates,
                cache_mib=args.cache_mib,
                cache_users=args.cache_users,
            ),
            max_body_bytes=args.max_body_mib * 2**20,
            on_ready=ready,
        )
    print("stopped")
    return 0


def add_publish_options(group: Any) -> None:
    """Add what ``tandem train`` is told about versions."""
    group.add_argument(
        "--publish", metavar="DIR", help="folder that gets the state at the end as a version"
    )
    group.add_argument(
        "--publish-every", type=int, default=0, metavar="STEPS", help="and on the way (0: no)"
    )
    group.add_argument(
        "--publish-keep", type=int, metavar="N", help="newest versions that stay (all)"
    )


def publisher(args: argparse.Namespace, config: TrainConfig) -> Callable[[State], None] | None:
    """Return what hands a run's state to the folder of versions; None without a folder.

    Raises ModelError for a network that cannot be served.
    """
    if args.publish is None:
        if args.publish_every or args.publish_keep is not None:
            raise ModelError(
                "says nothing by itself",
                where="publish_every, publish_keep",
                expected="--publish DIR beside it",
            )
        return None
    from models.serve.version import check_servable, publish_state
    from models.sparse.published import retire

    check_servable(config.network)  # now, and not after the training
    if args.publish_keep is not None and args.publish_keep < 1:
        raise ModelError(
            "no version would stay", where="publish_keep", value=args.publish_keep, expected="1"
        )

    def publish(state: State) -> None:
        publish_state(args.publish, state.network, state.tables)
        if args.publish_keep is not None:
            retire(args.publish, keep=args.publish_keep)

    return publish
