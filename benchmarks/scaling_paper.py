"""Write docs/scaling.md from rows of ./launch.sh bench scaling: what was measured, and a table for many GPUs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import scaling_time as model
from benchmarks.scaling_time import Foretold, Link, fit, foretell, on_paper
from trainers.communication import Event, Piece, Sharing, Walk

PAPER_GPUS = (16, 32, 64, 128, 256, 512, 1024)
TOLERATED = 0.15  # of the measured step
WORTH = 0.01  # a setting is recommended when it saves more of the step than this


def walk_of(timeline: Mapping[str, Any]) -> Walk:
    """Return the walk that a timeline row holds."""
    pieces = tuple(Piece(*piece) for piece in timeline["pieces"])
    events = (Event(b, f, m, leaf, tuple(o), tuple(u), *unit) for b, f, m, leaf, o, u, *unit in timeline["events"])
    return Walk(pieces, tuple(events))


def links_of(measured: Sequence[Sequence[Any]], world: int) -> dict[str, Link]:
    """Return the fit of each operation."""
    names = dict.fromkeys(operation for operation, *_ in measured)
    return {n: fit([(o, size, s) for o, size, s in measured if o == n], world) for n in names}


def foretell_row(timeline: Mapping[str, Any], found: Mapping[str, Any], gpus: int) -> Foretold:
    """Return what the timeline of one GPU foretells of a row of several."""
    sharing = Sharing(**found["sharing"])
    slowest = found["weak"]["slowest_rank_over_mean"]
    others = found["counted"]["torch"]
    return foretell(
        walk_of(timeline), timeline["gaps_s"], sharing, links_of(found["links"], gpus),
        others=others, slowest=slowest, unit_bytes=found.get("unit_bytes", ()),
        slowed=found.get("slowed_by_fetches", 0.0), stay=found.get("units_that_stay", ()),
    )  # fmt: skip


def write(rows_file: Path, page: Path) -> int:
    """Write the page; return 1 when the rows lack what it needs."""
    rows = {row["row"]: row for row in map(json.loads, rows_file.read_text().splitlines())}
    lines = [
        "# Scaling over GPUs", "",
        f"Written by `./launch.sh bench scaling --paper {rows_file.as_posix()}`; change the rows, not this page.", "",
        *measured_table(rows.values()), "",
    ]  # fmt: skip
    sizes = [s for s in ("13b", "1b", "tiny") if f"scaling/{s}/ours-zero3/timeline" in rows]
    wide = [s for s in sizes if any("links" in r for n, r in rows.items() if n.startswith(f"scaling/{s}/ours-zero3/"))]
    if not wide:
        print(f"error: {rows_file}: no ours-zero3 rows on 1 and on more GPUs; run bench scaling", file=sys.stderr)
        return 1
    for size in wide:
        lines += [*paper(size, rows), ""]
    page.write_text("\n".join([*lines, *assumptions(), ""]))
    return 0


def measured_table(rows: Any) -> list[str]:
    """Return the table of what was measured."""
    lines = [
        "## Measured", "",
        "| row | card | samples a GPU | samples/s a GPU | tokens/s a GPU | step s | efficiency | peak GiB |"
        " frozen base GB (limit) | collectives (not hidden) | bytes = model | measured / foretold |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    notes = []
    machines: dict[str, None] = {}
    for row in rows:
        if "step_s" not in row:
            if "largest_relative_difference" in row:
                exact = {k: v for k, v in row.items() if k in ("same_samples", "samples_exact")}
                notes.append(f"- `{row['row']}`: largest relative difference of the loss "
                             f"{row['largest_relative_difference']:.1e}; {exact}")  # fmt: skip
            elif "six_products_8192_ms" in row:
                notes.append(f"- `{row['row']}`: {fetched(row)}")
            elif why := row.get("skipped", row.get("error")):
                notes.append(f"- `{row['row']}`: {str(why)[:160]}")
            continue
        share = row.get("profile", {})
        seen = f"{share['collectives']:.1%} ({share['not_hidden']:.1%})" if share.get("collectives") is not None else ""
        base = f"{row['frozen_base_gb']:.1f} ({row['frozen_base_limit_gb']:.1f})" if "sharing" in row else ""
        cells = [
            row["row"].removeprefix("scaling/"), card(row["hardware"]), str(row["samples"]),
            f"{row['samples_per_s_a_gpu']:.2f}",
            f"{row['tokens_per_s_a_gpu']:,.0f}", f"{row['step_s']:.3f}",
            f"{row['efficiency']:.1%}" if "efficiency" in row else "", f"{row['peak_allocated_gib']:.1f}", base, seen,
            {True: "yes", False: "no", None: ""}[row.get("bytes_equal_the_model")],
            f"{row['measured_over_foretold']:.2f}" if "measured_over_foretold" in row else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
        if "note" in row:
            notes.append(f"- `{row['row']}`: {row['note']}")
        machines[f"{row['hardware']}; NCCL {row['nccl']}; {row['versions']}"] = None
    return [*lines, "", *notes, "", *(f"Hardware: {m}." for m in machines)] if machines else lines


def card(hardware: str) -> str:
    """Return the model of the GPU in a description such as "2 x NVIDIA H200", or what was there instead."""
    return hardware.split(" x ")[-1].removeprefix("NVIDIA ").split(" ")[0]


def fetched(row: Mapping[str, Any]) -> str:
    """Return what a row of fetches beside products says."""
    return (
        f"{row['bytes'] / 1e9:.2f} GB by copies in {row['copies_ms']:.2f} ms, by an all-gather in "
        f"{row['all_gather_ms']:.2f} ms; products of {row['six_products_8192_ms']:.2f} ms take "
        f"{row['products_beside_copies_ms']:.2f} beside the copies, {row['products_beside_all_gather_ms']:.2f} beside "
        f"the gather: {row['slowed_by_copies']:.0%} and {row['slowed_by_all_gather']:.0%} of the fetch are lost"
    )


def paper(size: str, rows: Mapping[str, Any]) -> list[str]:
    """Return the table for many GPUs."""
    timeline = rows[f"scaling/{size}/ours-zero3/timeline"]["timeline"]
    own = [r for n, r in rows.items() if n.startswith(f"scaling/{size}/ours-zero3/weak/") and "links" in r]
    of = max(own, key=lambda r: r["gpus"])
    links = links_of(of["links"], of["gpus"])
    walked, sharing = walk_of(timeline), Sharing(**of["sharing"])
    lines = [
        f"## On paper: {size}", "",
        *_warning(of),
        "Fit of this run: " + "; ".join(
            f"{n} {link.latency_s * 1e6:.0f} us + bytes / {link.bytes_s / 1e9:.0f} GB/s" for n, link in links.items()
        ) + ".", "",
        "| GPUs | ZeRO-3: step s | a GPU against one | base GiB | hpZ: step s | a GPU | base GiB |"
        " qwZ: step s | a GPU | recommended |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for gpus in PAPER_GPUS:
        told = on_paper(
            walked, timeline["gaps_s"], sharing, links, of["counted"]["torch"], of["token_spread"],
            gpus, of.get("unit_bytes", ()), of.get("slowed_by_fetches", 0.0),
        )  # fmt: skip
        plain, hpz, qwz = told
        lines.append(
            f"| {gpus} | {plain.step_s:.3f} | {plain.efficiency:.1%} | {plain.base_gib:.1f} | {hpz.step_s:.3f} | "
            f"{hpz.efficiency:.1%} | {hpz.base_gib:.1f} | {qwz.step_s:.3f} | {qwz.efficiency:.1%} | "
            f"{recommended(plain, hpz, qwz)} |"
        )
    return lines


def _warning(row: Mapping[str, Any]) -> list[str]:
    """Say so where the model misses the row that it can be held against."""
    off = row.get("measured_over_foretold", 1.0)
    if abs(off - 1) <= TOLERATED:
        return []
    return [
        f"**Not to be relied on:** on {row['gpus']} GPUs the measured step is {off:.2f} of the foretold one (asked: "
        f"within {TOLERATED:.0%}), and {row['efficiency']:.1%} a GPU were measured. The model counts links "
        "and computation; it does not count the time that the host needs to start more gathers, in which the GPU has "
        f"nothing to do ({row['profile']['idle']:.0%} of the profiled steps). What follows is a bound that ignores it.",
        "",
    ]  # fmt: skip


def recommended(plain: model.Choice, hpz: model.Choice, qwz: model.Choice) -> str:
    """Return the simplest setting within a percent of the fastest; quantised weights change numbers, so come last."""
    best = min(plain.step_s, hpz.step_s, qwz.step_s)
    for choice in (plain, hpz, qwz):
        if choice.step_s <= (1 + WORTH) * best:
            return choice.setting
    return qwz.setting


def assumptions() -> list[str]:
    """Return what the tables rest on."""
    crossing = model.GPUS_A_NODE * model.BETWEEN_NODES_BYTES_S * model.USABLE / 1e9
    return [
        "## Assumptions", "",
        f"- Nodes of {model.GPUS_A_NODE} H100, {model.BETWEEN_NODES_BYTES_S * 8 / 1e9:.0f} Gb/s a GPU between nodes, "
        f"of which {model.USABLE:.0%} is used: a ring crosses at {crossing:.0f} GB/s a node. Inside a node the fit "
        "above, which comes from the GPUs that were there. The slower of the two counts.",
        f"- A collective takes {model.HOP_S * 1e6:.0f} us more for each doubling of the nodes (NCCL's trees and PAT).",
        "- Computation is the timeline of one GPU with its own batch (weak scaling), event by event. Trained "
        "parameters are gathered and released by the rules of DeepSpeed 0.19.8 (trainers/communication.py), with the "
        f"host {model.AHEAD} fetches ahead; frozen layers are fetched one ahead (trainers/frozen.py).",
        "- Beside a fetch computation loses the share of the fetch that products lost beside one (slowed_by_fetches). "
        "Neither this nor the links are fitted to the steps that they foretell.",
        "- All ranks wait for the one with most tokens: their spread over batches is measured, and the largest of N "
        "is taken from a normal distribution.",
        "- Left out: that a collective in the middle of a step waits for the slowest host, and lower clocks of GPUs "
        "that compute and copy at once.",
        "- ZeRO-3: over several nodes the frozen layers are gathered from all GPUs. hpZ (hierarchical partitioning, "
        "`zero_hpz_partition_size` = 8 in DeepSpeed): each node holds the frozen base once more, and copies stay "
        "inside it. trainers/frozen.py would share out over the ranks of a host alone; that is not built.",
        f"- qwZ (`zero_quantized_weights`): gathers carry {model.QUANTISED:.2f} of the bytes. Quantising takes no time "
        "here, and the loss changes, so it is recommended only where nothing else is within a percent.",
        "- qgZ (`zero_quantized_gradients`) is for full fine-tuning: with adapters the gradients are about a percent "
        "of the bytes of a step.",
    ]  # fmt: skip
