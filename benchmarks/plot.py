"""Bars of a results file: how many times as long as ours each peer took, a panel for each group of cases.

python benchmarks/plot.py benchmarks/results/cpu.json docs/images/bench-cpu.png [--only norm backward]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

COLOURS = {"eager": "#8a8a8a", "torch.compile": "#1f77b4", "diffusers step()": "#c8452f"}
OTHERS = ("#2a9d4a", "#7a4fa3", "#d19a2e", "#5aa0a0")
NO_PEERS = ("copy", "solver_step_", "q_sample, seeds", "randn alone")
"""Beside our function in the figures, but not what it replaces."""


def groups(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results by the first word of their names, without those that have no peer."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if peers(result):
            found.setdefault(result["name"].split()[0], []).append(result)
    return found


def peers(result: dict[str, Any]) -> dict[str, float]:
    """name -> times as long as ours; copies and our other ways are none."""
    return {name: ratio for name, ratio in result["ratios_p50"].items() if not name.startswith(NO_PEERS)}


def label(result: dict[str, Any]) -> str:
    """A case's name without its group."""
    notes = " ".join(map(str, result.get("notes", {}).values()))
    return " ".join([*result["name"].split()[1:], notes]).strip()


def draw(data: dict[str, Any], file: Path | BinaryIO, only: Sequence[str] = ()) -> None:
    """Draws the bars of a results file as a PNG. Raises ValueError where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = {name: rows for name, rows in groups(data["results"]).items() if not only or name in only}
    if not found:
        raise ValueError("there is nothing to draw: no case has a peer")
    heights = [1.2 + sum(0.17 * len(peers(row)) + 0.08 for row in rows) for rows in found.values()]
    figure, panels = pyplot.subplots(
        len(found), 1, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, (name, rows) in zip(panels[:, 0], found.items()):
        bars(panel, name, rows)
    device = data.get("device") or f"{data['processor']}, {data['threads']} threads"
    figure.suptitle(f"times as long as fastdiff ({device}, torch {data['torch']})", fontsize=10)
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def bars(panel: Any, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """One panel: a row of bars a case, a colour a peer."""
    names = list(dict.fromkeys(peer for row in rows for peer in peers(row)))
    colours = dict(zip(names, OTHERS * len(names))) | COLOURS
    place, ticks = 0.0, []
    for row in rows:
        start = place
        for peer, ratio in peers(row).items():
            panel.barh(place, ratio, 0.85, color=colours[peer])
            panel.text(ratio, place, f" {ratio:.1f}", va="center", fontsize=7)
            place += 1
        ticks.append((start + place - 1) / 2)
        place += 0.5
    panel.set_yticks(ticks, [label(row) for row in rows], fontsize=7)
    panel.invert_yaxis()
    panel.axvline(1.0, color="black", linewidth=0.8)
    panel.set_xlim(0, 1.1 * max(max(peers(row).values()) for row in rows))
    panel.tick_params(axis="x", labelsize=7)
    panel.set_title(f"{name}: {rows[0]['ours']} = 1", fontsize=9, loc="left")
    handles = [panel.barh([0], [0], color=colours[peer], label=peer) for peer in names]
    panel.legend(
        handles=handles, fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), frameon=False
    )
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--only", nargs="+", default=(), help="these groups")
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.picture, options.only)


if __name__ == "__main__":
    main()
