from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline import planets
from data_pipeline.errors import InputError
from data_pipeline.instruments import (
    INSTRUMENTS,
    Instrument,
    bin_edges_um,
    binned,
    dust_photons,
    measure,
    noise_ppm,
    parse_instrument,
    star_photons,
)
from data_pipeline.planets import Planet
from data_pipeline.spectra import planck

WAVE = np.geomspace(0.3, 20.0, 4000)


@pytest.fixture
def earth() -> Planet:
    """Around a Sun."""
    known = planets.known_planets()[0]
    return replace(
        known, name="Earth", radius_earth=1.0, star_temperature_k=5772.0, star_radius_sun=1.0, semi_major_axis_au=1.0
    )


def test_a_bin_is_as_wide_as_its_middle_over_the_resolution() -> None:
    edges = bin_edges_um(0.5, 1.0, 140.0)
    middle = (edges[1:] + edges[:-1]) / 2
    assert middle / np.diff(edges) == pytest.approx(140.0)
    assert edges[0] == 0.5 and 0.99 < edges[-1] <= 1.0


def test_a_mean_over_bins_weighs_and_loses_nothing() -> None:
    edges = np.array([1.0, 2.0, 4.0])
    wave = np.linspace(0.5, 5.0, 4501)
    assert binned(wave, wave, edges) == pytest.approx([1.5, 3.0], rel=1e-6)
    assert binned(wave, wave, edges, wave) == pytest.approx([14 / 9, 28 / 9], rel=1e-6)  # mean of x over weights x


def test_a_sun_at_10_pc_gives_12_million_photons_a_second_and_m2_in_10_nm(earth: Planet) -> None:
    """1.87 W m-2 nm-1 at 1 au (ASTM E-490), 2062648 au, 3.612e-19 J a photon; a black body is 6 % fainter."""
    telescope = Instrument(
        name="m2", view="transit", low_um=0.5, high_um=0.6, resolution=5.5, collecting_m2=1.0, throughput=1.0,
        distance_pc=10.0, hours=1 / 3600,
    )  # fmt: skip
    counted = star_photons(telescope, earth, np.array([0.545, 0.555]))[0]
    by_hand = 1870.0 / (206264.8 * 10) ** 2 * 0.01 / 3.612e-19  # W m-2 um-1, distance, width, energy of a photon
    assert counted == pytest.approx(0.94 * by_hand, rel=0.02)


def test_noise_in_transit_falls_with_the_root_of_time_down_to_the_floor(earth: Planet) -> None:
    edges, clean = np.array([1.0, 1.01]), np.array([84.0])
    once, again = (
        noise_ppm(parse_instrument(f"jwst-prism,floor_ppm=0,hours={h}"), earth, edges, clean) for h in (1, 4)
    )
    assert once / again == pytest.approx(2.0)
    star = star_photons(parse_instrument("jwst-prism,hours=1"), earth, edges)
    assert once == pytest.approx(1e6 * np.sqrt(2 / star))
    assert noise_ppm(parse_instrument("jwst-prism,hours=1e9"), earth, edges, clean) == pytest.approx(20.0, rel=1e-3)


def test_a_disc_is_limited_by_its_own_photons_and_twice_the_background(earth: Planet) -> None:
    edges, clean = np.array([0.55, 0.554]), np.array([1e-4])
    telescope = INSTRUMENTS["hwo"]
    star, dust = star_photons(telescope, earth, edges), dust_photons(telescope, edges)
    by_hand = np.sqrt(1e-10 * star + 2 * (1e-10 * star + dust)) / star * 1e6
    assert noise_ppm(telescope, earth, edges, clean) == pytest.approx(by_hand)


def test_an_earth_at_10_pc_has_a_signal_to_noise_of_9_after_100_hours_of_a_6_m_telescope(earth: Planet) -> None:
    """LUVOIR-B (8 m, about the same area) plans tens of hours for 8.5 at R 140 (final report 2019)."""
    quadrature = 1e6 * 0.2 / np.pi * (6.371e6 / 1.495978707e11) ** 2
    seen = measure(INSTRUMENTS["hwo"], earth, WAVE, np.full(len(WAVE), quadrature), 0)
    assert (seen.clean_ppm / seen.error_ppm)[np.searchsorted(seen.low_um, 0.55)] == pytest.approx(9, abs=1.5)


