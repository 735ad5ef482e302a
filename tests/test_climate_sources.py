"""Where climates come from: one interface, and a build that takes any of them."""

from __future__ import annotations

import gzip
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import (
    build,
    climate,
    climate_files,
    climate_sources,
    exoplasim_output,
    exoplasim_source,
    planet_table,
    planets,
    shards,
)
from data_pipeline.climate_sources import EMULATOR, ExoPlaSim, Files
from data_pipeline.errors import InputError
from data_pipeline.planet_table import Row
from data_pipeline.planets import EXOPLASIM_RANGES
from data_pipeline.reaction_tables import cache_dir
from data_pipeline.spectra import level_pressures_pa
from data_pipeline.variables import CLIMATE_FIELDS, LATITUDES, LONGITUDES, climate_field

HERE = Path(__file__).parent
TABLE = HERE.parent / "docs" / "five_planets.csv"


@pytest.fixture
def rows() -> list[Row]:
    return planet_table.read_planets(TABLE)


# --- which planets ---------------------------------------------------------------------------------------------------
def test_the_sampler_follows_the_ranges_of_the_source() -> None:
    drawn = list(climate_sources.planets_of(ExoPlaSim(), None, 300, 0))
    assert [planets.out_of_range(p, EXOPLASIM_RANGES) for p in drawn] == [[]] * 300
    free = [p for p in drawn if not p.locked]
    assert 0.15 < len(free) / 300 < 0.45  # the emulator refuses every one of them
    assert all(planets.out_of_range(p) for p in free)
    assert max(p.rotation_period_d for p in free) <= 10.0 and min(p.star_temperature_k for p in free) > 4800.0
    assert {p.climate_model for p in drawn} == {"exoplasim"}
    assert max(p.atmosphere.ch4 for p in drawn) <= 1e-5  # its radiation has no methane


def test_the_emulators_planets_are_those_that_they_were() -> None:
    assert list(climate_sources.planets_of(EMULATOR, None, 40, 7)) == list(planets.sample_systems(40, 7))


def test_a_planet_outside_the_ranges_is_refused_by_name(rows: list[Row]) -> None:
    with pytest.raises(InputError, match=r"planet=Earth: locked=0 outside \[1, 1\], where clero would extrapolate"):
        list(climate_sources.planets_of(EMULATOR, rows, 5, 0))
    assert [p.name for p in climate_sources.planets_of(ExoPlaSim(), rows, 2, 0)] == ["Earth", "Cold"]


def test_more_planets_than_the_table_holds_are_refused(rows: list[Row]) -> None:
    with pytest.raises(InputError, match="planets=6: the table holds 5; leave --planets out to take all"):
        list(climate_sources.planets_of(EMULATOR, rows, 6, 0))


def test_a_planet_that_turns_freely_says_so_and_a_locked_one_says_nothing(rows: list[Row]) -> None:
    facts = [row.planet.facts() for row in rows]
    assert facts[0]["locked"] is False and all("locked" not in f for f in facts[1:])


# --- choosing --------------------------------------------------------------------------------------------------------
def test_a_source_is_chosen_by_name_or_by_where_its_files_are(tmp_path: Path, rows: list[Row]) -> None:
    assert climate_sources.choose("clero", None) is EMULATOR
    assert climate_sources.choose("exoplasim", rows) == ExoPlaSim()
    assert climate_sources.choose(str(tmp_path), rows) == Files(tmp_path, tuple(rows))
    (tmp_path / "one.nc").write_bytes(b"")
    found = climate_sources.choose(str(tmp_path / "one.nc"), rows[:1])
    assert isinstance(found, Files) and found.folder == tmp_path and found.rows[0].file == "one.nc"


def test_a_choice_that_cannot_be_met_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(InputError, match="climate=plasim: give clero .the embedded emulator., exoplasim, or a folder"):
        climate_sources.choose("plasim", None)
    with pytest.raises(InputError, match="whose climates are these. Give a table with --planets-from"):
        climate_sources.choose(str(tmp_path), None)
    (tmp_path / "one.nc").write_bytes(b"")
    with pytest.raises(InputError, match="one file for 5 planets of the table; give the folder"):
        climate_sources.choose(str(tmp_path / "one.nc"), rows)
    with pytest.raises(
        InputError, match=r"Earth.nc: no such file, for the planet 'Earth'; give its name in the column"
    ):
        Files(tmp_path, tuple(rows)).versions()


def test_sources_travel_to_other_processes_and_back() -> None:
    sources: list[climate_sources.ClimateSource] = [EMULATOR, ExoPlaSim(), Files(Path("x"), ())]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(copy, sources)) == sources


# --- builds ----------------------------------------------------------------------------------------------------------
def stored_cube() -> np.ndarray:
    output = exoplasim_output.read_output(gzip.decompress((HERE / "exoplasim_output.gz").read_bytes()))
    return exoplasim_output.cube(output, 0.92, 1.0)


