"""A vector for each picture of a folder, such as the embedding of its caption: read from a file, or made by an encoder.

ROOT/embeddings.npy            float [N, D], one row a picture, in the order of the sorted relative paths
ROOT/embeddings.npz            relative path ("CLASS/name.png") -> float [D]
ROOT/embeddings.safetensors    the same
ROOT/captions.json             relative path -> text, with an encoder given in Python: texts -> float [n, D]
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Encoder = Callable[[list[str]], Any]
FILES = ("embeddings.npy", "embeddings.npz", "embeddings.safetensors", "captions.json")
CHUNK = 256
MAX_BYTES = 1 << 34


def read_vectors(root: Path, names: Sequence[str], width: int, encoder: Encoder | None = None) -> Tensor:
    """float32 [len(names), width]: the vectors of the pictures with these paths relative to `root`.

    Raises ValueError or OSError in one line if there is no file of vectors, or it does not fit the pictures.
    """
    found = [root / name for name in FILES if (root / name).is_file()]
    if len(found) != 1:
        what = "none" if not found else " and ".join(file.name for file in found)
        raise ValueError(f"context_dim {width} needs one of {', '.join(FILES)} in {root}: found {what}")
    file = found[0]
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} is larger than {MAX_BYTES} bytes")
    made = _encoded(file, names, encoder) if file.suffix == ".json" else _read(file, names)
    if made.shape != (len(names), width):
        raise ValueError(
            f"{file} has vectors {list(made.shape)} for {len(names)} pictures of context_dim {width}"
        )
    bad = (~made.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{file}: the vector of {names[bad[0]]} holds NaN or infinity ({len(bad)} in all)")
    return made


def _read(file: Path, names: Sequence[str]) -> Tensor:
    try:
        if file.suffix == ".safetensors":
            return _picked(file, load_file(file), names)
        with file.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            if file.suffix == ".npz":
                return _picked(file, {key: torch.from_numpy(loaded[key]) for key in loaded.files}, names)
    except (SafetensorError, zipfile.BadZipFile, EOFError, TypeError) as error:
        raise ValueError(f"{file} is damaged or of another format ({error})") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if loaded.ndim != 2 or not np.issubdtype(loaded.dtype, np.floating):
        raise ValueError(f"{file} must be float [pictures, D], got {loaded.dtype} {list(loaded.shape)}")
    if len(loaded) != len(names):
        raise ValueError(f"{file} has {len(loaded)} rows for {len(names)} pictures")
    place = {name: row for row, name in enumerate(sorted(names))}
    return torch.from_numpy(loaded[[place[name] for name in names]]).float()


def _picked(file: Path, table: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    _check_complete(file, table, names)
    shapes = {tuple(table[name].shape) for name in names}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"vectors must have one length, got shapes {sorted(shapes)[:4]}")
    return torch.stack([table[name].float() for name in names])


def _encoded(file: Path, names: Sequence[str], encoder: Encoder | None) -> Tensor:
    if encoder is None:
        raise ValueError(
            f"{file} holds texts, which need an encoder: call fastdiff.training.train(..., encoder=...) in Python, "
            "or write the embeddings to embeddings.npz"
        )
    try:
        texts = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{file} must be an object of path -> text")
    _check_complete(file, texts, names)
    wanted = sorted({texts[name] for name in names})  # each text once
    rows = [torch.as_tensor(encoder(wanted[i : i + CHUNK])) for i in range(0, len(wanted), CHUNK)]
    vectors = torch.cat([row.detach().to("cpu", torch.float32) for row in rows])
    if vectors.ndim != 2 or len(vectors) != len(wanted):
        raise ValueError(
            f"the encoder made {list(vectors.shape)} of {len(wanted)} texts: it must give [n, D]"
        )
    place = {text: row for row, text in enumerate(wanted)}
    return vectors[[place[texts[name]] for name in names]]


def _check_complete(file: Path, table: dict[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{file} has nothing for {missing[0]} ({len(missing)} pictures in all)")
