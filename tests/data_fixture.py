"""Samples made by hand, and a small real data set that all test files share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

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
from data_pipeline.variables import (
    CLIMATE_FIELDS,
    ENVIRONMENT,
    LATITUDES,
    LONGITUDES,
    NODE_FEATURES,
    OBSERVABLES,
    PLANET,
    SPECTRAL_BINS,
)

PLANETS, SEED = 48, 0


def built_dataset(planets: int = PLANETS) -> Path:
    """Return a real data set of 48 planets, built once for this code and kept in the cache folder (about a minute)."""
    from data_pipeline import build
    from data_pipeline.reaction_tables import cache_dir

    kept = Path(cache_dir()) / "test-data" / f"{planets}-{build.source_versions()['data_pipeline']}"
    if not (kept / "manifest.json").is_file():
        mine = kept.with_name(f"{kept.name}.{os.getpid()}")
        build.build(mine, planets, SEED, workers=2)
        try:
            mine.rename(kept)
        except OSError:  # another test run was faster
            shutil.rmtree(mine)
    return kept


def chain(*metabolites: str) -> GraphSample:
    """Return the network a -> b -> c ... whose node n has features n."""
    nodes = len(metabolites)
    return GraphSample(
        metabolites=metabolites,
        metabolite_index=np.arange(nodes),
        features=np.repeat(np.arange(nodes, dtype=np.float32)[:, None], len(NODE_FEATURES), axis=1),
        edge_index=np.stack([np.arange(nodes - 1), np.arange(1, nodes)]),
        edge_type=np.full(nodes - 1, 2),
        organism="iML1515",
        nutrients=("o2_e",),
    )


def sample(number: int, graph: GraphSample | None = None, split: str = "train") -> Sample:
    """Return a sample whose numbers all equal `number`; without a graph the graph and the environment are absent."""
    from data_pipeline.shards import absent_graph

    spectrum = np.full((len(OBSERVABLES), SPECTRAL_BINS), number, np.float32)
    present = np.zeros(len(MODALITIES), bool)
    present[[CLIMATE, SPECTRUM, PLANET_PARAMETERS]] = True
    present[[GRAPH, ENVIRONMENT_VECTOR]] = graph is not None
    return Sample(
        sample_id=f"planet-{number:07d}",
        system_id=f"system-{number}",
        name=f"Planet {number}",
        split=split,
        climate=np.full((len(CLIMATE_FIELDS), LATITUDES, LONGITUDES), number, np.float32),
        spectrum_ppm=spectrum,
        spectrum_error_ppm=spectrum,
        spectrum_clean_ppm=spectrum,
        planet=np.full(len(PLANET), number, np.float32),
        environment=np.full(len(ENVIRONMENT), number, np.float32),
        graph=graph or absent_graph(),
        habitable=graph is not None,
        present=present,
        facts={"liquid_water_share": 0.5},
    )
