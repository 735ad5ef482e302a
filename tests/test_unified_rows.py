"""The rows of the unified model: what is counted, and that the peer computes what our language model computes."""

from __future__ import annotations

import torch

from benchmarks.bench_step_time import rows_of
from benchmarks.llm import Load, parameters_of
from benchmarks.peers.llm import build
from benchmarks.peers.unified import Padded
from benchmarks.unified import SIZES, kernel_ms
from data_pipeline.batch import TextBatch
from models.configs import LanguageConfig
from models.language import LanguageModel
from models.peft_decoder import PeftDecoder


def test_the_thirteen_billion_have_the_words_of_the_packaged_tokenizer() -> None:
    assert parameters_of(SIZES["13b"]) == 13_078_451_200 + 2 * (49_152 - 32_000) * 5120 == 13_254_087_680


def test_each_part_has_its_rows_and_all_have_all() -> None:
    names = {part: [row.name for row in rows_of(part, True, 3)] for part in ("llm", "small", "unified", "all")}
    assert names["small"] == ["graph_vae_step", "cnn_step"] and len(names["unified"]) == 3
    assert names["all"] == names["llm"] + names["small"] + names["unified"]


def test_padded_rows_of_transformers_give_the_latents_and_answers_of_packed_ones() -> None:
    torch.manual_seed(0)
    causal = build(Load("tiny", 1, 1), liger=False, fused_head=False, small_adapters=False).float()
    ours = LanguageModel(LanguageConfig(latent_dim=4), PeftDecoder(causal.get_base_model()), prefix_width=8)
    theirs = Padded(ours, causal)
    place, length = torch.arange(12), torch.tensor([[12], [9], [7]])
    token_ids = (place * 7 + length).remainder(500)
    answer = (place >= length - 3) & (place < length)
    text = TextBatch(
        token_ids=token_ids,
        attention_mask=place < length,
        description_mask=place < torch.tensor([[5], [3], [2]]),
        label_ids=torch.where(answer, token_ids, -100),
    )
    prefix, shown = torch.linspace(-1, 1, 3 * 2 * 8).view(3, 2, 8), torch.tensor([[1, 1], [0, 1], [0, 0]]) > 0
    mine, peer = ours(text, prefix, shown), theirs(text, prefix, shown)
    torch.testing.assert_close(peer.latent, mine.latent, rtol=1e-4, atol=1e-4)
    assert mine.answer_tokens.tolist() == peer.answer_tokens.tolist() == [3, 3, 3]
    torch.testing.assert_close(peer.answer_nats.sum(), mine.answer_nats.sum(), rtol=1e-4, atol=1e-4)


def test_kernels_are_summed_by_name_and_divided_by_the_steps() -> None:
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "dur": 3000},
        {"ph": "X", "cat": "kernel", "name": "gemm", "dur": 1000},
        {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "dur": 500},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "dur": 9000},
    ]
    assert kernel_ms(events, steps=2) == {"gemm": 2.0, "copy": 0.25}
