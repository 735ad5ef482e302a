"""Join what the physics and the biology say about planets into samples and choose the network that each one shows."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipeline import climate, environment, flux_balance, habitat, metabolic_graph, sources, spectra
from data_pipeline.batch import (
    CLIMATE,
    ENVIRONMENT_VECTOR,
    GRAPH,
    MODALITIES,
    PLANET_PARAMETERS,
    SPECTRUM,
    GraphSample,
    Sample,
)
from data_pipeline.climate_sources import EMULATOR, ClimateSource
from data_pipeline.order import generator
from data_pipeline.planets import Planet
from data_pipeline.shards import absent_graph, split_of
from data_pipeline.variables import MAX_METABOLITES

HABITABLE_WATER_SHARE = 0.20  # of the surface at 273.15-373.15 K, area weighted
Pair = tuple[str, tuple[str, ...]]  # organism, sorted nutrients of those that it knows


def observe(
    planets: Sequence[Planet], sample_ids: Sequence[str], split: str, seed: int, source: ClimateSource = EMULATOR
) -> list[Sample]:
    """Return samples with climate, spectrum, planet parameters and environment, still without life.

    A planet without liquid water has no environment (zeros, `present` False).
    """
    cubes = source.cubes(list(planets), derived_seed(seed, "climate"))
    return [
        _observe_one(planet, cube, sample_id, split, seed, source.name)
        for planet, cube, sample_id in zip(planets, cubes, sample_ids, strict=True)
    ]


def _observe_one(
    planet: Planet, cube: np.ndarray, sample_id: str, split: str, seed: int, climate_source: str
) -> Sample:
    state = climate.diagnostics(cube, planet.irradiance_w_m2)
    surface, surface_facts = environment.surface_environment(planet, cube, derived_seed(seed, "environment", sample_id))
    spectrum = spectra.observe(planet, cube, derived_seed(seed, "spectrum", sample_id))
    wet = state["liquid_water_share"] > 0
    made_of = sources.of_sample(planet, climate_source)
    present = np.zeros(len(MODALITIES), bool)
    present[[CLIMATE, SPECTRUM, PLANET_PARAMETERS]] = True
    present[ENVIRONMENT_VECTOR] = wet
    return Sample(
        sample_id=sample_id,
        system_id=planet.system_id,
        name=planet.name,
        split=split,
        climate=cube,
        spectrum_ppm=spectrum.observed_ppm,
        spectrum_error_ppm=spectrum.error_ppm,
        spectrum_clean_ppm=spectrum.clean_ppm,
        planet=planet.parameters(),
        environment=surface if wet else np.zeros_like(surface),
        graph=absent_graph(),
        habitable=False,
        present=present,
        facts=_json({**planet.facts(), **state, **surface_facts, "sources": made_of}),
    )


def inhabitants(surface: np.ndarray) -> list[Pair]:
    """Return the organisms whose growth range holds this environment, each with those of its nutrients that it knows.

    What an organism cannot use is left out: two waters that differ in that alone are one question, and one split.
    """
    offered = habitat.nutrients(surface)
    return [(organism, flux_balance.usable(organism, offered)) for organism in habitat.viable_organisms(surface)]


def solve(pair: Pair) -> GraphSample | None:
    """Return the active network of an organism on these nutrients; None where it makes no ATP."""
    active = flux_balance.solve(*pair)
    return None if active is None else metabolic_graph.network_graph(active)


def network_keys(networks: Mapping[Pair, GraphSample]) -> dict[Pair, str]:
    """Return a name for each network that can be shown; equal edges have equal names, whoever makes them."""
    return {
        pair: " ".join(f"{s}>{p}" for s, p in sorted(edge_names(graph)))
        for pair, graph in networks.items()
        if 0 < len(graph.metabolites) <= MAX_METABOLITES
    }


def choose(
    sample_id: str, split: str, feasible: Iterable[Pair], keys: Mapping[Pair, str], seed: int, shown: Counter[str]
) -> Pair | None:
    """Return which feasible organism a planet of this split shows, and count its network in `shown`.

    Only networks that belong to the split (split_of their edges), so that no network, and no organism on the same
    nutrients, is in two splits; of those, one that the fewest planets before show. None when there is no such network.
    """
    own: dict[str, list[Pair]] = {}
    for pair in sorted(feasible):
        if pair in keys and split_of(keys[pair]) == split:
            own.setdefault(keys[pair], []).append(pair)
    if not own:
        return None
    random = generator("organism", seed, sample_id)
    fewest = min(shown[key] for key in own)
    rare = [key for key in own if shown[key] == fewest]
    key = rare[random.integers(len(rare))]
    shown[key] += 1
    return own[key][random.integers(len(own[key]))]


def inhabit(sample: Sample, feasible: Sequence[Pair], graph: GraphSample | None) -> Sample:
    """Return the sample with its label and, when one was chosen, its network, on all nutrients of the environment."""
    offered = tuple(habitat.nutrients(sample.environment)) if sample.present[ENVIRONMENT_VECTOR] else ()
    present = sample.present.copy()
    present[GRAPH] = graph is not None
    habitable = sample.facts["liquid_water_share"] >= HABITABLE_WATER_SHARE and len(feasible) > 0
    life = {
        "habitable": habitable,
        "feasible_organisms": len(feasible),
        "organism": graph.organism if graph is not None else "",
        "nutrients": list(offered),
    }
    if graph is not None:
        life["sources"] = {**sample.facts["sources"], "graph": list(sources.NETWORK)}
    shown = absent_graph() if graph is None else replace(graph, nutrients=offered)
    return replace(sample, habitable=habitable, present=present, graph=shown, facts={**sample.facts, **life})


def edge_names(graph: GraphSample) -> frozenset[tuple[str, str]]:
    """Return the edges as (substrate, product) names: two networks with the same ones are the same network."""
    return frozenset((graph.metabolites[s], graph.metabolites[p]) for s, p in graph.edge_index.T)


def edge_distance(a: GraphSample, b: GraphSample) -> float:
    """Return the Jaccard distance of two edge sets: 0 equal, 1 nothing in common."""
    ours, theirs = edge_names(a), edge_names(b)
    return 1.0 - len(ours & theirs) / max(len(ours | theirs), 1)


def derived_seed(*key: object) -> int:
    """Return a seed below 2^31 that is a function of the key."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def _json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts as plain JSON values; numbers that are not finite are left out."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in facts.items()}
    return {k: v for k, v in plain.items() if not (isinstance(v, float) and not math.isfinite(v))}
