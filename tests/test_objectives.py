"""Objectives: every term is there, what is hidden stays hidden, halves of a batch add up to the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_fixture import chain, sample
from torch import Tensor, nn

from data_pipeline.batch import ENVIRONMENT_VECTOR, GRAPH, MODALITIES, TEXT, Batch, Sample, TextSample
from data_pipeline.collate import collate
from data_pipeline.errors import InputError
from data_pipeline.variables import ENVIRONMENT, PLANET
from models.biochemistry import Chemistry
from models.configs import (
    ClimateConfig,
    FusionConfig,
    GraphVAEConfig,
    LanguageConfig,
    LoRAConfig,
    ModelConfig,
    SpectrumConfig,
)
from models.objectives import ObjectiveOutput, StepCounter, build_objective, thin_text
from trainers.config import LOSS_WEIGHTS

CHEMISTRY = Chemistry.from_dict({"metabolites": list("abcdefgh")})
MODEL = ModelConfig(
    graph=GraphVAEConfig(width=16, heads=2, encoder_layers=1, decoder_layers=1, decoder_width=16, exemplars=8),
    climate=ClimateConfig(width=8, latent_dim=8),
    spectrum=SpectrumConfig(width=8, latent_dim=8),
    language=LanguageConfig(lora=LoRAConfig(rank=1), latent_dim=8),
    fusion=FusionConfig(width=16, heads=2, contrast_dim=8),
)
CPU_SUM = dict(rtol=1e-3, atol=1e-3)


def planet(number: int, metabolites: str = "", words: int = 0) -> Sample:
    """A planet whose numbers lie at a share `number / 10` of each range; with a chain as network and text if wanted."""
    given = sample(number, chain(*metabolites) if metabolites else None)
    share = number / 10
    return replace(
        given,
        planet=np.array([v.low + share * (v.high - v.low) for v in PLANET], np.float32),
        environment=np.array([v.low + share * (v.high - v.low) for v in ENVIRONMENT], np.float32),
        climate=given.climate * 0 + 100 * share,
        spectrum_ppm=100 * given.spectrum_ppm + np.arange(given.spectrum_ppm.shape[1], dtype=np.float32),
        text=TextSample(
            token_ids=np.arange(words) + 100 * number, description_length=words // 2, answer_start=words - 3
        )
        if words
        else None,
    )


def batch() -> Batch:
    """Four planets: everything; no text; no network; text and numbers hidden."""
    samples = [planet(1, "abc", 12), planet(2, "bcde"), planet(3, "", 9), planet(4, "abcd", 8)]
    visible = np.ones((4, len(MODALITIES)), bool)
    visible[3, [TEXT, ENVIRONMENT_VECTOR]] = False
    return collate(samples, visible=visible)


def part(of: Batch, rows: slice) -> Batch:
    """Some samples of a batch, at the same padding."""

    def cut(x: object) -> object:
        if isinstance(x, Tensor | tuple):
            return x[rows]
        return replace(x, **{name: cut(getattr(x, name)) for name in x.__dataclass_fields__})  # type: ignore[type-var,attr-defined]

    return cut(of)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def unified() -> nn.Module:
    torch.manual_seed(0)
    return build_objective("unified", MODEL, CHEMISTRY)


@pytest.fixture(scope="module")
def evaluated(unified: nn.Module) -> ObjectiveOutput:
    with torch.no_grad():
        return unified.eval()(batch())


def logits(unified: nn.Module, of: Batch) -> Tensor:
    with torch.no_grad():
        return unified.eval()(of).outputs["habitability_logit"]


def test_the_unified_objective_gives_every_weighted_term_and_no_other(evaluated: ObjectiveOutput) -> None:
    assert set(evaluated.terms) == set(LOSS_WEIGHTS)
    assert all(t.total.isfinite() and t.total.dtype == torch.float32 for t in evaluated.terms.values())


def test_items_count_what_is_present(evaluated: ObjectiveOutput) -> None:
    items = {name: term.items.item() for name, term in evaluated.terms.items()}
    assert items["habitability/bce"] == 4
    assert items["climate/recon"] == items["spectrum/recon"] == items["physics/hydrostatic"] == 4
    assert items["graph/edges"] == items["graph/kl"] == items["graph/recon"] == 3 + 4 + 4  # metabolites
    assert items["text/ce"] == 3 * 3  # answer tokens
    assert items["consistency/cross_recon"] == 4 + 4 + 3 + 3
    present = (6, 5, 4, 6)  # modalities of each planet
    assert items["consistency/info_nce"] == sum(n * (n - 1) for n in present)


def test_every_latent_has_one_name(evaluated: ObjectiveOutput) -> None:
    for modality in MODALITIES:
        assert evaluated.outputs[f"{modality}_latent"].shape == ((4, 40) if modality == "graph" else (4, 8))
    assert evaluated.outputs["latent"].shape == (4, 16) and not any(t.requires_grad for t in evaluated.outputs.values())


@pytest.mark.parametrize("kept", MODALITIES)
def test_a_kept_modality_alone_decides_the_logit(unified: nn.Module, kept: str) -> None:
    given = batch()
    hidden = tuple(m for m in MODALITIES if m != kept)
    only_shown = replace(given, visible=given.visible & given.keep(kept).present)
    removed = given.keep(kept)
    assert torch.allclose(logits(unified, only_shown)[:3], logits(unified, removed)[:3], atol=1e-4)
    assert not logits(unified, removed).isnan().any() and len(hidden) == 5


def test_a_hidden_environment_does_not_come_in_through_the_network(unified: nn.Module) -> None:
    given = batch()
    hidden = replace(given, visible=given.visible & (torch.arange(len(MODALITIES)) != ENVIRONMENT_VECTOR))
    other = replace(hidden, environment=hidden.environment.roll(1, 0))
    assert torch.allclose(logits(unified, hidden), logits(unified, other), atol=1e-5)
    assert not torch.allclose(logits(unified, given), logits(unified, replace(given, environment=other.environment)))


def test_when_nothing_is_visible_the_logit_is_that_of_the_prior(unified: nn.Module) -> None:
    given = batch()
    blind = logits(unified, replace(given, visible=torch.zeros_like(given.visible)))
    assert torch.equal(blind, blind[:1].expand(4))


def test_two_halves_have_the_terms_of_the_whole_in_training_and_evaluation(unified: nn.Module) -> None:
    given = batch()
    unified.train()(given)  # exemplars to tell networks after
    before = {name: buffer.clone() for name, buffer in unified.named_buffers()}
    for training in (False, True):
        unified.train(training)
        runs = []
        for piece in (given, part(given, slice(0, 2)), part(given, slice(2, 4))):
            unified.load_state_dict(before, strict=False)
            with torch.no_grad():
                runs.append(unified(piece).terms)
        whole, first, second = runs
        for name in whole:
            if name != "consistency/info_nce":  # its candidates are all planets of the step: see test_consistency
                total = first[name].total + second[name].total
                assert torch.allclose(total, whole[name].total, **CPU_SUM), name
                assert first[name].items + second[name].items == whole[name].items, name


def test_every_trainable_parameter_gets_a_gradient_even_when_all_is_absent(unified: nn.Module) -> None:
    given = batch()
    for piece in (given, given.keep()):
        unified.train().zero_grad(set_to_none=True)
        sum(term.total for term in unified(piece).terms.values()).backward()
        without = [
            n
            for n, p in unified.named_parameters()
            if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
        ]
        assert without == []


def test_leaf_modules_are_whole_networks_without_adapters(unified: nn.Module) -> None:
    leaves = unified.leaf_modules()
    assert unified.language not in leaves
    inside = {id(p) for leaf in leaves for p in leaf.parameters()}
    assert {n.split(".")[0] for n, p in unified.named_parameters() if id(p) not in inside} == {"language"}


def test_a_part_alone_has_the_names_of_the_unified_model(unified: nn.Module) -> None:
    names = set(unified.state_dict())
    expected = {
        "graph_vae": {n for n in LOSS_WEIGHTS if n.startswith("graph/")},
        "cnn": {"climate/recon", "spectrum/recon", "physics/energy_balance", "physics/hydrostatic"},
        "llm": {"text/ce"},
    }
    for name, terms in expected.items():
        objective = build_objective(name, MODEL, CHEMISTRY)
        assert set(objective.state_dict()) <= names
        assert set(objective(batch()).terms) == terms


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match="train.part='unifid'"):
        build_objective("unifid", MODEL, CHEMISTRY)


def test_an_explanation_is_written_for_samples_with_text_only(unified: nn.Module) -> None:
    answers = unified.eval().explain(batch(), end_token_id=2, max_tokens=3)
    assert [len(a) for a in answers] == [3, 0, 3, 3]
    answers = unified.explain(batch(), end_token_id=-1, max_tokens=3, begin=[[7, 8], [7], [], [5]])
    assert [len(a) for a in answers] == [5, 0, 3, 4] and answers[0][:2] == [7, 8] and answers[3][0] == 5


def test_seeds_differ_between_steps_and_samples_but_not_in_evaluation() -> None:
    counter = StepCounter()
    first, second = counter.seeds(("a", "b")), counter.seeds(("b",))
    assert len({*first.tolist(), *second.tolist()}) == 3
    counter.eval()
    assert torch.equal(counter.seeds(("a",)), counter.seeds(("a",))) and counter.step == 2


def test_thinning_makes_the_text_of_the_others_absent() -> None:
    given = batch()
    keep = torch.tensor([False, True, True, True])
    present, visible, text = thin_text(given.present, given.visible, given.text, keep, keep)
    assert present[:, TEXT].tolist() == [False, False, True, True]
    assert visible[:, TEXT].tolist() == [False, False, True, False]
    assert not text.attention_mask[0].any() and (text.label_ids[0] == -100).all()
    assert torch.equal(present[:, GRAPH], given.present[:, GRAPH])


def test_a_text_that_is_only_told_keeps_its_description_alone() -> None:
    given = batch()
    whole, told = torch.tensor([True, False, False, True]), torch.ones(4, dtype=torch.bool)
    present, _, text = thin_text(given.present, given.visible, given.text, whole, told)
    assert torch.equal(present, given.present)
    assert torch.equal(text.attention_mask[2], given.text.description_mask[2]) and (text.label_ids[2] == -100).all()
    assert torch.equal(text.attention_mask[3], given.text.attention_mask[3])
    assert torch.equal(text.label_ids[3], given.text.label_ids[3])


def test_what_is_judged_from_the_text_alone_follows_the_text_and_nothing_else(unified: nn.Module) -> None:
    given = batch()
    own = unified(given).terms["habitability/text_bce"]
    assert own.items.item() == given.present[:, TEXT].sum()
    beside = replace(given, climate=given.climate + 1.0, planet=given.planet * 1.01)
    assert unified(beside).terms["habitability/text_bce"].total.item() == pytest.approx(own.total.item(), rel=1e-5)
    words = replace(given, text=replace(given.text, token_ids=given.text.token_ids + 5))
    assert unified(words).terms["habitability/text_bce"].total.item() != pytest.approx(own.total.item(), rel=1e-5)


def test_the_share_of_text_is_drawn_per_sample_whatever_batch_it_is_in() -> None:
    torch.manual_seed(0)
    model = replace(MODEL, language=replace(MODEL.language, text_share=0.5))
    objective = build_objective("unified", model, CHEMISTRY).train()
    samples = [planet(n, "abc", 8) for n in range(1, 9)]
    tokens = []
    for pieces in ([samples], [samples[:3], samples[3:]]):
        total = 0.0
        for piece in pieces:
            objective.counter.step.fill_(3)
            with torch.no_grad():
                total += objective(collate(piece)).terms["text/ce"].items.item()
        tokens.append(total)
    assert tokens[0] == tokens[1] and 0 < tokens[0] < 8 * 3
