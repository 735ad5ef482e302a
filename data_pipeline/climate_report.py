"""Compare the climates that two data sets give the same planets, as one web page with maps side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from data_pipeline import describe, pictures, shards
from data_pipeline.batch import Sample
from data_pipeline.climate import area_weights, diagnostics, substellar_longitudes
from data_pipeline.climate_agreement import Pair, agreement, agreements, matched
from data_pipeline.spectra import level_pressures_pa
from data_pipeline.variables import (
    LATITUDES,
    LEVELS,
    PLANET,
    SURFACE_VARIABLES,
    climate_field,
)

PAGE = "compare.html"
CARDS = 8  # planets that are shown: from the most to the least alike
FIRST, SECOND = "#5bb8ff", "#ffb454"  # colours of the two, everywhere on the page
_IRRADIANCE = [v.name for v in PLANET].index("irradiance_w_m2")


def compare(first_dir: str | Path, second_dir: str | Path) -> Path:
    """Write the page into the second folder and return where it is.

    Raises:
        InputError: A folder holds no data set, or no planet is in both.
    """
    pairs = matched(first_dir, second_dir)
    names = _names(Path(first_dir), Path(second_dir), pairs)
    path = Path(second_dir) / PAGE
    shards.write_bytes(path, _page(names, pairs).encode())
    return path


# --- the page --------------------------------------------------------------------------------------------------------
def _names(first: Path, second: Path, pairs: Sequence[Pair]) -> tuple[str, str]:
    """Return what the two are called: where their climates are from when that tells them apart, else the folders."""
    sources = []
    for number in (0, 1):
        found = {"+".join(pair[number].facts.get("sources", {}).get("climate", [])) for pair in pairs}
        sources.append(found.pop() if len(found) == 1 else "")
    if all(sources) and sources[0] != sources[1]:
        return sources[0], sources[1]
    return first.resolve().name, second.resolve().name


def _page(names: tuple[str, str], pairs: Sequence[Pair]) -> str:
    order = sorted(pairs, key=_distance)
    shown = [order[round(i)] for i in np.linspace(0, len(order) - 1, min(CARDS, len(order)))]
    sections = [
        _head(names, pairs),
        describe.section("Where they agree and where not", _table(pairs)),
        describe.section("Whole planets", _planets(names, pairs)),
        describe.section(
            "Maps" if len(shown) == len(pairs) else f"Maps of {len(shown)} planets, the most alike first",
            "".join(_card(names, pair) for pair in shown),
        ),
    ]
    a, b = (html.escape(name) for name in names)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{a} and {b}</title>"
        f"<meta name=viewport content='width=device-width'><style>{describe.STYLE}{_STYLE}</style>"
        f"<main>{''.join(sections)}</main></html>\n"
    )


def _distance(pair: Pair) -> float:
    return agreement(SURFACE_VARIABLES[0], "", [0], [pair]).rms


def _head(names: tuple[str, str], pairs: Sequence[Pair]) -> str:
    surface = agreement(SURFACE_VARIABLES[0], "", [0], pairs)
    states = sum(_state(pair.first) == _state(pair.second) for pair in pairs)
    habitable = sum(pair.first.habitable == pair.second.habitable for pair in pairs)
    tiles = (
        (f"{len(pairs)}", "planets in both" if len(pairs) > 1 else "planet in both"),
        (f"{surface.difference:+.1f} K", "mean surface temperature"),
        (f"{surface.rms:.1f} K", "rms of cells"),
        (f"{surface.correlation:.3f}", "map correlation"),
        (f"{states} of {len(pairs)}", "in the same climate state"),
        (f"{habitable} of {len(pairs)}", "with the same label"),
    )
    boxes = "".join(f"<div class=tile><b>{value}</b>{name}</div>" for value, name in tiles)
    a, b = (html.escape(name) for name in names)
    return (
        f"<header><h1><span style='color:{FIRST}'>{a}</span> <small>and</small> <span style='color:{SECOND}'>{b}</span>"
        f"</h1><p>Differences are {b} minus {a}; means over the sphere.</p><div class=row>{boxes}</div></header>"
    )


def _state(sample: Sample) -> str:
    return str(diagnostics(sample.climate, float(sample.planet[_IRRADIANCE]))["climate_state"])


def _table(pairs: Sequence[Pair]) -> str:
    lines, last = [], ""
    for row in agreements(pairs):
        name = describe.words_of(row.variable.name)
        unit = "" if row.variable.unit == "1" else row.variable.unit
        scale, unit = (1e3, "g kg-1") if row.variable.unit == "kg kg-1" else (1.0, unit)
        share = 0.0 if np.isnan(row.correlation) else max(row.correlation, 0.0)
        colour = pictures.LIFE if share > 0.9 else SECOND if share > 0.6 else "#ff6b8b"
        told = "flat" if np.isnan(row.correlation) else f"{row.correlation:.2f}"
        lines.append(
            f"<tr{' class=new' if name != last else ''}><td>{html.escape(name) if name != last else ''}"
            f"<td>{'' if row.place == 'surface' else row.place}<td class=n>{_signed(row.difference * scale)}"
            f"<td class=n>{_figures(row.rms * scale)}<td>{html.escape(unit)}"
            f"<td><i style='width:{120 * share:.0f}px;background:{colour}'></i>{told}"
        )
        last = name
    head = "<tr><th>variable<th><th class=n>mean difference<th class=n>rms<th>unit<th>map correlation"
    return f"<table class=agree>{head}{''.join(lines)}</table>"


def _figures(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:.2g}" if abs(value) < 1 else f"{value:.1f}"


def _signed(value: float) -> str:
    return ("+" if value > 1e-9 else "") + _figures(value)


def _planets(names: tuple[str, str], pairs: Sequence[Pair]) -> str:
    """One dot a planet: mean surface temperature, ice and cloud cover, absorbed and outgoing light in both."""
    figure = Figure(figsize=(11.0, 2.7), facecolor=pictures.PAPER, layout="constrained")
    quantities = (
        ("mean_surface_temperature_k", "surface temperature (K)"), ("ice_share", "frozen share"),
        ("absorbed_shortwave_w_m2", "absorbed light (W m⁻²)"), ("outgoing_longwave_w_m2", "outgoing heat (W m⁻²)"),
    )  # fmt: skip
    facts = [[diagnostics(s.climate, float(s.planet[_IRRADIANCE])) for s in pair] for pair in pairs]
    for axes, (quantity, title) in zip(figure.subplots(1, len(quantities)), quantities, strict=True):
        pictures.darken(axes)
        values = np.array([[both[0][quantity], both[1][quantity]] for both in facts])
        low, high = values.min(), values.max()
        pad = 0.16 * max(high - low, 1e-3)
        axes.plot([low - pad, high + pad], [low - pad, high + pad], color="#2a3247", lw=1)
        axes.plot(values[:, 0], values[:, 1], "o", ms=5 if len(pairs) < 50 else 3, color=pictures.LIFE, alpha=0.85)
        if len(pairs) <= 6:
            for (x, y), pair in zip(values, pairs, strict=True):
                below = y < x  # names stand away from the line
                axes.annotate(
                    pair.first.name, (x, y), xytext=(4, -9) if below else (-4, 4), textcoords="offset points",
                    color=pictures.FAINT, fontsize=6.5, ha="left" if below else "right",
                )  # fmt: skip
        axes.set(xlabel=names[0], ylabel=names[1], xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
        axes.set_title(title, color=pictures.INK, fontsize=9)
    return pictures.image(figure, "global means of both, one dot a planet")


def _card(names: tuple[str, str], pair: Pair) -> str:
    a, b = (diagnostics(s.climate, float(s.planet[_IRRADIANCE])) for s in pair)
    p = dict(zip((v.name for v in PLANET), pair.first.planet.tolist(), strict=True))
    words = (
        f"{p['radius_earth']:.2f} Earth radii, {p['irradiance_w_m2']:.0f} W m⁻² from a star of "
        f"{p['star_temperature_k']:.0f} K, a day of {p['rotation_period_d']:.1f} d, "
        f"{pair.first.facts.get('surface_pressure_bar', float('nan')):.1f} bar with "
        f"{100 * pair.first.facts.get('co2', float('nan')):.2g} % CO₂."
    )
    rows = (
        ("surface temperature", "mean_surface_temperature_k", "{:.1f} K"),
        ("coldest, warmest", None, ""),
        ("frozen", "ice_share", "{:.0%}"),
        ("absorbed", "absorbed_shortwave_w_m2", "{:.0f} W m⁻²"),
        ("outgoing", "outgoing_longwave_w_m2", "{:.0f} W m⁻²"),
        ("Bond albedo", "bond_albedo", "{:.2f}"),
        ("state", "climate_state", "{}"),
    )
    lines = []
    for name, quantity, shape in rows:
        if quantity is None:
            cells = [f"{s['min_surface_temperature_k']:.0f}, {s['max_surface_temperature_k']:.0f} K" for s in (a, b)]
        else:
            cells = [shape.format(s[quantity]) for s in (a, b)]
        lines.append(f"<tr><td>{name}<td style='color:{FIRST}'>{cells[0]}<td style='color:{SECOND}'>{cells[1]}")
    return (
        f"<article class=wide><h3>{html.escape(pair.first.name)}</h3><p>{html.escape(words)}</p>"
        f"<div class=both>{_maps(names, pair)}<div>{_profiles(names, pair)}<table>{''.join(lines)}</table></div></div>"
        "</article>"
    )


def _maps(names: tuple[str, str], pair: Pair) -> str:
    """Three surface variables: first, second and their difference; noon is in the middle."""
    figure = Figure(figsize=(7.2, 4.5), facecolor=pictures.PAPER)
    latitude = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(LATITUDES)[0]))
    edge = float(-substellar_longitudes()[0] + 180.0 / len(substellar_longitudes()))
    labels = ("surface temperature", "absorbed light", "outgoing heat")
    for row, (variable, label) in enumerate(zip(SURFACE_VARIABLES, labels, strict=True)):
        first, second = (s.climate[climate_field(variable.name)] for s in pair)
        colours: Colormap = pictures.SURFACE
        if row == 0:
            scale = Normalize(pictures.COLDEST_K, pictures.HOTTEST_K, clip=True)
        else:
            both = np.concatenate([first, second])
            scale, colours = Normalize(float(both.min()), float(both.max()) + 1e-6), colormaps["magma"]
        widest = max(float(np.quantile(np.abs(second - first), 0.99)), 1e-3)
        panels = (
            (first, names[0], scale, colours), (second, names[1], scale, colours),
            (second - first, "difference", Normalize(-widest, widest, clip=True), colormaps["RdBu_r"]),
        )  # fmt: skip
        for column, (field, title, norm, palette) in enumerate(panels):
            axes = figure.add_axes((0.045 + 0.32 * column, 0.665 - 0.315 * row, 0.295, 0.24))
            axes.pcolormesh(
                np.linspace(-edge, edge, field.shape[1] + 1), _edges(latitude), field, norm=norm, cmap=palette
            )
            axes.set_xticks(
                [-90, 0, 90], labels=["90°W", "noon" if _locked(pair) else "0°", "90°E"] if row == 2 else []
            )
            axes.set_yticks([-60, 0, 60], labels=["60°S", "0°", "60°N"] if column == 0 else [])
            axes.tick_params(colors=pictures.FAINT, labelsize=6, length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
            told = f"±{_figures(widest)}" if column == 2 else f"{field.min():.0f} … {field.max():.0f}"
            colour = (FIRST, SECOND, pictures.INK)[column]
            if row == 0:
                figure.text(0.1925 + 0.32 * column, 0.965, title, color=colour, fontsize=9, ha="center")
            if column == 0:
                axes.set_title(label, loc="left", color=pictures.INK, fontsize=8, pad=3)
            axes.set_title(f"{told} {variable.unit}", loc="right", color=pictures.FAINT, fontsize=7, pad=3)
    return pictures.image(figure, "maps of both and their difference", colours=256)


def _locked(pair: Pair) -> bool:
    return bool(pair.first.facts.get("locked", True))


def _edges(latitude: np.ndarray) -> np.ndarray:
    return np.concatenate([[-90.0], (latitude[1:] + latitude[:-1]) / 2, [90.0]])


def _profiles(names: tuple[str, str], pair: Pair) -> str:
    """Mean temperature and cloud with pressure."""
    figure = Figure(figsize=(3.7, 2.4), facecolor=pictures.PAPER, layout="constrained")
    mbar = level_pressures_pa(float(pair.first.facts.get("surface_pressure_bar", 1.0))) / 100.0
    for axes, (name, title) in zip(
        figure.subplots(1, 2, sharey=True),
        (("temperature_k", "temperature (K)"), ("cloud_fraction", "cloud")),
        strict=True,
    ):
        pictures.darken(axes)
        first = climate_field(name)
        for sample, label, colour in zip(pair, names, (FIRST, SECOND), strict=True):
            mean = np.einsum("phw,hw->p", sample.climate[first : first + LEVELS], area_weights())
            axes.plot(mean, mbar, color=colour, lw=1.6, label=label)
        axes.set(yscale="log", xlabel=title, ylim=(mbar.max() * 1.05, mbar.min() * 0.95))
        axes.set_yticks([m for m in (10, 30, 100, 300, 1000, 3000) if mbar.min() <= m <= mbar.max()])
        axes.set_yticklabels([f"{m:.0f}" for m in axes.get_yticks()])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("mbar")
    return pictures.image(figure, "mean profiles", colours=32)


_STYLE = f"""
h1 small{{font-weight:400;font-size:26px;color:{pictures.FAINT}}}
article.wide{{flex:1 1 100%;max-width:none;border-color:#2a3247}}
.both{{display:flex;gap:18px;align-items:flex-start;flex-wrap:wrap}}
.both>img{{flex:2 1 560px;width:auto;min-width:0;max-width:800px}} .both>div{{flex:1 1 300px;max-width:380px}}
.both td{{white-space:nowrap;font-size:13px;padding-right:14px;font-variant-numeric:tabular-nums}}
table.agree th{{text-align:left;color:{pictures.FAINT};font-weight:400;padding:3px 18px 8px 0}}
table.agree td{{color:{pictures.INK};border:0}} table.agree .n{{text-align:right;font-variant-numeric:tabular-nums}}
table.agree tr.new td{{border-top:1px solid #1d263b;padding-top:7px}}
table.agree i{{display:inline-block;height:9px;border-radius:4px;margin-right:8px}}
section>.row>img{{width:100%}}
"""
