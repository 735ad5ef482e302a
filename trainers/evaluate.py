"""Score a trained run on planets that it never saw, beside its baselines. `./launch.sh evaluate RUN --json`."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline import shards
from data_pipeline.errors import InputError, one_line
from data_pipeline.stream import open_stream
from models.language import load_tokenizer
from models.objectives import UnifiedObjective, build_objective
from trainers import calibration, checkpoint, generation, habitability
from trainers.networks import find_graph_vae
from trainers.peak_memory import PeakMemory
from trainers.records import Record, read_records
from trainers.score_table import table

OTHER = {"test": "held_out", "held_out": "test"}  # probabilities are calibrated on the one that is not reported
PARTS = ("unified", "graph_vae")
SAMPLES_AT_ONCE = 32
CALIBRATION_BATCHES = 12  # at most 384 planets fix two numbers; reading their text is what evaluation costs


def evaluate(run: Path, split: str, data_dir: str) -> dict[str, Any]:
    """Return every score of a unified run; of a graph_vae run the generation and the baselines alone.

    Raises:
        InputError: The run or its data are missing, damaged or of another kind.
    """
    objective, config, chemistry = checkpoint.load_model(run)
    part = config.train.part
    if part not in PARTS:
        raise InputError(f"run={run}: a {part} run answers no question by itself; give a {' or '.join(PARTS)} run")
    data_dir = data_dir or config.data.dir
    manifest = shards.verify(data_dir, checksums=True)
    if manifest.vocabulary != chemistry.metabolites:
        raise InputError(f"data={data_dir}: not the metabolites of {run}; give the data that it was trained on")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    objective.to(device).eval()

    train, judged = read_records(data_dir, "train"), read_records(data_dir, split)
    kept = read_records(data_dir, OTHER[split])[: CALIBRATION_BATCHES * SAMPLES_AT_ONCE]
    truth = habitability.Truth(*(np.array([r.habitable for r in records]) for records in (kept, judged)))
    answers = habitability.baseline_answers(train, kept, judged)
    if isinstance(objective, UnifiedObjective):
        tokenizer = load_tokenizer(config.model.language)
        of_calibration, of_judged = (
            habitability.model_answers(
                objective,
                itertools.islice(
                    open_stream(
                        data_dir, s, SAMPLES_AT_ONCE, tokenizer=tokenizer, max_tokens=config.data.max_tokens,
                        text_mode="observable", repeat=False,
                    ),
                    batches,
                ),
            )
            for s, batches in ((OTHER[split], CALIBRATION_BATCHES), (split, None))
        )  # fmt: skip
        answers |= {name: habitability.Answers(of_calibration[name], of_judged[name]) for name in habitability.VIEWS}
    calibrated = habitability.calibrations(truth, answers)
    if (
        isinstance(objective, UnifiedObjective) and split == "test"
    ):  # what generate uses must not come from test planets
        own = {name: calibrated[name] for name in habitability.VIEWS}
        calibration.save(run, own, OTHER[split], len(kept))

    torch.manual_seed(config.train.seed)
    untrained = build_objective("graph_vae", config.model, chemistry).to(device).eval()
    rates = generation.rates(find_graph_vae(objective), find_graph_vae(untrained), chemistry.metabolites, train, judged)
    return {
        "split": split,
        "calibrated_on": OTHER[split],
        "judged": _judged(judged),
        "habitability": habitability.scores(truth, answers, calibrated),
        "generation": rates,
        "data": {"dir": str(data_dir), **manifest.facts},
        **checkpoint.training_facts(run),
    }


def _judged(records: list[Record]) -> dict[str, float]:
    living = sum(bool(r.edges) for r in records)
    return {
        "planets": len(records),
        "habitable_share": float(np.mean([r.habitable for r in records])),
        "networks": min(living, generation.NETWORKS),
    }


def find_run(path: Path) -> Path:
    """Return the folder of a run; of a quickstart, its unified run."""
    return path / "unified" if (path / "quickstart.json").is_file() else path


def plain(value: Any) -> Any:
    """Return the value with numbers that are not finite as null, which JSON can hold, and others rounded."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


@one_line
def main(argv: list[str] | None = None) -> int:
    """Evaluate from the command line; bad input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="./launch.sh evaluate", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of a quickstart")
    parser.add_argument("--split", choices=sorted(OTHER), default="test", help="default: %(default)s")
    parser.add_argument(
        "--data", default="", metavar="DATA", help="folder, URL or hub name; default: what the run was trained on"
    )
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of the table")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    run = find_run(arguments.run)
    with PeakMemory() as peak:
        metrics = evaluate(run, arguments.split, arguments.data)
    metrics = plain(metrics | {"seconds": time.monotonic() - started, "peak_memory_gib": peak.gib})
    text = json.dumps(metrics, indent=2)
    (run / "metrics.json").write_text(text + "\n")
    print(text if arguments.json else table(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
