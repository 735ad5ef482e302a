"""Turn KEGG pathways (KGML), SBML models and edge tables into NPZ graphs, and back into an edge table.

`python -m data_pipeline.kegg SOURCE --out DIR [--environments env_vectors.csv]`: SOURCE is a .kgml or SBML .xml file
(or .xml.gz), a folder of them, or an edges.csv with the columns reaction, substrate, product; train on DIR with
data.graphs. With a folder of NPZ graphs as SOURCE and a .csv as --out, the edge table is written. Nothing of KEGG is
shipped: its files are under KEGG's own terms.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.batch import GraphSample
from data_pipeline.errors import InputError, one_line
from data_pipeline.graph_files import read_folder, write_npz
from data_pipeline.metabolic_graph import CURRENCY
from data_pipeline.reaction_tables import base_of
from data_pipeline.shards import write_bytes
from data_pipeline.variables import EDGE_TYPES, MAX_METABOLITES, NODE_FEATURES

EDGE_COLUMNS = ("reaction", "substrate", "product")
ENVIRONMENT_COLUMNS = ("pathway", "pH", "temp", "O2", "redox")  # K, mole fraction, V
DEFAULT_ENVIRONMENT = (7.0, 298.0, 0.21, 0.0)  # of a graph that the table does not name, as the legacy files have it
FORWARD_ONLY, REVERSIBLE = EDGE_TYPES.index("forward_only"), EDGE_TYPES.index("reversible")

Edge = tuple[str, str, int]  # substrate, product, type


def graph_of(edges: Iterable[Edge]) -> GraphSample:
    """Return the network of named edges; nodes come in the order in which they are first seen."""
    kinds: dict[tuple[str, str], int] = {}
    for substrate, product, kind in edges:
        if substrate != product:
            kinds[substrate, product] = max(kind, kinds.get((substrate, product), 0))
    names = list(dict.fromkeys(name for pair in kinds for name in pair))
    rows = {name: row for row, name in enumerate(names)}
    edge_index = np.array([[rows[s], rows[p]] for s, p in kinds], np.int64).reshape(-1, 2).T
    return GraphSample(
        metabolites=tuple(names),
        metabolite_index=np.zeros(len(names), np.int64),
        features=np.zeros((len(names), len(NODE_FEATURES)), np.float32),
        edge_index=edge_index,
        edge_type=np.array(list(kinds.values()), np.int64),
    )


# --- readers ---------------------------------------------------------------------------------------------------------
def read_edges(path: Path) -> dict[str, GraphSample]:
    """Read an edge table: one graph for each value of `reaction`, whatever it groups.

    Raises:
        InputError: The file or a column is missing, or a line is cut short.
    """
    groups: dict[str, list[Edge]] = {}
    for number, row in _rows(path, EDGE_COLUMNS):
        if not all(row[name] for name in EDGE_COLUMNS):
            raise InputError(f"{path}, line {number}: {row}; each of {', '.join(EDGE_COLUMNS)} must be filled in")
        groups.setdefault(row["reaction"], []).append((row["substrate"], row["product"], FORWARD_ONLY))
    return {name: graph_of(edges) for name, edges in groups.items()}


def read_environments(path: Path) -> dict[str, np.ndarray]:
    """Read pathway -> [pH, temperature (K), O2 (mole fraction), redox (V)].

    Raises:
        InputError: The file or a column is missing, or a value is no number.
    """
    found = {}
    for number, row in _rows(path, ENVIRONMENT_COLUMNS):
        try:
            values = np.array([float(row[name]) for name in ENVIRONMENT_COLUMNS[1:]], np.float32)
        except (TypeError, ValueError):
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            raise InputError(f"{path}, line {number}: {row} holds something that is no number; fill it in")
        found[row["pathway"]] = values
    return found


def read_xml(path: Path) -> dict[str, GraphSample]:
    """Read a KGML pathway or an SBML model; carriers and cofactors (metabolic_graph.CURRENCY) of SBML are left out.

    Raises:
        InputError: It is neither, or cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            root = ElementTree.parse(file).getroot()
    except (OSError, EOFError, zlib.error, ElementTree.ParseError) as error:
        raise InputError(f"{path}: cannot be read as XML ({error}); give a KGML or SBML file") from error
    kind = _local(root.tag)
    if kind == "pathway":
        return {root.get("name", path.stem).removeprefix("path:"): graph_of(_kgml_edges(root))}
    if kind == "sbml":
        model = next((e for e in root if _local(e.tag) == "model"), root)
        return {model.get("id") or path.stem: graph_of(_sbml_edges(root))}
    raise InputError(f"{path}: <{kind}> is neither a KGML <pathway> nor <sbml>")


def _kgml_edges(root: ElementTree.Element) -> Iterable[Edge]:
    for reaction in root.iter("reaction"):
        names = [[e.get("name", "").split()[:1] for e in reaction.iter(side)] for side in ("substrate", "product")]
        sides = [[name[0].removeprefix("cpd:") for name in side if name] for side in names]
        yield from both_ways(*sides, reversible=reaction.get("type") == "reversible")


