"""Train on two ranks and write what a step carries, counted and foretold: `communication_job.py WAY FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rank_job import CHEMISTRY, STEPS, batches, config

from benchmarks.scaling_engines import build
from models.fused_decoder import FusedDecoder
from models.objectives import UnifiedObjective, build_objective
from trainers import communication as c, ds_config, frozen
from trainers.engine import DeepSpeedEngine
from trainers.ranks import finish, start


def zero3(folder: Path, frozen_weights: str) -> dict[str, object]:
    """Train under our engine with the DeepSpeed JSON that lies in the folder."""
    path = folder / "zero3.json"
    torch.manual_seed(0)
    settings = config("unified", dist.get_world_size(), ds_config=str(path))
    engine = DeepSpeedEngine(build_objective("unified", settings.model, CHEMISTRY), settings, frozen_weights)
    assert isinstance(engine.objective, UnifiedObjective)
    # These samples have no text, so no gradient ever reaches the adapters and the audit would go on for ever.
    engine._audit = None
    given = list(batches(engine.rank, engine.world))
    for batch in given[: STEPS - 1]:
        engine.train_step(batch)
    with c.counted() as ledger:
        report = engine.train_step(given[-1])
    decoder = engine.objective.language.causal
    units = getattr(decoder, "frozen_units", [])
    walked = c.walk(engine._root, engine.leaves, lambda: engine.train_step(given[0]), None, units)
    sizes = decoder.frozen.unit_bytes() if units else []
    sharing = c.Sharing.of(ds_config.read(path)["zero_optimization"], engine.world)
    gathers = [t.bytes for t in c.of_micro_batch(walked, sharing) if t.operation == "all_gather"]
    counted = [call.bytes for call in ledger.calls if call.source == "zero" and call.operation == "all_gather"]
    return {
        "fetched": ledger.bytes("frozen"),
        "fetched_model": sum(t.bytes for t in c.of_frozen(walked, sizes)),
        "counted": ledger.bytes("zero"),
        "model": c.of_step(walked, sharing),
        "own": ledger.bytes("torch"),
        "own_model": {
            "metrics": c.of_metrics(len(report.means)),
            "contrast": c.of_contrast(given[-1].present.shape[0] * engine.world, given[-1].present.shape[1], 8),
            "exemplars": c.of_exemplars(
                given[-1].present.shape[0] * engine.world, engine.objective.graph_vae.exemplars.edges.shape[1]
            ),
        },
        "in_order": counted[: len(gathers)] == gathers,
        "persistent": sum(p.numbers <= sharing.persistence_threshold for p in walked.pieces),
    }


def zero2() -> dict[str, object]:
    """Train with a whole base on every rank."""
    world = dist.get_world_size()
    settings = config("unified", world)
    objective = engine_objective()
    training = build("ours-zero2", settings, CHEMISTRY, objective, torch.device("cpu"))
    given = list(batches(dist.get_rank(), world))
    for batch in given[: STEPS - 1]:
        training.step(batch)
    with c.counted() as ledger:
        training.step(given[-1])
    assert training.expected is not None
    return {"counted": ledger.bytes(), "model": training.expected(None, given[-1]), "calls": ledger.numbers("zero")}


def engine_objective() -> FusedDecoder:
    """Return a tiny decoder with random weights."""
    from benchmarks.llm import fused_decoder
    from benchmarks.unified import SIZES

    return fused_decoder(SIZES["tiny"])


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    start(60.0)
    frozen.WHOLE_ON_CPU = 500_000  # so that the layers of the language model are shared out
    result = zero2() if way == "zero2" else zero3(folder, way)
    if dist.get_rank() == 0:
        temporary = folder / "result.part"
        temporary.write_text(json.dumps(result))
        os.replace(temporary, folder / "result.json")
    finish(0)


if __name__ == "__main__":
    main()
