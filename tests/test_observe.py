from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from data_fixture import built_dataset, chain, sample

from data_pipeline import build, observe, shards
from data_pipeline.errors import InputError
from data_pipeline.instruments import parse_instrument
from data_pipeline.planets import sample_systems
from data_pipeline.shards import Manifest


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """A data set of one sample whose facts say nothing of the planet."""
    entry = shards.write_shard(tmp_path / "train-00000.parquet", [sample(1, chain("a", "b"))])
    shards.save_manifest(
        tmp_path, Manifest(planets=1, seed=0, sources={}, vocabulary=("a", "b"), shards=(entry,), facts={})
    )
    return tmp_path


def test_a_planet_comes_back_from_the_facts_of_its_sample() -> None:
    first = next(sample_systems(1, 0))
    stored = observe.find_sample(f"{built_dataset()}/planet-0000000")
    found = observe.planet_of(stored)
    assert found == first and np.array_equal(stored.planet, first.parameters())


def test_a_sample_is_observed_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    place = f"{built_dataset()}/planet-0000001"
    assert build.main(["--observe", place, "--instrument", "ideal,resolution=20", "--phase-deg", "90"]) == 0
    whole = capsys.readouterr().out
    assert whole.startswith("# planet-0000001 ") and "resolution 20.0" in whole and "phase 90 deg" in whole
    low, high, clean, error, _ = np.loadtxt(io.StringIO(whole), delimiter=",", skiprows=3).T
    assert ((low + high) / 2 / (high - low)) == pytest.approx(20.0, rel=1e-3)
    assert clean / error == pytest.approx(10.0, rel=1e-3) and (clean > 0).all()
    assert build.main(["--observe", place, "--instrument", "jwst-prism,resolution=20"]) == 0
    transit = np.loadtxt(io.StringIO(capsys.readouterr().out), delimiter=",", skiprows=3)
    stored = observe.find_sample(place).spectrum_clean_ppm[0]
    assert transit[:, 2].mean() == pytest.approx(stored.mean(), rel=0.05)  # the quick spectrum of the data set


@pytest.mark.parametrize(
    ("place", "instrument", "complaint"),
    [
        ("{folder}/planet-0000009", "ideal", "no sample 'planet-0000009' among 1; planet-0000000 is the first"),
        ("{folder}/planet-0000001", "ideal", "sample=planet-0000001: its facts do not say the planet"),
        ("{folder}/planet-0000001", "sieve", "instrument='sieve': choose from"),
        ("{folder}/planet-0000001", "hwo,hours=nan", "instrument.hours='nan' is no number"),
        ("{folder}/nothing/planet-0000001", "ideal", "no such folder"),
        ("planet-0000001", "ideal", "observe=planet-0000001: give the data and a sample of them"),
    ],
)
def test_what_cannot_be_observed_is_one_line_and_exit_code_2(
    place: str, instrument: str, complaint: str, by_hand: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--observe", place.format(folder=by_hand), "--instrument", instrument]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


@pytest.mark.parametrize(("seed", "phase_deg", "told"), [(-3, 0.0, "--seed -3"), (0, np.nan, "nan"), (0, 400.0, "400")])
def test_a_seed_or_phase_that_cannot_be_is_refused(seed: int, phase_deg: float, told: str) -> None:
    stored = observe.find_sample(f"{built_dataset()}/planet-0000001")
    with pytest.raises(InputError, match=told):
        observe.table(stored, parse_instrument("hwo"), seed, phase_deg)


def test_a_planet_that_is_too_close_to_its_star_is_refused() -> None:
    stored = observe.find_sample(f"{built_dataset()}/planet-0000001")
    with pytest.raises(InputError, match="mas from its star"):
        observe.table(stored, parse_instrument("hwo,distance_pc=100"), 0, 0.0)
