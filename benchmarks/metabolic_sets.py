"""Make the metabolic sets of the generation benchmark: environments of planets and every network that lives in them.

Environments are those that the data pipeline gives to its synthetic planets (without spectra, which nothing here
reads); each network is the flux balance of one organism that stands the environment. Everything is a function of
PLANETS and SEED and comes from the packaged sources alone. Kept in the cache folder, half a CPU minute the first time.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from benchmarks.graph_sets import Graph, GraphSet
from data_pipeline import assemble, build, climate, environment, habitat, reaction_db
from data_pipeline.errors import InputError
from data_pipeline.feasible_networks import feasible_networks
from data_pipeline.flux_balance import ORGANIC_IDS
from data_pipeline.order import generator
from data_pipeline.planets import sample_systems
from data_pipeline.reaction_tables import cache_dir, write_atomically
from data_pipeline.variables import MAX_METABOLITES

PLANETS = 420  # in some 240 of their waters something lives
SEED = 1
ASIDE = 40  # environments that are held out, and as many for the test
ORGANISMS_ASIDE = 4  # of 20, in the set `metabolic_organism`
COMMON = 0.08  # share of environments that an organism lives in
NAMES = ("metabolic", "metabolic_organism")
_ORGANICS = frozenset(ORGANIC_IDS.values())


@dataclass(frozen=True, kw_only=True)
class Life:
    """Environments in which something lives, and all of their networks."""

    environments: Float[np.ndarray, "E V"]
    vocabulary: tuple[str, ...]
    place: Int[np.ndarray, " G"]  # of each network: its row of environments
    organism: tuple[str, ...]  # of each network
    graphs: tuple[Graph, ...]


def load(name: str, planets: int = PLANETS, aside: int = ASIDE) -> tuple[GraphSet, tuple[str, ...]]:
    """Return a set and the organisms that are left out of its training (none in `metabolic`).

    `metabolic`: environments are split so that the dissolved organics of a test environment are together in none of
    training. (Split by all nutrients, three quarters of the test networks occur in training too: organisms do not heed
    nutrients that they do not know.)
    `metabolic_organism`: of the same split, train holds the networks of some organisms, held_out and test those of the
    others in environments that training never saw. The vocabulary and the allowed edges are those of all organisms.

    Args:
        name: One of NAMES.
        planets: To look for environments on.
        aside: Environments that are held out, and as many for the test.
    """
    life = _load(planets)
    parts = split(life, aside)
    strangers = left_out(life) if name == "metabolic_organism" else ()

    def of(part: str) -> tuple[Graph, ...]:
        of_strangers = bool(strangers) and part != "train"
        networks = zip(life.graphs, life.place, life.organism, strict=True)
        return tuple(g for g, place, who in networks if parts[place] == part and (who in strangers) == of_strangers)

    graphs = GraphSet(
        name=name,
        directed=True,
        vocabulary=life.vocabulary,
        named=True,
        allowed=reaction_db.load_reaction_db().mask(life.vocabulary),
        train=of("train"),
        held_out=of("held_out"),
        test=of("test"),
    )
    return graphs, strangers


def only_with_known_organisms(data: GraphSet) -> None:
    """Refuse a set for a guide that asks all organisms (trainers/oracle.preferences).

    Raises:
        InputError: The set keeps organisms for the test, or has none.
    """
    if data.name != "metabolic":
        raise InputError(f"{data.name}: guided draws ask organisms that this set keeps for the test; use metabolic")


def split(life: Life, aside: int) -> list[str]:
    """Return the part of each environment; environments that offer the same dissolved organics are in one part."""
    offered = [organics(e) for e in life.environments]
    order = sorted(set(offered), key=lambda n: generator("generation benchmark", *n).random())
    part, filled = {}, {"test": 0, "held_out": 0}
    for food in order:
        part[food] = next((p for p, n in filled.items() if n < aside), "train")
        if part[food] in filled:
            filled[part[food]] += offered.count(food)
    return [part[n] for n in offered]


def organics(environment: Float[np.ndarray, " V"]) -> tuple[str, ...]:
    """Return the dissolved organics among the nutrients of an environment."""
    return tuple(m for m in habitat.nutrients(environment) if m.removesuffix("_e") in _ORGANICS)


def left_out(life: Life) -> tuple[str, ...]:
    """Return the organisms that the set `metabolic_organism` does not train on, drawn from those that are common."""
    lives = Counter(life.organism)
    common = sorted(n for n, environments in lives.items() if environments >= COMMON * len(life.environments))
    return tuple(sorted(common, key=lambda n: generator(SEED, n).random())[:ORGANISMS_ASIDE])


@functools.cache
def _load(planets: int) -> Life:
    key = json.dumps([planets, SEED, build.source_versions()], sort_keys=True)
    path = cache_dir() / f"generation-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.npz"
    if not path.is_file():
        _write(path, planets)
    with np.load(path, allow_pickle=False) as file:
        return _read({name: file[name] for name in file.files})


# --- making it --------------------------------------------------------------------------------------------------------
def _environments(number: int) -> Float[np.ndarray, "E V"]:
    """Return what the waters of planets are like; planets without liquid water have none."""
    planets = list(sample_systems(number, SEED))
    found = []
    for first in range(0, number, 40):
        some = planets[first : first + 40]
        cubes = climate.simulate(some, assemble.derived_seed(SEED, "climate"))
        for row, (planet, cube) in enumerate(zip(some, cubes, strict=True), first):
            if climate.diagnostics(cube, planet.irradiance_w_m2)["liquid_water_share"] > 0:
                seed = assemble.derived_seed(SEED, "environment", row)
                found.append(environment.surface_environment(planet, cube, seed)[0])
    return np.stack(found)


def _write(path: Path, planets: int) -> None:
    environments = _environments(planets)
    there = zip(environments, feasible_networks(environments, processes=1), strict=True)
    living = [(e, [n for n in networks if len(n.nodes) <= MAX_METABOLITES]) for e, networks in there]
    living = [(e, networks) for e, networks in living if networks]
    networks = [(place, n) for place, (_, here) in enumerate(living) for n in here]
    vocabulary = sorted({m for _, n in networks for m in n.nodes})
    rows = {m: i for i, m in enumerate(vocabulary)}
    edges = [sorted((rows[s], rows[p]) for s, p in n.edges) for _, n in networks]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        environments=np.stack([e for e, _ in living]),
        vocabulary=np.array(vocabulary),
        place=np.array([place for place, _ in networks]),
        organism=np.array([n.organism for _, n in networks]),
        edges=np.array([edge for each in edges for edge in each]),
        edge_ptr=np.cumsum([0, *map(len, edges)]),
    )
    write_atomically(path, buffer.getvalue())


def _read(table: dict[str, np.ndarray]) -> Life:
    graphs = []
    for i, place in enumerate(table["place"]):
        edges = table["edges"][slice(*table["edge_ptr"][i : i + 2])]
        labels = np.unique(edges)
        adjacency = np.zeros((len(labels), len(labels)), bool)
        adjacency[tuple(np.searchsorted(labels, edges).T)] = True
        graphs.append(Graph(labels, adjacency, table["environments"][place]))
    return Life(
        environments=table["environments"],
        vocabulary=tuple(table["vocabulary"].tolist()),
        place=table["place"],
        organism=tuple(table["organism"].tolist()),
        graphs=tuple(graphs),
    )
