"""Say what a telescope measures of a spectrum: bins of its resolution, and the noise of its photons.

Named instruments follow the papers beside them, simplified: one resolution and one throughput each, no detector noise,
no slew, no confusion by other planets. What a paper leaves to the observer (distance, hours) is a default to change.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from data_pipeline.errors import InputError
from data_pipeline.planets import Planet
from data_pipeline.spectra import AU, LIGHT, PLANCK, SUN_RADIUS, planck

PARSEC = 3.0856775814913673e16  # m
View = Literal["disc", "transit", "eclipse"]
VIEWS = get_args(View)


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """A telescope with a spectrograph.

    `view` is what it looks at: the planet beside its star (disc, by a coronagraph or an interferometer), the star's
    light through the limb (transit), or what vanishes behind the star (eclipse).
    """

    name: str
    view: View
    low_um: float
    high_um: float
    resolution: float  # wavelength over width of a bin
    signal_to_noise: float = 0.0  # in every bin; 0: what the photons give
    collecting_m2: float = 0.0
    throughput: float = 0.0  # photons counted of those collected
    distance_pc: float = 10.0
    hours: float = 1.0  # on the planet, in the transit or in the eclipse; as long again beside it for the last two
    contrast: float = 0.0  # disc: starlight that is left at the planet
    zodis: float = 0.0  # disc: dust around the other star, today's Solar System = 1; our own is added
    dishes: int = 1  # disc: telescopes that each see the background
    across_m: float = 0.0  # disc: aperture or baseline that separates planet and star
    inner_angle: float = 0.0  # disc: closest separation in wavelengths over `across_m`
    floor_ppm: float = 0.0  # transit and eclipse: error that time does not lessen

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0.2 <= self.low_um < self.high_um <= 30.0:
            raise InputError(f"instrument: {self.low_um:g} to {self.high_um:g} um; give two between 0.2 and 30, rising")
        if not 1.0 <= self.resolution <= 300.0:
            raise InputError(f"instrument.resolution={self.resolution:g}: give 1 to 300, the opacity tables have 1000")
        if self.signal_to_noise < 0.0 or (self.signal_to_noise == 0.0 and not self._sees_photons):
            raise InputError(
                f"instrument {self.name}: no noise; give signal_to_noise, or collecting_m2, throughput, distance_pc "
                "and hours above 0"
            )

    @property
    def _sees_photons(self) -> bool:
        return min(self.collecting_m2, self.throughput, self.distance_pc, self.hours) > 0.0


INSTRUMENTS = {
    instrument.name: instrument
    for instrument in (
        # Constant signal to noise: compare methods, not telescopes.
        Instrument(name="ideal", view="disc", low_um=0.3, high_um=20.0, resolution=70.0, signal_to_noise=10.0),
        # Habitable Worlds Observatory: 6 m (Astro2020 decadal survey); coronagraph of LUVOIR-B (final report 2019,
        # arXiv:1912.06219): R 140, contrast 1e-10, 3.5 lambda/D, end to end about 10 %, exozodi 3.
        Instrument(
            name="hwo", view="disc", low_um=0.4, high_um=1.8, resolution=140.0, collecting_m2=28.3, throughput=0.1,
            hours=100.0, contrast=1e-10, zodis=3.0, across_m=6.0, inner_angle=3.5,
        ),
        # LIFE: four 2 m dishes, 4-18.5 um, R 50, throughput 5 %, 70 % of photons counted, exozodi 3 (Quanz et al. 2022,
        # A&A 664 A21; Dannert et al. 2022, A&A 664 A22); baseline up to 100 m.
        Instrument(
            name="life", view="disc", low_um=4.0, high_um=18.5, resolution=50.0, collecting_m2=12.6, throughput=0.035,
            hours=100.0, contrast=1e-5, zodis=3.0, dishes=4, across_m=100.0, inner_angle=0.5,
        ),
        # JWST: 25.4 m2; NIRSpec prism (R 100, 0.6-5.3 um) and MIRI LRS (R 100, 5-12 um); floors of 20 and 50 ppm
        # (Greene et al. 2016, ApJ 817, 17); photons counted about 40 and 30 % (Batalha et al. 2017, PASP 129, 064501).
        Instrument(
            name="jwst-prism", view="transit", low_um=0.6, high_um=5.3, resolution=100.0, collecting_m2=25.4,
            throughput=0.4, hours=10.0, floor_ppm=20.0,
        ),
        Instrument(
            name="jwst-miri", view="eclipse", low_um=5.0, high_um=12.0, resolution=100.0, collecting_m2=25.4,
            throughput=0.3, hours=10.0, floor_ppm=50.0,
        ),
    )
}  # fmt: skip


class Measured(NamedTuple):
    """A spectrum in the bins of an instrument, against the star's light in ppm."""

    low_um: Float[np.ndarray, " S"]
    high_um: Float[np.ndarray, " S"]
    clean_ppm: Float[np.ndarray, " S"]
    error_ppm: Float[np.ndarray, " S"]  # one sigma
    observed_ppm: Float[np.ndarray, " S"]