def _sbml_edges(root: ElementTree.Element) -> Iterable[Edge]:
    """Yield the edges of a model. What does not say is reversible: SBML level 2 has it so, level 3 must say."""
    for reaction in (e for e in root.iter() if _local(e.tag) == "reaction"):
        sides: dict[str, list[str]] = {"listOfReactants": [], "listOfProducts": []}
        for side in reaction:
            if _local(side.tag) in sides:
                species = [re.sub(r"^M_", "", e.get("species", "")) for e in side if e.get("species")]
                sides[_local(side.tag)] = [name for name in species if base_of(name) not in CURRENCY]
        yield from both_ways(*sides.values(), reversible=reaction.get("reversible", "true") in ("true", "1"))


def both_ways(substrates: Sequence[str], products: Sequence[str], *, reversible: bool) -> Iterable[Edge]:
    """Yield the edges of a reaction; those of a reversible one in both directions."""
    kind = REVERSIBLE if reversible else FORWARD_ONLY
    for substrate in substrates:
        for product in products:
            yield substrate, product, kind
            if reversible:
                yield product, substrate, kind


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))  # spreadsheets write a mark first
        rows = list(enumerate(reader, 2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a table of comma-separated values") from None
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        found = ", ".join(reader.fieldnames or ()) or "none"
        raise InputError(
            f"{path}: column {missing[0]} is missing; it must have {', '.join(columns)}, with commas; found: {found}"
        )
    for number, row in rows:
        if None in row:
            raise InputError(f"{path}, line {number}: more values than columns; put names that hold a comma in quotes")
    return rows


# --- writers ---------------------------------------------------------------------------------------------------------
def write_graphs(
    graphs: dict[str, GraphSample], out: Path, environments: dict[str, np.ndarray] | None = None
) -> tuple[int, list[str]]:
    """Write one NPZ a graph; return how many, and the names of those that have no edge or too many nodes.

    Args:
        graphs: By name.
        out: Folder.
        environments: By name; without a table the graphs have no environment.

    Raises:
        InputError: No graph can be written, two would have one file name, or the folder cannot be written.
    """
    left_out = [name for name, graph in graphs.items() if not 2 <= len(graph.metabolites) <= MAX_METABOLITES]
    if len(left_out) == len(graphs):
        raise InputError(
            f"none of {len(graphs)} graphs has an edge and at most {MAX_METABOLITES} metabolites; nothing written"
        )
    files: dict[str, str] = {}
    for name in (name for name in graphs if name not in set(left_out)):
        safe = re.sub(r"[^\w.-]", "_", name)
        if safe in files:
            raise InputError(f"graphs {files[safe]!r} and {name!r} would both be {safe}.npz; rename one")
        files[safe] = name
    default = np.array((), np.float32) if environments is None else np.array(DEFAULT_ENVIRONMENT, np.float32)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for safe, name in files.items():
            write_npz(out / f"{safe}.npz", graphs[name], (environments or {}).get(name, default))
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from error
    return len(files), left_out


def write_edges(folder: Path, out: Path) -> int:
    """Write the edge table of a folder of NPZ graphs; return the number of edges.

    Raises:
        InputError: The folder holds no graph or one that cannot be read, or the table cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(EDGE_COLUMNS)
    count = 0
    for name, graph, _ in read_folder(folder):
        for substrate, product in graph.edge_index.T:
            writer.writerow((name, graph.metabolites[substrate], graph.metabolites[product]))
            count += 1
    try:
        write_bytes(out, buffer.getvalue().encode())
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); give another file") from error
    return count


def read_any(source: Path) -> dict[str, GraphSample]:
    """Read an edge table, an XML file, or every XML file of a folder.

    Raises:
        InputError: There is nothing to read, or a file cannot be read.
    """
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if {".xml", ".kgml", ".sbml"} & set(p.suffixes[-2:]))
        if not files:
            raise InputError(f"{source}: no .xml, .kgml or .sbml file in it")
        found: dict[str, GraphSample] = {}
        for file in files:
            for name, graph in read_xml(file).items():  # exporters call many models "model"
                found[name if name not in found else f"{name}-{file.name.partition('.')[0]}"] = graph
        return found
    return read_edges(source) if source.suffix == ".csv" else read_xml(source)


@one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Convert from the command line; bad input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="kegg", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of NPZ graphs, or a .csv of edges")
    parser.add_argument("--environments", type=Path, help="table with the columns " + ", ".join(ENVIRONMENT_COLUMNS))
    given = parser.parse_args(arguments)
    if given.out.suffix == ".csv":
        if not given.source.is_dir():
            raise InputError(f"--out {given.out}: an edge table is written from a folder of NPZ graphs; give a folder")
        print(f"{write_edges(given.source, given.out)} edges in {given.out}")
        return 0
    environments = read_environments(given.environments) if given.environments else None
    graphs = read_any(given.source)
    written, left_out = write_graphs(graphs, given.out, environments)
    if strangers := sorted(set(environments or ()) - set(graphs)):
        print(f"{given.environments}: no graph is called {', '.join(strangers[:10])}", file=sys.stderr)
    if left_out:
        print(f"left out (no edge, or over {MAX_METABOLITES} metabolites): {', '.join(left_out[:10])}", file=sys.stderr)
    print(f"{written} graphs in {given.out}; train on them with --set data.graphs={given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
