"""Simulate planets with ExoPlaSim, a three-dimensional general circulation model: compile it once, run it, keep cubes.

ExoPlaSim is the user's own package (GPL-2): its Fortran source is compiled from where pip put it and the program is
run; nothing of it is imported or copied here. One planet is one process in a folder of its own, in stretches of 90 days
until its mean surface temperature stands still. Cubes and failures lie in the cache folder under a digest of everything
that goes in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
import platform
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import exoplasim_output
from data_pipeline.climate import area_weights
from data_pipeline.errors import InputError
from data_pipeline.planets import Planet
from data_pipeline.reaction_tables import cache_dir, write_atomically
from data_pipeline.variables import SURFACE_VARIABLES, climate_field

PACKAGE = "exoplasim"
INSTALL = "pip install --no-deps exoplasim==3.4.2"
TOOLS = ("gfortran", "gcc", "make")
# Without bounds checks; the traps stay, so that a diverging run stops at its first overflow.
FLAGS = "-O3 -cpp -ffixed-line-length-132 -ffpe-trap=invalid,zero,overflow -ffpe-summary=none -finit-real=zero"
MAKE = {
    "MOST_F90": "gfortran", "MOST_F90_OPTS": FLAGS, "MOST_CC": "gcc", "MOST_CC_OPTS": "-O3", "MOST_PREC": "",
    "MPIMOD": "mpimod_stub", "UTILMOD": "utilities_stub", "GUIMOD": "guimod_stub", "PUMAX": "pumax_stub",
    "OCEANCOUP": "cpl_stub", "FFTMOD": "fftmod",
}  # fmt: skip
RESOLUTION = "module resmod\nparameter(NLAT_ATM = 32)\nparameter(NLEV_ATM = 10)\nparameter(NPRO_ATM = 1)\nend module\n"
CUBE_VERSION = 1  # raised when exoplasim_output or climate_grid make another cube of the same output
STRETCH_DAYS = 90
MAX_STRETCHES = 16  # four years
DRIFT_K = 1.0  # a stretch whose mean surface temperature differs by less from the one before it ends the run
MIXED_LAYER_M = 2.0  # as much heat as 0.8 bar of air: where nothing varies in time, depth only delays the balance
# Without currents in the ocean below, ice grows wherever it freezes until it is this thick, and then conducts nothing:
# in years at ExoPlaSim's own 9 m, in months at 1 m.
ICE_M = 1.0
# A planet that turns freely may be frozen or not under the same light; it starts warm. A locked one has one state
# (Checlair et al. 2017, ApJ 845, 132) and starts at the freezing point, as ExoPlaSim does without a map.
WARM_OCEAN_K = 288.0
OCEAN_FILE = "N032_surf_0169.sra"
TIME_STEPS_MINUTES = (45, 30, 20)  # a run that diverges is tried again with the next
DALTON = {"n2": 28.014, "co2": 44.010, "ch4": 16.043, "o2": 31.998, "h2": 2.016, "co": 28.010}
HEAT_J_KG_K = {"n2": 1040.0, "co2": 844.0, "ch4": 2226.0, "o2": 918.0, "h2": 14300.0, "co": 1040.0}
GAS_CONSTANT = 8314.46
SURFACE = SURFACE_VARIABLES[0]
_KILLED = (-signal.SIGINT, -signal.SIGKILL, -signal.SIGTERM)


class Run(NamedTuple):
    """What became of one planet."""

    cube: np.ndarray | None  # C H W; None when every time step diverged
    facts: dict[str, Any]  # seconds, years, drift_k, imbalance_w_m2, time_step_minutes; "diverged": why, without a cube


def require() -> None:
    """Refuse with the command that helps when the package or a compiler is missing.

    Raises:
        InputError: Something is missing.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(f"climate=exoplasim: the package is not installed; run `{INSTALL}`, or take --climate clero")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise InputError(
            f"climate=exoplasim: {' and '.join(missing)} not found, which compile it; run `sudo apt-get install "
            "gfortran gcc make`, or take --climate clero"
        )


def version() -> str:
    """Return the version of the installed package."""
    return metadata.version(PACKAGE)


