"""Measure how training the unified model scales with GPUs: ./launch.sh bench scaling --gpus 1,2,4,8 --llm 13b --json.

Each way of training with each number of GPUs is a process group of its own. Jobs that need few GPUs run side by side.
Without a GPU ranks are CPU processes over gloo and the language model is tiny: for tests, not for numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from benchmarks import scaling_paper
from benchmarks.rows import hardware, versions
from benchmarks.scaling_engines import WAYS
from benchmarks.scaling_rank import PARITY_STEPS, SAVED_AFTER
from trainers.ranks import free_port

ROOT = Path(__file__).resolve().parent.parent
PEER = "transformers-zero3"
PARITY = "parity"
SIZES = {"1b": "1b", "13b": "13b", "small": "tiny"}
PASSED_ON = (
    "counted", "calls", "model", "profile", "frozen_base", "sharing", "gathers", "gathered_bytes_at_most_by_model",
    "links", "built_s", "allocated_after_build_gib", "fetched_by", "unit_bytes", "units_that_stay",
    "gaps_s", "slowed_by_fetches",
)  # fmt: skip
NCCL = ("NCCL_NVLS_ENABLE", "NCCL_ALGO", "NCCL_PROTO", "NCCL_P2P_DISABLE")


class Job(NamedTuple):
    """One process group."""

    size: str
    way: str
    gpus: int
    options: tuple[str, ...] = ()


def parser() -> argparse.ArgumentParser:
    """Return the command line; what it does not know goes on to the ranks (--samples, --data, --tokenizer, ...)."""
    p = argparse.ArgumentParser(prog="./launch.sh bench scaling", description=__doc__, allow_abbrev=False)
    p.add_argument("--gpus", default="1,2", help="numbers of GPUs, separated by commas (1,2)")
    p.add_argument("--llm", default="13b", help="of 13b, 1b and small, separated by commas (13b)")
    p.add_argument("--ways", default=",".join((*WAYS, PEER, PARITY)), help="which of them, separated by commas (all)")
    p.add_argument("--timeout", type=float, default=240.0, metavar="S", help="of one process group (240)")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    p.add_argument("--alone", type=Path, metavar="ROWS", help="earlier rows whose runs on one GPU are the measure")
    p.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: ranks over gloo, tiny model")
    p.add_argument("--paper", type=Path, metavar="ROWS", help="write docs/scaling.md from a file of rows, run nothing")
    return p


def jobs(arguments: argparse.Namespace, available: int) -> tuple[list[Job], list[dict[str, Any]]]:
    """Return the jobs in the order to run, and a row for each number of GPUs that the machine lacks."""
    wanted = [int(n) for n in arguments.gpus.split(",")]
    ways = arguments.ways.split(",")
    missing = [
        {"row": f"scaling/{n}-gpus", "skipped": f"{n} GPUs asked for, this machine has {available}"}
        for n in wanted
        if n > available
    ]
    found = [
        Job(SIZES[size], way, n)
        for size in arguments.llm.split(",")
        for n in sorted(wanted)
        if n <= available
        for way in ways
        if way != PARITY and not (way == PEER and n == 1)
    ]
    return found, missing


class Runner:
    """Starts process groups on the devices that are free."""

    def __init__(self, devices: int, on_gpu: bool, passed_on: Sequence[str], timeout_s: float) -> None:
        self._on_gpu, self._passed_on, self._timeout_s = on_gpu, tuple(passed_on), timeout_s
        self._devices = devices
        self._free: SimpleQueue[int] = SimpleQueue()
        for device in range(devices):
            self._free.put(device)

    def run(self, some: Sequence[Job]) -> list[dict[str, Any]]:
        """Run jobs of one number of GPUs, as many side by side as fit; return a result for each."""
        with ThreadPoolExecutor(max(self._devices // some[0].gpus, 1)) as pool:
            return list(pool.map(self.one, some))

    def one(self, job: Job) -> dict[str, Any]:
        """Run one job; what goes wrong comes back under `error`."""
        taken = [self._free.get() for _ in range(job.gpus)]
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = self._start(job, Path(folder), taken)
        finally:
            for device in taken:
                self._free.put(device)
        return found | {"process_wall_s": round(time.monotonic() - began, 1)}

    def _start(self, job: Job, folder: Path, devices: Sequence[int]) -> dict[str, Any]:
        result = folder / "result.json"
        shared = {
            "WORLD_SIZE": str(job.gpus), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
            "LOCAL_SIZE": "0", "LOCAL_WORLD_SIZE": str(job.gpus), "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"),
        }  # fmt: skip
        if self._on_gpu:
            shared["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        else:
            shared |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        command = [
            sys.executable, "-m", "benchmarks.scaling_rank", *self._passed_on, "--size", job.size, "--job", job.way,
            "--result", str(result), *job.options,
        ]  # fmt: skip
        logs = [(folder / f"{rank}.log").open("w+") for rank in range(job.gpus)]
        ranks = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        problem = _wait(ranks, time.monotonic() + self._timeout_s)
        try:
            if result.is_file():  # a rank may abort while it exits, after its work
                return dict(json.loads(result.read_text()))
            return {"error": f"{problem} {_ends(logs)}"}
        finally:
            for log in logs:
                log.close()


def _wait(ranks: Sequence[subprocess.Popen[bytes]], until: float) -> str:
    """Wait for all ranks; when one fails or time is up, end the others. Return what went wrong."""
    problem = ""
    while not problem and any(rank.poll() is None for rank in ranks):
        time.sleep(0.1)
        failed = [i for i, rank in enumerate(ranks) if rank.poll()]
        if failed:
            time.sleep(1.0)
            problem = f"rank {failed[0]} ended with {ranks[failed[0]].returncode}:"
        elif time.monotonic() > until:
            problem = "no result in time:"
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
        rank.wait()
    return problem


def _ends(logs: Iterable[Any]) -> str:
    texts = []
    for log in logs:
        log.seek(0)
        texts.append(" | ".join(log.read().strip().splitlines()[-8:])[-900:])
    return " || ".join(texts)


def rows_of(job: Job, found: dict[str, Any], alone: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the rows of one job.

    Args:
        job: What was run.
        found: What its rank 0 wrote, or an error.
        alone: What the same way gave on one GPU, if it was run.
    """
    name = f"scaling/{job.size}/{job.way}"
    if "error" in found:
        return [{"row": f"{name}/weak/{job.gpus}", "gpus": job.gpus, **found}]
    parameters = found["parameters"]
    shared = {"gpus": job.gpus, "parameters": parameters}
    weak = {"row": f"{name}/weak/{job.gpus}", **shared, **found["weak"], "process_wall_s": found["process_wall_s"]}
    one = alone.get("weak") if alone else None
    if one:
        weak["efficiency"] = weak["samples_per_s_a_gpu"] / one["samples_per_s_a_gpu"]
        weak["efficiency_in_tokens"] = weak["tokens_per_s_a_gpu"] / one["tokens_per_s_a_gpu"]
    weak |= {k: found[k] for k in PASSED_ON if k in found}
    if "model" in found:
        weak["bytes_equal_the_model"] = _sum(found["counted"].values()) == found["model"]
    if base := found.get("frozen_base"):
        held = base["kept_bytes"] + base["gathered_bytes"]
        limit = 2 * parameters / job.gpus + 3e9
        weak |= {"frozen_base_gb": held / 1e9, "frozen_base_limit_gb": limit / 1e9, "frozen_base_fits": held <= limit}
    if job.gpus > 1 and alone and "timeline" in alone and "links" in found:
        told = scaling_paper.foretell_row(alone["timeline"], found, job.gpus)
        weak |= {"foretold": told._asdict(), "measured_over_foretold": weak["step_s"] / told.step_s}
    rows = [weak]
    if "strong" in found:
        strong = {"row": f"{name}/strong/{job.gpus}", **shared, **found["strong"]}
        if one:
            strong["speedup"] = one["step_s"] / strong["step_s"]
            strong["efficiency"] = strong["speedup"] / job.gpus
        rows.append(strong)
    if job.gpus == 1 and "timeline" in found:
        rows.append({"row": f"{name}/timeline", **shared, "timeline": found["timeline"]})
    return rows


