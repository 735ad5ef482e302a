"""Save a run so that it can go on with any number of ranks, and export its model for plain torch.

A checkpoint is one safetensors file of float32 masters, Adam moments and buffers by parameter name: nothing in it says
how ZeRO-3 divided them. It is written under a temporary name and published last, so that a run which is killed
while saving leaves the checkpoint before it whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline.errors import InputError
from models.biochemistry import Chemistry
from models.objectives import build_objective
from trainers import config as run_config, version
from trainers.config import RunConfig, differences
from trainers.engine import Engine, TrainState, persistent_buffers
from trainers.run_folder import FORMAT, LATEST, MANIFEST, newest, sha256_of, tags

STATE = "state.safetensors"
_PARTS = ("parameters", "exp_avg", "exp_avg_sq", "buffers")


class Resumed(NamedTuple):
    """Where a run goes on."""

    step: int
    cursor: dict[str, Any]  # of the stream
    skipped: list[str]  # newer checkpoints that are torn, and why


def save(engine: Engine, run: Path, chemistry: Chemistry, cursor: Mapping[str, Any]) -> None:
    """Write a checkpoint and publish it; all ranks call it together and none returns before it is published.

    Raises:
        InputError: The disk is full. The checkpoints before it stay as they are.
    """
    state = engine.state()
    on_main(engine, lambda: _write(state, engine, run / "checkpoints", chemistry, cursor))


def _write(state: TrainState, engine: Engine, folder: Path, chemistry: Chemistry, cursor: Mapping[str, Any]) -> None:
    tag = f"step_{state.step:08d}"
    temporary = folder / f".{tag}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_tensors(temporary / STATE, {f"{p}/{n}": t for p in _PARTS for n, t in getattr(state, p).items()})
        manifest = {
            "format": FORMAT,
            version.KEY: version.this_version(),
            "step": state.step,
            "world_size": engine.world,
            "cursor": dict(cursor),
            "identity": identity(engine.config, chemistry),
            "config": run_config.to_dict(engine.config),
            "files": {STATE: {"bytes": (temporary / STATE).stat().st_size, "sha256": sha256_of(temporary / STATE)}},
        }
        _write_text(temporary / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder / tag, ignore_errors=True)
    temporary.rename(folder / tag)
    _write_text(folder / LATEST, json.dumps({"tag": tag, "step": state.step}) + "\n")
    for old in tags(folder)[engine.config.train.keep_checkpoints :]:
        shutil.rmtree(folder / old, ignore_errors=True)


def on_main(engine: Engine, job: Any) -> None:
    """Run a job on rank 0 while the others wait; an error of its disk becomes one InputError on all ranks."""
    problem = None
    if engine.is_main:
        try:
            job()
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            problem = f"--out: {error.strerror or error}{where}; make room or choose another folder, then --resume"
        except Exception as error:
            problem = f"rank 0: {type(error).__name__}: {error}"
    if problem := engine.gather(problem)[0]:
        raise InputError(problem)


def identity(config: RunConfig, chemistry: Chemistry) -> dict[str, Any]:
    """Return what a checkpoint and a run must have in common."""
    vocabulary = hashlib.sha256("\n".join(chemistry.metabolites).encode()).hexdigest()[:16]
    table = run_config.to_dict(config)
    return {"part": config.train.part, "model": table["model"], "vocabulary": vocabulary}


def load_newest(engine: Engine, run: Path, chemistry: Chemistry) -> Resumed:
    """Bring the engine to the newest whole checkpoint of a run, whatever number of ranks wrote it.

    Raises:
        InputError: There is none, or it is of another model; the fields that differ are named.
    """
    folder, skipped = newest(run)
    if folder is None:
        raise InputError(f"--resume: no whole checkpoint in {run}/checkpoints {skipped or ''}; start without --resume")
    manifest = json.loads((folder / MANIFEST).read_text())
    if different := differences(manifest["identity"], identity(engine.config, chemistry)):
        raise InputError(
            f"{folder}: of another model ({'; '.join(different)}){version.by_another(manifest)}; leave these as they "
            "were or start anew"
        )
    tensors = load_file(folder / STATE)
    parts: dict[str, dict[str, Tensor]] = {p: {} for p in _PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    engine.load_state(TrainState(step=manifest["step"], **parts))
    return Resumed(manifest["step"], manifest["cursor"], skipped)


def export(engine: Engine, run: Path, chemistry: Chemistry, facts: Mapping[str, Any]) -> None:
    """Write RUN/model: what was trained, chemistry and facts. The frozen language model is named, not stored.

    Raises:
        InputError: The disk is full, or what was read back is not what was written.
    """
    weights = engine.weights()

    def job() -> None:
        folder = run / "model"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".model.safetensors"
        _write_tensors(temporary, weights)
        again = load_file(temporary)
        # A gather that was forgotten under ZeRO-3 writes empty tensors without an error.
        wrong = [
            n for n, t in weights.items() if n not in again or again[n].shape != t.shape or not torch.equal(again[n], t)
        ]
        empty = [n for n, t in again.items() if t.numel() == 0]
        if wrong or empty:
            raise OSError(f"{temporary}: read back otherwise than written: {(wrong + empty)[:5]}")
        description = {
            "format": FORMAT,
            version.KEY: version.this_version(),
            "step": engine.step,
            "world_size": engine.world,
            "zero_stage": engine.zero_stage,
            "base": engine.config.model.language.checkpoint if engine.config.train.part in ("llm", "unified") else None,
            "config": run_config.to_dict(engine.config),
            **facts,
        }
        _write_text(folder / "chemistry.json", json.dumps(chemistry.to_dict()) + "\n")
        _write_text(folder / "model.json", json.dumps(description, indent=2) + "\n")
        os.replace(temporary, folder / "model.safetensors")

    on_main(engine, job)


def load_model(run: Path) -> tuple[nn.Module, RunConfig, Chemistry]:
    """Return the trained objective of a run in plain torch, with its configuration and chemistry.

    Raises:
        InputError: The run has no exported model, or its file does not fit the objective that model.json describes.
    """
    description, chemistry = _read_json(run, "model.json"), Chemistry.from_dict(_read_json(run, "chemistry.json"))
    config = run_config.of_run(run / "model" / "model.json", description.get("config"), description)
    objective = build_objective(config.train.part, config.model, chemistry)
    weights = _read_weights(run)
    wanted = exported_names(objective)
    if set(weights) != wanted:
        names = sorted(set(weights) ^ wanted)
        problem = f"{run}/model: {len(names)} names do not fit the objective, such as {names[:3]}; train it again"
        raise version.refusal(run, description, problem, config.train.part)
    try:
        objective.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        problem = f"{run}/model: {str(error).splitlines()[-1].strip()}; train it again"
        raise version.refusal(run, description, problem, config.train.part) from None
    return objective, config, chemistry


def training_facts(run: Path) -> dict[str, Any]:
    """Return world_size, zero_stage and, under `training`, what else model.json says of how the run was made."""
    description = _read_json(run, "model.json")
    own = ("world_size", "zero_stage")
    rest = {k: v for k, v in description.items() if k not in (*own, "config", "format")}
    return {**{k: description[k] for k in own}, "training": rest}


def exported_names(objective: nn.Module) -> set[str]:
    """Return the names of what an export holds: trainable parameters and persistent buffers."""
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    return trained | set(persistent_buffers(objective))


def initialise(engine: Engine, runs: list[Path]) -> list[str]:
    """Start from the exported models of other runs, matched by name; return what did not match, one line each.

    Raises:
        InputError: A folder holds no exported model, or no name of it matches.
    """
    wanted = {n: tuple(t.shape) for n, t in _shapes(engine).items()}
    notes = []
    for run in runs:
        weights = {n: t for n, t in _read_weights(run).items() if not n.startswith("counter.")}
        fitting = {n: t for n, t in weights.items() if wanted.get(n) == tuple(t.shape)}
        if not fitting:
            raise InputError(f"--init-from {run}: no name of its model matches this one; give a run of a part of it")
        notes += [
            f"--init-from {run}: {n} {tuple(t.shape)} has no place here" for n, t in weights.items() if n not in fitting
        ]
        parts = {n.split(".")[0] for n in fitting}
        notes += [
            f"--init-from {run}: {n} starts afresh" for n in wanted if n.split(".")[0] in parts and n not in fitting
        ]
        engine.load_weights(fitting)
    return notes


def _shapes(engine: Engine) -> dict[str, Any]:
    """Return something with the full shape of each exported name; ZeRO-3 parameters are empty outside a forward."""

    class Shape(NamedTuple):
        shape: tuple[int, ...]

    return {name: Shape(shape) for name, shape in engine.shapes().items()}


def _read_json(run: Path, name: str) -> dict[str, Any]:
    path = run / "model" / name
    try:
        table: dict[str, Any] = json.loads(path.read_text())
    except OSError:
        raise InputError(
            f"{run}: no model/{name}; it is written when training ends (./launch.sh train ... --resume)"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); train again with --resume to write it anew") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: not a table; train again with --resume to write it anew")
    return table


def _read_weights(run: Path) -> dict[str, Tensor]:
    path = run / "model" / "model.safetensors"
    if not path.is_file():
        raise InputError(
            f"{run}: no model/model.safetensors; it is written when training ends (./launch.sh train ... --resume)"
        )
    try:
        weights: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors has an error type of its own for a damaged file
        raise InputError(f"{path}: damaged ({error}); train again with --resume to write it anew") from None
    return weights


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    needed = sum(t.numel() * t.element_size() for t in tensors.values()) + 2**20
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(28, f"no disk space: {needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} free", str(path))
    try:
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
        path.chmod(0o644)  # as any other file; safetensors hides it from the group
    except OSError:
        raise
    except Exception as error:  # safetensors reports a full disk with an error type of its own
        raise OSError(28, f"cannot be written ({error})", str(path)) from error
    _sync(path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