def parse_instrument(text: str) -> Instrument:
    """Read `hwo`, or a named instrument with changes: `hwo,distance_pc=5,hours=30`.

    Raises:
        InputError: The name or a field is unknown (the nearest is shown), or a value cannot be.
    """
    name, *changes = (part.strip() for part in text.split(","))
    if name not in INSTRUMENTS:
        raise InputError(f"instrument={name!r}: {_hint(name, INSTRUMENTS)}")
    known = {f.name for f in fields(Instrument)} - {"name"}
    given: dict[str, object] = {}
    for change in changes:
        field, _, value = (part.strip() for part in change.partition("="))
        if field not in known:
            raise InputError(f"instrument.{field}: {_hint(field, known)}")
        if field == "view" and value not in VIEWS:
            raise InputError(f"instrument.view={value!r}: choose {', '.join(VIEWS)}")
        try:
            given[field] = value if field == "view" else int(value) if field == "dishes" else float(value)
            if field != "view" and not math.isfinite(given[field]):  # type: ignore[arg-type]
                raise ValueError
        except ValueError:
            raise InputError(f"instrument.{field}={value!r} is no number; write {field}=NUMBER") from None
    return replace(INSTRUMENTS[name], **given)  # type: ignore[arg-type]


def _hint(name: str, known: object) -> str:
    names = sorted(known)  # type: ignore[call-overload]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"


def bin_edges_um(low_um: float, high_um: float, resolution: float) -> Float[np.ndarray, " edges"]:
    """Return edges of bins whose width is the wavelength over `resolution`; the last ends at `high_um` or before."""
    ratio = (2.0 * resolution + 1.0) / (2.0 * resolution - 1.0)  # so that middle over width is the resolution
    return low_um * ratio ** np.arange(max(int(np.log(high_um / low_um) / np.log(ratio) + 1e-9), 1) + 1)


def binned(
    wavelength_um: Float[np.ndarray, " W"],
    values: Float[np.ndarray, " W"],
    edges_um: Float[np.ndarray, " edges"],
    weights: Float[np.ndarray, " W"] | None = None,
) -> Float[np.ndarray, " S"]:
    """Return the weighted mean of values in each bin: trapezoids between the points, cut at the edges."""
    weights = np.ones_like(values) if weights is None else weights

    def integral(y: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0.0], np.cumsum((y[1:] + y[:-1]) / 2.0 * np.diff(wavelength_um))])
        return np.diff(np.interp(edges_um, wavelength_um, sums))

    return integral(values * weights) / integral(weights)


