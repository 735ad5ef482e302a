"""The trainers: what each says of held-out samples, and what it draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rank_job import CHEMISTRY, batches, engine_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline import climate, planets
from data_pipeline.errors import InputError
from data_pipeline.variables import climate_field
from models.cnn import restore_climate
from trainers import figures
from trainers.cnn import CNNTrainer
from trainers.engine import StepReport
from trainers.graph_vae import GraphVAETrainer
from trainers.llm import LLMTrainer
from trainers.monitor import Monitor, Silence, memory_gib
from trainers.unified import UnifiedTrainer


def test_a_perfect_reconstruction_has_no_error_and_a_wrong_one_is_in_kelvin() -> None:
    batch = next(batches(0, 1))
    target = torch.zeros(4, 53, 8, 16)
    surface = climate_field("surface_temperature_k")
    one_sigma = target.clone()
    one_sigma[:, surface] = 1.0
    outputs = {
        "climate_target": target,
        "climate_reconstruction": one_sigma,
        "spectrum_reconstruction_ppm": batch.spectrum.clean_ppm + 2 * batch.spectrum.error_ppm,
    }
    judged = CNNTrainer(engine_of("cnn", 1, "local")).judge(batch, outputs)
    kelvin = (restore_climate(one_sigma) - restore_climate(target))[0, surface, 0, 0].item()
    assert judged["surface_error_k"] == pytest.approx(np.full(4, kelvin), rel=1e-5)
    assert judged["spectrum_error_sigma"] == pytest.approx(np.full(4, 2.0), rel=1e-3)


def test_absent_climates_are_left_out_of_the_scores() -> None:
    trainer = CNNTrainer(engine_of("cnn", 1, "local"))
    batch = next(batches(0, 1, without=("climate",)))
    judged = trainer.judge(batch, trainer.engine.evaluate(batch).outputs)
    assert np.isnan(judged["surface_error_k"]).tolist() == [True, True, False, False]
    scores = trainer.scores({}, judged)
    assert scores["climate/surface_error_k"] == pytest.approx(judged["surface_error_k"][2:].mean())
    nothing = {name: np.full(4, np.nan) for name in judged}
    assert trainer.scores({}, nothing) == {}


def test_the_graph_trainer_draws_a_real_beside_a_generated_network() -> None:
    trainer = GraphVAETrainer(engine_of("graph_vae", 1, "local"), CHEMISTRY)
    batch = next(batches(0, 1))
    evaluated = trainer.engine.evaluate(batch)
    before = torch.get_rng_state()
    figure = trainer.figures(batch, evaluated.outputs)["network"]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "real: 3 metabolites, 2 edges" and titles[1].startswith("generated for its environment")
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.figures(batch.hide("graph"), evaluated.outputs) == {}
    assert trainer.judge(batch, evaluated.outputs) == {}


def test_perplexity_is_e_to_the_cross_entropy() -> None:
    trainer = LLMTrainer(engine_of("cnn", 1, "local"))
    assert trainer.scores({"text/ce": 0.0}, {})["text/perplexity"] == 1.0
    assert trainer.figures(next(batches(0, 1)), {}) == {} and trainer.judge(next(batches(0, 1)), {}) == {}


def unified(*engines: object) -> UnifiedTrainer:
    own, graph, cnn, language = engines
    return UnifiedTrainer(own, (GraphVAETrainer(graph, CHEMISTRY), CNNTrainer(cnn), LLMTrainer(language)))  # type: ignore[arg-type]


def test_the_unified_trainer_refuses_a_part_with_an_engine_of_its_own() -> None:
    engine, other = engine_of("cnn", 1, "local"), engine_of("cnn", 1, "local")
    unified(engine, engine, engine, engine)
    with pytest.raises(InputError, match="CNNTrainer has another engine"):
        unified(engine, engine, other, engine)


def test_the_unified_trainer_scores_habitability_beside_the_parts() -> None:
    engine = engine_of("cnn", 1, "local")
    trainer = unified(engine, engine, engine, engine)
    batch = next(batches(0, 1))  # three of four have a network and are habitable
    outputs = dict(engine.evaluate(batch).outputs) | {"habitability_logit": torch.tensor([0.9, 0.8, 0.7, 0.1]).logit()}
    scores = trainer.scores({"graph/kl": 0.0, "graph/edges": 0.0, "text/ce": 0.0}, trainer.judge(batch, outputs))
    assert scores["habitability/auroc"] == 1.0
    assert scores["habitability/brier"] == pytest.approx((0.01 + 0.04 + 0.09 + 0.01) / 4)
    assert {"climate/surface_error_k", "text/perplexity"} <= set(scores)


def test_maps_put_the_substellar_point_where_the_axis_says() -> None:
    cube = climate.simulate([next(p for p in planets.known_planets() if not planets.out_of_range(p))], 0)[0]
    sunlight = cube[climate_field("absorbed_shortwave_w_m2")]
    image = figures.climate_maps({"sunlight": sunlight}, "W/m2").axes[0].get_images()[0]
    west, east, *_ = image.get_extent()
    share = (np.asarray(image.get_array()).mean(0).argmax() + 0.5) / sunlight.shape[1]
    assert abs(west + share * (east - west)) < 15  # degrees from the substellar point


def test_tensorboard_holds_every_term_with_rate_and_memory(tmp_path: Path) -> None:
    settings = engine_of("cnn", 1, "local").config
    monitor = Monitor(tmp_path, settings, 0)
    report = StepReport(1, 2.5, {"climate/recon": 0.5}, {"climate": 1e-3}, 8, lambda: {"grad_norm": 0.7, "tokens": 40})
    monitor.step(report, seconds=2.0)
    monitor.evaluation(1, {"climate/recon": 0.25, "graph/kl": float("nan")}, {"habitability/auroc": 0.75})
    monitor.figures(1, {"climate": figures.climate_maps({"a": np.eye(4)}, "K")})
    monitor.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = {tag: board.Scalars(tag)[0].value for tag in board.Tags()["scalars"]}
    assert (
        found["train/loss"] == 2.5 and found["train/climate/recon"] == 0.5 and found["held_out/climate/recon"] == 0.25
    )
    assert found["rate/samples_per_s"] == 4.0 and found["rate/tokens_per_s"] == 20.0
    assert found["lr/climate"] == pytest.approx(1e-3) and found["held_out/habitability/auroc"] == 0.75
    assert found["memory/rank_gib"] == pytest.approx(memory_gib()["memory/rank_gib"], rel=0.2)
    assert board.Tags()["images"] == ["held_out/climate"]


def test_ranks_that_do_not_write_take_the_same_calls() -> None:
    silence = Silence()
    silence.step(StepReport(1, 0.0, {}, {}, 0, lambda: {"grad_norm": 0.0, "tokens": 0}), 1.0)
    silence.evaluation(1, {}, {})
    silence.figures(1, {})
    silence.close()
