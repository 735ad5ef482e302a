"""Draw a climate, a spectrum with its reconstruction, and a real beside a generated network."""

from __future__ import annotations

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from data_pipeline.variables import OBSERVABLES, WAVELENGTH_UM


def climate_maps(maps: dict[str, Float[np.ndarray, "h w"]], unit: str) -> Figure:
    """Draw maps (south to north, the substellar point in the middle as in the cubes) on one colour scale."""
    figure = Figure(figsize=(4 * len(maps), 2.6), layout="constrained")
    low, high = min(float(m.min()) for m in maps.values()), max(float(m.max()) for m in maps.values())
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(maps))), maps.items(), strict=True):
        image = axes.imshow(values, "inferno", origin="lower", extent=(-180, 180, -90, 90), vmin=low, vmax=high)
        axes.set(title=name, xlabel="longitude from substellar point (deg)", ylabel="latitude (deg)")
    figure.colorbar(image, ax=figure.axes, label=unit)
    return figure


def spectra(
    observed_ppm: Float[np.ndarray, "O S"],
    error_ppm: Float[np.ndarray, "O S"],
    clean_ppm: Float[np.ndarray, "O S"],
    rebuilt_ppm: Float[np.ndarray, "O S"],
) -> Figure:
    """Draw what was observed, what it would be without noise, and what the autoencoder makes of it."""
    figure = Figure(figsize=(8, 2.6 * len(OBSERVABLES)), layout="constrained")
    centre_um = np.sqrt(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1])
    for row, (axes, name) in enumerate(zip(figure.subplots(len(OBSERVABLES), 1), OBSERVABLES, strict=True)):
        axes.errorbar(
            centre_um, observed_ppm[row], error_ppm[row], fmt=".", ms=2, lw=0.5, color="0.6", label="observed"
        )
        axes.plot(centre_um, clean_ppm[row], color="black", lw=1, label="noiseless")
        axes.plot(centre_um, rebuilt_ppm[row], color="tab:red", lw=1, label="reconstruction")
        shown = np.concatenate([clean_ppm[row], rebuilt_ppm[row]])
        margin = 0.1 * np.ptp(shown) + 1e-3
        axes.set(xscale="log", xlabel="wavelength (um)", ylabel=name, ylim=(shown.min() - margin, shown.max() + margin))
    figure.axes[0].legend(frameon=False)
    return figure


def networks(shown: dict[str, tuple[tuple[str, ...], Bool[np.ndarray, "n n"]]]) -> Figure:
    """Draw directed networks side by side; a metabolite that is in several lies at the same place in each."""
    graphs = {}
    for title, (names, adjacency) in shown.items():
        graphs[title] = nx.DiGraph()
        graphs[title].add_nodes_from(names)
        graphs[title].add_edges_from((names[i], names[j]) for i, j in np.argwhere(adjacency))
    place = nx.spring_layout(nx.compose_all([nx.Graph(g) for g in graphs.values()]), seed=0)
    figure = Figure(figsize=(6 * len(shown), 5), layout="constrained")
    for axes, (title, graph) in zip(np.atleast_1d(figure.subplots(1, len(shown))), graphs.items(), strict=True):
        nx.draw_networkx(
            graph, place, ax=axes, node_size=60, node_color="tab:green", font_size=6, width=0.6, arrowsize=6
        )
        axes.set_title(f"{title}: {graph.number_of_nodes()} metabolites, {graph.number_of_edges()} edges")
        axes.axis("off")
    return figure