def read_alone(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what each size and way gave on one GPU in a file of rows."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        if row.get("gpus") == 1 and "error" not in row:
            _, size, way, *_ = row["row"].split("/")
            part = {"timeline": row["timeline"]} if "timeline" in row else {"weak": row}
            found.setdefault((size, way), {}).update(part)
    return found


def _sum(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))


def parity_jobs(size: str, chain: Sequence[int], folder: Path) -> list[Job]:
    """Return the jobs that `parity_rows` compares: all steps on the first number of GPUs and on one, then the others.

    The second and the third number of GPUs go on with what the one before them left in the folder.
    """

    def part(gpus: int, first: int, last: int, where: str) -> Job:
        given = ("--folder", str(folder / where), "--first", str(first), "--last", str(last))
        return Job(size, PARITY, gpus, given)

    middle = (SAVED_AFTER + PARITY_STEPS) // 2
    return [
        part(chain[0], 0, PARITY_STEPS, "parts"),
        part(1, 0, PARITY_STEPS, "whole"),
        part(chain[1], SAVED_AFTER, middle, "parts"),
        part(chain[2], middle, PARITY_STEPS, "parts"),
    ]


def parity_rows(size: str, chain: Sequence[int], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the losses of several ranks with those of one, and go on with other numbers of ranks."""
    whole, alone, second, third = results
    ranks = chain[0]
    names = (f"scaling/{size}/parity/{ranks}", f"scaling/{size}/resume/{'-'.join(map(str, chain))}")
    for found in (whole, alone, second, third):
        if "error" in found:
            return [{"row": name, "gpus": ranks, "error": found["error"]} for name in names]
    gaps = [abs(a / b - 1) for a, b in zip(whole["losses"], alone["losses"], strict=True)]
    went_on = whole["losses"][:SAVED_AFTER] + second["losses"] + third["losses"]
    read = whole["sample_ids"][:SAVED_AFTER] + second["sample_ids"] + third["sample_ids"]
    return [
        {
            "row": names[0], "gpus": ranks, "largest_relative_difference": max(gaps), "losses": whole["losses"],
            "losses_of_one": alone["losses"], "same_samples": whole["sample_ids"] == alone["sample_ids"],
        },
        {
            "row": names[1], "gpus": ranks, "samples": sum(map(len, read)),
            "samples_exact": read == whole["sample_ids"],
            "largest_relative_difference": max(abs(a / b - 1) for a, b in zip(went_on, whole["losses"], strict=True)),
            "losses": went_on,
        },
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs and print their rows; return 1 if one failed."""
    arguments, passed_on = parser().parse_known_args(argv)
    if arguments.paper:
        return scaling_paper.write(arguments.paper, ROOT / "docs" / "scaling.md")
    on_gpu = arguments.device == "auto" and torch.cuda.is_available()
    available = torch.cuda.device_count() if on_gpu else 2
    found, rows = jobs(arguments, available)
    facts = {
        "command": "./launch.sh bench scaling " + " ".join(sys.argv[1:] if argv is None else argv),
        **(hardware() if on_gpu else hardware() | {"hardware": f"{os.cpu_count()} cores, gloo"}),
        "nccl": {n: os.environ[n] for n in NCCL if n in os.environ} if on_gpu else {},
        "versions": versions(),
    }
    failed = 0

    def say(row: dict[str, Any]) -> None:
        nonlocal failed
        failed += "error" in row
        shown = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
        print(json.dumps({**row, **facts}) if arguments.json else shown, flush=True)

    for row in rows:
        say(row)
    runner = Runner(available, on_gpu, passed_on, arguments.timeout)
    alone = read_alone(arguments.alone) if arguments.alone else {}
    for size, gpus in dict.fromkeys((job.size, job.gpus) for job in found):
        some = [job for job in found if (job.size, job.gpus) == (size, gpus)]
        batches = [some] if gpus == 1 else [[job] for job in some]
        for batch in batches:
            for job, result in zip(batch, runner.run(batch), strict=True):
                if gpus == 1:
                    alone[size, job.way] = result
                for row in rows_of(job, result, alone.get((size, job.way))):
                    say(row)
    several = [n for n in (int(n) for n in arguments.gpus.split(",")) if 1 < n <= available]
    if PARITY in arguments.ways.split(",") and several:
        chain = (2, 4, 1) if {2, 4} <= set(several) else (min(several), 1, min(several))
        with tempfile.TemporaryDirectory() as folder:
            results = [runner.one(job) for job in parity_jobs("tiny", chain, Path(folder))]
        for row in parity_rows("tiny", chain, results):
            say(row)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
