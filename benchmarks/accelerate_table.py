"""The tables of docs/accelerate.md, made from what benchmarks/pipelines.py and benchmarks/sd15.py measured.

    python benchmarks/accelerate_table.py        puts them between the page's markers

Without a file of results, or without markers, a table stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import RESULTS, ROOT

PAGE = ROOT / "docs" / "accelerate.md"
Row = dict[str, Any]


def pipelines(rows: list[Row]) -> list[str]:
    """One line a family."""
    head = ["| pipeline | largest difference | diffusers ms | accelerated ms | ratio | what was fused |"]
    lines = [
        f"| {row['name']} | {row['error']:.0e} | {_times(row, 1e3)} | {row['ratios_p20']['diffusers']:.2f} "
        f"| {row['notes']['fused']} |"
        for row in rows
    ]
    return [*head, "|---|---:|---:|---:|---:|---|", *lines]


def models(rows: list[Row]) -> list[str]:
    """One line for each model, dtype and mode."""
    head = ["| model | dtype | | largest difference | diffusers s | accelerated s | ratio |"]
    lines = []
    for row in rows:
        name, dtype, mode, _ = row["name"].split(", ")
        ratio = f"{row['ratios_p20']['diffusers']:.2f}"
        lines.append(f"| {name} | {dtype} | {mode} | {row['error']:.0e} | {_times(row, 1e6)} | {ratio} |")
    return [*head, "|---|---|---|---:|---:|---:|---:|", *lines]


def _times(row: Row, unit: float) -> str:
    """Both times at p20, as two cells."""
    return " | ".join(f"{row['spreads'][key]['p20'] / unit:.4g}" for key in ("diffusers", "accelerated"))


TABLES: dict[str, Callable[[list[Row]], list[str]]] = {"pipelines": pipelines, "sd15": models}
"""The name of a file of results, which its markers carry too -> what makes its table."""


def filled(page: str, name: str, content: dict[str, Any]) -> str:
    """The page with this table, and what it was measured on, between its markers."""
    start, end = f"<!-- {name}.json -->\n", f"<!-- end of {name}.json -->"
    before, found, rest = page.partition(start)
    if not found:
        return page
    threads = f"{content['threads']} thread{'s' if content['threads'] > 1 else ''}"
    where = f"{content['processor']}, {threads}, torch {content['torch']}, diffusers {content['diffusers']}."
    table = "\n".join([where, "", *TABLES[name](content["results"])])
    return before + start + table + "\n" + end + rest.partition(end)[2]


def main() -> None:
    page = PAGE.read_text()
    for name in TABLES:
        path = Path(RESULTS / f"{name}.json")
        if path.exists():
            page = filled(page, name, json.loads(path.read_text()))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
