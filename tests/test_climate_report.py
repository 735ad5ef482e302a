"""The agreement of two sources of climates, in numbers that are known and on a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_fixture import built_dataset

from data_pipeline import build, climate_agreement, climate_report, shards
from data_pipeline.batch import Sample
from data_pipeline.climate import area_weights
from data_pipeline.errors import InputError
from data_pipeline.shards import Manifest
from data_pipeline.variables import LATITUDES, LONGITUDES, climate_field


def changed(folder: Path, change: Callable[[Sample], Sample], some: int = 5) -> Path:
    """Write a data set of the first planets of the shared one, each of them changed."""
    original = built_dataset()
    manifest = shards.load_manifest(original)
    first = manifest.shards[0]
    folder.mkdir()
    samples = shards.to_samples(shards.read_shard(original / first.file))[:some]
    shards.write_shard(folder / first.file, [change(s) for s in samples])
    entry = shards.describe_shard(folder / first.file, first.split)
    (folder / shards.CHEMISTRY).write_bytes((original / shards.CHEMISTRY).read_bytes())
    fields = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
    shards.save_manifest(folder, Manifest(**{**fields, "planets": some, "shards": (entry,)}))
    return folder


def warmer(sample: Sample) -> Sample:
    climate = sample.climate.copy()
    climate[climate_field("surface_temperature_k")] += 2.0
    climate[climate_field("northward_wind_m_s")] *= -1.0
    return replace(sample, climate=climate, facts={**sample.facts, "sources": {"climate": ["<exoplasim>"]}})


def test_two_kelvin_more_everywhere_are_two_kelvin_and_a_wind_turned_round_is_anticorrelated(tmp_path: Path) -> None:
    first, second = changed(tmp_path / "a", lambda s: s), changed(tmp_path / "b", warmer)
    pairs = climate_agreement.matched(first, second)
    assert len(pairs) == 5 and all(p.first.name == p.second.name for p in pairs)
    rows = {(row.variable.name, row.place): row for row in climate_agreement.agreements(pairs)}
    surface = rows["surface_temperature_k", "surface"]
    assert (surface.difference, surface.rms) == (pytest.approx(2.0, abs=1e-4), pytest.approx(2.0, abs=1e-4))
    assert surface.correlation == pytest.approx(1.0)
    assert rows["northward_wind_m_s", "lowest level"].correlation == pytest.approx(-1.0)
    same = rows["cloud_fraction", "middle"]
    assert same.difference == same.rms == 0.0


def test_a_planet_under_other_air_is_another_planet(tmp_path: Path) -> None:
    def airless(sample: Sample) -> Sample:
        return replace(sample, facts={**sample.facts, "co2": 0.123})

    first, second = changed(tmp_path / "a", lambda s: s), changed(tmp_path / "b", airless)
    with pytest.raises(InputError, match="no planet is in both; build both with the same --planets-from"):
        climate_agreement.matched(first, second)


def test_a_folder_without_data_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--compare", str(tmp_path), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_correlation_weighs_by_area_and_knows_flat_maps() -> None:
    sine, _ = np.polynomial.legendre.leggauss(LATITUDES)
    north = np.repeat(sine[:, None], LONGITUDES, axis=1)
    even = north**2
    assert climate_agreement.correlation(north, 3.0 * north + 1.0) == pytest.approx(1.0)
    assert climate_agreement.correlation(north, even) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(climate_agreement.correlation(north, np.full_like(north, 7.0)))
    assert (even * area_weights()).sum() == pytest.approx(1 / 3)  # the mean square of the sine of latitude


def test_the_page_carries_its_pictures_and_escapes_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = changed(tmp_path / "a", lambda s: s), changed(tmp_path / "b", warmer)
    assert build.main(["--compare", str(first), str(second)]) == 0
    assert f"open {second / 'compare.html'} in a browser" in capsys.readouterr().out
    page = (second / climate_report.PAGE).read_text()
    assert page.count("<article") == 5 and page.count("<img") == 1 + 2 * 5
    assert "&lt;exoplasim&gt;" in page and "<exoplasim>" not in page
    assert "+2.0 K" in page and "http" not in page.replace("http://www.w3.org", "")
