"""fastdiff ui: the page, served on this machine."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

PORT = 7860
REMEDY = "the page needs starlette and uvicorn: pip install 'fastdiff[ui]'"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `ui`."""
    parser = subparsers.add_parser(
        "ui",
        help="a page to generate, edit and restyle on, in the browser",
        description="Serve a page on this machine and print its address. Nothing leaves the machine; Ctrl-C stops it.",
    )
    option = parser.add_argument
    option("--port", type=int, default=PORT, metavar="N", help=f"0 is any that is free (default {PORT})")
    option(
        "--host", default="127.0.0.1", metavar="NAME",
        help="where to listen; anything but this machine's own address wants the token in the printed address "
        "(default 127.0.0.1)",
    )  # fmt: skip
    option(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name browsers may use for it",
    )
    option(
        "--token",
        metavar="TEXT",
        help="the token to want, also on 127.0.0.1 (default: a new one where needed)",
    )
    option(
        "--model", metavar="PATH",
        help="a checkpoint made by fastdiff train, or the folder of a diffusers pipeline (default: the bundled model)",
    )  # fmt: skip
    option("--lora", metavar="FILE", help="join this adapter, made by fastdiff train --lora, to the model")
    option("--lora-strength", type=float, metavar="X", help="of the adapter: 0 leaves it out (default 1)")
    option("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    option(
        "--max-seconds",
        type=float,
        default=1800.0,
        metavar="X",
        help="the longest a job may take (default 1800)",
    )
    option("--open", action="store_true", help="open the page in the browser")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model, listen, print the address, serve."""
    check(args)
    from fastdiff.apps.source import source_of
    from fastdiff.cli.options import model_of
    from fastdiff.web.limits import Limits
    from fastdiff.web.serve import Site

    source = source_of(model_of(args), device=args.device)
    site = Site(
        source,
        host=args.host,
        port=args.port,
        names=tuple(args.allow_host),
        token=args.token,
        limits=Limits(seconds=args.max_seconds),
    )
    site.run(ready=lambda: announce(site.address, show=args.open))
    print("stopped")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise ValueError, or ModuleNotFoundError, for what cannot work."""
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(REMEDY)
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {args.port}")
    for name in ("host", "allow_host"):
        given = getattr(args, name)
        if not all(given if isinstance(given, list) else [given]):
            raise ValueError(f"--{name.replace('_', '-')} must name a host")
    if not 1 <= args.max_seconds <= 86400:
        raise ValueError(f"--max-seconds must be from 1 to 86400, got {args.max_seconds:g}")
    if args.token is not None and (
        len(args.token) < 16 or not args.token.isascii() or not args.token.isalnum()
    ):
        raise ValueError("--token must be at least 16 letters and digits")


def announce(address: str, *, show: bool) -> None:
    """Say where the page is."""
    print(f"fastdiff ui: {address}\nCtrl-C stops it", flush=True)
    if show:
        import webbrowser

        webbrowser.open(address)
