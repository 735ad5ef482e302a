"""Every organism's network in an environment."""

from __future__ import annotations

import numpy as np

from data_pipeline import assemble, feasibility, habitat
from data_pipeline.environment import parse_environment
from data_pipeline.feasible_networks import feasible_networks

METHANOL = parse_environment("temperature_k=310,ph=7,o2=0,redox=-0.4,methanol=0.001")
GLUCOSE = parse_environment("temperature_k=310,ph=7,o2=0,redox=-0.4,glucose=0.001")
STEAM = parse_environment("temperature_k=400,ph=7,o2=0,redox=-0.4,glucose=0.001")


def test_each_organism_that_lives_there_shows_the_network_that_it_alone_would() -> None:
    on_methanol, on_glucose, in_steam = feasible_networks(np.stack([METHANOL, GLUCOSE, STEAM]), processes=1)
    assert "Methanosarcina barkeri Fusaro" in {network.organism for network in on_methanol}
    assert len(on_glucose) > len(on_methanol)  # glucose is food to most
    assert in_steam == ()  # 127 degrees Celsius
    for network in on_methanol:
        alone = assemble.solve((network.organism, network.nutrients))
        assert alone is not None
        assert (network.edges, network.nodes) == (assemble.edge_names(alone), alone.metabolites)
        assert network.nutrients == habitat.nutrients(METHANOL)
        question = feasibility.Question(network.edges, network.nutrients)
        assert network.organism in feasibility.most_atp([question])[0]


def test_two_processes_find_what_one_finds() -> None:
    environments = np.stack([METHANOL, GLUCOSE, METHANOL])
    found = feasible_networks(environments, processes=2)
    assert found == feasible_networks(environments, processes=1)
    assert found[0] == found[2]
