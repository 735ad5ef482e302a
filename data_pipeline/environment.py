"""Derive the chemistry of a planet's liquid water from its climate and gases, or read one from text."""

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np

from data_pipeline.climate import area_weights, liquid_water
from data_pipeline.errors import InputError
from data_pipeline.planets import Planet
from data_pipeline.variables import ENVIRONMENT, ENVIRONMENT_NAMES, ORGANICS, climate_field

GAS_CONSTANT = 8.314462
FARADAY = 96485.33
_FLOOR_BAR = 1e-9

# Which dissolved organics each kind of air can leave in the water: an imposed prior (no observation constrains it).
# Reduced air makes formaldehyde, HCN, formate (Miller & Urey 1959; Cleaves 2008), CO2 with CO or H2 gives small acids
# and alcohols (serpentinising vents, McCollom & Seewald 2007), O2 comes from photosynthesis, whose products leak.
# Meteorites bring amino acids and ribose anywhere (Furukawa et al. 2019).
ORGANIC_PRIORS: dict[str, tuple[str, ...]] = {
    "reduced": ("glycine", "alanine", "formate", "methanol", "ribose", "pyruvate", "glycerol"),
    "carbon dioxide": ("formate", "acetate", "methanol", "pyruvate", "lactate", "glycine", "ribose"),
    "nitrogen": ("acetate", "ethanol", "glycine", "alanine", "succinate", "lactate", "glycerol"),
    "oxygenated": ("glucose", "glycerol", "acetate", "succinate", "lactate", "ethanol", "alanine", "ribose"),
    "given": tuple(ORGANICS),
}
SUGARS_DESTROYED_ABOVE_K = 343.0  # sugars caramelise within days above 70 C (Larralde et al. 1995)
_SUGARS = ("glucose", "ribose")


