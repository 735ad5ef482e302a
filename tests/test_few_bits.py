"""Weights in four or eight bits: levels and errors by hand, a decoder that holds them, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_fused_decoder import adapter_gradients, llama, lora, nats_of, packing, places, words
from torch import Tensor

from data_pipeline.errors import InputError
from models import few_bits
from models.configs import LanguageConfig
from models.fuse import fuse
from models.fused_decoder import FusedDecoder, Weights
from models.language import load_causal
from models.packed_attention import Packing

WIDE = {"hidden_size": 64, "intermediate_size": 96}


def there_and_back(kind: str, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes, the scales and what they stand for."""
    codes = torch.zeros(few_bits.code_bytes(kind, len(numbers)), dtype=torch.uint8)
    scales = torch.zeros(len(numbers) // 64, dtype=torch.bfloat16)
    few_bits.quantise(kind, numbers, codes, scales)
    back = torch.full_like(numbers, torch.nan)
    few_bits.dequantise(kind, codes, scales, back)
    return codes, scales, back


def fused(quantise: str, dtype: str = "float32", **changes: object) -> FusedDecoder:
    torch.manual_seed(0)
    causal = llama(**{**WIDE, **changes})
    return fuse(causal, LanguageConfig(lora=lora(), quantise=quantise, dtype=dtype))


def test_a_block_of_the_sixteen_levels_comes_back_as_it_was() -> None:
    table = few_bits.levels("nf4", torch.device("cpu"))
    block = 0.5 * table.repeat(4)
    codes, scales, back = there_and_back("nf4", torch.cat([block, -block]))
    assert torch.equal(back[:64], block) and scales.tolist() == [0.5, 0.5]
    assert codes[:2].tolist() == [0 | 15 << 4, 1 | 14 << 4]  # of the other half: 1, and .696, which is nearest to .723
    assert len(codes) == 64


def test_four_bits_in_a_byte_are_a_number_of_each_half() -> None:
    first, second = torch.zeros(64), torch.zeros(64)
    first[3], second[3] = 2.0, -2.0
    codes, scales, back = there_and_back("nf4", torch.cat([first, second]))
    assert codes[3] == 15 | 0 << 4 and codes[0] == 7 | 7 << 4 and scales.tolist() == [2.0, 2.0]
    assert torch.equal(back, torch.cat([first, second]))


@pytest.mark.parametrize(("kind", "bound"), [("nf4", 0.152), ("int8", 0.5 / 127)])
def test_no_number_is_further_off_than_half_a_gap_of_its_block(kind: str, bound: float) -> None:
    numbers = torch.randn(64 * 200, generator=torch.Generator().manual_seed(0))
    _, _, back = there_and_back(kind, numbers)
    largest = numbers.view(-1, 64).abs().amax(1, keepdim=True)
    off = ((back - numbers).view(-1, 64) / largest).abs()
    assert off.max() <= bound + 2**-8  # the scale is bfloat16
    # Widest gap of the 4-bit levels: (1 - 0.6962) / 2. A normal number is off by 9 % (0.6 %) of the typical one.
    assert off.max() > 0.9 * bound
    share = ((back - numbers).square().mean() / numbers.square().mean()).sqrt()
    assert share == pytest.approx({"nf4": 0.093, "int8": 0.0055}[kind], rel=0.1)


def test_a_block_of_zeros_stays_zero() -> None:
    for kind in few_bits.KINDS:
        _, scales, back = there_and_back(kind, torch.zeros(128))
        assert not back.any() and not scales.any()


def test_numbers_beyond_the_first_chunk_are_quantised_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randn(64 * 10, generator=torch.Generator().manual_seed(0))
    whole = there_and_back("nf4", numbers)
    monkeypatch.setattr(few_bits, "_CHUNK", 128)
    for a, b in zip(whole, there_and_back("nf4", numbers), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", few_bits.KINDS)
def test_a_decoder_computes_with_what_its_codes_stand_for(kind: str) -> None:
    quantised, plain = fused(kind), fused("none")
    with torch.no_grad():
        for mine, theirs in zip(quantised.layers, plain.layers, strict=True):
            rounded = [w.clone() for w in mine.weights()]
            assert not torch.equal(rounded[0], theirs.qkv)
            theirs.load(Weights(*rounded))
            theirs.adapter.copy_(mine.adapter)
    gradients = []
    for decoder in (quantised, plain):
        nats = nats_of(decoder)
        nats.sum().backward()
        gradients.append((nats, adapter_gradients(decoder)))
    assert torch.equal(gradients[0][0], gradients[1][0])
    for name, gradient in gradients[1][1].items():
        assert torch.equal(gradients[0][1][name], gradient), name


def test_one_room_serves_all_layers_and_four_bits_are_a_seventh_of_float32() -> None:
    decoder = fused("nf4")
    assert all(layer.room is decoder.layers[0].room for layer in decoder.layers)
    numbers = Weights.numbers(decoder.shape)
    layer = decoder.layers[0]
    assert layer.codes.nbytes + layer.scales.nbytes == numbers / 2 + numbers / 32  # 4.25 bits a number
    assert not any(name in dict(layer.named_parameters()) for name in Weights._fields)
    assert {n for n, p in decoder.named_parameters() if p.requires_grad} == {f"layers.{i}.adapter" for i in range(2)}


def test_smollm2_costs_nearly_as_much_in_four_bits_and_learns() -> None:
    told = torch.arange(1000, 1020)

    def cost(decoder: FusedDecoder) -> Tensor:
        hidden = decoder(decoder.embed(told), torch.arange(20), Packing.of((20,), told.device))
        return decoder.nats(hidden[:-1], told[1:]).mean()

    with torch.no_grad():
        expected = cost(load_causal(LanguageConfig(lora=lora())))
    decoder = load_causal(LanguageConfig(lora=lora(), quantise="nf4", recompute="layer"))
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], lr=3e-3)
    costs = []
    for _ in range(3):
        costs.append(cost(decoder))
        optimizer.zero_grad()
        costs[-1].backward()
        optimizer.step()
    assert costs[0].item() == pytest.approx(expected.item(), rel=0.05)
    assert costs[2] < costs[0] - 0.05


def test_a_model_whose_layers_do_not_divide_into_blocks_is_refused() -> None:
    with pytest.raises(InputError, match=r"quantise='nf4': a layer of packaged has 1968 numbers, .*choose \"none\""):
        fuse(llama(intermediate_size=25), LanguageConfig(lora=lora(), quantise="nf4"))


def test_a_model_that_only_peft_can_run_is_not_quantised(tmp_path: Path) -> None:
    llama(attention_bias=True).save_pretrained(tmp_path)
    with pytest.raises(InputError, match='quantise="nf4": its projections have biases'):
        load_causal(LanguageConfig(checkpoint=str(tmp_path), lora=lora(), quantise="nf4"))
    with pytest.raises(InputError, match="model.language.quantise='nf4': the decoder \"peft\""):
        LanguageConfig(quantise="nf4", decoder="peft")


@torch.no_grad()
def test_word_by_word_a_quantised_decoder_says_what_it_says_in_one_pass() -> None:
    decoder, cache = fused("nf4"), []
    embedded = decoder.embed(words())
    whole = decoder(embedded, torch.arange(9), Packing.of((9,), embedded.device))
    parts = [
        decoder(part, torch.arange(i, i + len(part)), Packing.of((len(part),), part.device), cache)
        for i, part in ((0, embedded[:4]), (4, embedded[4:]))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(decoder(embedded, places(), packing())[:5], whole[:5])
