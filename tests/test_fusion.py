"""The fusion reads what is visible and nothing else; the temperature calibrates without reordering."""

from __future__ import annotations

import pytest
import torch

from models.configs import FusionConfig
from models.fusion import Fusion, NumberEncoder, Tokeniser

CONFIG = FusionConfig(width=16, heads=2, layers=2, tokens_per_modality=2)
MODALITIES = 3


@pytest.fixture
def fusion() -> Fusion:
    torch.manual_seed(0)
    return Fusion(MODALITIES, CONFIG)


def tokens(seed: int = 0, size: int = 2) -> torch.Tensor:
    return torch.randn(size, MODALITIES, 2, 16, generator=torch.Generator().manual_seed(seed))


def test_a_hidden_modality_has_no_influence_even_when_it_is_nan(fusion: Fusion) -> None:
    visible = torch.tensor([[True, False, True]] * 2)
    given, changed, log_var = tokens(), tokens(), torch.zeros(2, MODALITIES)
    changed[:, 1] = float("nan")
    first, second = fusion(given, log_var, visible), fusion(changed, log_var, visible)
    assert torch.equal(first.habitability_logit, second.habitability_logit) and torch.equal(first.latent, second.latent)


def test_a_visible_modality_has_influence(fusion: Fusion) -> None:
    visible = torch.ones(2, MODALITIES, dtype=torch.bool)
    logits = [fusion(tokens(seed), torch.zeros(2, MODALITIES), visible).habitability_logit for seed in (0, 1)]
    assert not torch.allclose(*logits)


def test_when_nothing_is_visible_every_planet_gets_the_same_logit(fusion: Fusion) -> None:
    output = fusion(tokens(), torch.zeros(2, MODALITIES), torch.zeros(2, MODALITIES, dtype=torch.bool))
    assert output.habitability_logit[0] == output.habitability_logit[1] and output.habitability_logit.isfinite().all()
    assert output.gates.abs().sum() == 0


def test_gates_are_shares_of_the_visible_precision(fusion: Fusion) -> None:
    log_var = torch.tensor([[0.0, 0.0, -torch.log(torch.tensor(3.0))]])
    output = fusion(tokens(size=1), log_var, torch.tensor([[True, False, True]]))
    assert output.gates.flatten().tolist() == pytest.approx([0.25, 0.0, 0.75])


def test_an_unsure_modality_moves_the_logit_less_than_a_sure_one(fusion: Fusion) -> None:
    visible = torch.ones(2, MODALITIES, dtype=torch.bool)

    def swing(log_var: float) -> float:
        uncertainty = torch.tensor([[log_var, 0.0, 0.0]] * 2)
        given, changed = tokens(), tokens()
        changed[:, 0] = tokens(5)[:, 0]
        outputs = [fusion(x, uncertainty, visible).habitability_logit for x in (given, changed)]
        return (outputs[0] - outputs[1]).abs().sum().item()

    assert swing(3.0) < 0.3 * swing(-3.0)


def test_tokens_of_a_modality_come_from_its_own_latent_and_gates_start_equal() -> None:
    tokeniser = Tokeniser({"climate": 4, "planet": 6}, CONFIG)
    climate, planet = torch.randn(2, 4), torch.randn(2, 6)
    before, after = tokeniser(climate, planet), tokeniser(climate, planet + 1 + planet**2)
    assert before.tokens.shape == (2, 2, 2, 16)
    assert torch.equal(before.tokens[:, 0], after.tokens[:, 0])
    assert not torch.equal(before.tokens[:, 1], after.tokens[:, 1])
    assert before.log_var.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_networks_follow_bfloat16_and_the_logit_stays_float32(fusion: Fusion) -> None:
    encoder, tokeniser = NumberEncoder(8, 4).bfloat16(), Tokeniser({"a": 4, "b": 4, "c": 4}, CONFIG).bfloat16()
    latent = encoder(torch.ones(2, 8))
    read = tokeniser(latent, latent, latent)
    output = fusion.bfloat16()(read.tokens, read.log_var, torch.ones(2, MODALITIES, dtype=torch.bool))
    assert latent.dtype == torch.bfloat16 and output.habitability_logit.dtype == torch.float32
