"""Show a data set as one web page: `./launch.sh build-data --describe DIR` writes DIR/describe.html."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import folders, pictures, shards
from data_pipeline.batch import GRAPH, Sample
from data_pipeline.climate import area_weights
from data_pipeline.errors import InputError
from data_pipeline.shards import SPLITS, Manifest
from data_pipeline.variables import (
    CLIMATE_FIELDS,
    ENVIRONMENT,
    LATITUDES,
    LEVELS,
    PLANET,
    PROFILE_VARIABLES,
    SURFACE_VARIABLES,
    Variable,
    climate_field,
)

PAGE = "describe.html"
CUBES = 2000  # planets whose cubes and spectra are looked at; all are counted
EXAMPLES = 6
ABSENT_BELOW = 1e-6  # a variable with such a floor is absent there: gases and solutes
_WINDS = slice(climate_field("eastward_wind_m_s"), climate_field("northward_wind_m_s") + LEVELS)
_FACTS = ("surface_pressure_bar", "co2", "ch4", "o2", "h2", "liquid_water_share", "feasible_organisms")


class Seen(NamedTuple):
    """What is kept of each planet: numbers, and no cube."""

    planet: np.ndarray  # n K
    environment: np.ndarray  # n V, NaN without liquid water
    climate: np.ndarray  # n C, area-weighted means
    spectra: np.ndarray  # n O S, without noise
    errors: np.ndarray  # n O S
    nodes: np.ndarray  # n, 0 without a network
    edges: np.ndarray  # n
    facts: np.ndarray  # n, columns of _FACTS
    habitable: np.ndarray  # n bool
    split: list[str]
    organism: list[str]
    family: list[str]
    state: list[str]
    sources: list[str]  # JSON of the keys of each part


def describe(data_dir: str | Path) -> Path:
    """Write the page and return where it is.

    Raises:
        InputError: There is no data set, or a shard of it cannot be used (the message names it).
    """
    if url := folders.remote_url(data_dir):
        raise InputError(f"data={url}: the page is written into the data folder; copy the data to a disk first")
    manifest = shards.verify(data_dir, checksums=False)
    examples: dict[str, Sample] = {}
    seen = _look(_samples(data_dir, manifest), examples)
    path = Path(data_dir) / PAGE
    shards.write_bytes(path, _page(Path(data_dir), manifest, seen, examples).encode())
    return path


def _samples(data_dir: str | Path, manifest: Manifest) -> Iterator[Sample]:
    """Yield samples of all splits, a shard of each in turn."""
    queues = [list(manifest.of_split(split)) for split in SPLITS]
    while any(queues):
        for queue in queues:
            if queue:
                yield from shards.to_samples(shards.read_shard(Path(data_dir) / queue.pop(0).file))


def _look(samples: Iterator[Sample], examples: dict[str, Sample]) -> Seen:
    """Take down what the page shows; fill `examples` with planets that differ."""
    columns: dict[str, list[Any]] = {name: [] for name in Seen._fields}
    for number, sample in enumerate(samples):
        wet = sample.environment.any()
        row: dict[str, Any] = {
            "planet": sample.planet,
            "environment": sample.environment if wet else np.full(len(ENVIRONMENT), np.nan, np.float32),
            "nodes": len(sample.graph.metabolites),
            "edges": sample.graph.edge_type.size,
            "facts": [float(sample.facts.get(name, np.nan)) for name in _FACTS],
            "habitable": bool(sample.habitable),
            "split": sample.split,
            "organism": sample.graph.organism,
            "family": str(sample.facts.get("family", "")),
            "state": str(sample.facts.get("climate_state", "")),
            "sources": json.dumps(sample.facts.get("sources", {}), sort_keys=True),
        }
        if number < CUBES:
            row["climate"] = np.einsum("chw,hw->c", sample.climate, area_weights())
            row["climate"][_WINDS] = np.sqrt(np.einsum("chw,hw->c", sample.climate[_WINDS] ** 2, area_weights()))
            row["spectra"], row["errors"] = sample.spectrum_clean_ppm, sample.spectrum_error_ppm
            _keep_example(sample, examples)
        for name, value in row.items():
            columns[name].append(value)
    kept: dict[str, Any] = {name: v if isinstance(v[0], str) else np.asarray(v) for name, v in columns.items()}
    return Seen(**kept)


def _keep_example(sample: Sample, examples: dict[str, Sample]) -> None:
    """Keep the first planet of each kind, those with a network before those without."""
    kind = f"{sample.facts.get('climate_state', 'planet')}, {'habitable' if sample.habitable else 'not habitable'}"
    held = examples.get(kind)
    if held is None or (sample.present[GRAPH] and not held.present[GRAPH]):
        examples[kind] = sample


# --- the page --------------------------------------------------------------------------------------------------------
def _page(folder: Path, manifest: Manifest, seen: Seen, examples: dict[str, Sample]) -> str:
    sections = [
        _head(folder, manifest, seen),
        section("Which planets are habitable", _balance(seen)),
        section("Planets of this data set", "".join(_card(kind, s) for kind, s in _pick(examples))),
        section("What a telescope is told", _histograms(PLANET, seen.planet, seen.habitable)),
        section("What it sees", _spectra(seen)),
        section("The air and the life", _facts(seen)),
        section("The climate, in area-weighted means", _climate(seen)),
        section("The water, where there is some", _environment(seen)),
        section("The networks", _networks(seen)),
        section("Where it is from", _provenance(manifest, seen) + _sources(manifest)),
    ]
    title = html.escape(folder.resolve().name)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}: {manifest.planets} planets</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>"
        f"<main>{''.join(sections)}</main></html>\n"
    )


def section(title: str, content: str) -> str:
    """Return a part of the page under its heading; nothing where there is no content."""
    return f"<section><h2>{html.escape(title)}</h2><div class=row>{content}</div></section>" if content else ""


def _head(folder: Path, manifest: Manifest, seen: Seen) -> str:
    networks = int((seen.nodes > 0).sum())
    gib = sum(s.bytes for s in manifest.shards) / 2**30
    tiles = (
        (f"{manifest.planets:,}", "planets"),
        (f"{manifest.facts.get('systems', 0):,}", "systems"),
        (f"{100 * float(seen.habitable.mean()):.0f} %", "habitable"),
        (f"{networks:,}", "with a network"),
        (f"{manifest.facts.get('distinct_networks', 0):,}", "distinct networks"),
        (f"{len(manifest.vocabulary)}", "metabolites"),
        (f"{gib:.2f} GiB", f"in {len(manifest.shards)} shards"),
    )
    boxes = "".join(f"<div class=tile><b>{value}</b>{name}</div>" for value, name in tiles)
    legend = f"<p><i style='background:{pictures.LIFE}'></i>habitable <i style='background:{pictures.BARREN}'></i>not"
    return f"<header><h1>{html.escape(folder.resolve().name)}</h1>{legend}</p><div class=row>{boxes}</div></header>"


def _balance(seen: Seen) -> str:
    split = np.array(seen.split)
    rows = [(s.replace("_", " "), int(seen.habitable[split == s].sum()), int((split == s).sum())) for s in SPLITS]
    content = pictures.shares([r for r in rows if r[2]])
    for title, names in (("climate", seen.state), ("air", seen.family)):
        kinds = np.array(names)
        found = [(k, int(seen.habitable[kinds == k].sum()), n) for k, n in Counter(names).most_common() if k]
        if found:
            content += f"<h3>by {title}</h3>" + pictures.shares(found)
    return content


def _pick(examples: dict[str, Sample]) -> list[tuple[str, Sample]]:
    """Return up to six planets: with a network first, then one of every other kind."""
    return sorted(examples.items(), key=lambda item: (not item[1].present[GRAPH], item[0]))[:EXAMPLES]


def _card(kind: str, sample: Sample) -> str:
    p = dict(zip((v.name for v in PLANET), sample.planet.tolist(), strict=True))
    facts = sample.facts
    words = (
        f"{p['radius_earth']:.2f} Earth radii, {p['irradiance_w_m2']:.0f} W m⁻² from a star of "
        f"{p['star_temperature_k']:.0f} K, a day of {p['rotation_period_d']:.1f} d; "
        f"{facts.get('surface_pressure_bar', float('nan')):.1f} bar of {facts.get('family', 'air')} air; "
        f"{100 * facts.get('liquid_water_share', 0):.0f} % of the surface has liquid water, "
        f"{facts.get('feasible_organisms', 0)} organisms could live there."
    )
    life = ""
    if sample.present[GRAPH]:
        fed = ", ".join(n.removesuffix("_e") for n in sample.graph.nutrients)
        life = f"{pictures.network(sample.graph)}<p>{html.escape(sample.graph.organism)} on {html.escape(fed)}</p>"
    colour = pictures.LIFE if sample.habitable else pictures.BARREN
    return (
        f"<article style='border-color:{colour}'><h3>{html.escape(sample.name)}<small>{html.escape(kind)}</small></h3>"
        f"<p>{html.escape(words)}</p>{pictures.globes(sample.climate)}<div class=two>{pictures.profile(sample.climate)}"
        f"</div>{pictures.spectrum(sample.spectrum_ppm, sample.spectrum_error_ppm, sample.spectrum_clean_ppm)}{life}"
        "</article>"
    )


def _histograms(variables: Sequence[Variable], values: np.ndarray, habitable: np.ndarray) -> str:
    found = []
    for variable, column in zip(variables, values.T, strict=True):
        there = np.isfinite(column)
        log = variable.scale == "log10"
        if there.any():
            above = there & (column > 1.01 * variable.floor) if log and variable.floor < ABSENT_BELOW else there
            none = 1.0 - above.sum() / there.sum()
            unit = "" if variable.unit == "1" else variable.unit
            unit += f", none in {100 * none:.0f} %" if none > 0.005 else ""
            found.append(pictures.histogram(words_of(variable.name), unit, column[above], habitable[above], log))
    return "".join(found)


def _spectra(seen: Seen) -> str:
    transit, eclipse = seen.spectra[:, 0], np.maximum(seen.spectra[:, 1], 1e-3)
    features = transit - np.median(transit, axis=1, keepdims=True)
    content = pictures.bands(features, "#5bb8ff", "transit depth over its median (ppm)", "linear")
    content += pictures.bands(eclipse, "#ffb454", "eclipse depth (ppm)", "log")
    noise = np.median(np.ptp(seen.spectra, axis=2) / np.maximum(np.median(seen.errors, axis=2), 1e-9), axis=0)
    return content + (
        "<p>Noiseless spectra: median, half and nine tenths of the planets. The features of the median planet are "
        f"{noise[0]:.1f} (transit) and {noise[1]:.1f} (eclipse) times the noise of one bin.</p>"
    )


def _facts(seen: Seen) -> str:
    names = {"co2": "CO₂", "ch4": "CH₄", "o2": "O₂", "h2": "H₂"}
    content = ""
    for name, column in zip(_FACTS, seen.facts.T, strict=True):
        there = np.isfinite(column) & ((column > 0) | (name not in names))
        if there.any():
            unit = "bar" if name.endswith("_bar") else "volume fraction" if name in names else ""
            log = name in names or name.endswith("_bar")
            content += pictures.histogram(
                names.get(name, words_of(name)), unit, column[there], seen.habitable[there], log
            )
    return content


def _climate(seen: Seen) -> str:
    habitable = seen.habitable[: len(seen.climate)]
    content = _histograms(SURFACE_VARIABLES, seen.climate[:, : len(SURFACE_VARIABLES)], habitable)
    for variable in PROFILE_VARIABLES:
        for level, where in ((0, "lowest level"), (LEVELS // 2, "middle"), (LEVELS - 1, "top")):
            column = seen.climate[:, climate_field(variable.name, level)]
            named = replace(variable, name=f"{words_of(variable.name)}, {where}")
            content += _histograms((named,), column[:, None], habitable)
    more = "" if len(seen.climate) == len(seen.habitable) else f" of the first {len(seen.climate)} planets"
    grid = f"{len(CLIMATE_FIELDS)} fields on {LATITUDES} latitudes{more}"
    return f"{content}<p>{grid}; three of ten levels are shown, winds as root mean squares.</p>"


def _environment(seen: Seen) -> str:
    wet = int(np.isfinite(seen.environment[:, 0]).sum())
    content = _histograms(ENVIRONMENT, seen.environment, seen.habitable)
    return content + f"<p>{wet} of {len(seen.habitable)} planets have liquid water somewhere.</p>"


def _networks(seen: Seen) -> str:
    there = seen.nodes > 0
    if not there.any():
        return "<p>No planet has one.</p>"
    content = pictures.histogram(
        "metabolites", "a network", seen.nodes[there].astype(float), seen.habitable[there], False
    )
    content += pictures.histogram("edges", "a network", seen.edges[there].astype(float), seen.habitable[there], False)
    organisms = np.array(seen.organism)
    rows = [
        (name, int(seen.habitable[organisms == name].sum()), n)
        for name, n in Counter(name for name in seen.organism if name).most_common()
    ]
    return content + "<h3>whose</h3>" + pictures.shares(rows)


def _provenance(manifest: Manifest, seen: Seen) -> str:
    """Return a line for each source: what it is, its terms, and of how many planets it makes which part."""
    uses: dict[str, Counter[str]] = {key: Counter() for key in manifest.provenance}
    for told, planets in Counter(seen.sources).items():
        for part, keys in json.loads(told).items():
            for key in keys:
                uses.setdefault(key, Counter())[part] += planets
    lines = []
    for key, parts in uses.items():
        source = manifest.provenance.get(key, {})
        cells = (
            f"{source.get('name', key)} {source.get('version', '')}",
            source.get("licence", "not in the manifest"),
            ", ".join(f"{part} of {planets:,}" for part, planets in sorted(parts.items())),
            source.get("cite", ""),
        )
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells))
    if not lines:
        return "<p>These data are of an older version, which did not keep the source of each part.</p>"
    return f"<table><tr><td><b>source</b><td><b>licence</b><td><b>planets</b><td><b>whose</b>{''.join(lines)}</table>"


def _sources(manifest: Manifest) -> str:
    rows = {**manifest.sources, "seed": str(manifest.seed), "schema": str(manifest.schema_version)}
    shared = {name: value for name, value in manifest.facts.items() if "shared" in name}
    rows |= {words_of(name): str(value) for name, value in shared.items()}
    cells = "".join(f"<tr><td>{html.escape(k)}<td>{html.escape(v)}" for k, v in rows.items())
    return f"<table>{cells}</table><p>Licences and papers are in NOTICE of the project.</p>"


def words_of(name: str) -> str:
    """Return the name of a variable without its unit, in words."""
    for unit in ("_k", "_w_m2", "_m_s2", "_m_s", "_d", "_au", "_bar", "_earth", "_sun"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


STYLE = f"""
body{{background:{pictures.PAPER};color:{pictures.INK};font:15px/1.5 system-ui,sans-serif;margin:0}}
main{{max-width:1240px;margin:0 auto;padding:24px}}
h1{{font-size:44px;margin:24px 0 0;letter-spacing:-1px}}
h2{{font-size:24px;margin:56px 0 12px}} h3{{font-size:16px;margin:18px 0 6px;width:100%}}
h3 small{{color:{pictures.FAINT};font-weight:400;margin-left:10px}}
.row{{display:flex;flex-wrap:wrap;gap:14px}} p{{color:{pictures.FAINT};margin:6px 0;width:100%}}
header i{{display:inline-block;width:12px;height:12px;border-radius:3px;margin:0 6px 0 10px}}
.tile{{background:#131a2b;border-radius:14px;padding:16px 22px;color:{pictures.FAINT}}}
.tile b{{display:block;color:{pictures.INK};font-size:28px;line-height:1.2}}
figure.h{{background:#131a2b;border-radius:12px;margin:0;padding:10px 12px;flex:1 1 220px;max-width:270px}}
section>.row>img{{width:calc(50% - 7px)}}
figcaption{{font-size:13px}} figcaption .u{{color:{pictures.FAINT}}} figcaption b{{float:right;font-weight:600}}
svg{{width:100%;display:block}} svg text{{fill:{pictures.FAINT};font-size:9px}} svg line{{stroke:#2a3247}}
svg.s{{max-width:820px}} svg.s text{{font-size:13px;fill:{pictures.INK}}}
article{{border:1px solid;border-radius:16px;padding:14px 18px;flex:1 1 330px;max-width:400px;box-sizing:border-box}}
article img{{width:100%;display:block}} .two img{{width:62%;margin:0 auto}} section img{{max-width:100%}}
table{{border-collapse:collapse}} td{{padding:3px 18px 3px 0;color:{pictures.FAINT}}}
"""
