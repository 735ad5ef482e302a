"""Read what the ExoPlaSim program writes: Fortran records of grid fields and spherical harmonics."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from data_pipeline.climate_grid import to_cube
from data_pipeline.variables import PROFILE_VARIABLES

# Codes of the records (GRIB table of PlaSim).
SURFACE_K, CLOUD, NET_SHORTWAVE, NET_LONGWAVE = 139, 162, 178, 179  # on the grid; upward radiation is negative
TEMPERATURE, HUMIDITY, VORTICITY, DIVERGENCE, LOG_PRESSURE = 130, 133, 138, 155, 152  # spherical harmonics
EARTH_RADIUS_M = 6371220.0  # PlaSim's
SUBSTELLAR_LONGITUDE = 180.0


class Output(NamedTuple):
    """Time means of one run."""

    rows: int  # latitudes, north to south
    columns: int  # longitudes, from 0 degrees eastward
    truncation: int
    sigma: np.ndarray  # of the middle of each layer, top to bottom
    fields: dict[int, np.ndarray]  # code -> grid h w or layers h w, or coefficients m n (layers first)


def read_output(data: bytes) -> Output:
    """Return the time means of a file.

    Raises:
        ValueError: The file is truncated, or is no output of ExoPlaSim.
    """
    records = iter(_records(data))
    header, sigma_half = next(records, ([], b""))
    if len(header) != 8 or header[0] != 333:
        raise ValueError("not an output of ExoPlaSim")
    columns, rows, layers, truncation = (int(x) for x in header[4:8])
    half = np.frombuffer(sigma_half, "<f4")[:layers].astype(float)
    sums: dict[tuple[int, int], np.ndarray] = {}
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for head, values in records:
        key = (int(head[0]), int(head[1]))
        numbers = np.frombuffer(values, "<f4").astype(float)
        sums[key] = sums.get(key, 0.0) + numbers
        counts[key] += 1
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for key in sorted(sums):
        mean = sums[key] / counts[key]
        if key[0] in (TEMPERATURE, HUMIDITY, VORTICITY, DIVERGENCE, LOG_PRESSURE):
            found[key[0]].append(_coefficients(mean, truncation))
        elif mean.size == rows * columns:
            found[key[0]].append(mean.reshape(rows, columns))
    fields = {code: np.stack(parts) if len(parts) > 1 else parts[0] for code, parts in found.items()}
    return Output(rows, columns, truncation, (half + np.append(0.0, half[:-1])) / 2, fields)


def _records(data: bytes):  # type: ignore[no-untyped-def]
    """Yield (header, values) of the pairs of Fortran records, each between two marks of its length."""
    place, pair = 0, []
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        end = place + 4 + size
        if data[end : end + 4] != data[place : place + 4]:
            raise ValueError("not an output of ExoPlaSim, or truncated")
        pair.append(data[place + 4 : end])
        place = end + 4
        if len(pair) == 2:
            yield np.frombuffer(pair[0], "<i4"), pair[1]
            pair = []


def cube(output: Output, radius_earth: float, surface_pressure_bar: float) -> np.ndarray:
    """Return the climate cube (C H W) of an output.

    Raises:
        ValueError: A field is missing.
    """
    missing = {SURFACE_K, CLOUD, NET_SHORTWAVE, NET_LONGWAVE, TEMPERATURE, HUMIDITY, VORTICITY, DIVERGENCE}
    missing -= output.fields.keys()
    if missing:
        raise ValueError(f"no field {min(missing)} in the output")
    sine = -np.polynomial.legendre.leggauss(output.rows)[0]
    longitude = np.arange(output.columns) * 360.0 / output.columns
    basis = Harmonics(output.truncation, sine, np.radians(longitude))
    f = output.fields
    pressure = np.exp(basis.scalar(f[LOG_PRESSURE])) * output.sigma[:, None, None]
    east, north = basis.winds(f[VORTICITY], f[DIVERGENCE], radius_earth * EARTH_RADIUS_M)
    names = [v.name for v in PROFILE_VARIABLES]
    profiles = [basis.scalar(f[TEMPERATURE]), basis.scalar(f[HUMIDITY]), f[CLOUD][: len(output.sigma)], east, north]
    return to_cube(
        surface={
            "surface_temperature_k": f[SURFACE_K],
            "absorbed_shortwave_w_m2": f[NET_SHORTWAVE],
            "outgoing_longwave_w_m2": -f[NET_LONGWAVE],
        },
        profiles=dict(zip(names, profiles, strict=True)),
        pressure_pa=pressure,
        latitude=np.degrees(np.arcsin(sine)),
        longitude=longitude - SUBSTELLAR_LONGITUDE,
        surface_pressure_bar=surface_pressure_bar,
    )


# --- spherical harmonics ---------------------------------------------------------------------------------------------
def _coefficients(values: np.ndarray, truncation: int) -> np.ndarray:
    """Return m n complex from pairs (real, imaginary), for each order m the degrees n = m to the truncation."""
    out = np.zeros((truncation + 1, truncation + 1), complex)
    m, n = np.triu_indices(truncation + 1)
    out[m, n] = values[0::2] + 1j * values[1::2]
    return out


class Harmonics:
    """Turns coefficients (... m n) into fields (... h w): f = Re sum (2 - [m = 0]) c P(n, m) exp(i m longitude).

    The mean of P(n, m)^2 over the sine of latitude is 1, without the Condon-Shortley phase: the coefficient (0, 0) of a
    field is its mean.
    """

    def __init__(self, truncation: int, sine: np.ndarray, longitude_rad: np.ndarray) -> None:
        self.cosine = np.sqrt(1.0 - sine**2)
        orders = np.arange(truncation + 1)
        table = _legendre(truncation + 1, sine)  # m n h, one degree more than asked
        degree = np.arange(truncation + 2)
        m = orders[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            epsilon = np.sqrt(np.maximum(degree**2 - m**2, 0) / (4.0 * degree**2 - 1.0))
        epsilon[:, 0] = 0.0
        n = degree[:-1]
        below = np.concatenate([np.zeros_like(table[:, :1]), table[:, :-2]], axis=1)
        # (1 - x^2) dP/dx
        slope = ((n + 1) * epsilon[:, :-1])[..., None] * below - (n * epsilon[:, 1:])[..., None] * table[:, 1:]
        self.table, self.slope = table[:, :-1], slope
        self.waves = np.exp(1j * m * longitude_rad) * np.where(orders == 0, 1.0, 2.0)[:, None]  # m w
        self.inverse = np.where(n > 0, 1.0 / np.maximum(n * (n + 1), 1), 0.0)  # of the Laplacian, times -radius^2
        self.orders = orders

    def scalar(self, c: np.ndarray) -> np.ndarray:
        """Return the field of coefficients."""
        return self._sum(c, self.table)

    def winds(self, vorticity: np.ndarray, divergence: np.ndarray, radius_m: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the eastward and northward wind in m/s of vorticity and divergence in 1/s."""
        vorticity, divergence = vorticity * self.inverse, divergence * self.inverse
        im = 1j * self.orders[:, None]
        scale = radius_m / self.cosine[:, None]
        east = self._sum(vorticity, self.slope) - self._sum(im * divergence, self.table)
        north = -self._sum(im * vorticity, self.table) - self._sum(divergence, self.slope)
        return scale * east, scale * north

    def _sum(self, c: np.ndarray, table: np.ndarray) -> np.ndarray:
        return np.einsum("...mh,mw->...hw", np.einsum("...mn,mnh->...mh", c, table), self.waves).real


def _legendre(degrees: int, sine: np.ndarray) -> np.ndarray:
    """Return P(n, m) for m below `degrees` and n up to it, m n h, by the three-term recurrence."""
    table = np.zeros((degrees, degrees + 1, len(sine)))
    cosine = np.sqrt(1.0 - sine**2)
    start = np.ones_like(sine)
    for m in range(degrees):
        if m:
            start = start * cosine * np.sqrt((2.0 * m + 1.0) / (2.0 * m))
        table[m, m] = start
        for n in range(m + 1, degrees + 1):
            a = np.sqrt((4.0 * n**2 - 1.0) / (n**2 - m**2))
            b = np.sqrt(((n - 1.0) ** 2 - m**2) / (4.0 * (n - 1.0) ** 2 - 1.0)) if n > 1 else 0.0
            table[m, n] = a * (sine * table[m, n - 1] - (b * table[m, n - 2] if n - 2 >= 0 else 0.0))
    return table
