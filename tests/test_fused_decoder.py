"""The fused decoder against transformers + peft: outputs, gradients, what it keeps, cache, format of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_pipeline.errors import InputError
from models import adapters, decoder_kernels, fused_decoder
from models.configs import LanguageConfig, LoRAConfig
from models.fuse import fuse, why_not
from models.fused_decoder import PROJECTIONS, FusedDecoder, plan, spare
from models.language import load_causal, packaged_checkpoint
from models.packed_attention import Packing, causal_attention
from models.peft_decoder import PeftDecoder

LENGTHS = (5, 3, 1)
TOKENS = sum(LENGTHS)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton kernels need a GPU")


def llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = dict(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).requires_grad_(False)


def lora(*targets: str) -> LoRAConfig:
    return LoRAConfig(rank=3, alpha=5.0, targets=targets or PROJECTIONS)


def with_peft(causal: LlamaForCausalLM, settings: LoRAConfig) -> PeftModel:
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets), task_type="CAUSAL_LM"
    )
    model = get_peft_model(causal, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def pair(settings: LoRAConfig, recompute: str = "none", **changes: object) -> tuple[PeftModel, FusedDecoder]:
    """Return the reference and the fused decoder with the same weights and adapters."""
    reference = with_peft(llama(**changes), settings)
    fused = fuse(llama(**changes), LanguageConfig(lora=settings, recompute=recompute))
    tensors = {adapters.plain(n): p.detach() for n, p in reference.named_parameters() if "lora_" in n}
    fused.load_state_dict(adapters.from_peft(fused, tensors), strict=False)
    return reference, fused


def places() -> Tensor:
    return torch.cat([torch.arange(n) for n in LENGTHS])


def packing() -> Packing:
    return Packing.of(LENGTHS, torch.device("cpu"))


def words() -> Tensor:
    return torch.randint(0, 31, (TOKENS,), generator=torch.Generator().manual_seed(2))


def nats_of(fused: FusedDecoder, states: Tensor | None = None) -> Tensor:
    embedded = fused.embed(words()) if states is None else states
    return fused.nats(fused(embedded, places(), packing()), words().flip(0))


def reference_nats(reference: PeftModel, states: Tensor | None = None) -> Tensor:
    embedded = reference.get_input_embeddings()(words()) if states is None else states
    logits = torch.cat([reference(inputs_embeds=row[None]).logits[0] for row in embedded.split(LENGTHS)])
    return torch.nn.functional.cross_entropy(logits, words().flip(0), reduction="none")


def adapter_gradients(fused: FusedDecoder) -> dict[str, Tensor]:
    return adapters.to_peft(fused, {n: p.grad for n, p in fused.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        ((), {}),
        (("q_proj", "v_proj"), {"tie_word_embeddings": True}),
        (("k_proj", "o_proj", "up_proj"), {"num_key_value_heads": 4}),
        (("down_proj",), {"head_dim": 8}),
    ],
)
def test_losses_and_all_gradients_are_those_of_transformers_and_peft(
    targets: tuple[str, ...], changes: dict[str, object], recompute: str
) -> None:
    reference, fused = pair(lora(*targets), recompute, **changes)
    states = [fused.embed(words()).detach().requires_grad_() for _ in range(2)]
    given = torch.linspace(-1, 1, TOKENS)
    expected, nats = reference_nats(reference, states[0]), nats_of(fused, states[1])
    torch.testing.assert_close(nats, expected)
    (expected * given).sum().backward()
    (nats * given).sum().backward()
    torch.testing.assert_close(states[1].grad, states[0].grad)
    gradients = adapter_gradients(fused)
    wanted = {adapters.plain(n): p.grad for n, p in reference.named_parameters() if p.requires_grad}
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, msg=name)


@pytest.mark.parametrize("recompute", ["none", "layer"])
def test_what_is_kept_in_the_memory_of_the_host_gives_the_same_gradients(recompute: str) -> None:
    gradients = []
    for offload in (False, True):
        torch.manual_seed(0)
        config = LanguageConfig(lora=lora(), recompute=recompute, offload_activations=offload)
        fused = fuse(llama(), config)
        nats_of(fused).sum().backward()
        gradients.append(adapter_gradients(fused))
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


@pytest.mark.parametrize("kind", ["llama3", "linear"])
def test_stretched_rotary_positions_are_those_of_transformers(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    reference, fused = pair(lora(), rope_parameters=rope)
    torch.testing.assert_close(nats_of(fused), reference_nats(reference))


def test_smollm2_costs_what_transformers_says() -> None:
    settings = LoRAConfig(rank=2, targets=PROJECTIONS)
    reference = with_peft(AutoModelForCausalLM.from_pretrained(packaged_checkpoint(), dtype=torch.float32), settings)
    fused = load_causal(LanguageConfig(lora=settings, decoder="fused"))
    tensors = {adapters.plain(n): p.detach() for n, p in reference.named_parameters() if "lora_" in n}
    fused.load_state_dict(adapters.from_peft(fused, tensors), strict=False)
    expected, nats = reference_nats(reference), nats_of(fused)
    torch.testing.assert_close(nats, expected, rtol=2e-4, atol=2e-4)
    expected.sum().backward()
    nats.sum().backward()
    gradients = adapter_gradients(fused)
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            difference = (gradients[adapters.plain(name)] - parameter.grad).norm() / parameter.grad.norm()
            assert difference < 1e-3, name


def test_a_sequence_reads_neither_its_neighbours_nor_what_comes_later() -> None:
    _, fused = pair(lora())
    before = nats_of(fused)
    states = fused.embed(words()).clone()
    states[3:5] += 1  # the last two places of the first sequence
    after = nats_of(fused, states)
    torch.testing.assert_close(after[:3], before[:3])
    torch.testing.assert_close(after[5:], before[5:])
    assert not torch.allclose(after[3:5], before[3:5], atol=1e-3)


@torch.no_grad()
def test_word_by_word_with_a_cache_gives_the_states_of_one_pass() -> None:
    _, fused = pair(lora())
    embedded, cache = fused.embed(words()), []
    whole = fused(embedded, torch.arange(TOKENS), Packing.of((TOKENS,), embedded.device))
    parts = [
        fused(part, torch.arange(i, i + len(part)), Packing.of((len(part),), part.device), cache)
        for i, part in ((0, embedded[:4]), (4, embedded[4:7]), (7, embedded[7:8]), (8, embedded[8:]))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_equal_and_unequal_lengths_take_different_ways_to_the_same_numbers() -> None:
    q, k, v = torch.randn(3, 12, 4, 8).unbind()
    together = causal_attention(q, k, v, Packing.of((6, 6), q.device))
    apart = [causal_attention(*(x[s] for x in (q, k, v)), Packing.of((6,), q.device)) for s in (slice(6), slice(6, 12))]
    mixed = causal_attention(q, k, v, Packing.of((6, 4, 2), q.device))
    torch.testing.assert_close(together, torch.cat(apart))
    torch.testing.assert_close(mixed[:6], together[:6])


def test_short_sequences_in_bfloat16_on_a_cpu_attend_as_in_float32() -> None:
    q, k, v = torch.randn(10, 4, 8), torch.randn(10, 2, 8), torch.randn(10, 2, 8)
    expected = causal_attention(q, k, v, Packing.of((7, 3), q.device))
    rounded = causal_attention(*(x.bfloat16() for x in (q, k, v)), Packing.of((7, 3), q.device))
    torch.testing.assert_close(rounded.float(), expected, rtol=0.03, atol=0.03)


@torch.no_grad()
def test_a_small_step_of_an_adapter_is_not_lost_beside_a_large_residual_in_bfloat16() -> None:
    out = {}
    for dtype in ("float32", "bfloat16"):
        settings = lora("o_proj", "down_proj")
        fused = fuse(llama(hidden_size=64, intermediate_size=96), LanguageConfig(lora=settings, dtype=dtype))
        layer, states = fused.layers[0], 2 * torch.randn(400, 64, generator=torch.Generator().manual_seed(3))
        for weight in (layer.output, layer.down):
            weight.mul_(100)  # both products as large as they are in a trained model
        options = {"rotary": fused._rotary(torch.arange(400)), "packing": Packing.of((400,), torch.device("cpu"))}
        before = layer(states.to(getattr(torch, dtype)), **options).float()
        for slot in layer.slots[1] + layer.slots[3]:
            layer.adapter[:, slot.b] = 1e-3
        out[dtype] = layer(states.to(getattr(torch, dtype)), **options).float() - before
    expected = out["float32"]
    kept = (out["bfloat16"] * expected).sum() / expected.square().sum()
    assert 0.8 < kept < 1.2


def test_words_beyond_the_first_chunk_of_the_head_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fused = pair(lora())
    whole = nats_of(fused)
    whole.sum().backward()
    gradients = adapter_gradients(fused)
    fused.zero_grad()
    monkeypatch.setattr(fused_decoder, "_HEAD_TOKENS", 4)
    chunked = nats_of(fused)
    chunked.sum().backward()
    torch.testing.assert_close(chunked, whole)
    for name, gradient in adapter_gradients(fused).items():
        torch.testing.assert_close(gradient, gradients[name])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize(("dtype", "words"), [(torch.float32, 1000), (torch.bfloat16, 5001)])
def test_the_cross_entropy_leaves_its_gradient_in_the_logits(device: str, dtype: torch.dtype, words: int) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, words, device=device)).to(dtype)
    labels = torch.tensor([0, 1, words // 2, words - 1, 7], device=device)
    wide = logits.detach().clone().float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide, labels, reduction="none")
    expected.sum().backward()
    untouched = logits.clone()
    torch.testing.assert_close(decoder_kernels.cross_entropy_(logits, labels, slope=False), expected.detach())
    assert torch.equal(logits, untouched)
    torch.testing.assert_close(decoder_kernels.cross_entropy_(logits, labels, slope=True), expected.detach())
    assert wide.grad is not None
    torch.testing.assert_close(logits, wide.grad.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)


def test_the_gradients_of_the_kernels_are_those_of_torch() -> None:
    x, residual, grad = torch.randn(3, 5, 8, dtype=torch.float64).unbind()
    weight = torch.rand(8, dtype=torch.float64)
    x.requires_grad_()
    scale = torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)
    (x * scale * weight + 0).backward(grad)
    dx, again = decoder_kernels.rms_norm_backward(grad, x.detach(), weight, 1e-5, residual)
    torch.testing.assert_close(dx, x.grad + residual, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again, (x * scale * weight).detach(), rtol=1e-5, atol=1e-6)
    gate_up = torch.randn(5, 8, requires_grad=True)
    decoder_kernels.swiglu(gate_up).backward(grad[:, :4].float())
    expected = decoder_kernels.swiglu(gate_up).detach()
    product, slope = grad[:, :4].float(), gate_up.detach().clone()
    decoder_kernels.swiglu_backward_(product, slope)
    torch.testing.assert_close(slope, gate_up.grad)
    torch.testing.assert_close(product, expected)


def test_no_more_layers_run_again_than_the_memory_asks_for() -> None:
    sizes = (10, 1)  # bytes: everything, the input alone
    assert [plan(4, sizes, free) for free in (40, 39, 31, 30, 4, 0)] == [0, 1, 1, 2, 4, 4]


def test_a_limit_counts_tensors_and_the_card_keeps_two_gib() -> None:
    gib = 2**30
    assert spare(taken=10 * gib, held=12 * gib, free=20 * gib, within_gib=0.0) == 20 * gib
    assert spare(taken=10 * gib, held=12 * gib, free=20 * gib, within_gib=14.5) == 4.5 * gib
    assert spare(taken=10 * gib, held=12 * gib, free=20 * gib, within_gib=80.0) == 20 * gib
    with pytest.raises(InputError, match=r"recompute_within_gib=-1.0: must be 0 or more"):
        LanguageConfig(recompute_within_gib=-1.0)


def test_the_layers_that_run_again_are_the_first_and_the_gradients_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fused = pair(lora())
    nats_of(fused).sum().backward()
    gradients = adapter_gradients(fused)
    fused.zero_grad()
    monkeypatch.setattr(fused, "_again", lambda tokens: 1)
    nats = nats_of(fused)
    nats.sum().backward()
    assert fused.last_again == 1
    for name, gradient in adapter_gradients(fused).items():
        torch.testing.assert_close(gradient, gradients[name])


def test_a_layer_that_runs_again_asks_neither_for_the_small_products_nor_for_the_gated_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, fused = pair(lora(), recompute="layer")
    calls: list[str] = []
    low, swiglu = fused_decoder.DecoderLayer.low, decoder_kernels.swiglu
    monkeypatch.setattr(fused_decoder.DecoderLayer, "low", lambda *a: (calls.append("low"), low(*a))[1])
    monkeypatch.setattr(decoder_kernels, "swiglu", lambda x: (calls.append("swiglu"), swiglu(x))[1])
    out = fused(torch.randn(TOKENS, 16), places(), Packing.of(LENGTHS, torch.device("cpu")))
    assert (calls.count("low"), calls.count("swiglu")) == (8, 2)  # of two layers
    out.sum().backward()
    assert len(calls) == 10


def test_a_second_backward_over_what_the_first_has_used_up_is_refused() -> None:
    _, fused = pair(lora())
    nats = nats_of(fused).sum()
    nats.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nats.backward()


@pytest.mark.parametrize("again", [False, True])
def test_what_a_layer_keeps_is_what_was_counted(again: bool) -> None:
    _, fused = pair(lora(), num_hidden_layers=1)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    states = fused.embed(words()).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        out = fused.layers[0](
            states,
            rotary=fused._rotary(places()),
            packing=Packing.of((TOKENS,), states.device),
            again=again,
        )
    kept.pop(out.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) == pytest.approx(fused.kept_bytes(TOKENS)[again], abs=64)


def test_peft_reads_what_we_write_and_we_read_what_peft_writes(tmp_path: Path) -> None:
    settings = lora("q_proj", "o_proj", "down_proj")
    reference, fused = pair(settings)
    expected = reference_nats(reference)
    adapters.write(tmp_path / "ours", adapters.to_peft(fused, dict(fused.named_parameters())), settings, "a-llama")
    again = PeftModel.from_pretrained(llama(), tmp_path / "ours")
    torch.testing.assert_close(reference_nats(again), expected)
    reference.save_pretrained(tmp_path / "theirs")
    tensors = adapters.read(tmp_path / "theirs", settings)
    other = fuse(llama(), LanguageConfig(lora=settings))
    other.load_state_dict(adapters.from_peft(other, tensors), strict=False)
    torch.testing.assert_close(nats_of(other), expected)


def test_an_adapter_of_another_rank_or_of_none_is_refused(tmp_path: Path) -> None:
    settings = lora("q_proj")
    _, fused = pair(settings)
    adapters.write(tmp_path, adapters.to_peft(fused, dict(fused.named_parameters())), settings, "a-llama")
    with pytest.raises(InputError, match=r"its r is 3, this run has 4"):
        adapters.read(tmp_path, LoRAConfig(rank=4, alpha=5.0, targets=("q_proj",)))
    with pytest.raises(InputError, match=r"its target_modules is \['q_proj'\]"):
        adapters.read(tmp_path, lora())
    with pytest.raises(InputError, match="no adapter in the peft format"):
        adapters.read(tmp_path / "nothing", settings)


def test_a_run_starts_from_an_adapter_and_refuses_one_of_another_model(tmp_path: Path) -> None:
    settings = LoRAConfig(rank=3, alpha=5.0, targets=("q_proj",), start_from=str(tmp_path / "adapter"))
    reference, fused = pair(settings)
    adapters.write(tmp_path / "adapter", adapters.to_peft(fused, dict(fused.named_parameters())), settings, "x")
    llama().save_pretrained(tmp_path / "llama")
    llama(num_attention_heads=8, num_key_value_heads=1, num_hidden_layers=3).save_pretrained(tmp_path / "other")
    for decoder in ("fused", "peft"):
        config = LanguageConfig(checkpoint=str(tmp_path / "llama"), lora=settings, decoder=decoder)
        torch.testing.assert_close(nats_of(load_causal(config)), reference_nats(reference))
        with pytest.raises(InputError, match="does not fit"):
            load_causal(LanguageConfig(checkpoint=str(tmp_path / "other"), lora=settings, decoder=decoder))


def stepped(fused: FusedDecoder, loss: Tensor) -> None:
    fused.zero_grad()
    loss.backward()
    with torch.no_grad():
        for layer in fused.layers:
            layer.adapter -= 0.1 * layer.adapter.grad


def test_the_audit_waits_for_the_second_step_since_the_first_reaches_b_alone() -> None:
    fused = fuse(llama(), LanguageConfig(lora=lora()))
    audit = adapters.GradientAudit(fused, torch.device("cpu"))
    stepped(fused, 0 * nats_of(fused).sum())  # no text in this step
    assert audit.step(torch.Tensor.clone) is None
    stepped(fused, nats_of(fused).sum())
    assert audit.step(torch.Tensor.clone) is None and int(audit._reached.sum()) == 2 * 7  # B of seven in two layers
    stepped(fused, nats_of(fused).sum())
    assert audit.step(torch.Tensor.clone) == [] and len(audit.names) == 2 * 2 * 7


@pytest.mark.parametrize("decoder", ["fused", "peft"])
def test_the_audit_names_the_adapter_that_the_loss_does_not_reach(decoder: str, tmp_path: Path) -> None:
    causal = llama()
    for layer in causal.model.layers:  # keys of zero: what a place reads does not depend on its query, in any type
        layer.self_attn.k_proj.weight.zero_()
    causal.save_pretrained(tmp_path)
    model = load_causal(LanguageConfig(checkpoint=str(tmp_path), lora=lora("q_proj", "v_proj"), decoder=decoder))
    audit = adapters.GradientAudit(model, torch.device("cpu"))
    for _ in range(2):
        states = model(
            model.embed(words()[:1]), torch.zeros(1, dtype=torch.long), Packing.of((1,), torch.device("cpu"))
        )
        states.square().sum().backward()
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter += 0.01
        silent = audit.step(torch.Tensor.clone)
    assert silent and {name.split(".")[4] for name in silent} == {"q_proj"}
    other_rank = [1.0 if "q_proj" in n else 0.0 for n in audit.names]
    again = adapters.GradientAudit(model, torch.device("cpu"))
    again.STEPS = 1
    assert again.step(lambda mine: mine + torch.tensor(other_rank)) is not None


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"attention_bias": True}, lora(), "biases"),
        ({"hidden_act": "gelu"}, lora(), "gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, lora(), "length"),
        ({}, LoRAConfig(dropout=0.1), "dropout"),
        ({}, LoRAConfig(targets=("lm_head",)), "targets"),
        ({}, lora(), ""),
    ],
)
def test_what_cannot_be_fused_is_said(changes: dict[str, object], settings: LoRAConfig, reason: str) -> None:
    said = why_not(llama(**changes), settings)
    assert reason in said and bool(said) == bool(reason)


def test_what_cannot_be_fused_is_refused_when_that_was_asked_for_and_runs_through_peft_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llama(attention_bias=True).save_pretrained(tmp_path)
    config = {"checkpoint": str(tmp_path), "lora": lora("q_proj")}
    with pytest.raises(InputError, match=r'decoder="fused": its projections have biases'):
        load_causal(LanguageConfig(**config, decoder="fused"))
    assert isinstance(load_causal(LanguageConfig(**config)), PeftDecoder)
    assert "transformers + peft" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("field", ["decoder", "recompute", "quantise"])
def test_an_unknown_choice_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=f"model.language.{field}='fast'"):
        LanguageConfig(**{field: "fast"})
