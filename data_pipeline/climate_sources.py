"""Choose where climates come from: the embedded emulator, ExoPlaSim, or files of any general circulation model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipeline import climate, climate_files, exoplasim_source
from data_pipeline.errors import InputError
from data_pipeline.planet_table import Row
from data_pipeline.planets import CLIMATE_RANGES, EXOPLASIM_RANGES, Planet, Ranges, out_of_range, sample_systems


@runtime_checkable
class ClimateSource(Protocol):
    """Turns planets into climate cubes, all in the same variables, units, levels and longitudes."""

    @property
    def name(self) -> str:
        """What the data say."""
        ...

    @property
    def slow(self) -> bool:
        """Does a planet take long enough to be prepared in a process of its own before anything else?"""
        ...

    @property
    def ranges(self) -> Ranges:
        """Of the planets that it covers; empty: any."""
        ...

    def versions(self) -> dict[str, str]:
        """Return what has to be the same for the same climates: package -> version."""
        ...

    def prepare(self, planet: Planet) -> dict[str, Any]:
        """Do the long work of one planet and return what is worth knowing of it; "diverged" says that it failed."""
        ...

    def cubes(self, planets: Sequence[Planet], seed: int) -> np.ndarray:
        """Return n C H W float32 of planets that are prepared."""
        ...


@dataclass(frozen=True)
class Emulator:
    """The embedded emulator, for tidally locked planets: milliseconds a planet."""

    name: str = "clero"
    slow: bool = False

    @property
    def ranges(self) -> Ranges:
        """Where it was trained."""
        return CLIMATE_RANGES

    def versions(self) -> dict[str, str]:
        """Return the version of the package."""
        return {"clero": metadata.version("clero")}

    def prepare(self, planet: Planet) -> dict[str, Any]:
        """Nothing takes long."""
        return {}

    def cubes(self, planets: Sequence[Planet], seed: int) -> np.ndarray:
        """Draw from the emulator's distribution."""
        return climate.simulate(planets, seed)


@dataclass(frozen=True)
class ExoPlaSim:
    """A general circulation model that runs here: minutes a planet and year. The seed changes nothing."""

    name: str = "exoplasim"
    slow: bool = True

    @property
    def ranges(self) -> Ranges:
        """Where it is at home."""
        return EXOPLASIM_RANGES

    def versions(self) -> dict[str, str]:
        """Return the version of the package, after compiling it; refuse when it cannot be run."""
        exoplasim_source.program()
        return {"exoplasim": exoplasim_source.version()}

    def prepare(self, planet: Planet) -> dict[str, Any]:
        """Run the planet, unless the cache has it."""
        return exoplasim_source.run(planet).facts

    def cubes(self, planets: Sequence[Planet], seed: int) -> np.ndarray:
        """Return what `prepare` left in the cache."""
        runs = [exoplasim_source.run(planet) for planet in planets]
        return np.stack([run.cube for run in runs if run.cube is not None])


@dataclass(frozen=True)
class Files:
    """Climates that the user brings: one NetCDF file a planet. The seed changes nothing."""

    folder: Path
    rows: tuple[Row, ...]
    name: str = "files"
    slow: bool = False

    @property
    def ranges(self) -> Ranges:
        """Whatever the model that made them covers."""
        return {}

    def versions(self) -> dict[str, str]:
        """Return a digest of the files' names and sizes and of the table."""
        digest = hashlib.sha256()
        for row in self.rows:
            path = self.folder / row.file
            if not path.is_file():
                raise InputError(
                    f"climate={path}: no such file, for the planet {row.planet.name!r}; give its name in the column "
                    "`file` of the table of planets, relative to the folder"
                )
            digest.update(f"{row!r} {row.planet.locked} {path.stat().st_size}".encode())
        return {"climate files": digest.hexdigest()[:12]}

    def prepare(self, planet: Planet) -> dict[str, Any]:
        """Nothing takes long."""
        return {}

    def cubes(self, planets: Sequence[Planet], seed: int) -> np.ndarray:
        """Read the files."""
        rows = {row.planet.name: row for row in self.rows}
        chosen = [(planet, rows[planet.name]) for planet in planets]
        return np.stack([climate_files.read_cube(self.folder / r.file, p, r.substellar_longitude) for p, r in chosen])


EMULATOR = Emulator()


def choose(name_or_path: str, rows: Sequence[Row] | None) -> ClimateSource:
    """Return the source of `--climate`: clero, exoplasim, a folder of NetCDF files, or one file.

    Raises:
        InputError: It is none of these, or files come without a table of planets, or one file with several planets.
    """
    if name_or_path in ("clero", "exoplasim"):
        return EMULATOR if name_or_path == "clero" else ExoPlaSim()
    path = Path(name_or_path)
    if not path.exists():
        raise InputError(
            f"climate={name_or_path}: give clero (the embedded emulator), exoplasim, or a folder or file of NetCDF"
        )
    if not rows:
        raise InputError(f"climate={path}: whose climates are these? Give a table with --planets-from FILE.csv")
    if path.is_dir():
        return Files(path, tuple(rows))
    if len(rows) > 1:
        raise InputError(f"climate={path}: one file for {len(rows)} planets of the table; give the folder of the files")
    return Files(path.parent, (rows[0]._replace(file=path.name),))


def planets_of(source: ClimateSource, rows: Sequence[Row] | None, number: int, seed: int) -> Iterator[Planet]:
    """Yield the first `number` planets of the table, else sampled ones, inside the ranges of the source.

    Raises:
        InputError: The table has fewer planets, or one of them is where the source would have to extrapolate.
    """
    if rows is None:
        planets: Iterator[Planet] = sample_systems(number, seed, source.ranges or CLIMATE_RANGES)
    else:
        if number > len(rows):
            raise InputError(f"planets={number}: the table holds {len(rows)}; leave --planets out to take all")
        planets = (row.planet for row in rows[:number])
    for planet in planets:
        outside = out_of_range(planet, source.ranges)
        if outside:
            raise InputError(
                f"planet={planet.name}: {outside[0]}, where {source.name} would extrapolate; remove it from the table "
                "or take another --climate"
            )
        yield planet if source == EMULATOR else replace(planet, climate_model=source.name)