def program() -> Path:
    """Return the compiled program, made on first use (half a minute) in the cache folder.

    Raises:
        InputError: The package or a compiler is missing, or the compiler fails.
    """
    require()
    key = hashlib.sha256(json.dumps([version(), MAKE, RESOLUTION, platform.machine()]).encode()).hexdigest()[:12]
    path = cache_dir() / "exoplasim" / f"plasim-{key}"
    if path.is_file():
        return path
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    source = Path(list(spec.submodule_search_locations)[0]) / "plasim" / "src"
    print("compiling ExoPlaSim, once, half a minute", flush=True)
    with tempfile.TemporaryDirectory(prefix="exoplasim-") as folder:
        try:
            work = shutil.copytree(source, Path(folder) / "src")
        except OSError as error:
            raise InputError(f"climate=exoplasim: {source} cannot be read ({error}); run `{INSTALL}` again") from None
        (work / "resmod.f90").write_text(RESOLUTION)
        command = ["make", "-f", "make_plasim", "plasim.x", *(f"{k}={v}" for k, v in MAKE.items())]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode or not (work / "plasim.x").is_file():
            lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines() or ["?"]
            raise InputError(f"climate=exoplasim: compiling failed ({lines[0].strip()}); is gfortran at least 9?")
        write_atomically(path, (work / "plasim.x").read_bytes())
    path.chmod(0o755)
    return path


# --- one planet -------------------------------------------------------------------------------------------------------
def namelists(planet: Planet, time_step_minutes: int) -> dict[str, dict[str, Any]]:
    """Return what the program is told: the name of a Fortran namelist -> its values.

    An ocean-covered planet on a circular orbit without obliquity. Of its gases, the radiation knows CO2 and water;
    the others weigh. A locked planet has its star over longitude 180 and the filters that ExoPlaSim advises for it.
    """
    air = planet.atmosphere
    shares = {name: getattr(air, name) for name in DALTON}
    dalton = sum(DALTON[name] * share for name, share in shares.items()) / sum(shares.values())
    gas_constant = GAS_CONSTANT / dalton
    mass = {name: share * DALTON[name] for name, share in shares.items()}
    heat = sum(HEAT_J_KG_K[name] * m for name, m in mass.items()) / sum(mass.values())
    days = planet.rotation_period_d
    steps = STRETCH_DAYS * 1440 // time_step_minutes
    return {
        "planet": {
            "ECCEN": 0.0, "OBLIQ": 0.0, "MVELP": 102.7, "NFIXORB": 1, "GSOL0": planet.irradiance_w_m2,
            "ROTSPD": 1.0 / days, "GASCON": gas_constant, "AKAP": gas_constant / heat, "GA": planet.gravity_m_s2,
            "PLARAD": planet.radius_earth * exoplasim_output.EARTH_RADIUS_M,
        },
        "plasim": {
            "NOUTPUT": 1, "NGUI": 0, "N_START_YEAR": 1, "N_DAYS_PER_YEAR": max(int(360.0 / days / 12 + 0.5), 1) * 12,
            "N_RUN_YEARS": 1, "N_RUN_MONTHS": 0, "N_RUN_DAYS": 0, "N_RUN_STEPS": steps, "KICK": 1,
            "MPSTEP": float(time_step_minutes), "NADV": 1, "NDIAG": 0, "NQSPEC": 1, "NVEG": 0, "NWPD": 0, "NLOWIO": 1,
            "NSTPW": steps // 3, "NPRINT": 0, "NSYNC": 1, "NSNAPSHOT": 0, "NHCADENCE": 0, "L_AERO": 0, "SYNCSTR": 0.0,
            "PSURF": air.surface_pressure_bar * 1e5, "NEQSIG": 0, "NAQUA": 1,
            "NFILTER": 2 if planet.locked else 0, "NGPTFILTER": 1, "NSPVFILTER": 1, "FILTERKAPPA": 8.0, "NFILTEREXP": 8,
            "FIXEDLON": exoplasim_output.SUBSTELLAR_LONGITUDE, "DTTL": 100.0 if planet.locked else 0.0,
        },
        "radmod": {
            "CO2": 1e6 * air.co2, "NSTARTEMP": 1, "STARBBTEMP": planet.star_temperature_k, "NPBROADEN": 1, "NO3": 0,
            "NFIXED": int(planet.locked), "DESYNC": 0.0, "NSIMPLEALBEDO": 1, "NECHAM": 1, "NECHAM6": 0, "NRADICE": 1,
        },
        "oceanmod": {"NOCEAN": 1, "NLSG": 0, "MLDEPTH": MIXED_LAYER_M},
        "icemod": {"NICE": 1, "XMAXD": ICE_M},
        "rainmod": {"NCLOUDS": 1, "NSTORAIN": 0},
        "glacier": {"NGLACIER": 0},
        "carbonmod": {"NCARBON": 0, "NCO2EVOLVE": 0},
        "hurricane": {"HC_CAPTURE": 0, "NKTRIGGER": 0, "NSTORMDIAG": 0},
        **{name: {} for name in ("aero", "fluxmod", "landmod", "miscmod", "seamod", "surfmod", "vegmod")},
    }  # fmt: skip


def digest(planet: Planet) -> str:
    """Return the name of a planet's cube: what the program is told, its version and how long it runs."""
    told = [namelists(planet, minutes) for minutes in TIME_STEPS_MINUTES]
    settings = [version(), MAKE["MOST_F90_OPTS"], RESOLUTION, CUBE_VERSION, MAX_STRETCHES, DRIFT_K, told]
    if not planet.locked:
        settings.append(WARM_OCEAN_K)
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]


