"""Writing files so that they appear whole or not at all, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomic(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, overwrite: bool = False
) -> None:
    """Call `write` on a temporary file beside `path`, then rename it; on any failure `path` is as it was.

    Raises FileExistsError if `path` exists and `overwrite` is not set, and OSError with a readable reason otherwise.
    """
    target = Path(path)
    check_writable(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name[:100]}.{secrets.token_hex(6)}.tmp"
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _move(temporary, target, overwrite=overwrite)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        raise OSError(error.errno or errno.EIO, f"{target}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise OSError with one helpful line if a file could not be written at `path`. Changes nothing on disk."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, f"{target} is a folder; name a file in it, such as {target / 'out.png'}"
        )
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"{target} is a device or pipe; name an ordinary file")
    if target.exists() and not overwrite:
        raise FileExistsError(
            errno.EEXIST, f"{target} exists; pass --overwrite (overwrite=True) or choose another name"
        )
    check_folder(target.parent)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise OSError with one helpful line if `folder` cannot be written to, or cannot be made. Changes nothing."""
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, f"{nearest} is a file, not a folder; choose another output folder"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"folder {nearest} is not writable; choose another output folder")


def _move(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, a link fails if the name was taken in the meantime
    except FileExistsError:
        raise FileExistsError(
            errno.EEXIST, f"{target} appeared while it was being made; nothing was written"
        ) from None
    except OSError:  # a file system without hard links
        os.replace(temporary, target)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder is not writable; choose another one"
    return error.strerror or str(error)
