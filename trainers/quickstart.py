"""Run the whole project once, small: build data, train, evaluate, generate. `./launch.sh quickstart [--out DIR]`.

Every stage is one of launch.sh's own words, so what it prints can be repeated by hand. A quickstart that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError, one_line
from trainers.config import with_settings
from trainers.peak_memory import PeakMemory
from trainers.presets import preset

LAUNCH = Path(__file__).resolve().parent.parent / "launch.sh"
STATE = "quickstart.json"
PLANET = "LP 890-9 c"  # of the known planets in range, one half of which is wet, with water that organisms can live on


def stages(out: Path, planets: int, settings: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the arguments of launch.sh for each stage, in order; `settings` go to every training."""
    data = ["--data", str(out / "data")]
    chosen = [part for setting in settings for part in ("--set", setting)]
    return {
        "data": ["build-data", "--planets", str(planets), "--workers", "2", "--out", str(out / "data")],
        "graph_vae": ["train", "graph_vae", *data, "--out", str(out / "graph_vae"), *chosen],
        "cnn": ["train", "cnn", *data, "--out", str(out / "cnn"), *chosen],
        "unified": [
            "train", "unified", *data, "--out", str(out / "unified"),
            "--init-from", str(out / "graph_vae"), "--init-from", str(out / "cnn"), *chosen,
        ],
        "evaluate": ["evaluate", str(out / "unified"), "--split", "test", *data],
        "generated": [
            "generate", str(out / "unified"), "--planet", PLANET, "--count", "16", "--guided", "--distinct",
            "--out", str(out / "generated"),
        ],
    }  # fmt: skip


def open_folder(out: Path, planets: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the state of a new or an interrupted quickstart.

    Raises:
        InputError: A number or setting is wrong, or the folder holds something else, or a quickstart that is finished
            or was made otherwise.
    """
    if planets < 1:
        raise InputError(f"--planets {planets}: must be at least 1")
    for part in ("graph_vae", "cnn", "unified"):  # now, and not after the minutes that the data take
        with_settings(preset("quickstart", part), settings)
    asked = {"planets": planets, "settings": list(settings)}
    fresh = {**asked, "finished": [], "seconds": 0.0, "peak_memory_gib": 0.0}
    if not out.exists() or not any(out.iterdir()):
        return fresh
    try:
        state = json.loads((out / STATE).read_text())
        finished = set(state["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--out {out}: not empty, and no quickstart of ours; choose another folder") from None
    for name, value in asked.items():
        if state.get(name) != value:
            raise InputError(
                f"--out {out}: a quickstart with {name} {state.get(name)}, not {value}; choose another folder"
            )
    if finished == set(stages(out, planets)):
        raise InputError(f"--out {out}: this quickstart is finished, see metrics.json in it; choose another folder")
    return state


def prepare(stage: str, arguments: list[str], out: Path) -> list[str]:
    """Return the arguments of a stage, changed so that an interrupted one goes on, or starts over if it is short."""
    if stage == "generated":
        shutil.rmtree(out / stage, ignore_errors=True)
    return [*arguments, "--resume"] if arguments[0] == "train" else arguments


def run(out: Path, planets: int, settings: Sequence[str] = ()) -> int:
    """Run the stages that are not finished; return the exit code of the first that fails, else 0."""
    state = open_folder(out, planets, settings)
    out.mkdir(parents=True, exist_ok=True)
    for stage, arguments in stages(out, planets, settings).items():
        if stage in state["finished"]:
            continue
        _save(out, state)
        arguments = prepare(stage, arguments, out)
        print(f"[quickstart] {stage}: ./launch.sh {' '.join(arguments)}", file=sys.stderr, flush=True)
        started = time.monotonic()
        with PeakMemory() as peak:
            status = run_stage(["bash", str(LAUNCH), *arguments])
        seconds = time.monotonic() - started
        state["seconds"] += seconds
        state["peak_memory_gib"] = max(state["peak_memory_gib"], peak.gib)
        print(f"[quickstart] {stage}: {seconds:.0f} s, {peak.gib:.1f} GiB", file=sys.stderr, flush=True)
        if status != 0:
            _save(out, state)
            print(f"[quickstart] {stage} did not finish; the same command goes on from here", file=sys.stderr)
            return status if status > 0 else 128 - status
        state["finished"].append(stage)
        _save(out, state)
    report(out, state)
    return 0


def run_stage(command: list[str]) -> int:
    """Run a command to its end and return its exit code; it hears of SIGINT and SIGTERM and may save what it has."""
    child = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the terminal told the child too
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def report(out: Path, state: dict[str, Any]) -> None:
    """Write OUT/metrics.json: the evaluation, with the seconds and memory of the whole quickstart; print the table."""
    from trainers.score_table import table

    metrics = json.loads((out / "unified" / "metrics.json").read_text())
    metrics |= {"seconds": round(state["seconds"], 1), "peak_memory_gib": round(state["peak_memory_gib"], 2)}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(table(metrics))
    print(
        f"\n{PLANET}: networks and report in {out / 'generated'}\n"
        f"All numbers: {out / 'metrics.json'}\n"
        f"Curves and pictures: tensorboard --logdir {out}"
    )


def _save(out: Path, state: dict[str, Any]) -> None:
    temporary = out / f".{STATE}.tmp"
    temporary.write_text(json.dumps(state, indent=2) + "\n")
    os.replace(temporary, out / STATE)


@one_line
def main(argv: list[str] | None = None) -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="./launch.sh quickstart", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    parser.add_argument("--planets", type=int, default=2400, help="default: %(default)s")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.field=value",
        help="for every training, such as train.steps=5",
    )
    arguments = parser.parse_args(argv)
    return run(arguments.out, arguments.planets, arguments.set)


if __name__ == "__main__":
    sys.exit(main())