def stored(planet: Planet) -> Run | None:
    """Return what an earlier run of this planet left in the cache folder."""
    try:
        with np.load(_place(planet), allow_pickle=False) as archive:
            cube = archive["cube"] if "cube" in archive else None
            return Run(cube, json.loads(str(archive["facts"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing or torn: it is run again
        return None


def run(planet: Planet) -> Run:
    """Simulate one planet unless the cache has it; a planet that diverges is kept as such.

    Raises:
        InputError: The program cannot be made, or was killed.
    """
    found = stored(planet)
    if found is None:
        found = _run(planet, program())
        parts: dict[str, Any] = {"facts": json.dumps(found.facts)}
        if found.cube is not None:
            parts["cube"] = found.cube
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **parts)
        write_atomically(_place(planet), buffer.getvalue())
    return found


def _place(planet: Planet) -> Path:
    return cache_dir() / "exoplasim" / f"{digest(planet)}.npz"


class _Diverged(Exception):
    """The model stopped, or what it wrote is no climate."""


def _run(planet: Planet, executable: Path) -> Run:
    started, reasons = time.monotonic(), []
    for minutes in TIME_STEPS_MINUTES:
        with tempfile.TemporaryDirectory(prefix="exoplasim-") as folder:
            try:
                cube, facts = _to_balance(planet, executable, Path(folder), minutes)
            except _Diverged as error:
                reasons.append(f"{minutes} min: {error}")
                continue
        return Run(cube, {**facts, "seconds": round(time.monotonic() - started, 1), "time_step_minutes": minutes})
    return Run(None, {"diverged": "; ".join(reasons), "seconds": round(time.monotonic() - started, 1)})


def _to_balance(planet: Planet, executable: Path, folder: Path, minutes: int) -> tuple[np.ndarray, dict[str, Any]]:
    for name, values in namelists(planet, minutes).items():
        group = f"{name}_nl"
        lines = "".join(f" {key} = {value}\n" for key, value in values.items())
        (folder / f"{name}_namelist").write_text(f" &{group}\n{lines} /\n")
    if not planet.locked:
        (folder / OCEAN_FILE).write_text(_ocean(WARM_OCEAN_K))
    before, drift, stretches = 0.0, math.inf, 0
    while drift >= DRIFT_K and stretches < MAX_STRETCHES:
        stretches += 1
        cube = _stretch(planet, executable, folder)
        surface, absorbed, outgoing = (float((field * area_weights()).sum()) for field in cube[:3])
        drift, before = (abs(surface - before) if stretches > 1 else math.inf), surface
    return cube, {
        "years": stretches * STRETCH_DAYS / 360,
        "drift_k": round(drift, 3),
        "balanced": drift < DRIFT_K,
        "imbalance_w_m2": round(absorbed - outgoing, 2),
    }


def _ocean(temperature_k: float) -> str:
    """Return a map of the ocean's first temperature, the same everywhere and in all twelve months."""
    lines = []
    for month in range(1, 13):
        lines.append("".join(f"{number:10d}" for number in (169, 0, 20090000 + 100 * month, -1, 64, 32, 0, 0)))
        lines += ["".join([f"{temperature_k:10.3f}"] * 8)] * (64 * 32 // 8)
    return "\n".join(lines) + "\n"


def _stretch(planet: Planet, executable: Path, folder: Path) -> np.ndarray:
    done = subprocess.run([str(executable)], cwd=folder, capture_output=True, check=False)
    if done.returncode in _KILLED:
        raise InputError(
            f"climate=exoplasim: the run of {planet.name} was killed (signal {-done.returncode}), by hand or for lack "
            "of memory; give the same command again, perhaps with fewer --workers"
        )
    output, state = folder / "plasim_output", folder / "plasim_status"
    if done.returncode or (folder / "Abort_Message").exists() or not output.is_file() or not state.is_file():
        raise _Diverged(f"the program stopped with code {done.returncode}")
    try:
        with np.errstate(all="ignore"):
            cube = exoplasim_output.cube(
                exoplasim_output.read_output(output.read_bytes()),
                planet.radius_earth,
                planet.atmosphere.surface_pressure_bar,
            )
    except ValueError as error:
        raise _Diverged(str(error)) from None
    surface = cube[climate_field("surface_temperature_k")]
    outside = float((((surface <= SURFACE.low) | (surface >= SURFACE.high)) * area_weights()).sum())
    if not np.isfinite(cube).all() or outside > 0.05:
        raise _Diverged(f"{100 * outside:.0f} % of the surface outside {SURFACE.low:g}-{SURFACE.high:g} K")
    output.unlink()
    state.replace(folder / "plasim_restart")
    return cube
