"""Environment: chemistry of the water, and reading one from text."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from data_pipeline import climate, environment, planets
from data_pipeline.errors import InputError
from data_pipeline.variables import ENVIRONMENT, ENVIRONMENT_NAMES, ORGANICS


def value(vector: np.ndarray, name: str) -> float:
    return float(vector[ENVIRONMENT_NAMES.index(name)])


def test_rain_under_todays_air_has_ph_5_6() -> None:
    assert environment.ocean_ph(co2_bar=4e-4, temperature_k=298.15, alkalinity_mol_l=0.0) == pytest.approx(
        5.6, abs=0.05
    )


def test_todays_alkalinity_gives_a_ph_above_eight() -> None:
    assert environment.ocean_ph(4e-4, 298.15, 2.3e-3) == pytest.approx(8.4, abs=0.2)


def test_a_hundred_times_more_co2_lowers_the_ph_by_two() -> None:
    drop = environment.ocean_ph(1e-3, 298.15, 2.3e-3) - environment.ocean_ph(1e-1, 298.15, 2.3e-3)
    assert drop == pytest.approx(2.0, abs=0.15)


def test_hydrogen_sets_the_lower_redox_as_nernst_says() -> None:
    # E = -0.05916 pH - 0.02958 log10 pH2 at 25 C
    eh = environment.water_redox_v(o2_bar=0.0, h2_bar=1.0, ph=7.0, temperature_k=298.15, mixing=0.0)
    assert eh == pytest.approx(-0.414, abs=1e-3)


def test_oxygen_keeps_water_oxidised() -> None:
    assert environment.water_redox_v(0.2, 0.0, 7.0, 298.15, 0.0) == pytest.approx(0.805 - 0.4, abs=0.01)


def test_environments_of_planets_lie_in_their_ranges_and_vary() -> None:
    some = list(islice(planets.sample_systems(40, 0), 40))
    cubes = climate.simulate(some, 0)
    found = np.stack(
        [environment.surface_environment(p, c, i)[0] for i, (p, c) in enumerate(zip(some, cubes, strict=True))]
    )
    low, high = (np.array([getattr(v, end) for v in ENVIRONMENT], np.float32) for end in ("low", "high"))
    assert ((found >= low) & (found <= high)).all()
    assert (found[:, :4].std(0) > [5.0, 0.5, 0.001, 0.05]).all()


def test_sugars_do_not_outlast_hot_water() -> None:
    rng = np.random.default_rng(0)
    drawn = {name for _ in range(200) for name in environment._organics("oxygenated", 360.0, rng)}
    assert not drawn & {"glucose", "ribose"}
    assert "acetate" in drawn


def test_what_is_given_is_kept_and_the_rest_follows() -> None:
    vector = environment.parse_environment("temperature_k=350, ph=6.5,o2=0,redox=-0.3")
    assert [value(vector, n) for n in ("temperature_k", "ph", "o2", "redox")] == pytest.approx([350, 6.5, 0, -0.3])
    assert value(vector, "h2") > 1e-6  # Eh -0.3 V at pH 6.5 needs some hydrogen
    assert [n for n in ORGANICS if value(vector, n) > 0] == ["acetate"]


def test_a_stated_organic_replaces_the_default_one() -> None:
    vector = environment.parse_environment("glucose=0.002")
    assert [n for n in ORGANICS if value(vector, n) > 0] == ["glucose"]


def test_an_environment_is_written_as_it_is_read() -> None:
    vector = environment.parse_environment("temperature_k=300,ph=7,o2=0.2,redox=0.4,co2=0.001,glycine=0.001")
    again = environment.parse_environment(environment.environment_text(vector))
    np.testing.assert_allclose(again, vector, rtol=1e-3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temperatur_k=300", "unknown name 'temperatur_k'; did you mean temperature_k"),
        ("zzz=1", "unknown name 'zzz'; known are temperature_k"),
        ("ph=high", "'ph=high' is no number; write ph=VALUE"),
        ("ph", "'ph' is no number"),
        ("ph=14", r"ph=14 is out of range; give 3 to 12"),
        ("ph=nan", "out of range"),
        ("", "nothing given"),
    ],
)
def test_a_bad_environment_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        environment.parse_environment(text)


def test_a_name_that_is_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="ph is given twice, as 7 and 8"):
        environment.parse_environment("ph=7,o2=0,ph=8")
