"""Observe one planet of a data set: `./launch.sh build-data --observe DIR/SAMPLE --instrument hwo` prints a CSV."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from data_pipeline import light, shards
from data_pipeline.batch import Sample
from data_pipeline.errors import InputError
from data_pipeline.instruments import Instrument, Measured, measure
from data_pipeline.planets import Atmosphere, Planet


def observe(planet: Planet, cube: Any, instrument: Instrument, seed: int = 0, phase_deg: float = 0.0) -> Measured:
    """Return what an instrument measures of a planet with this climate (C H W), against the star's light.

    Args:
        planet: With its air and star.
        cube: Climate, physical units.
        instrument: Telescope; its `view` says whether light of the disc, of the eclipse (full) or of the limb is seen.
        seed: Of the noise.
        phase_deg: Angle star - planet - observer of a disc, 0 full, 90 half.

    Raises:
        InputError: The planet is too close to its star for the instrument.
    """
    found = light.light_of(planet, cube)
    if instrument.view == "transit":
        clean = light.transit_ppm(found, planet)
    else:
        angle = phase_deg if instrument.view == "disc" else 0.0
        clean = light.reflected_ppm(found, planet, angle) + light.thermal_ppm(found, planet, angle)
    return measure(instrument, planet, found.wavelength_um, clean, seed)


def planet_of(sample: Sample) -> Planet:
    """Return the planet that a sample was made from.

    Raises:
        InputError: Its facts do not say it.
    """
    facts = sample.facts

    def told(kind: type) -> dict[str, Any]:
        return {f.name: facts[f.name] for f in fields(kind) if f.name in facts}

    try:
        return Planet(**told(Planet), atmosphere=Atmosphere(**told(Atmosphere)))
    except TypeError as error:
        raise InputError(
            f"sample={sample.sample_id}: its facts do not say the planet ({error}); give one that build-data made"
        ) from None


def find_sample(place: str) -> Sample:
    """Return the sample of `DATA/SAMPLE`, where DATA is a folder, URL or hub name.

    Raises:
        InputError: There is no such data set, or no such sample in it.
    """
    data, _, sample_id = place.rstrip("/").rpartition("/")
    if not data:
        raise InputError(f"observe={place}: give the data and a sample of them, as in DIR/planet-0000000")
    manifest = shards.load_manifest(data)
    for shard in manifest.shards:
        ids = shards.read_part(data, shard.file, ("sample_id",))["sample_id"].to_pylist()
        if sample_id in ids:
            row = shards.read_part(data, shard.file).slice(ids.index(sample_id), 1)
            return shards.to_samples(row)[0]
    raise InputError(f"observe={place}: no sample {sample_id!r} among {manifest.planets}; planet-0000000 is the first")


def table(sample: Sample, instrument: Instrument, seed: int, phase_deg: float) -> str:
    """Return the spectrum of a sample as CSV: bins in um, ppm of the star's light, `#` lines that say whose it is."""
    if not 0.0 <= phase_deg <= 180.0:
        raise InputError(f"--phase-deg {phase_deg:g}: give 0 (full) to 180 (new)")
    if seed < 0:
        raise InputError(f"--seed {seed}: must be 0 or more")
    planet = planet_of(sample)
    found = observe(planet, sample.climate, instrument, seed, phase_deg)
    numbers = ", ".join(f"{f.name} {getattr(instrument, f.name)}" for f in fields(instrument) if f.name != "name")
    head = [
        f"# {sample.sample_id} {planet.name}, by {instrument.name}: {numbers}",
        f"# ppm of the star's light; phase {phase_deg:g} deg, seed {seed}, climate by {planet.climate_model}",
        ",".join(Measured._fields),
    ]
    rows = [",".join(f"{value:.6g}" for value in row) for row in zip(*found, strict=True)]
    return "\n".join([*head, *rows])