@pytest.fixture
def exoplasim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> Path:
    """A cache in which all planets of the table have been run; Hot diverged."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for entry in cache_dir().iterdir():  # opacities and reaction tables are those of every test
        if entry.name != "exoplasim":
            (cache / entry.name).symlink_to(entry)
    monkeypatch.setenv("EXOBIOME_CACHE", str(cache))
    ours = Path(climate_sources.__file__).parent.parent
    package = tmp_path / "packages" / "exoplasim-3.4.2.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: exoplasim\nVersion: 3.4.2\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}:{ours}")  # for the processes of the pool
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(exoplasim_source, "program", lambda: tmp_path)
    for row in rows:
        place = exoplasim_source._place(row.planet)
        place.parent.mkdir(parents=True, exist_ok=True)
        if row.planet.name == "Hot":
            np.savez(place, facts='{"diverged": "45 min: it boiled"}')
        else:
            np.savez(place, facts='{"years": 1.0}', cube=stored_cube())
    return tmp_path


def test_a_build_from_exoplasim_skips_the_planet_that_diverged_and_counts_it(
    exoplasim: Path, rows: list[Row], capfd: pytest.CaptureFixture[str]
) -> None:
    out = exoplasim / "data"
    arguments = ["--climate", "exoplasim", "--planets-from", str(TABLE), "--out", str(out), "--workers", "1"]
    assert build.main(arguments) == 0
    printed = capfd.readouterr()
    assert "1 planets have no climate and were skipped" in printed.out
    assert "skipped: Hot has no climate (45 min: it boiled)" in printed.err + printed.out
    manifest = shards.verify(out)
    assert manifest.planets == 4 and manifest.facts["skipped"] == [{"name": "Hot", "diverged": "45 min: it boiled"}]
    assert manifest.facts["climate_runs"][0] == {"name": "Earth", "years": 1.0}
    assert manifest.sources["exoplasim"] == "3.4.2" and "clero" not in manifest.sources
    samples = [s for shard in manifest.shards for s in shards.to_samples(shards.read_shard(out / shard.file))]
    assert sorted(s.name for s in samples) == ["CO2-rich", "Cold", "Earth", "TRAPPIST-1 e"]
    np.testing.assert_array_equal(samples[0].climate, stored_cube())
    earth = next(s for s in samples if s.name == "Earth")
    assert earth.facts["locked"] is False and earth.facts["climate_model"] == "exoplasim"
    assert earth.sample_id == "planet-0000000"
    assert build.main(arguments) == 0 and "already complete, 4 planets" in capfd.readouterr().out
    with pytest.raises(InputError, match="holds data of clero=None, asked for"):
        build.build(out, 5, table=rows[1:] + rows[1:2])


def test_a_build_without_one_climate_is_refused(exoplasim: Path, rows: list[Row]) -> None:
    with pytest.raises(InputError, match="climate=exoplasim: no planet has a climate .45 min: it boiled.; try others"):
        build.build(exoplasim / "data", 1, source=ExoPlaSim(), table=rows[2:3])


def test_a_build_takes_the_files_that_a_user_brings(tmp_path: Path, rows: list[Row]) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    names = dict(zip(climate_files.VARIABLES, ("ts", "asr", "olr", "ta", "hus", "cl", "ua", "va"), strict=True))
    units = {v.name: v.unit for v in CLIMATE_FIELDS}
    ours = stored_cube()
    sine, _ = np.polynomial.legendre.leggauss(LATITUDES)
    data = xarray.Dataset(
        coords={
            "lat": ("lat", np.degrees(np.arcsin(sine)), {"units": "degrees_north"}),
            "lon": ("lon", climate.substellar_longitudes(), {"units": "degrees_east"}),
            "plev": ("plev", level_pressures_pa(1.0), {"units": "Pa"}),
        }
    )
    for name, short in names.items():
        first = climate_field(name)
        shape = ("plev", "lat", "lon") if units[name] and name not in list(names)[:3] else ("lat", "lon")
        data[short] = (shape, ours[first : first + 10] if len(shape) == 3 else ours[first], {"units": units[name]})
    data.to_netcdf(tmp_path / "trappist.nc")
    row = rows[4]._replace(file="trappist.nc")
    manifest = build.build(tmp_path / "data", 1, source=Files(tmp_path, (row,)), table=[row])
    assert "climate files" in manifest.sources and "clero" not in manifest.sources
    shard = next(s for s in manifest.shards)
    (sample,) = shards.to_samples(shards.read_shard(tmp_path / "data" / shard.file))
    np.testing.assert_allclose(sample.climate, ours, rtol=2e-5, atol=2e-5)
    assert ours.shape[1:] == (LATITUDES, LONGITUDES)


def test_a_table_is_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    assert build.main(["--planets-from", str(TABLE), "--out", str(out), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: planet=Earth: locked=0") and error.count("\n") == 1
    assert not out.exists()