def test_local_dust_is_as_bright_as_the_sky_near_the_ecliptic_pole(earth: Planet) -> None:
    """About 23 mag per arcsec2 in V (Leinert et al. 1998), within a factor of 2.5."""
    telescope = Instrument(
        name="m2", view="disc", low_um=0.5, high_um=0.6, resolution=5.5, collecting_m2=1.0, throughput=1.0,
        hours=1 / 3600,
    )  # fmt: skip
    photons = dust_photons(telescope, np.array([0.5495, 0.5505]))[0]
    radiance = photons * 3.612e-19 / (0.55e-6) ** 2 / 1e-9  # of one mode, W m-2 sr-1 m-1
    sky = 3.63e-2 * 10 ** (-0.4 * 23) * 206264.8**2  # W m-2 m-1 of magnitude 0, per arcsec2, per sr
    assert 1 / 2.5 < radiance / sky < 2.5


def test_constant_signal_to_noise_is_what_it_says_and_noise_follows_the_seed(earth: Planet) -> None:
    first, again, other = (measure(INSTRUMENTS["ideal"], earth, WAVE, 100 + WAVE, seed) for seed in (1, 1, 2))
    assert first.clean_ppm / first.error_ppm == pytest.approx(10.0)
    assert np.array_equal(first.observed_ppm, again.observed_ppm)
    assert not np.array_equal(first.observed_ppm, other.observed_ppm)
    assert ((first.observed_ppm - first.clean_ppm) / first.error_ppm).std() == pytest.approx(1.0, abs=0.15)


def test_a_planet_is_lost_in_the_glare_at_long_wavelengths_first(earth: Planet) -> None:
    far = measure(parse_instrument("hwo,distance_pc=12"), earth, WAVE, np.ones(len(WAVE)), 0)
    assert far.high_um.max() == pytest.approx(1 / 12 / 206264.8 * 6.0 / 3.5 * 1e6, rel=0.01)  # 0.69 um


def test_a_planet_that_no_bin_can_see_is_one_line(earth: Planet) -> None:
    with pytest.raises(InputError, match="instrument hwo: Earth is 1 mas from its star, .* from 48 mas on; lower dist"):
        measure(parse_instrument("hwo,distance_pc=1000"), earth, WAVE, np.ones(len(WAVE)), 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hwoo", "instrument='hwoo': did you mean hwo"),
        ("spoon", "instrument='spoon': choose from hwo, ideal, jwst-miri, jwst-prism, life"),
        ("hwo,hour=3", "instrument.hour: did you mean hours"),
        ("hwo,hours=long", "instrument.hours='long' is no number; write hours=NUMBER"),
        ("hwo,view=inside", "instrument.view='inside': choose disc, transit, eclipse"),
        ("hwo,low_um=3", "3 to 1.8 um; give two between 0.2 and 30, rising"),
        ("hwo,resolution=1000", "instrument.resolution=1000: give 1 to 300"),
        ("hwo,hours=0", "instrument hwo: no noise; give signal_to_noise, or collecting_m2"),
        ("ideal,signal_to_noise=-1", "instrument ideal: no noise"),
    ],
)
def test_what_cannot_be_observed_with_is_one_line(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_instrument(text)


def test_changes_are_read() -> None:
    changed = parse_instrument("life, distance_pc=5, dishes=2,view=eclipse")
    assert (changed.distance_pc, changed.dishes, changed.view, changed.resolution) == (5.0, 2, "eclipse", 50)


def test_a_black_body_is_seen_as_one(earth: Planet) -> None:
    """The mean over a bin weighs by the star's photons: a flat ratio stays flat."""
    ratio = 1e6 * planck(WAVE * 1e-6, 5772.0) / planck(WAVE * 1e-6, 5772.0)
    seen = measure(INSTRUMENTS["ideal"], earth, WAVE, ratio, 0)
    assert seen.clean_ppm == pytest.approx(1e6, rel=1e-9)
