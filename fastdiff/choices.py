"""One wording for a name that is not known: what was got, the nearest known names, all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(got: str, known: Iterable[str]) -> list[str]:
    """The known names most like `got`, best first; hyphens, spaces and case do not count."""
    plain = {_plain(name): name for name in known}
    return [plain[match] for match in difflib.get_close_matches(_plain(got), plain, n=3, cutoff=0.6)]


def unknown(kind: str, got: object, known: Iterable[str]) -> ValueError:
    """A ValueError to raise: unknown sampler 'eular': did you mean euler? Known: ddim, euler, ..."""
    names = sorted(known)
    near = closest(str(got), names)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(f"unknown {kind} {got!r}: {hint}Known: {', '.join(names)}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_").replace("++", "pp")
