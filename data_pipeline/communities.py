"""Find pairs of organisms that live together on what one of them alone could not: one eats what the other secretes.

`python -m data_pipeline.communities ENVIRONMENT --out DIR` writes the network of every such pair as an NPZ graph;
ENVIRONMENT is a list such as "temperature_k=310,ph=7,o2=0,glucose=0.001". Feeding is one-way, so that two together make
no ATP from nothing when neither does. `build-data` shows no communities: 5 % of its waters have such a pair.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import GraphSample
from data_pipeline.environment import parse_environment
from data_pipeline.errors import one_line
from data_pipeline.flux_balance import SALTS, ActiveNetwork, solve
from data_pipeline.graph_files import write_npz
from data_pipeline.habitat import nutrients, viable_organisms
from data_pipeline.metabolic_graph import composition, network_graph
from data_pipeline.variables import MAX_METABOLITES


class Community(NamedTuple):
    """Two organisms; the second makes no ATP from the nutrients without the first."""

    feeder: ActiveNetwork
    fed: ActiveNetwork  # its nutrients are the environment's and what is exchanged
    exchanged: tuple[str, ...]  # what the feeder secretes and the fed one takes up


def community(feeder: str, fed: str, offered: Iterable[str]) -> Community | None:
    """Return how the feeder lives on these nutrients and the fed organism on what it secretes; None when they do not.

    None also when the fed organism makes ATP without it. Each is solved by itself (flux_balance.solve): the fed one may
    take up each secreted metabolite within the limits of any nutrient, whatever the feeder's rate; the network that is
    active hardly depends on rates. From salts alone nobody makes ATP, and so no community does.
    """
    own = tuple(sorted(set(offered)))
    first = solve(feeder, own)
    if first is None or solve(fed, own) is not None:
        return None
    gift = set(first.secreted) - set(own) - SALTS
    second = solve(fed, tuple(sorted({*own, *gift})))
    if second is None:
        return None
    graph = network_graph(second)
    taken = {graph.metabolites[s] for s, _ in graph.edge_index.T} - {
        graph.metabolites[p] for _, p in graph.edge_index.T
    }
    return Community(first, second, tuple(sorted(gift & taken)))


def communities(environment: np.ndarray) -> list[Community]:
    """Return every community of the organisms that stand an environment (V numbers)."""
    offered, there = nutrients(environment), viable_organisms(environment)
    lives = {name: solve(name, offered) is not None for name in there}
    pairs = [(a, b) for a in there for b in there if lives[a] and not lives[b]]
    return [found for a, b in pairs if (found := community(a, b, offered)) is not None]


def community_graph(pair: Community) -> GraphSample:
    """Return the union of both active networks. Inside an organism a node is `pyr_c@1` or `pyr_c@2`; outside, `ac_e`.

    An exchange is a path `ac_c@1 -> ac_e -> ac_c@2` through what both touch. Supplied are the environment's nutrients;
    what is exchanged is no end product unless the fed organism secretes it too.
    """
    graphs = [network_graph(pair.feeder), network_graph(pair.fed)]
    kinds: dict[tuple[str, str], int] = {}
    plain: dict[str, str] = {}
    for number, graph in enumerate(graphs, 1):
        names = [m if m.endswith("_e") else f"{m}@{number}" for m in graph.metabolites]
        plain |= dict(zip(names, graph.metabolites, strict=True))
        for (s, p), kind in zip(graph.edge_index.T, graph.edge_type.tolist(), strict=True):
            kinds[names[s], names[p]] = kind
    nodes, edges = sorted(plain), sorted(kinds)
    place = {name: row for row, name in enumerate(nodes)}
    edge_index = np.array([(place[s], place[p]) for s, p in edges], np.int64).reshape(-1, 2).T
    ends = {*pair.feeder.secreted, *pair.fed.secreted} - set(pair.exchanged)
    features = [[*composition(plain[m]), float(m in pair.feeder.nutrients), float(m in ends)] for m in nodes]
    return GraphSample(
        metabolites=tuple(nodes),
        metabolite_index=np.zeros(len(nodes), np.int64),
        features=np.array(features, np.float32),
        edge_index=edge_index,
        edge_type=np.array([kinds[edge] for edge in edges], np.int64),
        organism=f"{pair.feeder.organism} + {pair.fed.organism}",
        nutrients=pair.feeder.nutrients,
    )


@one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the communities of an environment; bad input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="communities", description=__doc__)
    parser.add_argument("environment")
    parser.add_argument("--out", type=Path, required=True, help="folder of NPZ graphs")
    given = parser.parse_args(arguments)
    environment = parse_environment(given.environment)
    found = communities(environment)
    given.out.mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(found):
        graph = community_graph(pair)
        size = len(graph.metabolites)
        note = f"; too large to train on, over {MAX_METABOLITES}" if size > MAX_METABOLITES else ""
        write_npz(given.out / f"community_{number:03d}.npz", graph, environment)
        print(f"community_{number:03d}: {graph.organism}, {', '.join(pair.exchanged)}, {size} metabolites{note}")
    print(f"{len(found)} communities in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
