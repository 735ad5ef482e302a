"""Name the configurations that are known to work. A preset is a function of the part that returns a RunConfig."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from data_pipeline.errors import InputError
from models.configs import (
    ClimateConfig,
    FusionConfig,
    GraphVAEConfig,
    LanguageConfig,
    LoRAConfig,
    ModelConfig,
    SpectrumConfig,
)
from trainers.config import PARTS, DataConfig, OptimConfig, RunConfig, TrainConfig, nearest


def quickstart(part: str) -> RunConfig:
    """Small networks on two CPU cores, for about 2,400 planets."""
    model = ModelConfig(
        graph=GraphVAEConfig(width=96, temperature=0.5),
        climate=ClimateConfig(width=24, latent_dim=96),
        spectrum=SpectrumConfig(width=48, latent_dim=48),
        language=LanguageConfig(
            dtype="auto", lora=LoRAConfig(rank=8), text_share=1.0 if part == "llm" else 1 / 32, read_share=1 / 8
        ),
        fusion=FusionConfig(width=96, layers=2, dropout=0.0),
    )
    steps = {"graph_vae": 1000, "cnn": 250, "llm": 100, "unified": 200}[part]
    per_rank = {"graph_vae": 16, "cnn": 16, "llm": 8, "unified": 32}[part]
    return RunConfig(
        model=model,
        data=DataConfig(samples_per_rank=per_rank),
        optim=OptimConfig(lr=2e-3, language_lr_factor=0.25, lr_warmup_steps=20),
        train=TrainConfig(
            part=part,  # type: ignore[arg-type]
            steps=steps,
            eval_every_steps=steps // (2 if part == "unified" else 4),
            eval_batches=1 if part == "unified" else 8,  # the language model reads every text of an evaluation
            save_every_steps=steps // 2,
        ),
    )


def one_gpu(part: str) -> RunConfig:
    """Default-width networks, the packaged language model and larger batches on one GPU."""
    return RunConfig(
        model=ModelConfig(
            graph=GraphVAEConfig(width=256, heads=8, encoder_layers=6),
            climate=ClimateConfig(width=96, latent_dim=256),
            spectrum=SpectrumConfig(width=128, latent_dim=128),
            language=LanguageConfig(dtype="bfloat16", lora=LoRAConfig(rank=16, alpha=32.0)),
            fusion=FusionConfig(width=256, heads=8, layers=4, dropout=0.0),
        ),
        data=DataConfig(samples_per_rank=64, max_tokens=256),
        optim=OptimConfig(lr=1e-3, language_lr_factor=0.3, lr_warmup_steps=200),
        train=TrainConfig(
            part=part,  # type: ignore[arg-type]
            steps=10_000,
            eval_every_steps=500,
            eval_batches=16,
            save_every_steps=1_000,
        ),
    )


PRESETS: Mapping[str, Callable[[str], RunConfig]] = MappingProxyType({"quickstart": quickstart, "one_gpu": one_gpu})


def preset(name: str, part: str) -> RunConfig:
    """Return a preset for one part.

    Raises:
        InputError: There is no such preset or part; the nearest name is shown.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: no such preset{nearest(name, PRESETS)}")
    if part not in PARTS:
        raise InputError(f"{part}: no such part to train{nearest(part, PARTS)}")
    return PRESETS[name](part)
