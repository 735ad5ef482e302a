"""Jobs that a test starts on one or more ranks: `python rank_job.py NAME FOLDER`; the results lie in FOLDER."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_fixture import chain, sample

from data_pipeline.batch import MODALITIES, Batch, Sample
from data_pipeline.collate import collate
from data_pipeline.variables import ENVIRONMENT, LEVELS, PLANET, climate_field
from models.biochemistry import Chemistry
from models.cnn import restore_climate
from models.configs import ClimateConfig, FusionConfig, GraphVAEConfig, ModelConfig, SpectrumConfig
from models.objectives import build_objective
from trainers import checkpoint
from trainers.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from trainers.engine import Engine, build_engine
from trainers.ranks import finish

GLOBAL_BATCH = 4
STEPS = 4
CHEMISTRY = Chemistry.from_dict({"metabolites": ["a", "b", "c", "d"]})


def config(part: str, world: int, engine: str = "deepspeed", **train: object) -> RunConfig:
    """Return a small configuration whose global batch is the same for every number of ranks."""
    return RunConfig(
        model=ModelConfig(
            graph=GraphVAEConfig(width=16, heads=2, encoder_layers=1, decoder_layers=1, decoder_width=16, exemplars=6),
            climate=ClimateConfig(width=8, latent_dim=8),
            spectrum=SpectrumConfig(width=8, latent_dim=8),
            fusion=FusionConfig(width=16, heads=2, layers=1, contrast_dim=8),
        ),
        data=DataConfig(samples_per_rank=GLOBAL_BATCH // world),
        optim=OptimConfig(lr=1e-3, lr_warmup_steps=2, clip_norm=0.5),
        train=TrainConfig(part=part, engine=engine, steps=STEPS, process_group_timeout_s=60.0, **train),
    )


def plausible(made: Sample) -> Sample:
    """Return the sample with numbers in their usual range: float32 sums of wild ones differ."""
    pitch = 0.01 + 1e-4 * float(made.planet[0])
    wave = np.sin(pitch * np.arange(made.climate.size, dtype=np.float32))
    climate = restore_climate(torch.from_numpy(wave.reshape(1, *made.climate.shape)))[0].numpy()
    start = climate_field("specific_humidity")
    climate[start : start + LEVELS] = 10.0 ** climate[start : start + LEVELS].clip(-9, -1)
    clean = 1000 + 50 * wave[: made.spectrum_ppm.size].reshape(made.spectrum_ppm.shape)
    return replace(
        made,
        climate=climate,
        spectrum_clean_ppm=clean,
        spectrum_ppm=clean + 10 * wave[-clean.size :].reshape(clean.shape),
        spectrum_error_ppm=np.full_like(clean, 20.0),
        planet=np.array([(v.low + v.high) / 2 for v in PLANET], np.float32),
        environment=np.array([(v.low + v.high) / 2 for v in ENVIRONMENT], np.float32),
    )


def batches(rank: int, world: int, start: int = 0, without: tuple[str, ...] = ()) -> Iterator[Batch]:
    """Yield this rank's part of every step's four hand-made samples; `without` is hidden on rank 0's part."""
    graphs = (chain("a", "b", "c"), chain("b", "d"), chain("d", "c", "b", "a"), None)
    per_rank = GLOBAL_BATCH // world
    for step in range(start, STEPS):
        samples = [plausible(sample(10 * step + i + 1, graphs[i])) for i in range(GLOBAL_BATCH)]
        samples = [
            replace(s, present=s.present & [m not in without for m in MODALITIES]) if i < GLOBAL_BATCH // 2 else s
            for i, s in enumerate(samples)
        ]
        yield collate(samples[rank * per_rank : (rank + 1) * per_rank], max_nodes=8)


def engine_of(part: str, world: int, engine: str = "deepspeed", **train: object) -> Engine:
    torch.manual_seed(0)
    settings = config(part, world, engine, **train)
    return build_engine(build_objective(part, settings.model, CHEMISTRY), settings)


def train(engine: Engine, start: int = 0, stop: int = STEPS, without: tuple[str, ...] = ()) -> list[dict[str, float]]:
    """Train from one step to another; return the loss, the gradient norm and every term of each step."""
    curve = []
    for step, batch in enumerate(batches(engine.rank, engine.world, start, without), start):
        if step == stop:
            break
        report = engine.train_step(batch)
        curve.append({"loss": report.loss, "grad_norm": report.grad_norm, **report.means})
    return curve


def write(engine: Engine, folder: Path, curve: list[dict[str, float]]) -> None:
    weights = engine.weights()
    if engine.is_main:
        save_file(weights, folder / "weights.safetensors")
        (folder / "curve.json").write_text(json.dumps(curve))


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    world = int(os.environ["WORLD_SIZE"])
    part, _, what = name.partition(":")
    engine = engine_of(part, world)
    if what == "":
        curve = train(engine)
    elif what == "missing":
        curve = train(engine, without=("climate", "graph", "spectrum"))
    elif what == "save":
        curve = train(engine, stop=2)
        checkpoint.save(engine, folder, CHEMISTRY, {"step": 2})
    elif what == "resume":
        checkpoint.load_newest(engine, folder, CHEMISTRY)
        curve = train(engine, start=2)
    else:
        raise SystemExit(f"no job {name}")
    evaluated = engine.evaluate(next(batches(engine.rank, engine.world)))
    curve.append({n: float(t.total / t.items.clamp(min=1)) for n, t in evaluated.terms.items()})
    write(engine, folder, curve)
    finish(0)


if __name__ == "__main__":
    main()
