"""Names, units and ranges of every number that a sample holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Variable:
    """One physical quantity.

    `low` and `high` bound what the system accepts, in `unit`. `scale` says how a network sees it: `linear` maps
    [low, high] to [-1, 1]; `log10` maps [log10(floor), log10(high)] to [-1, 1] after raising smaller values to `floor`.
    """

    name: str
    unit: str
    low: float
    high: float
    scale: Literal["linear", "log10"] = "linear"
    floor: float = 0.0
    meaning: str = ""


def standardise(values: Tensor, variables: tuple[Variable, ...]) -> Tensor:
    """Map physical values (last axis: `variables`) to about [-1, 1], as networks see them."""
    offset, spread, floor, is_log = _standardisation(variables, values.dtype, values.device)
    logged = torch.log10(torch.clamp(values, min=floor.clamp(min=1e-30)))
    return (torch.where(is_log, logged, values) - offset) / spread


def restore(standardised: Tensor, variables: tuple[Variable, ...]) -> Tensor:
    """Invert `standardise`; a value at the floor of a log10 variable comes back as the floor."""
    offset, spread, _, is_log = _standardisation(variables, standardised.dtype, standardised.device)
    values = standardised * spread + offset
    return torch.where(is_log, torch.pow(10.0, values), values)


@lru_cache(maxsize=32)  # making them anew would wait for the GPU in every step
def _standardisation(
    variables: tuple[Variable, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ends = [(math.log10(v.floor), math.log10(v.high)) if v.scale == "log10" else (v.low, v.high) for v in variables]
    low, high = (torch.tensor([e[i] for e in ends], dtype=dtype, device=device) for i in (0, 1))
    floor = torch.tensor([v.floor for v in variables], dtype=dtype, device=device)
    is_log = torch.tensor([v.scale == "log10" for v in variables], device=device)
    return (low + high) / 2, (high - low) / 2, floor, is_log


# --- climate: the fields of one cube, in storage order (surface first, then each variable bottom to top) -------------
LEVELS = 10
LATITUDES = 32
LONGITUDES = 64
SURFACE_VARIABLES = (
    Variable("surface_temperature_k", "K", 100.0, 450.0),
    Variable("absorbed_shortwave_w_m2", "W m-2", 0.0, 1500.0),
    Variable("outgoing_longwave_w_m2", "W m-2", 0.0, 500.0),
)
PROFILE_VARIABLES = (
    Variable("temperature_k", "K", 100.0, 450.0),
    Variable("specific_humidity", "kg kg-1", 0.0, 1.0, "log10", 1e-9),
    Variable("cloud_fraction", "1", 0.0, 1.0),
    Variable("eastward_wind_m_s", "m s-1", -200.0, 200.0),
    Variable("northward_wind_m_s", "m s-1", -200.0, 200.0),
)
CLIMATE_FIELDS: tuple[Variable, ...] = SURFACE_VARIABLES + tuple(
    v for v in PROFILE_VARIABLES for _ in range(LEVELS)
)  # 53


def climate_field(name: str, level: int = 0) -> int:
    """Return the row of a climate variable in the cube; level 0 is closest to the surface."""
    for i, v in enumerate(SURFACE_VARIABLES):
        if v.name == name:
            return i
    for i, v in enumerate(PROFILE_VARIABLES):
        if v.name == name:
            return len(SURFACE_VARIABLES) + i * LEVELS + level
    raise KeyError(name)


# --- spectrum --------------------------------------------------------------------------------------------------------
SPECTRAL_BINS = 128
WAVELENGTH_UM = np.geomspace(0.6, 20.0, SPECTRAL_BINS + 1)  # bin edges
OBSERVABLES = (
    "transit_depth_ppm",
    "eclipse_depth_ppm",
)  # eclipse: reflected plus thermal light of the day side over the star's

# --- planet parameters: what a telescope tells without a spectrum ---------------------------------------------------
PLANET: tuple[Variable, ...] = (
    Variable("radius_earth", "Earth radii", 0.3, 2.5),
    Variable("gravity_m_s2", "m s-2", 2.0, 40.0),
    Variable("rotation_period_d", "d", 0.5, 300.0, "log10", 0.5),
    Variable("irradiance_w_m2", "W m-2", 50.0, 4000.0),
    Variable("star_temperature_k", "K", 2300.0, 6500.0),
    Variable("star_radius_sun", "solar radii", 0.08, 1.5, "log10", 0.08),
    Variable("star_mass_sun", "solar masses", 0.07, 1.4, "log10", 0.07),
    Variable("semi_major_axis_au", "au", 0.005, 2.0, "log10", 0.005),
)

STAR_TEMPERATURE = [v.name for v in PLANET].index("star_temperature_k")

# --- surface environment: where the liquid water is -------------------------------------------------------------------
_GAS_FLOOR_BAR = 1e-9
_SOLUTE_FLOOR_MOL_L = 1e-9
ENVIRONMENT: tuple[Variable, ...] = (
    Variable("temperature_k", "K", 250.0, 400.0, meaning="mean over the surface with liquid water"),
    Variable("ph", "1", 3.0, 12.0, meaning="ocean carbonate equilibrium with pCO2"),
    Variable("o2", "bar", 0.0, 2.0, "log10", _GAS_FLOOR_BAR),
    Variable("redox", "V", -1.0, 1.2, meaning="Eh of the water against the standard hydrogen electrode"),
    Variable("co2", "bar", 0.0, 6.0, "log10", _GAS_FLOOR_BAR),
    Variable("ch4", "bar", 0.0, 1.0, "log10", _GAS_FLOOR_BAR),
    Variable("h2", "bar", 0.0, 1.0, "log10", _GAS_FLOOR_BAR),
    Variable("co", "bar", 0.0, 1.0, "log10", _GAS_FLOOR_BAR),
    *(
        Variable(name, "mol L-1", 0.0, 1.0, "log10", _SOLUTE_FLOOR_MOL_L, "dissolved organic carbon source")
        for name in (
            "glucose", "ribose", "glycerol", "ethanol", "methanol", "acetate",
            "formate", "lactate", "pyruvate", "succinate", "glycine", "alanine",
        )
    ),
)  # fmt: skip
ENVIRONMENT_NAMES = tuple(v.name for v in ENVIRONMENT)
ORGANICS = ENVIRONMENT_NAMES[8:]

# --- metabolic network -----------------------------------------------------------------------------------------------
NODE_FEATURES = ("C", "H", "N", "O", "P", "S", "charge", "mass_da", "supplied", "end_product")
EDGE_TYPES = ("none", "forward_only", "reversible", "transport")  # of the reaction that makes the edge; 0 is "no edge"
MAX_METABOLITES = 64
