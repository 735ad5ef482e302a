"""Distil the carveme reaction tables into one small cached file: organisms and the chemistry of metabolites.

Source: carveme 1.6.6 (Apache-2.0; Machado et al. 2018, NAR 46:7542). Its tables derive from BiGG (King et al. 2016, NAR
44:D515), free for education, research and non-profit use.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import importlib.util
import io
import os
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from data_pipeline.errors import InputError

SCHEMA = 1  # raise it when what is distilled or solved changes: it is part of every cache key
INSTALL_COMMAND = "pip install --no-deps carveme==1.6.6"
FLUX_LIMIT = 1000.0  # mmol per gram and hour; the tables' "no limit"
ELEMENTS = ("C", "H", "N", "O", "P", "S", "Fe")
ATOMIC_MASS_DA = {  # IUPAC 2021, abridged
    "C": 12.011, "H": 1.008, "N": 14.007, "O": 15.999, "P": 30.974, "S": 32.06, "Fe": 55.845, "Se": 78.971,
    "Na": 22.990, "K": 39.098, "Mg": 24.305, "Ca": 40.078, "Cl": 35.45, "Mn": 54.938, "Zn": 65.38, "Cu": 63.546,
    "Co": 58.933, "Ni": 58.693, "Mo": 95.95, "W": 183.84, "As": 74.922, "Hg": 200.59, "Cd": 112.41, "I": 126.90,
    "F": 18.998, "Br": 79.904, "B": 10.81, "Si": 28.085, "Ag": 107.868, "Cr": 51.996, "Al": 26.982, "U": 238.03,
}  # fmt: skip
_GROWTH_RANGES = Path(__file__).with_name("growth_ranges.csv")


@dataclass(frozen=True)
class Organism:
    """One metabolic model, without biomass and exchanges. Fluxes are in mmol per gram dry weight and hour."""

    name: str
    model: str  # BiGG id
    domain: str
    oxygen: str  # aerobic, microaerophilic, facultative or anaerobic
    temperature_k: tuple[float, float]  # growth range
    ph: tuple[float, float]  # growth range
    reactions: tuple[str, ...]
    metabolites: tuple[str, ...]
    stoichiometry: sparse.csc_matrix  # metabolites x reactions
    lower: np.ndarray  # lowest flux of each reaction: 0 or -FLUX_LIMIT
    upper: np.ndarray  # highest flux of each reaction: 0 or FLUX_LIMIT


@dataclass(frozen=True)
class Metabolite:
    """Chemistry of one metabolite at pH 7.2 as in BiGG; `formula_known` False leaves the counts 0."""

    counts: dict[str, float]
    charge: float
    mass_da: float
    formula_known: bool


def cache_dir() -> Path:
    """Return the folder for derived tables: EXOBIOME_CACHE, or ~/.cache/exobiome. It is made when missing.

    Raises:
        InputError: The folder cannot be made.
    """
    folder = Path(os.environ.get("EXOBIOME_CACHE") or Path.home() / ".cache" / "exobiome").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"EXOBIOME_CACHE={folder} cannot be made ({error}); set it to a writable folder") from error
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see all of it or none; the last of several writers wins.

    Raises:
        InputError: The folder is not writable or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
            temporary = file.name
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise InputError(f"cannot write {path} ({error.strerror}); free space or set EXOBIOME_CACHE") from error


@functools.cache
def load_tables() -> tuple[dict[str, Organism], dict[str, Metabolite]]:
    """Return every organism of growth_ranges.csv and the chemistry of its metabolites, distilled on first use (10 s).

    Raises:
        InputError: carveme's tables are not installed.
    """
    path = cache_dir() / f"reaction_tables-{SCHEMA}.npz"
    try:
        tables = _read(path)
    except (OSError, ValueError, KeyError, EOFError):  # missing, or torn by a full disk: make it again
        write_atomically(path, _distil())
        tables = _read(path)
    return _organisms(tables), _chemistry(tables)


def carveme_data() -> Path:
    """Return carveme's data folder without importing carveme.

    Raises:
        InputError: The package is not installed.
    """
    spec = importlib.util.find_spec("carveme")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the metabolic tables are not installed: run `{INSTALL_COMMAND}`")
    return Path(list(spec.submodule_search_locations)[0]) / "data"


def base_of(metabolite: str) -> str:
    """Return a BiGG id without its compartment: `glc__D_e` -> `glc__D`."""
    return metabolite.rpartition("_")[0] or metabolite


def parse_formula(formula: str) -> dict[str, float]:
    """Count the atoms of a formula such as `C6H12O6`; R and X groups are dropped, `*` and blanks give {}."""
    counts: dict[str, float] = {}
    for element, number in re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", formula):
        if element in ATOMIC_MASS_DA:
            counts[element] = counts.get(element, 0.0) + float(number or 1)
    return counts


def growth_ranges() -> list[dict[str, str]]:
    """Return the rows of growth_ranges.csv."""
    with open(_GROWTH_RANGES, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _distil() -> bytes:
    """Return the compressed tables: `metabolites`, their chemistry, and per model its reactions, bounds and entries."""
    folder = carveme_data() / "generated"
    compounds = _read_compounds(folder.parent / "input" / "mnx_compounds.tsv")
    bounds = _read_bounds(folder / "model_specific_data.csv.gz", {row["model"] for row in growth_ranges()})
    wanted = {reaction for model in bounds.values() for reaction in model}
    stoichiometry, species = _read_universe(folder / "bigg_universe.xml.gz", wanted)
    metabolites = sorted({m for reaction in stoichiometry.values() for m in reaction})
    row_of = {m: i for i, m in enumerate(metabolites)}
    for name, (formula, charge) in species.items():  # a formula known in one compartment holds in the others
        if formula:
            compounds.setdefault(base_of(name), (formula, charge))
    formulas = [species[m] if species[m][0] else compounds.get(base_of(m), ("", 0.0)) for m in metabolites]
    arrays: dict[str, Any] = {
        "metabolites": np.array(metabolites),
        "formulas": np.array([f for f, _ in formulas]),
        "charges": np.array([c for _, c in formulas], dtype=np.float32),
    }
    for model, limits in bounds.items():
        reactions = sorted(r for r in limits if r in stoichiometry)
        entries = [(row_of[m], j, n) for j, r in enumerate(reactions) for m, n in stoichiometry[r].items()]
        arrays[f"{model}/reactions"] = np.array(reactions)
        arrays[f"{model}/limits"] = np.array([limits[r] for r in reactions], dtype=np.float32).reshape(-1, 2)
        arrays[f"{model}/entries"] = np.array(entries, dtype=np.float64).reshape(-1, 3)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _read_bounds(path: Path, models: set[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Read flux limits per model. Copies of a reaction (`_copy1`) are one reaction with the union of their limits."""
    bounds: dict[str, dict[str, tuple[float, float]]] = {}
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            reaction = re.sub(r"_copy\d+$", "", row["reaction"])
            if (
                row["model"] not in models
                or re.match(r"EX_|DM_|SK_|ATPM$|ATPM_", reaction)
                or "biomass" in reaction.lower()
            ):
                continue
            limits = bounds.setdefault(row["model"], {})
            low, high = limits.get(reaction, (0.0, 0.0))
            low = min(low, -FLUX_LIMIT if float(row["lb"]) < 0 else 0.0)
            high = max(high, FLUX_LIMIT if float(row["ub"]) > 0 else 0.0)
            limits[reaction] = (low, high)
    return bounds


