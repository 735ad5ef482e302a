"""Read planets with their air from a table: a line a planet, the column names of Planet and Atmosphere."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from data_pipeline.errors import InputError
from data_pipeline.planets import (
    EXOSIMS,
    SOLAR_IRRADIANCE_W_M2,
    SOLAR_TEMPERATURE_K,
    VOTABLES,
    Atmosphere,
    Planet,
    read_catalogue,
    star,
)
from data_pipeline.variables import PLANET

NEEDED = (
    "name", "radius_earth", "gravity_m_s2", "rotation_period_d", "irradiance_w_m2", "star_temperature_k",
    "surface_pressure_bar", "co2",
)  # fmt: skip
STAR = ("star_radius_sun", "star_mass_sun", "semi_major_axis_au")  # blank: a main-sequence star of that temperature
GASES = ("ch4", "o2", "h2", "co", "o3", "n2o")  # blank: none
WORDS = ("system_id", "family", "locked", "file", "substellar_longitude")  # blank: the name, "given", yes, NAME.nc, 0
_YES, _NO = ("yes", "true", "1", ""), ("no", "false", "0")


class Row(NamedTuple):
    """One line of the table."""

    planet: Planet
    file: str  # its climate, relative to the folder of the climates
    substellar_longitude: float  # degrees, in that file


def read_planets(path: str | Path) -> list[Row]:
    """Return the planets of a table in its order; `#` lines are skipped.

    A table of the NASA Exoplanet Archive (a CSV with a column pl_name, a VOTable, or "exosims") is read as
    planets.read_catalogue does, under 1 bar of N2.

    Raises:
        InputError: The file or a column is missing, a column is unknown, a value is no number or outside the ranges of
            variables.PLANET, a name is there twice, or there is no planet.
    """
    path = Path(path)
    if is_catalogue(path):
        return [Row(planet, f"{planet.name}.nc", 0.0) for planet in read_catalogue(path)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"planets={path}: cannot be read ({error}); give a CSV table of planets") from None
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    reader = csv.DictReader(line for _, line in lines)
    columns = [c.strip() for c in reader.fieldnames or ()]
    reader.fieldnames = columns
    for column in NEEDED:
        if column not in columns:
            raise InputError(f"planets={path}: column {column} is missing; needed are {', '.join(NEEDED)}")
    known = (*NEEDED, *STAR, *GASES, *WORDS)
    for column in columns:
        if column not in known:
            raise InputError(f"planets={path}: column {column!r} is unknown; known are {', '.join(known)}")
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for (number, _), fields in zip(lines[1:], reader, strict=True):
        row = _row(f"planets={path}, line {number}", {k: (v or "").strip() for k, v in fields.items() if k})
        if row.planet.name in seen:
            first = seen[row.planet.name]
            raise InputError(f"planets={path}, line {number}: {row.planet.name!r} is line {first} already; rename one")
        seen[row.planet.name] = number
        rows.append(row)
    if not rows:
        raise InputError(f"planets={path}: no planet; give a table with at least one line")
    return rows


def is_catalogue(path: str | Path) -> bool:
    """Is it a table of the NASA Exoplanet Archive, which holds planets of all kinds?"""
    path = Path(path)
    if str(path) == EXOSIMS or path.suffix in VOTABLES:
        return True
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return "pl_name" in next((line for line in lines if line and not line.startswith("#")), "").split(",")


def _row(place: str, fields: dict[str, str]) -> Row:
    def value(column: str, otherwise: float | None = None) -> float:
        text = fields.get(column, "")
        if not text and otherwise is not None:
            return otherwise
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{place}: {column}={text!r} is no number; fill it in") from None
        return number

    if not fields["name"]:
        raise InputError(f"{place}: name is blank; fill it in")
    if fields.get("locked", "").lower() not in _YES + _NO:
        raise InputError(f"{place}: locked={fields['locked']!r}; write yes or no")
    temperature, irradiance = value("star_temperature_k"), value("irradiance_w_m2")
    mass, luminosity = star(temperature) if 2300.0 <= temperature <= 6500.0 and irradiance > 0 else (0.0, 0.0)
    planet = Planet(
        name=fields["name"],
        system_id=fields.get("system_id") or fields["name"],
        radius_earth=value("radius_earth"),
        gravity_m_s2=value("gravity_m_s2"),
        rotation_period_d=value("rotation_period_d"),
        irradiance_w_m2=irradiance,
        star_temperature_k=temperature,
        star_mass_sun=value("star_mass_sun", mass),
        star_radius_sun=value(
            "star_radius_sun", math.sqrt(luminosity) * (SOLAR_TEMPERATURE_K / max(temperature, 1.0)) ** 2
        ),
        semi_major_axis_au=value(
            "semi_major_axis_au", math.sqrt(luminosity * SOLAR_IRRADIANCE_W_M2 / max(irradiance, 1.0))
        ),
        atmosphere=_air(place, value, fields.get("family") or "given"),
        source=Path(place.removeprefix("planets=").partition(", line")[0]).name,
        locked=fields.get("locked", "").lower() in _YES,
    )
    for variable, number in zip(PLANET, planet.parameters(), strict=True):
        if not variable.low <= number <= variable.high:
            raise InputError(
                f"{place}: {variable.name}={number:g} {variable.unit}, outside [{variable.low:g}, {variable.high:g}]; "
                "check the unit or remove the line"
            )
    file = fields.get("file") or f"{planet.name}.nc"
    return Row(planet, file, value("substellar_longitude", 0.0))


def _air(place, value, family: str) -> Atmosphere:  # type: ignore[no-untyped-def]
    pressure = value("surface_pressure_bar")
    if not 0.0 < pressure <= 100.0:
        raise InputError(f"{place}: surface_pressure_bar={pressure:g}; give bar, more than 0 and at most 100")
    try:
        gases = {gas: value(gas, 0.0) for gas in GASES}
        return Atmosphere(surface_pressure_bar=pressure, co2=value("co2"), family=family, **gases)
    except InputError as error:
        raise error if str(error).startswith(place) else InputError(f"{place}: {error}") from None
