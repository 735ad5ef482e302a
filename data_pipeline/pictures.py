"""Draw planets, spectra, networks and distributions as pictures that stand inside a web page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image  # matplotlib brings it

from data_pipeline.batch import GraphSample
from data_pipeline.climate import BOILING_K, FREEZING_K
from data_pipeline.variables import EDGE_TYPES, LEVELS, NODE_FEATURES, OBSERVABLES, WAVELENGTH_UM, climate_field

INK, FAINT, PAPER = "#e8ecf4", "#8b94a7", "#0b0f1a"
LIFE, BARREN = "#3ddc97", "#8f7cf6"  # habitable and not, everywhere on the page
COLDEST_K, HOTTEST_K = 150.0, 400.0
BINS = 28
_EDGE_COLOURS = dict(zip(EDGE_TYPES, (FAINT, "#5bb8ff", "#ffb454", "#ff6b8b"), strict=True))


def _surface_colours() -> LinearSegmentedColormap:
    """Ice is white to violet, water is blue to green, what boils is red: the jumps are at 273 and 373 K."""
    stops = [
        (COLDEST_K, "#2b1a4f"), (215.0, "#7f8fc9"), (FREEZING_K - 0.1, "#ffffff"), (FREEZING_K + 0.1, "#0a3d7a"),
        (300.0, "#1fa7a0"), (340.0, "#c8d64b"), (BOILING_K, "#ff8c2f"), (HOTTEST_K, "#a3101f"),
    ]  # fmt: skip
    span = HOTTEST_K - COLDEST_K
    return LinearSegmentedColormap.from_list("surface", [((k - COLDEST_K) / span, colour) for k, colour in stops])


SURFACE = _surface_colours()


def globes(cube: np.ndarray) -> str:
    """Draw the day and the night side of a climate cube (C H W) by surface temperature, as an <img>."""
    temperature = cube[climate_field("surface_temperature_k")]
    figure = Figure(figsize=(5.4, 2.7), facecolor=PAPER)
    for number, (centre, name) in enumerate(((0.0, "day side"), (180.0, "night side"))):
        axes = figure.add_axes((0.5 * number, 0.0, 0.5, 0.92))
        axes.imshow(_globe(temperature, centre), origin="lower", extent=(-1, 1, -1, 1), interpolation="bilinear")
        axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08))
        axes.axis("off")
        axes.set_title(name, color=FAINT, fontsize=9, pad=1)
    return image(figure, "surface temperature of both sides")


def _globe(temperature: np.ndarray, centre_deg: float, pixels: int = 260) -> np.ndarray:
    """Return an RGBA picture of a sphere seen from above (latitude 0, longitude `centre_deg`), darker at its edge."""
    y, x = np.mgrid[-1 : 1 : pixels * 1j, -1 : 1 : pixels * 1j]
    inside = x**2 + y**2 < 1
    depth = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    latitude = np.degrees(np.arcsin(np.clip(y, -1, 1)))
    longitude = (np.degrees(np.arctan2(x, depth)) + centre_deg + 180) % 360
    rows, columns = temperature.shape
    i = np.clip((latitude + 90) / 180 * rows, 0, rows - 1).astype(int)
    j = (longitude / 360 * columns).astype(int) % columns
    colours = SURFACE(Normalize(COLDEST_K, HOTTEST_K, clip=True)(temperature[i, j]))
    colours[..., :3] *= (0.35 + 0.65 * depth)[..., None]
    colours[..., 3] = inside * np.clip((1 - np.hypot(x, y)) * pixels / 3, 0, 1)
    return colours


def profile(cube: np.ndarray) -> str:
    """Draw temperature against height at the substellar point, at its antipode and over the terminator."""
    figure, axes = _axes(2.7, 2.7)
    start = climate_field("temperature_k")
    column = cube[start : start + LEVELS]
    _, rows, columns = column.shape
    middle = slice(rows // 2 - 2, rows // 2 + 2)
    night = np.concatenate([column[:, middle, :2], column[:, middle, -2:]], axis=2)
    places = {
        "noon": (column[:, middle, columns // 2 - 2 : columns // 2 + 2], "#ffb454"),
        "dusk": (column[:, middle, 3 * columns // 4 - 1 : 3 * columns // 4 + 1], FAINT),
        "midnight": (night, "#5bb8ff"),
    }
    for name, (values, colour) in places.items():
        axes.plot(values.mean((1, 2)), np.arange(LEVELS), color=colour, lw=1.6, label=name)
    axes.set(xlabel="temperature (K)", ylabel="level, surface to top", yticks=[])
    axes.legend(frameon=False, labelcolor="linecolor", fontsize=8)
    return image(figure, "temperature with height")


def spectrum(ppm: np.ndarray, error_ppm: np.ndarray, clean_ppm: np.ndarray) -> str:
    """Draw both observables (O S each) as a telescope gives them, with the noiseless line."""
    figure = Figure(figsize=(5.4, 2.9), facecolor=PAPER, layout="constrained")
    centre_um = np.sqrt(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1])
    for row, (axes, name) in enumerate(
        zip(figure.subplots(len(OBSERVABLES), 1, sharex=True), OBSERVABLES, strict=True)
    ):
        darken(axes)
        low, high = clean_ppm[row] - error_ppm[row], clean_ppm[row] + error_ppm[row]
        axes.fill_between(centre_um, low, high, color="#5bb8ff", alpha=0.18, lw=0)
        axes.plot(centre_um, ppm[row], ".", ms=2.5, color="#5bb8ff")
        axes.plot(centre_um, clean_ppm[row], color="#ffffff", lw=0.9)
        spread = 0.15 * np.ptp(clean_ppm[row]) + 2 * float(np.median(error_ppm[row]))
        axes.set(ylim=(clean_ppm[row].min() - spread, clean_ppm[row].max() + spread), xscale="log")
        axes.set_ylabel(name.replace("_depth_ppm", "") + " (ppm)", fontsize=8)
    axes.set_xticks([0.7, 1, 2, 3, 5, 10, 20], labels=["0.7", "1", "2", "3", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_xlabel("wavelength (µm)")
    return image(figure, "spectrum")


def network(graph: GraphSample) -> str:
    """Draw a metabolic network: size is mass, what the environment supplies is bright, end products are ringed."""
    import networkx as nx

    drawn = nx.DiGraph()
    drawn.add_nodes_from(range(len(graph.metabolites)))
    drawn.add_edges_from(graph.edge_index.T.tolist())
    place = _layout(nx.Graph(drawn))
    figure = Figure(figsize=(4.6, 4.0), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    features = dict(zip(NODE_FEATURES, graph.features.T, strict=True))
    supplied, end = features["supplied"] > 0, features["end_product"] > 0
    colours = [LIFE if s else "#ff6b8b" if e else "#c9d2e6" for s, e in zip(supplied, end, strict=True)]
    sizes = 30 + 90 * np.sqrt(features["mass_da"] / max(float(features["mass_da"].max()), 1e-6))
    edge_colours = [_EDGE_COLOURS[EDGE_TYPES[int(kind)]] for kind in graph.edge_type]
    nx.draw_networkx_edges(
        drawn, place, ax=axes, edgelist=graph.edge_index.T.tolist(), edge_color=edge_colours, width=0.8, arrowsize=6,
        alpha=0.75, node_size=sizes, connectionstyle="arc3,rad=0.08",
    )  # fmt: skip
    nx.draw_networkx_nodes(drawn, place, ax=axes, node_color=colours, node_size=sizes, linewidths=0)
    names = {i: name for i, name in enumerate(graph.metabolites)}
    shifted = {i: (x, y + 0.055) for i, (x, y) in place.items()}
    nx.draw_networkx_labels(drawn, shifted, names, ax=axes, font_size=6, font_color=INK)
    axes.margins(0.08)
    return image(figure, "metabolic network")


def _layout(drawn: Any) -> dict[int, np.ndarray]:
    """Return a place for each node; parts that hang together by nothing are kept close by an edge that is not drawn."""
    import networkx as nx

    parts = sorted(nx.connected_components(drawn), key=len, reverse=True)
    for part in parts[1:]:
        drawn.add_edge(min(part), min(parts[0]))
    return nx.kamada_kawai_layout(drawn)


def bands(values: np.ndarray, colours: str, label: str, scale: str) -> str:
    """Draw the 5, 25, 50, 75 and 95 % quantiles of spectra (n S) over wavelength, on a `linear` or `log` scale."""
    figure, axes = _axes(5.4, 2.3)
    centre_um = np.sqrt(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1])
    q = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    axes.fill_between(centre_um, q[0], q[4], color=colours, alpha=0.2, lw=0)
    axes.fill_between(centre_um, q[1], q[3], color=colours, alpha=0.35, lw=0)
    axes.plot(centre_um, q[2], color=colours, lw=1.4)
    axes.set(xscale="log", yscale=scale, xlabel="wavelength (µm)", ylabel=label)
    axes.set_xticks([0.7, 1, 2, 3, 5, 10, 20], labels=["0.7", "1", "2", "3", "5", "10", "20"])
    axes.minorticks_off()
    return image(figure, label)


# --- distributions, as vector pictures -------------------------------------------------------------------------------
def histogram(name: str, unit: str, values: np.ndarray, habitable: np.ndarray, log: bool) -> str:
    """Return a histogram of one variable, habitable planets in front of the others, as an <svg>."""
    shown = np.log10(np.maximum(values, 1e-30)) if log else values
    if not len(shown):
        return ""
    low, high = float(shown.min()), float(shown.max())
    if high - low < 1e-12 * max(abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(shown[habitable == want], edges)[0] for want in (True, False)]
    top = max(int((counts[0] + counts[1]).max()), 1)
    width, height = 220, 74
    bars = []
    for i in range(BINS):
        life, barren = (62 * int(c[i]) / top for c in counts)
        x, w = 6 + i * (width - 12) / BINS, (width - 12) / BINS - 1
        bars.append(_rect(x, 66 - life - barren, w, barren, BARREN) + _rect(x, 66 - life, w, life, LIFE))
    ends = [_number(10**e if log else e) for e in (low, high)]
    median = _number(float(np.median(values)))
    words = f"{html.escape(name)} <span class=u>{html.escape(unit)}</span>"
    return (
        f"<figure class=h><figcaption>{words}<b>{median}</b></figcaption>"
        f'<svg viewBox="0 0 {width} {height + 14}" role=img aria-label="{html.escape(name)}">{"".join(bars)}'
        f"<line x1=6 x2={width - 6} y1=66.5 y2=66.5 /><text x=6 y=80>{ends[0]}</text>"
        f"<text x={width - 6} y=80 text-anchor=end>{ends[1]}{' log' if log else ''}</text></svg></figure>"
    )


def shares(rows: Sequence[tuple[str, int, int]]) -> str:
    """Return bars of (name, how many are habitable, how many are there)."""
    most = max(total for _, _, total in rows)
    lines = []
    for i, (name, some, total) in enumerate(rows):
        y, whole = 8.0 + 34 * i, 560 * total / max(most, 1)
        part = whole * some / max(total, 1)
        lines.append(
            f"<text x=0 y={y + 15}>{html.escape(name)}</text>{_rect(150.0, y, part, 22.0, LIFE)}"
            f"{_rect(150 + part, y, whole - part, 22.0, BARREN)}"
            f"<text x={158 + whole:.0f} y={y + 15}>{some} of {total}, {100 * some / max(total, 1):.0f} %</text>"
        )
    return f'<svg class=s viewBox="0 0 860 {16 + 34 * len(rows)}">{"".join(lines)}</svg>'


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    if height <= 0 or width <= 0:
        return ""
    return f'<rect x={x:.1f} y={y:.1f} width={width:.1f} height={height:.1f} fill="{colour}" />'


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if 100 <= size < 1e5 else f"{value:.3g}"


# --- matplotlib ------------------------------------------------------------------------------------------------------
def _axes(width: float, height: float):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    darken(axes)
    return figure, axes


def darken(axes) -> None:  # type: ignore[no-untyped-def]
    """Give axes the colours of the page."""
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=FAINT, labelsize=7)
    axes.xaxis.label.set(color=FAINT, fontsize=8)
    axes.yaxis.label.set(color=FAINT, fontsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#2a3247")


def image(figure: Figure, words: str, colours: int | None = None) -> str:
    """Return the figure as an <img> that carries itself; `words` say what is on it.

    With `colours`, of that many colours (at most 256): a map has a third of the bytes and looks the same.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor=PAPER)
    if colours:
        picture = Image.open(buffer).convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE)
        buffer = io.BytesIO()
        picture.save(buffer, format="png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{data}">'