def _read_compounds(path: Path) -> dict[str, tuple[str, float]]:
    """Read MetaNetX formula and charge by BiGG id without compartment, for species that the universe leaves blank."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {r["BiGG"]: (r["formula"], float(r["charge"] or 0)) for r in rows if r["formula"]}


def _read_universe(path: Path, wanted: set[str]) -> tuple[dict[str, dict[str, float]], dict[str, tuple[str, float]]]:
    """Read stoichiometry of the wanted reactions, and formula and charge of all species."""
    fbc = "{http://www.sbml.org/sbml/level3/version1/fbc/version2}"
    stoichiometry: dict[str, dict[str, float]] = {}
    species: dict[str, tuple[str, float]] = {}
    with gzip.open(path, "rb") as file:
        for _, element in ElementTree.iterparse(file, events=("end",)):
            tag = element.tag.rpartition("}")[2]
            if tag == "species":
                key = element.attrib["id"].removeprefix("M_")
                species[key] = (element.get(f"{fbc}chemicalFormula", ""), float(element.get(f"{fbc}charge", 0)))
            elif tag == "reaction":
                reaction = element.attrib["id"].removeprefix("R_")
                if reaction in wanted:
                    stoichiometry[reaction] = _sides(element)
            if tag in ("species", "reaction"):
                element.clear()
    return stoichiometry, species


def _sides(element: ElementTree.Element) -> dict[str, float]:
    net: dict[str, float] = {}
    for child in element:
        sign = {"listOfReactants": -1.0, "listOfProducts": 1.0}.get(child.tag.rpartition("}")[2], 0.0)
        for reference in child if sign else ():
            metabolite = reference.attrib["species"].removeprefix("M_")
            net[metabolite] = net.get(metabolite, 0.0) + sign * float(reference.attrib["stoichiometry"])
    return {m: n for m, n in net.items() if n}


def _organisms(tables: dict[str, np.ndarray]) -> dict[str, Organism]:
    names = tables["metabolites"]
    organisms = {}
    for row in growth_ranges():
        model = row["model"]
        entries, limits = tables[f"{model}/entries"], tables[f"{model}/limits"].astype(np.float64)
        rows, columns = entries[:, 0].astype(np.int64), entries[:, 1].astype(np.int64)
        used, local = np.unique(rows, return_inverse=True)
        organisms[row["organism"]] = Organism(
            name=row["organism"],
            model=model,
            domain=row["domain"],
            oxygen=row["oxygen"],
            temperature_k=(float(row["min_temperature_c"]) + 273.15, float(row["max_temperature_c"]) + 273.15),
            ph=(float(row["min_ph"]), float(row["max_ph"])),
            reactions=tuple(tables[f"{model}/reactions"].tolist()),
            metabolites=tuple(names[used].tolist()),
            stoichiometry=sparse.csc_matrix((entries[:, 2], (local, columns)), shape=(len(used), len(limits))),
            lower=limits[:, 0],
            upper=limits[:, 1],
        )
    return organisms


def _chemistry(tables: dict[str, np.ndarray]) -> dict[str, Metabolite]:
    chemistry = {}
    for name, formula, charge in zip(
        tables["metabolites"].tolist(), tables["formulas"].tolist(), tables["charges"].tolist(), strict=True
    ):
        counts = parse_formula(formula)
        mass_da = sum((ATOMIC_MASS_DA[e] * n for e, n in counts.items()), 0.0)
        chemistry[name] = Metabolite(counts=counts, charge=charge, mass_da=mass_da, formula_known=bool(counts))
    return chemistry
