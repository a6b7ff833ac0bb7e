"""Exceptions of fastdiff. Wrong arguments raise ValueError or TypeError; these are for the rest."""

from __future__ import annotations


class FastdiffError(RuntimeError):
    """Base of the errors that are not about an argument's value or type."""


class BackendError(FastdiffError):
    """A backend was asked for by name and cannot run here."""


class BuildError(FastdiffError):
    """The native library could not be compiled or loaded."""