def measure(
    instrument: Instrument, planet: Planet, wavelength_um: np.ndarray, clean_ppm: np.ndarray, seed: int
) -> Measured:
    """Return what an instrument makes of a spectrum against its star (W, ppm); noise is normal and follows the seed.

    Bins that the planet is too close to its star to be seen in are left out.

    Raises:
        InputError: There is no such bin left.
    """
    edges = bin_edges_um(instrument.low_um, instrument.high_um, instrument.resolution)
    middle = (edges[1:] + edges[:-1]) / 2.0
    photons = planck(wavelength_um * 1e-6, planet.star_temperature_k) * wavelength_um
    clean = binned(wavelength_um, clean_ppm, edges, photons)
    error = noise_ppm(instrument, planet, edges, clean)
    seen = np.full(len(middle), True)
    if instrument.view == "disc" and instrument.inner_angle > 0.0:
        separation = planet.semi_major_axis_au * AU / (instrument.distance_pc * PARSEC)  # radian
        closest = instrument.inner_angle * middle * 1e-6 / instrument.across_m
        seen = separation >= closest
        if not seen.any():
            mas = np.degrees([separation, closest[0]]) * 3.6e6
            raise InputError(
                f"instrument {instrument.name}: {planet.name} is {mas[0]:.2g} mas from its star, the instrument sees "
                f"from {mas[1]:.2g} mas on; lower distance_pc or take another instrument"
            )
    noise = np.random.default_rng([seed, 31]).standard_normal(len(clean))
    return Measured(edges[:-1][seen], edges[1:][seen], clean[seen], error[seen], (clean + error * noise)[seen])


def noise_ppm(
    instrument: Instrument, planet: Planet, edges_um: Float[np.ndarray, " edges"], clean_ppm: Float[np.ndarray, " S"]
) -> Float[np.ndarray, " S"]:
    """Return one sigma in each bin, against the star's light.

    Source:
        Disc: sqrt(planet + 2 (starlight that is left + dust)) photons, the background being measured as long again
        (Brown 2005, ApJ 624, 1010; Robinson et al. 2016, PASP 128, 025003). Transit and eclipse: sqrt(2 / star) of the
        star's photons, in and beside, and the floor beside it.
    """
    if instrument.signal_to_noise > 0.0:
        return np.abs(clean_ppm) / instrument.signal_to_noise
    star = star_photons(instrument, planet, edges_um)
    if instrument.view != "disc":
        return np.hypot(1e6 * np.sqrt(2.0 / star), instrument.floor_ppm)
    background = instrument.contrast * star + dust_photons(instrument, edges_um)
    return 1e6 * np.sqrt(np.maximum(clean_ppm, 0.0) * 1e-6 * star + 2.0 * background) / star


def star_photons(
    instrument: Instrument, planet: Planet, edges_um: Float[np.ndarray, " edges"]
) -> Float[np.ndarray, " S"]:
    """Return the star's photons that are counted in each bin; the star is a black body."""
    apart = planet.star_radius_sun * SUN_RADIUS / (instrument.distance_pc * PARSEC)
    return _counted(instrument, edges_um, np.pi * apart**2 * instrument.collecting_m2, planet.star_temperature_k)


def dust_photons(instrument: Instrument, edges_um: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " S"]:
    """Return the photons of our own and of the other star's dust; each dish sees one mode, area x solid angle = wave^2.

    Source:
        Depth 4e-8 at 265 K with albedo 0.22 for sunlight 1.5 au away (Kelsall et al. 1998, as in Dannert et al. 2022).
    """
    wave_m = (edges_um[1:] + edges_um[:-1]) / 2.0 * 1e-6
    mode = 4e-8 * (1.0 + instrument.zodis) * instrument.dishes * wave_m**2
    sunlight = 0.22 * (SUN_RADIUS / (1.5 * AU)) ** 2
    return _counted(instrument, edges_um, mode, 265.0) + _counted(instrument, edges_um, mode * sunlight, 5778.0)


def _counted(instrument: Instrument, edges_um: np.ndarray, area_m2_sr: np.ndarray | float, kelvin: float) -> np.ndarray:
    wave_m = (edges_um[1:] + edges_um[:-1]) / 2.0 * 1e-6
    per_s = planck(wave_m, kelvin) * area_m2_sr * np.diff(edges_um) * 1e-6 * wave_m / (PLANCK * LIGHT)
    return np.asarray(instrument.throughput * instrument.hours * 3600.0 * per_s)
