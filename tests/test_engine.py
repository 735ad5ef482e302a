"""Steps of the plain engine, learning rates, and what stops a run. Ranks are in test_ranks.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rank_job import CHEMISTRY, batches, config, engine_of, train
from torch import nn

from data_pipeline.errors import InputError
from models.objectives import build_objective
from trainers import optim
from trainers.config import OptimConfig
from trainers.engine import (
    Coming,
    LocalEngine,
    NonFiniteLossError,
    TrainState,
    finite_means,
    refuse_norm,
)


def test_the_learning_rate_warms_up_peaks_and_ends_at_its_share() -> None:
    settings = OptimConfig(lr_warmup_steps=4, final_lr_share=0.1)
    share = [optim.lr_share(step, 14, settings) for step in range(15)]
    assert share[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert share[9] == pytest.approx(0.55)  # half way down
    assert share[14] == pytest.approx(0.1)


def test_every_part_has_its_own_learning_rate_and_vectors_do_not_decay() -> None:
    settings = OptimConfig(lr=1e-3, climate_lr_factor=0.5, weight_decay=0.1)
    groups = optim.parameter_groups(build_objective("cnn", config("cnn", 1).model, CHEMISTRY), settings)
    assert {part: g["lr"] for g in groups for part in g["parts"]} == {"climate": 5e-4, "spectrum": 1e-3}
    for group in groups:
        dims = {p.dim() > 1 for p in group["params"]}
        assert dims == {group["weight_decay"] > 0}


def test_parts_of_one_learning_rate_share_their_groups() -> None:
    settings = OptimConfig(lr=1e-3, lr_warmup_steps=2, weight_decay=0.1)
    objective = build_objective("cnn", config("cnn", 1).model, CHEMISTRY)
    groups = optim.parameter_groups(objective, settings)
    assert [(g["parts"], g["weight_decay"]) for g in groups] == [(("climate", "spectrum"), d) for d in (0.1, 0.0)]
    assert sum(len(g["params"]) for g in groups) == len(list(objective.parameters()))
    assert optim.set_lr(optim.adamw(groups, settings, False), 0, 10, settings) == {"climate": 5e-4, "spectrum": 5e-4}


def test_training_on_the_same_batch_lowers_its_loss() -> None:
    engine = engine_of("cnn", 1, "local")
    engine.config = replace(engine.config, optim=OptimConfig(lr=3e-3, lr_warmup_steps=0))
    batch = next(batches(0, 1))
    losses = [engine.train_step(batch).loss for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def _first_step_again(module: nn.Module, inputs: object) -> None:
    module.counter.step.zero_()


def test_two_micro_batches_of_the_same_samples_equal_one() -> None:
    one, two = engine_of("cnn", 1, "local"), engine_of("cnn", 1, "local")
    batch = next(batches(0, 1))
    # The spectrum noise differs between forwards, so compare in a step that sees one noise: the counter is put back.
    first = one.train_step(batch)
    hook = two.objective.register_forward_pre_hook(_first_step_again)
    second = two.train_step(batch, batch)
    hook.remove()
    assert second.samples == 2 * first.samples == 8
    assert second.means == pytest.approx(first.means)
    for name, value in one.weights().items():
        if name != "counter.step":
            torch.testing.assert_close(two.weights()[name], value)


def test_evaluation_changes_nothing_and_gives_the_same_terms_as_training() -> None:
    engine = engine_of("cnn", 1, "local")
    before = engine.weights()
    batch = next(batches(0, 1))
    evaluated = engine.evaluate(batch)
    assert all(torch.equal(before[n], w) for n, w in engine.weights().items())
    assert set(evaluated.terms) == set(engine.train_step(batch).means)
    assert not any(t.requires_grad for t in evaluated.outputs.values())


def test_a_state_brings_another_engine_to_the_same_place() -> None:
    one, other = engine_of("graph_vae", 1, "local"), engine_of("graph_vae", 1, "local")
    train(one, stop=2)
    other.load_state(one.state())
    assert train(one, start=2) == train(other, start=2)


def test_a_state_before_the_first_step_has_no_moments() -> None:
    state = engine_of("cnn", 1, "local").state()
    assert isinstance(state, TrainState) and state.step == 0 and state.exp_avg == {}


def test_a_parameter_without_a_gradient_decays_as_it_does_in_zero3() -> None:
    engine = engine_of("cnn", 1, "local")
    unused = nn.Parameter(torch.ones(2, 2))
    engine.optimizer.add_param_group({"params": [unused], "lr": 0.1, "weight_decay": 0.5, "parts": ("fusion",)})
    engine._trained["unused"] = unused
    engine.train_step(next(batches(0, 1)))
    assert unused[0, 0].item() < 1.0


def test_a_loss_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteLossError, match="step 5: graph/kl=nan: not finite"):
        finite_means(Coming({"graph/kl": torch.tensor(torch.nan), "loss": torch.tensor(torch.nan)}), 4)
    with pytest.raises(NonFiniteLossError, match="loss=inf"):
        finite_means(Coming({"graph/kl": torch.tensor(1.0), "loss": torch.tensor(torch.inf)}), 4)
    with pytest.raises(NonFiniteLossError, match="grad_norm=inf"):
        refuse_norm(float("inf"), 4)


def test_the_plain_engine_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="start one process, or use deepspeed"):
        engine_of("cnn", 1, "local")


def test_buffers_and_weights_are_loaded_by_name() -> None:
    one, other = engine_of("cnn", 1, "local"), engine_of("cnn", 1, "local")
    train(one, stop=1)
    other.load_weights(one.weights("climate."))
    same = {n.split(".")[0] for n, w in other.weights().items() if torch.equal(w, one.weights()[n])}
    assert "climate" in same and "counter" not in same
    assert isinstance(other, LocalEngine)
