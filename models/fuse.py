"""Turn a Llama-shaped causal model of transformers into the fused decoder."""

from __future__ import annotations

from typing import Any, cast

import torch

from data_pipeline.errors import InputError
from models.configs import LanguageConfig, LoRAConfig
from models.few_bits import BLOCK
from models.fused_decoder import PROJECTIONS, DecoderLayer, DecoderShape, FusedDecoder, Weights
from models.precision import base_dtype

_FAMILIES = ("llama", "mistral")
_TURNS = ("default", "linear", "llama3", "yarn")  # whose angles do not depend on the length of the text


def why_not(causal: Any, lora: LoRAConfig) -> str:
    """Return what keeps this model from being fused; "" when nothing does."""
    config = causal.config
    activation = getattr(config, "hidden_act", None)
    checks = {
        f"its architecture is {config.model_type}, not one of {', '.join(_FAMILIES)}": config.model_type in _FAMILIES,
        "it attends within a sliding window": getattr(config, "sliding_window", None) is None,
        "its projections have biases": not (getattr(config, "attention_bias", 0) or getattr(config, "mlp_bias", 0)),
        f"its activation is {activation}, not silu": activation == "silu",
        "its attention has dropout": not getattr(config, "attention_dropout", 0),
        "it is quantised": getattr(config, "quantization_config", None) is None,
        "its rotary angles depend on the length": _turn(config) in _TURNS,
        f"lora.dropout={lora.dropout}": lora.dropout == 0,
        f"lora.targets names other modules than {', '.join(PROJECTIONS)}": set(lora.targets) <= set(PROJECTIONS),
    }
    return "; ".join(reason for reason, fine in checks.items() if not fine)


def _turn(config: Any) -> str:
    return str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))


def shape_of(config: Any) -> DecoderShape:
    """Return the sizes that a configuration of transformers states."""
    return DecoderShape(
        width=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings,
    )


@torch.no_grad()
def fuse(causal: Any, config: LanguageConfig) -> FusedDecoder:
    """Return the fused decoder with the weights of a model that `why_not` has nothing against, with new adapters.

    Each layer of the model gives its memory up as soon as it is copied.

    Raises:
        InputError: It is to be quantised and its layers do not divide into blocks.
    """
    lora, body = config.lora, causal.base_model
    shape = shape_of(causal.config)
    if config.quantise != "none" and Weights.numbers(shape) % (2 * BLOCK):
        raise InputError(
            f"model.language.quantise={config.quantise!r}: a layer of {config.checkpoint} has {Weights.numbers(shape)} "
            f'numbers, not a multiple of {2 * BLOCK}; choose "none"'
        )
    decoder = FusedDecoder(
        shape,
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        frequencies=body.rotary_emb.inv_freq,
        turn_scale=float(body.rotary_emb.attention_scaling),
        dtype=base_dtype(config.dtype),
        recompute=config.recompute,
        within_gib=config.recompute_within_gib,
        offload=config.offload_activations,
        quantise=config.quantise,
    )
    decoder.embedding.weight.copy_(body.embed_tokens.weight)
    if not decoder.shape.tied:
        decoder.head.weight.copy_(causal.get_output_embeddings().weight)
    decoder.norm.weight.copy_(body.norm.weight)
    for layer, source in zip(cast(list[DecoderLayer], decoder.layers), body.layers, strict=True):
        attention, mlp = source.self_attn, source.mlp
        layer.load(
            Weights(
                torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)]),
                attention.o_proj.weight,
                torch.cat([p.weight for p in (mlp.gate_proj, mlp.up_proj)]),
                mlp.down_proj.weight,
            )
        )
        layer.norms.copy_(torch.stack([source.input_layernorm.weight, source.post_attention_layernorm.weight]))
        layer.reset_adapter()
        for parameter in source.parameters():
            parameter.data = parameter.data.new_empty(0)
    return decoder
