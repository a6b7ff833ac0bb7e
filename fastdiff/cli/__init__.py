"""The command `fastdiff`: one file a command, each with add_parser(subparsers) and run(args) -> exit code.

Bad input ends with one line on stderr and exit code 1 (2 for a malformed command line), an interrupt with 130.
FASTDIFF_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastdiff import __version__
from fastdiff.choices import closest
from fastdiff.cli import augment, bench, edit, env, generate, inpaint, inspect, plan, restyle, train, ui
from fastdiff.errors import FastdiffError

COMMANDS = (generate, edit, inpaint, restyle, augment, inspect, train, ui, plan, bench, env)
EXPECTED = (ValueError, TypeError, OSError, MemoryError, ModuleNotFoundError, FastdiffError)


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line that offer the nearest known name."""

    def error(self, message: str) -> NoReturn:
        """Print one line, exit with 2."""
        got = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        near = closest(got[1], re.findall(r"[\w-]+", got[2])) if got else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        self.exit(2, f"{self.prog}: {message}{hint} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="fastdiff", description="Fast diffusion sampling: pictures from a command, plans, diagnostics."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="command")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        print(f"fastdiff {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        code: int = args.run(args)
        sys.stdout.flush()  # so that a closed pipe is met here and not at exit
        return code
    except KeyboardInterrupt:
        return fail("interrupted; files already in place are whole, the rest was not written", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (*EXPECTED, RuntimeError) as error:
        if os.environ.get("FASTDIFF_TRACEBACK") or not expected(error):
            raise
        return fail(describe(error))


def expected(error: BaseException) -> bool:
    """Whether an error is about what was asked or about this machine, rather than a fault of the program."""
    return isinstance(error, EXPECTED) or "allocate" in str(error) or "out of memory" in str(error)


def describe(error: BaseException) -> str:
    """The one line shown for an error."""
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or ""
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error):
        return "out of memory: ask for a smaller --size or --batch"
    return " ".join(str(error).split()) or type(error).__name__


def fail(message: str, *, code: int = 1) -> int:
    """Print `fastdiff: message` on stderr and return the exit code."""
    print(f"fastdiff: {message}", file=sys.stderr)
    return code
