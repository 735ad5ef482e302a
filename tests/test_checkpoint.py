"""Checkpoints: published last, torn ones skipped, other models refused; the exported model in plain torch."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rank_job import CHEMISTRY, config, engine_of, train
from safetensors.torch import load_file, save_file

from data_pipeline.errors import InputError
from models.biochemistry import Chemistry
from models.configs import GraphVAEConfig
from models.objectives import build_objective
from trainers import checkpoint, run_folder, version
from trainers.engine import LocalEngine

CURSOR = {"pass": 0, "step": 1}


def saved(run: Path, steps: int = 3) -> LocalEngine:
    """Train `steps` steps, saving after each."""
    engine = engine_of("cnn", 1, "local", keep_checkpoints=2)
    for step in range(steps):
        train(engine, start=step, stop=step + 1)
        checkpoint.save(engine, run, CHEMISTRY, CURSOR)
    return engine


def test_only_the_newest_checkpoints_are_kept_and_the_last_is_published(tmp_path: Path) -> None:
    saved(tmp_path)
    assert run_folder.tags(tmp_path / "checkpoints") == ["step_00000003", "step_00000002"]
    assert json.loads((tmp_path / "checkpoints" / "latest.json").read_text()) == {"tag": "step_00000003", "step": 3}
    assert not list((tmp_path / "checkpoints").glob(".step*"))


@pytest.mark.parametrize("harm", ["truncate", "flip", "no manifest", "no state", "format", "manifest"])
def test_a_torn_checkpoint_is_named_and_the_one_before_it_is_used(harm: str, tmp_path: Path) -> None:
    saved(tmp_path)
    folder = tmp_path / "checkpoints" / "step_00000003"
    state, manifest = folder / "state.safetensors", folder / "manifest.json"
    content = bytearray(state.read_bytes())
    if harm == "truncate":
        state.write_bytes(content[:-1])
    elif harm == "flip":
        content[-1] ^= 1
        state.write_bytes(content)
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "no state":
        state.unlink()
    elif harm == "format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    else:
        manifest.write_text("[]")
    engine = engine_of("cnn", 1, "local")
    resumed = checkpoint.load_newest(engine, tmp_path, CHEMISTRY)
    assert resumed.step == engine.step == 2 and resumed.cursor == CURSOR
    assert len(resumed.skipped) == 1 and "step_00000003" in resumed.skipped[0]


def test_a_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    whole = engine_of("cnn", 1, "local")
    curve = train(whole)
    saved(tmp_path, steps=2)
    again = engine_of("cnn", 1, "local")
    checkpoint.load_newest(again, tmp_path, CHEMISTRY)
    assert train(again, start=2) == curve[2:]
    assert all(torch.equal(w, whole.weights()[n]) for n, w in again.weights().items())


def test_without_a_whole_checkpoint_resuming_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.load_newest(engine_of("cnn", 1, "local"), tmp_path, CHEMISTRY)


def test_a_checkpoint_of_another_model_names_the_fields_that_differ(tmp_path: Path) -> None:
    saved(tmp_path, steps=1)
    engine = engine_of("cnn", 1, "local")
    engine.config = replace(
        engine.config, model=replace(engine.config.model, graph=GraphVAEConfig(width=32, heads=2, encoder_layers=1))
    )
    with pytest.raises(InputError, match=r"model\.graph\.width: 16 != 32"):
        checkpoint.load_newest(engine, tmp_path, CHEMISTRY)
    with pytest.raises(InputError, match="vocabulary"):
        other = Chemistry.from_dict({"metabolites": ["x", "y", "z", "w"]})
        checkpoint.load_newest(engine_of("cnn", 1, "local"), tmp_path, other)


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = saved(tmp_path, steps=1)
    train(engine, start=1, stop=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match="no disk space"):
        checkpoint.save(engine, tmp_path, CHEMISTRY, CURSOR)
    with pytest.raises(InputError, match="no disk space"):
        checkpoint.export(engine, tmp_path, CHEMISTRY, {})
    newest, skipped = run_folder.newest(tmp_path)
    assert newest is not None and newest.name == "step_00000001" and not skipped
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()] == ["step_00000001"]


def test_a_failure_on_rank_0_is_an_error_everywhere() -> None:
    def fail() -> None:
        raise ValueError("boom")

    with pytest.raises(InputError, match="rank 0: ValueError: boom"):
        checkpoint.on_main(engine_of("cnn", 1, "local"), fail)


@pytest.mark.parametrize("part", ["cnn", "graph_vae"])
def test_the_exported_model_answers_as_the_trained_one(part: str, tmp_path: Path) -> None:
    engine = engine_of(part, 1, "local")
    train(engine, stop=2)
    checkpoint.export(engine, tmp_path, CHEMISTRY, {"ended": "finished"})
    objective, settings, chemistry = checkpoint.load_model(tmp_path)
    assert settings == engine.config and chemistry.metabolites == CHEMISTRY.metabolites
    again = LocalEngine(objective, settings)
    assert all(torch.equal(w, engine.weights()[n]) for n, w in again.weights().items())
    facts = checkpoint.training_facts(tmp_path)
    assert (facts["world_size"], facts["zero_stage"], facts["training"]["ended"]) == (1, 0, "finished")


def test_a_run_without_a_model_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="written when training ends"):
        checkpoint.load_model(tmp_path)
    engine = engine_of("cnn", 1, "local")
    checkpoint.export(engine, tmp_path, CHEMISTRY, {})
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = "climate.to_latent.bias"
    save_file({n: t for n, t in weights.items() if n != name}, path)
    with pytest.raises(InputError, match=name):
        checkpoint.load_model(tmp_path)
    save_file({**weights, name: torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"climate\.to_latent\.bias"):
        checkpoint.load_model(tmp_path)
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_model(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"no model/model\.safetensors"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        checkpoint.load_model(tmp_path)


def test_a_model_or_checkpoint_of_another_version_says_which_version_wrote_it(tmp_path: Path) -> None:
    engine = saved(tmp_path, steps=1)
    checkpoint.export(engine, tmp_path, CHEMISTRY, {})
    described = tmp_path / "model" / "model.json"
    table = json.loads(described.read_text())
    assert table["written_by"] == version.this_version()

    told = "written by Exobiome 0.0.9.*--init-from"
    older = {**table, "written_by": "Exobiome 0.0.9"}
    gone = {**table["config"], "loss_weights": {"graph/valence": 0.2}}
    described.write_text(json.dumps({**older, "config": gone}))
    with pytest.raises(InputError, match=rf"graph/valence.*no such term.*{told}"):
        checkpoint.load_model(tmp_path)
    described.write_text(json.dumps(older))
    path = tmp_path / "model" / "model.safetensors"
    save_file({**load_file(path), "climate.old_layer": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=rf"climate\.old_layer.*{told}"):
        checkpoint.load_model(tmp_path)
    for damaged in ("[]", "{}", '{"config": []}'):
        described.write_text(damaged)
        with pytest.raises(InputError, match=r"model\.json"):
            checkpoint.load_model(tmp_path)

    manifest = tmp_path / "checkpoints" / "step_00000001" / "manifest.json"
    table = json.loads(manifest.read_text())
    del table["written_by"], table["identity"]["model"]["graph"]["width"]  # a field that is newer than the checkpoint
    manifest.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"model\.graph\.width: None != \d+.*written by an older version of Exobiome"):
        checkpoint.load_newest(engine_of("cnn", 1, "local"), tmp_path, CHEMISTRY)


def test_a_run_starts_from_a_part_by_name_and_says_what_did_not_match(tmp_path: Path) -> None:
    part = engine_of("cnn", 1, "local")
    train(part, stop=1)
    checkpoint.export(part, tmp_path, CHEMISTRY, {})
    torch.manual_seed(7)
    settings = config("cnn", 1, "local")
    wider = replace(settings, model=replace(settings.model, spectrum=replace(settings.model.spectrum, latent_dim=9)))
    engine = LocalEngine(build_objective("cnn", wider.model, CHEMISTRY), wider)
    notes = checkpoint.initialise(engine, [tmp_path])
    assert torch.equal(engine.weights()["climate.to_latent.weight"], part.weights()["climate.to_latent.weight"])
    assert any("spectrum.to_latent.weight" in n and "has no place here" in n for n in notes)
    assert any("spectrum.to_latent.weight starts afresh" in n for n in notes)
    with pytest.raises(InputError, match="no name of its model matches"):
        checkpoint.initialise(engine_of("graph_vae", 1, "local"), [tmp_path])


def test_a_folder_with_something_else_in_it_is_not_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_folder.open_run(tmp_path / "new", resume=False)
    assert not run_folder.open_run(tmp_path, resume=True)  # an empty one is a new run
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="not empty; use --resume"):
        run_folder.open_run(tmp_path, resume=False)
    with pytest.raises(InputError, match="no run of ours"):
        run_folder.open_run(tmp_path, resume=True)
    with pytest.raises(InputError, match="a file; give a folder"):
        run_folder.open_run(tmp_path / "thesis.txt", resume=False)
    with pytest.raises(InputError, match="thesis.txt is a file; give a folder"):
        run_folder.open_run(tmp_path / "thesis.txt" / "run", resume=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="cannot be written to"):
        run_folder.open_run(tmp_path / "new" / "run", resume=False)
