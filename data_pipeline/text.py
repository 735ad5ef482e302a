"""Describe a planet in words, ask about it and answer from its facts; turn the three strings into tokens.

A description holds numbers with units, and the same sentences for every planet: neither the label, nor the share of
liquid water, nor whether anything lives there is in it, so that nothing follows from a phrase. Only the answer, which
the text modality does not read, says what the planet is like.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.batch import Sample, TextSample
from data_pipeline.errors import InputError
from data_pipeline.variables import PLANET, WAVELENGTH_UM

# In-band and continuum wavelengths (um) of the strongest bands of each gas in transit.
BANDS = {
    "CO2": ((4.15, 4.45), ((3.7, 4.0), (4.7, 5.1))),
    "CH4": ((3.15, 3.5), ((2.95, 3.1), (3.7, 4.0))),
    "O3": ((9.3, 9.95), ((8.6, 9.1), (10.3, 11.0))),
}
WHETHER_HABITABLE = "Is it habitable, and why?"
WINDOW_UM = (10.2, 12.2)  # the clearest part of the thermal infrared
_RADIATION_UM_K = 14387.77  # second radiation constant
_SUN_RADII_EARTH = 109.2
_PLANET_NAMES = tuple(v.name for v in PLANET)
_NAMES = {
    "glc__D": "glucose", "rib__D": "ribose", "glyc": "glycerol", "etoh": "ethanol", "meoh": "methanol",
    "ac": "acetate", "for": "formate", "lac__L": "lactate", "pyr": "pyruvate", "succ": "succinate", "gly": "glycine",
    "ala__L": "alanine", "o2": "O2", "co2": "CO2", "h2": "H2", "co": "CO", "ch4": "CH4", "no3": "nitrate",
    "fe3": "ferric iron", "so4": "sulphate",
}  # fmt: skip


def describe(sample: Sample, observable_only: bool, rng: np.random.Generator) -> tuple[str, str, str]:
    """Return (description, question, answer) in one of several phrasings drawn by `rng`."""
    words = description(sample, observable_only, rng)
    question, answer = _pick(rng, *QUESTIONS)(sample.facts, rng)
    return words, question, answer


def description(sample: Sample, observable_only: bool, rng: np.random.Generator) -> str:
    """Return what is known of a planet, the most telling first.

    Args:
        observable_only: Write only what a telescope gives: planet parameters and what the noisy spectrum shows.
            Otherwise the climate and the water's chemistry come in too.
    """
    sentences = [_pick(rng, *forms) for forms in _observed(sample)]
    if not observable_only:
        sentences[1:1] = [_pick(rng, *forms) for forms in _simulated(sample.facts)]
    return " ".join(sentences)


def encode(strings: tuple[str, str, str], tokenizer: Any, max_tokens: int) -> TextSample:
    """Tokenise one [description, question, answer]; see `encode_all`."""
    (found,) = encode_all([strings], tokenizer, max_tokens)
    return found


def encode_all(texts: Sequence[tuple[str, str, str]], tokenizer: Any, max_tokens: int) -> list[TextSample]:
    """Tokenise [description, question, answer, end] of each; a description that does not fit loses its last sentences.

    In one call of the tokenizer: it holds no lock of the interpreter, what it returns is taken apart once.

    Raises:
        InputError: A question and its answer alone are longer than `max_tokens`.
    """
    if not texts:
        return []

    def ids(strings: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(strings, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return found

    parts = ids([part for words, question, answer in texts for part in (words, f"\n{question}\n", answer)])
    encoded = []
    for place, (words, _, _) in enumerate(texts):
        read, asked, answered = parts[3 * place : 3 * place + 3]
        answered = [*answered, tokenizer.eos_token_id]
        room = max_tokens - len(asked) - len(answered)
        if room < 1:
            raise InputError(
                f"data.max_tokens={max_tokens}: question and answer need {len(asked) + len(answered)} tokens; raise it"
            )
        sentences = words.split(". ")
        while len(read) > room and len(sentences) > 1:
            sentences.pop()
            (read,) = ids([". ".join(sentences) + "."])
        read = read[:room]
        encoded.append(
            TextSample(
                token_ids=np.array([*read, *asked, *answered], np.int64),
                description_length=len(read),
                answer_start=len(read) + len(asked),
            )
        )
    return encoded


# --- what a telescope gives -------------------------------------------------------------------------------------------
def _observed(sample: Sample) -> list[tuple[str, ...]]:
    """Return the phrasings of each sentence, the most telling first."""
    p = dict(zip(_PLANET_NAMES, sample.planet.tolist(), strict=True))
    kelvin, error_k = brightness_temperature(sample)
    bands = ", ".join(f"{name} {round(depth)}+-{error:.0f}" for name, depth, error in band_depths_ppm(sample))
    return [
        (
            f"Brightness at 11 um {kelvin:.0f}+-{error_k:.0f} K.",
            f"The day side glows like {kelvin:.0f}+-{error_k:.0f} K at 11 um.",
        ),
        (f"It receives {p['irradiance_w_m2']:.0f} W/m2.", f"Irradiance {p['irradiance_w_m2']:.0f} W/m2."),
        (f"Transit bands, ppm: {bands}.", f"Excess in transit, ppm: {bands}."),
        (
            f"Star {p['star_temperature_k']:.0f} K, orbit {p['rotation_period_d']:.1f} d.",
            f"A {p['star_temperature_k']:.0f} K star is circled in {p['rotation_period_d']:.1f} d.",
        ),
        (
            f"Radius {p['radius_earth']:.2f} Earth, gravity {p['gravity_m_s2']:.1f} m/s2.",
            f"{p['radius_earth']:.2f} Earth radii at {p['gravity_m_s2']:.1f} m/s2.",
        ),
    ]


def brightness_temperature(sample: Sample) -> tuple[float, float]:
    """Return the day side's brightness temperature in WINDOW_UM and its error, both in kelvin, from the noisy eclipse.

    A depth that noise has pushed below a tenth of its error counts as that tenth: an upper limit.
    """
    p = dict(zip(_PLANET_NAMES, sample.planet.astype(float).tolist(), strict=True))
    inside = _inside(*WINDOW_UM)
    weight = 1.0 / sample.spectrum_error_ppm[1, inside].astype(float) ** 2
    depth, error = float((sample.spectrum_ppm[1, inside] * weight).sum() / weight.sum()), float(weight.sum() ** -0.5)
    wavelength = float((_middle()[inside] * weight).sum() / weight.sum())
    ratio = (p["radius_earth"] / (p["star_radius_sun"] * _SUN_RADII_EARTH)) ** 2
    star = 1.0 / np.expm1(_RADIATION_UM_K / (wavelength * p["star_temperature_k"]))

    def kelvin(ppm: float) -> float:
        return float(_RADIATION_UM_K / wavelength / np.log1p(ratio / (max(ppm, 0.1 * error) * 1e-6 * star)))

    return kelvin(depth), (kelvin(depth + error) - kelvin(depth - error)) / 2


def band_depths_ppm(sample: Sample) -> list[tuple[str, float, float]]:
    """Return (band, transit depth above its continuum in ppm, one sigma), from the noisy spectrum."""
    found = []
    for name, (band, continuum) in BANDS.items():
        sides = [_mean(sample, inside) for inside in (_inside(*continuum[0]), _inside(*continuum[1]))]
        depth, error = _mean(sample, _inside(*band))
        level, level_error = (sides[0][0] + sides[1][0]) / 2, math.hypot(sides[0][1], sides[1][1]) / 2
        found.append((name, depth - level, math.hypot(error, level_error)))
    return found


def _mean(sample: Sample, inside: slice) -> tuple[float, float]:
    error = sample.spectrum_error_ppm[0, inside].astype(float)
    return float(sample.spectrum_ppm[0, inside].mean()), math.sqrt(float(error @ error)) / len(error)


@functools.cache
def _middle() -> np.ndarray:
    return np.sqrt(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1])


@functools.cache
def _inside(low_um: float, high_um: float) -> slice:
    first, *_, last = np.flatnonzero((_middle() >= low_um) & (_middle() <= high_um)).tolist()
    return slice(first, last + 1)


# --- what only a simulation gives -------------------------------------------------------------------------------------
def _simulated(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    mean, low, high = (facts[f"{which}_surface_temperature_k"] for which in ("mean", "min", "max"))
    water, ph, eh, o2 = (facts[f"water_{name}"] for name in ("temperature_k", "ph", "redox", "o2"))
    return [
        (
            f"Surface {mean:.0f} K, {low:.0f} to {high:.0f} K.",
            f"The surface is at {mean:.0f} K in the mean, between {low:.0f} and {high:.0f} K.",
        ),
        (
            f"Warmest water {water:.0f} K, pH {ph:.1f}, Eh {eh:.2f} V, O2 {o2:.2g} bar.",
            f"Where it is mildest: {water:.0f} K, pH {ph:.1f}, {eh:.2f} V, {o2:.2g} bar O2.",
        ),
    ]


# --- questions and answers --------------------------------------------------------------------------------------------
def _habitability(facts: dict[str, Any], rng: np.random.Generator) -> tuple[str, str]:
    question = _pick(rng, WHETHER_HABITABLE, "Could life exist here, and why?")
    share, organisms = 100 * facts["liquid_water_share"], facts["feasible_organisms"]
    reason = f"liquid water covers {share:.0f} % and {organisms} known metabolisms can run there"
    return question, f"{verdict(facts['habitable'])}: {reason}."


def verdict(habitable: bool) -> str:
    """Return the word with which the answer to WHETHER_HABITABLE begins."""
    return "Yes" if habitable else "No"


def _surface(facts: dict[str, Any], rng: np.random.Generator) -> tuple[str, str]:
    question = _pick(rng, "How warm is the surface?", "Which temperature has the surface?")
    mean, low, high = (facts[f"{which}_surface_temperature_k"] for which in ("mean", "min", "max"))
    return question, f"{mean:.0f} K in the mean, {low:.0f} to {high:.0f} K; the climate is {facts['climate_state']}."


def _air(facts: dict[str, Any], rng: np.random.Generator) -> tuple[str, str]:
    question = _pick(rng, "What is the air made of?", "Which gases are in the air?")
    shares = sorted(((facts[g.lower()], g) for g in ("N2", "CO2", "CH4", "O2", "H2", "CO")), reverse=True)
    most = ", ".join(f"{gas} {_percent(share)} %" for share, gas in shares[:3] if share > 1e-7)
    return question, f"{facts['surface_pressure_bar']:.1f} bar: {most}."


def _metabolism(facts: dict[str, Any], rng: np.random.Generator) -> tuple[str, str]:
    question = _pick(rng, "Which metabolism could run there?", "What could live there, and on what?")
    if not facts["feasible_organisms"]:
        cold = facts["liquid_water_share"] <= 0
        return question, f"None: {'there is no liquid water' if cold else 'no known organism makes ATP in this water'}."
    food = ", ".join(named(facts["nutrients"]))
    if facts["organism"]:
        return question, f"That of {facts['organism']}, from {food}."
    return question, f"One of {facts['feasible_organisms']} known ones, from {food}."


QUESTIONS: tuple[Callable[[dict[str, Any], np.random.Generator], tuple[str, str]], ...] = (
    _habitability,
    _habitability,
    _surface,
    _air,
    _metabolism,
)


def named(nutrients: Sequence[str]) -> list[str]:
    """Return the plain names of exchange metabolites; unknown ones keep their BiGG id."""
    bases = [n.removesuffix("_e") for n in nutrients]
    return [_NAMES.get(b, b) for b in bases]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.1g}"


def _pick(rng: np.random.Generator, *options: Any) -> Any:
    return options[rng.integers(len(options))]
