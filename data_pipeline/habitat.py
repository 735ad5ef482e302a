"""Say what food an environment offers and which organisms stand its conditions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data_pipeline.flux_balance import ORGANIC_IDS, load_organisms
from data_pipeline.variables import ENVIRONMENT_NAMES, ORGANICS

GAS_THRESHOLD_BAR = {"o2": 1e-4, "co2": 1e-5, "h2": 1e-5, "co": 1e-5, "ch4": 1e-5}
ORGANIC_THRESHOLD_MOL_L = 1e-6  # half-saturation constants of uptake lie at 1e-6 to 1e-5 mol/L
MAX_ORGANICS = 3  # networks stay under 54 metabolites; two organics gave a third fewer distinct networks


def nutrients(environment: np.ndarray) -> tuple[str, ...]:
    """Return the exchange metabolites that these V numbers offer beside the salts, sorted: a threshold function.

    Gases above their threshold; as electron acceptors nitrate in oxidised water (Eh over 0.4 V), ferric iron in acid
    water (pH below 7, Eh over 0.1 V), sulphate where Eh is over -0.3 V; the three most concentrated organics over 1 uM.
    """
    value = dict(zip(ENVIRONMENT_NAMES, np.asarray(environment, np.float64).tolist(), strict=True))
    found = [gas for gas, threshold in GAS_THRESHOLD_BAR.items() if value[gas] > threshold]
    if value["redox"] > 0.4:
        found.append("no3")
    elif value["redox"] > 0.1 and value["ph"] < 7.0:
        found.append("fe3")
    elif value["redox"] > -0.3:
        found.append("so4")
    most = sorted(ORGANICS, key=lambda name: -value[name])[:MAX_ORGANICS]
    found += [ORGANIC_IDS[name] for name in most if value[name] > ORGANIC_THRESHOLD_MOL_L]
    return tuple(sorted(f"{m}_e" for m in found))


def anoxic(nutrients: Iterable[str]) -> tuple[str, ...]:
    """Return what is left of the nutrients when O2 goes: nitrate and ferric iron need the Eh that O2 keeps up."""
    return tuple(sorted(set(nutrients) - {"o2_e", "no3_e", "fe3_e"}))


def viable_organisms(environment: np.ndarray) -> list[str]:
    """Return who stands temperature, pH and oxygen of these V numbers; whether it finds food is for `solve` to say."""
    value = dict(zip(ENVIRONMENT_NAMES, np.asarray(environment, np.float64).tolist(), strict=True))
    oxygen = value["o2"] > GAS_THRESHOLD_BAR["o2"]
    stands = {
        "aerobic": oxygen,
        "microaerophilic": oxygen and value["o2"] < 0.1,
        "anaerobic": not oxygen,
        "facultative": True,
    }
    return [
        name
        for name, o in load_organisms().items()
        if o.temperature_k[0] <= value["temperature_k"] <= o.temperature_k[1]
        and o.ph[0] <= value["ph"] <= o.ph[1]
        and stands[o.oxygen]
    ]
