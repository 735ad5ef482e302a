"""ExoPlaSim: what its program is told, what its output says, and what happens when it is missing or diverges."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import climate, exoplasim_output, exoplasim_source, planet_table
from data_pipeline.errors import InputError
from data_pipeline.planets import Planet
from data_pipeline.variables import CLIMATE_FIELDS, LATITUDES, LEVELS, LONGITUDES, climate_field

HERE = Path(__file__).parent
OUTPUT = gzip.decompress((HERE / "exoplasim_output.gz").read_bytes())  # TRAPPIST-1 e, the sixth month
PLANETS = {row.planet.name: row.planet for row in planet_table.read_planets(HERE.parent / "docs" / "five_planets.csv")}


@pytest.fixture(scope="module")
def cube() -> np.ndarray:
    return exoplasim_output.cube(exoplasim_output.read_output(OUTPUT), radius_earth=0.92, surface_pressure_bar=1.0)


# --- its output ------------------------------------------------------------------------------------------------------
def test_an_output_of_the_program_becomes_a_cube_in_our_ranges(cube: np.ndarray) -> None:
    assert cube.shape == (len(CLIMATE_FIELDS), LATITUDES, LONGITUDES) and cube.dtype == np.float32
    assert np.isfinite(cube).all()
    for variable, field in zip(CLIMATE_FIELDS, cube, strict=True):
        assert variable.low <= field.min() and field.max() <= variable.high


def test_noon_is_at_longitude_0_and_the_night_absorbs_nothing(cube: np.ndarray) -> None:
    absorbed = cube[climate_field("absorbed_shortwave_w_m2")].sum(0)
    longitude = climate.substellar_longitudes()
    assert np.average(longitude, weights=absorbed) == pytest.approx(0.0, abs=3.0)
    assert absorbed[np.abs(longitude) > 93.0].max() < 1.0


def test_heat_goes_out_and_air_over_warm_ground_is_warm(cube: np.ndarray) -> None:
    assert 100.0 < (cube[climate_field("outgoing_longwave_w_m2")] * climate.area_weights()).sum() < 300.0
    ground, air = cube[climate_field("surface_temperature_k")], cube[climate_field("temperature_k")]
    assert np.corrcoef(ground.ravel(), air.ravel())[0, 1] > 0.75  # nights have an inversion
    profile = [(cube[climate_field("temperature_k", p)] * climate.area_weights()).sum() for p in range(LEVELS)]
    assert profile[0] > profile[LEVELS // 2] > profile[-1]  # bottom to top
    humidity = [(cube[climate_field("specific_humidity", p)] * climate.area_weights()).sum() for p in range(LEVELS)]
    assert humidity[0] > 10 * humidity[-1]


def test_winds_meet_over_noon_near_the_ground_and_part_aloft(cube: np.ndarray) -> None:
    """Day side up, night side down: the overturning of a locked planet (Merlis & Schneider 2010)."""
    longitude = climate.substellar_longitudes()
    equator = slice(LATITUDES // 2 - 4, LATITUDES // 2 + 4)
    east, west = (longitude > 10) & (longitude < 80), (longitude < -10) & (longitude > -80)

    def parting(level: int) -> float:
        wind = cube[climate_field("eastward_wind_m_s", level), equator]
        return float(wind[:, east].mean() - wind[:, west].mean())

    assert parting(0) < 0 < parting(6)


def test_a_file_that_is_no_output_or_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="truncated"):
        exoplasim_output.read_output(OUTPUT[:5000])
    with pytest.raises(ValueError, match="not an output"):
        exoplasim_output.read_output(b"")
    other = bytearray(OUTPUT)
    other[4:8] = (7).to_bytes(4, "little")
    with pytest.raises(ValueError, match="not an output"):
        exoplasim_output.read_output(bytes(other))


def test_a_missing_field_is_named() -> None:
    output = exoplasim_output.read_output(OUTPUT)
    fields = {code: field for code, field in output.fields.items() if code != exoplasim_output.CLOUD}
    with pytest.raises(ValueError, match="no field 162"):
        exoplasim_output.cube(output._replace(fields=fields), 1.0, 1.0)


# --- spherical harmonics ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def basis() -> exoplasim_output.Harmonics:
    sine, _ = np.polynomial.legendre.leggauss(LATITUDES)
    return exoplasim_output.Harmonics(21, sine, np.radians(np.arange(LONGITUDES) * 360.0 / LONGITUDES))


def test_the_first_coefficient_is_the_mean_and_the_next_the_sine_of_latitude(
    basis: exoplasim_output.Harmonics,
) -> None:
    c = np.zeros((22, 22), complex)
    c[0, 0], c[0, 1] = 250.0, 10.0
    sine, _ = np.polynomial.legendre.leggauss(LATITUDES)
    np.testing.assert_allclose(basis.scalar(c), (250.0 + 10.0 * np.sqrt(3.0) * sine)[:, None] * np.ones(LONGITUDES))


def test_a_wave_once_round_the_equator_is_a_cosine_of_longitude(basis: exoplasim_output.Harmonics) -> None:
    c = np.zeros((22, 22), complex)
    c[1, 1] = 1.0
    longitude = np.radians(np.arange(LONGITUDES) * 360.0 / LONGITUDES)
    expected = 2.0 * np.sqrt(1.5) * basis.cosine[:, None] * np.cos(longitude)
    np.testing.assert_allclose(basis.scalar(c), expected, atol=1e-12)


def test_solid_rotation_is_an_eastward_wind_of_the_cosine_of_latitude(basis: exoplasim_output.Harmonics) -> None:
    """u = U cos(latitude) has the vorticity 2 U sin(latitude) / a."""
    wind, radius = 30.0, 6.0e6
    vorticity = np.zeros((22, 22), complex)
    vorticity[0, 1] = 2.0 * wind / radius / np.sqrt(3.0)
    east, north = basis.winds(vorticity, np.zeros_like(vorticity), radius)
    np.testing.assert_allclose(east, wind * basis.cosine[:, None] * np.ones(LONGITUDES), rtol=1e-10)
    np.testing.assert_allclose(north, 0.0, atol=1e-10)


def test_air_that_leaves_the_north_pole_blows_south(basis: exoplasim_output.Harmonics) -> None:
    """v = -V cos(latitude) has the divergence 2 V sin(latitude) / a."""
    divergence = np.zeros((22, 22), complex)
    divergence[0, 1] = 2.0 * 5.0 / 6.0e6 / np.sqrt(3.0)
    east, north = basis.winds(np.zeros_like(divergence), divergence, 6.0e6)
    np.testing.assert_allclose(north, -5.0 * basis.cosine[:, None] * np.ones(LONGITUDES), rtol=1e-10)
    np.testing.assert_allclose(east, 0.0, atol=1e-10)


# --- what the program is told ----------------------------------------------------------------------------------------
def test_earth_turns_freely_under_its_own_air() -> None:
    told = exoplasim_source.namelists(PLANETS["Earth"], 45)
    assert told["radmod"]["NFIXED"] == 0 and told["radmod"]["CO2"] == pytest.approx(420.0)
    assert told["planet"]["GASCON"] == pytest.approx(287.9, abs=1.0)  # dry air without argon
    assert told["planet"]["AKAP"] == pytest.approx(0.286, abs=0.003)
    assert told["plasim"]["PSURF"] == pytest.approx(101300.0)
    assert told["plasim"]["N_RUN_STEPS"] == 90 * 32  # 32 steps of 45 minutes a day


def test_a_locked_planet_has_its_star_over_longitude_180() -> None:
    told = exoplasim_source.namelists(PLANETS["TRAPPIST-1 e"], 30)
    assert told["radmod"]["NFIXED"] == 1 and told["plasim"]["FIXEDLON"] == 180.0
    assert told["planet"]["ROTSPD"] == pytest.approx(1 / 6.101)
    assert told["planet"]["PLARAD"] == pytest.approx(0.92 * 6371220.0)


def test_carbon_dioxide_weighs_more_and_holds_less_heat() -> None:
    air = exoplasim_source.namelists(PLANETS["CO2-rich"], 45)["planet"]
    nitrogen = exoplasim_source.namelists(PLANETS["Cold"], 45)["planet"]
    assert air["GASCON"] == pytest.approx(8314.46 / (0.8 * 28.014 + 0.2 * 44.010), rel=1e-5)
    assert air["AKAP"] < nitrogen["AKAP"] == pytest.approx(0.285, abs=0.001)


def test_a_planet_is_stored_under_all_that_goes_into_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exoplasim_source, "version", lambda: "3.4.2")
    earth = PLANETS["Earth"]
    assert exoplasim_source.digest(earth) == exoplasim_source.digest(replace(earth, name="Terra", system_id="Sol"))
    others = [replace(earth, locked=True), replace(earth, irradiance_w_m2=1362.0), replace(earth, gravity_m_s2=9.8)]
    assert len({exoplasim_source.digest(p) for p in (earth, *others)}) == 4


# --- missing tools ---------------------------------------------------------------------------------------------------
def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; run `pip install --no-deps exoplasim==3.4.2`"):
        exoplasim_source.require()


def test_without_a_compiler_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "gfortran" else "/usr/bin/" + tool)
    with pytest.raises(InputError, match=r"gfortran not found.*sudo apt-get install gfortran gcc make"):
        exoplasim_source.require()


# --- runs, of a program that a test writes: what happens around ExoPlaSim without its minutes -------------------------
@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EXOBIOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(exoplasim_source, "version", lambda: "3.4.2")
    yield tmp_path


def install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\necho run >> {folder}/log\n{script}\n")
    path.chmod(0o755)
    (folder / "output").write_bytes(OUTPUT)
    monkeypatch.setattr(exoplasim_source, "program", lambda: path)
    return path


def runs(folder: Path) -> int:
    return len((folder / "log").read_text().splitlines())


def test_a_climate_that_stands_still_ends_the_run_and_is_stored(
    cache: Path, monkeypatch: pytest.MonkeyPatch, cube: np.ndarray
) -> None:
    install(cache, f"cp {cache}/output plasim_output; touch plasim_status", monkeypatch)
    planet = PLANETS["TRAPPIST-1 e"]
    run = exoplasim_source.run(planet)
    assert runs(cache) == 2 and run.facts["years"] == 0.5 and run.facts["drift_k"] == 0.0 and run.facts["balanced"]
    np.testing.assert_array_equal(run.cube, cube)
    again = exoplasim_source.run(planet)
    assert runs(cache) == 2 and again.facts == run.facts
    np.testing.assert_array_equal(again.cube, cube)


def test_a_planet_that_diverges_is_tried_with_shorter_steps_and_then_given_up_for_good(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(cache, "kill -FPE $$", monkeypatch)
    run = exoplasim_source.run(PLANETS["Hot"])
    assert run.cube is None and runs(cache) == 3
    assert run.facts["diverged"].startswith("45 min: the program stopped with code -8; 30 min:")
    assert exoplasim_source.run(PLANETS["Hot"]).cube is None and runs(cache) == 3


def test_a_run_that_fails_at_the_first_time_step_goes_on_with_the_next(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = f"cp {cache}/output plasim_output; touch plasim_status"
    install(cache, f"grep -q 'MPSTEP = 45' plasim_namelist && touch Abort_Message; {works}", monkeypatch)
    run = exoplasim_source.run(PLANETS["Cold"])
    assert run.cube is not None and run.facts["time_step_minutes"] == 30


def test_a_planet_that_turns_freely_starts_with_a_warm_ocean(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = cache / "seen"
    install(cache, f"cp N032_surf_0169.sra {seen}; cp {cache}/output plasim_output; touch plasim_status", monkeypatch)
    exoplasim_source.run(PLANETS["Cold"])
    assert not seen.exists()
    exoplasim_source.run(PLANETS["Earth"])
    lines = seen.read_text().splitlines()
    assert len(lines) == 12 * (1 + 32 * 64 // 8) and lines[0].split()[0] == "169"
    assert {float(x) for line in lines[1:257] for x in line.split()} == {288.0}


def test_a_torn_store_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(cache, f"cp {cache}/output plasim_output; touch plasim_status", monkeypatch)
    planet = PLANETS["Cold"]
    exoplasim_source.run(planet)
    place = exoplasim_source._place(planet)
    place.write_bytes(place.read_bytes()[:1000])
    assert exoplasim_source.run(planet).cube is not None and runs(cache) == 4


def test_a_run_that_was_killed_is_no_divergence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(cache, "kill -KILL $$", monkeypatch)
    with pytest.raises(InputError, match=r"the run of Cold was killed .signal 9.*give the same command again"):
        exoplasim_source.run(PLANETS["Cold"])
    assert exoplasim_source.stored(PLANETS["Cold"]) is None and runs(cache) == 1


def test_a_planet_that_is_hotter_than_any_climate_counts_as_diverged(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(cache, f"cp {cache}/output plasim_output; touch plasim_status", monkeypatch)
    monkeypatch.setattr(exoplasim_output, "cube", lambda *_: np.full((len(CLIMATE_FIELDS), 32, 64), 450.0, np.float32))
    told = exoplasim_source.run(PLANETS["Hot"]).facts["diverged"]
    assert told.startswith("45 min: 100 % of the surface outside 100-450 K")


def test_output_that_is_no_climate_counts_as_diverged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(cache, "echo nonsense > plasim_output; touch plasim_status", monkeypatch)
    assert "not an output" in exoplasim_source.run(PLANETS["Cold"]).facts["diverged"]


# --- the real program ------------------------------------------------------------------------------------------------
def ready() -> bool:
    try:
        exoplasim_source.require()
    except InputError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not ready(), reason="ExoPlaSim and gfortran are not installed")
def test_the_real_program_is_compiled_once_and_runs_four_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXOBIOME_CACHE", str(tmp_path))
    monkeypatch.setattr(exoplasim_source, "STRETCH_DAYS", 4)
    monkeypatch.setattr(exoplasim_source, "MAX_STRETCHES", 1)
    planet: Planet = PLANETS["Earth"]
    run = exoplasim_source.run(planet)
    made = sorted(tmp_path.glob("exoplasim/plasim-*"))
    assert len(made) == 1 and exoplasim_source.program() == made[0]
    found: dict[str, Any] = climate.diagnostics(run.cube, planet.irradiance_w_m2)
    assert 240.0 < found["mean_surface_temperature_k"] < 300.0
    absorbed = run.cube[climate_field("absorbed_shortwave_w_m2")].mean(0)
    assert np.ptp(absorbed) < 0.4 * absorbed.mean()  # it turns: no side is the day side