def surface_environment(planet: Planet, cube: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the 20 numbers of variables.ENVIRONMENT (V float32) where water is liquid, and facts about them.

    Without liquid water the numbers are those of the warmest hundredth of the surface; the caller marks them absent.

    Args:
        cube: C H W, physical units.
        seed: Of alkalinity, of the oxidation of the water and of the organics, which nothing else determines.
    """
    rng = np.random.default_rng([seed, 13])
    temperature_k = water_temperature_k(cube)
    air = planet.atmosphere
    pressure = {name: air.surface_pressure_bar * getattr(air, name) for name in ("o2", "co2", "ch4", "h2", "co")}
    alkalinity = float(10 ** rng.uniform(-3.3, -1.5))  # mol/L; today's ocean 2.3e-3, soda lakes above 1e-2
    ph = ocean_ph(pressure["co2"], temperature_k, alkalinity)
    redox_v = water_redox_v(pressure["o2"], pressure["h2"], ph, temperature_k, rng.uniform())
    organics = _organics(air.family, temperature_k, rng)
    values = {
        "temperature_k": temperature_k,
        "ph": ph,
        "redox": redox_v,
        **pressure,
        **organics,
    }
    vector = np.array([np.clip(values.get(v.name, 0.0), v.low, v.high) for v in ENVIRONMENT], np.float32)
    facts = {
        f"water_{name}": float(x) for name, x in zip(ENVIRONMENT_NAMES, vector, strict=True) if name not in ORGANICS
    }
    return vector, {
        **facts,
        "alkalinity_mol_l": alkalinity,
        "organics": [name for name in ORGANICS if organics.get(name, 0.0) > 0.0],
        "organics_source": "imposed prior",
    }


def water_temperature_k(cube: np.ndarray) -> float:
    """Return the area-weighted mean surface temperature where water is liquid, else of the warmest hundredth."""
    surface = cube[climate_field("surface_temperature_k")]
    where = liquid_water(cube)
    if not where.any():
        where = surface >= np.quantile(surface, 0.99)
    weights = area_weights() * where
    return float((surface * weights).sum() / weights.sum())


def ocean_ph(co2_bar: float, temperature_k: float, alkalinity_mol_l: float) -> float:
    """Return the pH of water in equilibrium with a partial pressure of CO2 at a given carbonate alkalinity.

    Solves [HCO3-] + 2 [CO3--] + [OH-] - [H+] = alkalinity by bisection.

    Source:
        Fresh-water constants of Plummer & Busenberg 1982 (Henry, K1, K2) and Marshall & Franck's Kw near 25 C
        (pKw = 4470.99/T - 6.0875 + 0.01706 T, Harned & Owen 1958); good to about 0.2 pH between 273 and 363 K.
    """
    t = min(max(temperature_k, 273.15), 363.15)
    log_t = math.log10(t)
    henry = 10 ** (108.3865 + 0.01985076 * t - 6919.53 / t - 40.45154 * log_t + 669365.0 / t**2)
    k1 = 10 ** (-356.3094 - 0.06091964 * t + 21834.37 / t + 126.8339 * log_t - 1684915.0 / t**2)
    k2 = 10 ** (-107.8871 - 0.03252849 * t + 5151.79 / t + 38.92561 * log_t - 563713.9 / t**2)
    kw = 10 ** -(4470.99 / t - 6.0875 + 0.01706 * t)
    dissolved = henry * max(co2_bar, _FLOOR_BAR)
    low, high = 2.0, 13.0
    for _ in range(60):
        ph = (low + high) / 2
        h = 10**-ph
        charge = k1 * dissolved / h + 2 * k1 * k2 * dissolved / h**2 + kw / h - h
        low, high = (ph, high) if charge < alkalinity_mol_l else (low, ph)
    return (low + high) / 2


def water_redox_v(o2_bar: float, h2_bar: float, ph: float, temperature_k: float, mixing: float) -> float:
    """Return Eh in volt against the standard hydrogen electrode.

    With more O2 than 1e-6 bar the O2/H2O couple holds, 0.4 V below its ideal value as measured in natural waters (O2
    is slow at electrodes; Stumm & Morgan 1996). Otherwise H+/H2 sets the lower end, and the upper lies 0.35 V over the
    ferric line 0.77 - 0.18 (pH - 3) V, where nitrate begins to last (0.40 V at pH 7; imposed). `mixing` (0 to 1)
    says where between them the water is, for example by how much H2 the vents bring.
    """
    slope = GAS_CONSTANT * temperature_k * math.log(10.0) / FARADAY
    if o2_bar > 1e-6:
        return 1.229 - slope * ph + slope / 4 * math.log10(o2_bar) - 0.4
    reduced = -slope * ph - slope / 2 * math.log10(max(h2_bar, _FLOOR_BAR))
    oxidised = 0.77 - 0.18 * max(ph - 3.0, 0.0) + 0.35
    return reduced + mixing * max(oxidised - reduced, 0.0)


def _organics(family: str, temperature_k: float, rng: np.random.Generator) -> dict[str, float]:
    """Return mol/L of the 0 to 3 organics that this water holds; under air that was given by hand, at least one."""
    choice = [
        name for name in ORGANIC_PRIORS[family] if temperature_k <= SUGARS_DESTROYED_ABOVE_K or name not in _SUGARS
    ]
    number = max(int(rng.choice(4, p=[0.15, 0.45, 0.25, 0.15])), int(family == "given"))
    return {str(name): float(10 ** rng.uniform(-5.0, -2.0)) for name in rng.permutation(choice)[:number]}


def parse_environment(text: str) -> np.ndarray:
    """Read `temperature_k=350,ph=6.5,o2=0,redox=-0.3`, V float32.

    What is not given follows from what is: temperature 298.15 K; pCO2 is 400 ppm of a bar; pH is that of an ocean with
    2.3 mmol/L alkalinity under that pCO2; O2 is 0; redox follows from O2, or lies between H2 and iron; H2 is what the
    redox and pH imply where that is below 1 bar; CH4 and CO are 0; without any organic, acetate is 1 mmol/L.

    Raises:
        InputError: A name is unknown (the nearest is shown), a value is missing, no number, or out of range.
    """
    given: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, number = (p.strip() for p in part.partition("="))
        variable = next((v for v in ENVIRONMENT if v.name == name), None)
        if variable is None:
            near = difflib.get_close_matches(name, ENVIRONMENT_NAMES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(ENVIRONMENT_NAMES)
            raise InputError(f"environment: unknown name {name!r}; {hint}")
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"environment: {part!r} is no number; write {name}=VALUE in {variable.unit}") from None
        if not equals or not variable.low <= value <= variable.high:
            bounds = f"{variable.low:g} to {variable.high:g} {variable.unit}"
            raise InputError(f"environment: {name}={value:g} is out of range; give {bounds}")
        if name in given:
            raise InputError(f"environment: {name} is given twice, as {given[name]:g} and {value:g}; leave one out")
        given[name] = value
    if not given:
        raise InputError("environment: nothing given; write for example temperature_k=350,ph=6.5,o2=0,redox=-0.3")
    return _complete(given)


def _complete(given: dict[str, float]) -> np.ndarray:
    temperature_k = given.get("temperature_k", 298.15)
    co2 = given.get("co2", 4e-4)
    o2 = given.get("o2", 0.0)
    ph = given.get("ph", ocean_ph(co2, temperature_k, 2.3e-3))
    redox_v = given.get("redox", water_redox_v(o2, given.get("h2", 0.0), ph, temperature_k, 0.5))
    slope = GAS_CONSTANT * temperature_k * math.log(10.0) / FARADAY
    implied_h2 = 10 ** (-2.0 * (redox_v / slope + ph))
    values = {
        "temperature_k": temperature_k,
        "ph": ph,
        "o2": o2,
        "redox": redox_v,
        "co2": co2,
        "h2": implied_h2 if 1e-6 <= implied_h2 <= 1.0 else 0.0,
        **({} if any(given.get(name, 0.0) > 0.0 for name in ORGANICS) else {"acetate": 1e-3}),
        **given,
    }
    return np.array([np.clip(values.get(v.name, 0.0), v.low, v.high) for v in ENVIRONMENT], np.float32)


def environment_text(environment: np.ndarray) -> str:
    """Return the numbers that are not zero as name=value, as parse_environment reads them."""
    return ",".join(f"{n}={x:.4g}" for n, x in zip(ENVIRONMENT_NAMES, environment.tolist(), strict=True) if x != 0.0)
