"""Tables of planets with their air."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline import planet_table, planets
from data_pipeline.errors import InputError

EXAMPLE = Path(__file__).parent.parent / "docs" / "five_planets.csv"
HEAD = "name,radius_earth,gravity_m_s2,rotation_period_d,irradiance_w_m2,star_temperature_k,surface_pressure_bar,co2"
EARTH = "Earth,1,9.807,1,1361,5772,1.013,4e-4"


def table(folder: Path, *lines: str) -> Path:
    path = folder / "planets.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_example_holds_the_five_named_planets() -> None:
    rows = planet_table.read_planets(EXAMPLE)
    assert [row.planet.name for row in rows] == ["Earth", "Cold", "Hot", "CO2-rich", "TRAPPIST-1 e"]
    assert [row.planet.locked for row in rows] == [False, True, True, True, True]
    assert rows[0].planet.atmosphere.n2 == pytest.approx(1 - 4.2e-4 - 1.9e-6 - 0.2095)
    for row in rows:
        assert planets.out_of_range(row.planet, planets.EXOPLASIM_RANGES) == []
        assert (planets.out_of_range(row.planet) == []) == row.planet.locked  # the emulator's planets are locked


def test_what_is_blank_is_a_locked_planet_of_a_main_sequence_star(tmp_path: Path) -> None:
    (row,) = planet_table.read_planets(table(tmp_path, "# a remark", HEAD, EARTH, ""))
    planet = row.planet
    assert planet.locked and planet.system_id == "Earth" and planet.atmosphere.family == "given"
    assert row.file == "Earth.nc" and row.substellar_longitude == 0.0
    assert planet.star_mass_sun == pytest.approx(1.04, abs=0.02)  # of 5772 K, on the relations of planets.star
    assert planet.semi_major_axis_au == pytest.approx(1.1, abs=0.05)
    assert planet.source == "planets.csv"


def test_every_column_is_read(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + ",ch4,o2,file,substellar_longitude,locked", EARTH + ",1e-3,0.2,a/b.nc,180,no")
    (row,) = planet_table.read_planets(path)
    assert (row.planet.atmosphere.ch4, row.planet.atmosphere.o2) == (1e-3, 0.2)
    assert (row.file, row.substellar_longitude, row.planet.locked) == ("a/b.nc", 180.0, False)


def test_a_table_of_the_archive_is_read_as_one(tmp_path: Path) -> None:
    known = planets.known_planets()
    archive = Path(planets.__file__).with_name("known_planets.csv")
    rows = planet_table.read_planets(archive)
    assert [row.planet for row in rows] == list(known) and rows[0].file == f"{known[0].name}.nc"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ((HEAD.replace(",co2", ""), EARTH), "column co2 is missing; needed are name, radius_earth"),
        ((HEAD + ",colour", EARTH + ",blue"), "column 'colour' is unknown; known are name"),
        ((HEAD, EARTH.replace("9.807", "heavy")), "line 2: gravity_m_s2='heavy' is no number; fill it in"),
        ((HEAD, EARTH.replace("1361", "")), "line 2: irradiance_w_m2='' is no number"),
        ((HEAD, EARTH.replace("1361", "nan")), "irradiance_w_m2='nan' is no number"),
        ((HEAD, EARTH.replace("1361", "1.361")), r"irradiance_w_m2=1.361 W m-2, outside \[50, 4000\]; check the unit"),
        ((HEAD, EARTH.replace("5772", "9000")), r"star_temperature_k=9000 K, outside \[2300, 6500\]"),
        ((HEAD, EARTH.replace("4e-4", "400")), "line 2: atmosphere.co2=400.0: a volume fraction lies between 0 and 1"),
        ((HEAD, EARTH.replace("1.013", "101300")), "surface_pressure_bar=101300; give bar"),
        ((HEAD + ",locked", EARTH + ",maybe"), "locked='maybe'; write yes or no"),
        ((HEAD, EARTH, EARTH), "line 3: 'Earth' is line 2 already; rename one"),
        ((HEAD, EARTH.replace("Earth", "")), "name is blank"),
        ((HEAD,), "no planet; give a table with at least one line"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, lines: tuple[str, ...], complaint: str) -> None:
    path = table(tmp_path, *lines)
    with pytest.raises(InputError, match=complaint) as caught:
        planet_table.read_planets(path)
    assert str(caught.value).startswith(f"planets={path}")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.csv: cannot be read"):
        planet_table.read_planets(tmp_path / "none.csv")


def test_a_table_that_a_spreadsheet_wrote_with_a_mark_first_is_read(tmp_path: Path) -> None:
    marked = tmp_path / EXAMPLE.name
    marked.write_text(EXAMPLE.read_text(), encoding="utf-8-sig")
    assert planet_table.read_planets(marked) == planet_table.read_planets(EXAMPLE)
