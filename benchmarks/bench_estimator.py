"""Compare the peak memory that `./launch.sh estimate` foretells with what a step takes on the GPU."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.rows import Row, main
from data_pipeline.batch import Batch
from models.configs import LoRAConfig
from trainers import estimate, presets
from trainers.config import RunConfig
from trainers.engine import build_engine

STEPS = 3
METABOLITES = estimate.TYPICAL_METABOLITES
ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Case(NamedTuple):
    """A configuration to measure."""

    preset: str
    part: str
    samples: int
    engine: str = "deepspeed"
    language: str = ""  # a row of LANGUAGES; "": without one
    max_tokens: int = 256
    recompute: str = "none"
    quantise: str = "none"


# Shapes alone, as a config.json of transformers states them.
LANGUAGES = {
    "0.1b": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 256, "tie_word_embeddings": False},
}  # fmt: skip


def settings(case: Case, folder: Path) -> RunConfig:
    """Return the configuration; the language model's config.json is written into the folder."""
    config = presets.preset(case.preset, case.part)
    model = config.model
    if case.language:
        shape = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **LANGUAGES[case.language]}
        (folder / "config.json").write_text(json.dumps(shape))
        lora = LoRAConfig(rank=16, alpha=32.0, targets=ALL_PROJECTIONS)
        language = replace(
            model.language,
            checkpoint=str(folder),
            dtype="bfloat16",
            lora=lora,
            text_share=1.0,
            recompute=case.recompute,
            quantise=case.quantise,
        )
        model = replace(model, language=language)
    return replace(
        config,
        model=model,
        data=replace(config.data, samples_per_rank=case.samples, max_tokens=case.max_tokens),
        train=replace(config.train, engine=case.engine),  # type: ignore[arg-type]
    )


def measured_peak(config: RunConfig, batch: Batch) -> int:
    """Return torch.cuda.max_memory_allocated over some steps while the next batch lies on the card beside theirs.

    In training the next batch comes during a step, before or after its peak (trainers/inputs.py): here always before.
    """
    engine = build_engine(random_objective(config), config)
    on_device = [batch.to(engine.device) for _ in range(2)]
    for step in range(STEPS):
        if step == 1 and engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # the moments exist from the second step on
        engine.train_step(on_device[step % 2])
    return torch.cuda.max_memory_allocated() if engine.device.type == "cuda" else 0


@torch.no_grad()
def random_objective(config: RunConfig) -> nn.Module:
    """Return the objective with random weights: a language model is not read, only its configuration."""
    objective = estimate.on_meta(config, estimate.typical_chemistry())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    for module in objective.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = torch.empty_like(parameter, device=device)
                made = made.normal_(std=0.02) if made.is_floating_point() else made.random_()
                module._parameters[name] = nn.Parameter(made, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.ones_like(buffer, device=device)
    return objective


def compare(config: RunConfig) -> dict[str, Any]:
    """Measure, foretell and compare."""
    batch = estimate.largest_batch(config, METABOLITES)
    measured = measured_peak(config, batch)
    told = estimate.estimate(config, estimate.typical_chemistry(), batch)
    found = {"measured_gib": measured / 2**30, "foretold_gib": told.peak / 2**30}
    if measured:
        found["error_share"] = told.peak / measured - 1
    return found | {
        f"{k}_mib": v / 2**20
        for k, v in {**told.standing._asdict(), **told.counted._asdict()}.items()
        if isinstance(v, int)
    }


CASES = {
    "graph_vae_quickstart_16": Case("quickstart", "graph_vae", 16),
    "graph_vae_one_gpu_64": Case("one_gpu", "graph_vae", 64),
    "graph_vae_one_gpu_512": Case("one_gpu", "graph_vae", 512),
    "graph_vae_one_gpu_256_local": Case("one_gpu", "graph_vae", 256, "local"),
    "cnn_one_gpu_64": Case("one_gpu", "cnn", 64),
    "cnn_one_gpu_512": Case("one_gpu", "cnn", 512),
    "cnn_one_gpu_256_local": Case("one_gpu", "cnn", 256, "local"),
    "llm_1b_8x512": Case("one_gpu", "llm", 8, language="1b", max_tokens=512),
    "llm_8b_4x1024": Case("one_gpu", "llm", 4, language="8b", max_tokens=1024),
    "llm_8b_4x1024_nf4": Case("one_gpu", "llm", 4, language="8b", max_tokens=1024, recompute="layer", quantise="nf4"),
    "llm_8b_4x1024_layer": Case("one_gpu", "llm", 4, language="8b", max_tokens=1024, recompute="layer"),
    "unified_0.1b_32": Case("one_gpu", "unified", 32, language="0.1b"),
    "unified_1b_16": Case("one_gpu", "unified", 16, language="1b"),
}


def _row(name: str) -> Row:
    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return compare(settings(CASES[name], Path(folder)))

    return Row(f"estimate_{name}", run)


ROWS = tuple(_row(name) for name in CASES)

if __name__ == "__main__":
    sys.exit(main("benchmarks.bench_estimator", ROWS))
