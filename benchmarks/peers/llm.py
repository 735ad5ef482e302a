"""The same language model in transformers + peft: a plain loop, and under DeepSpeed ZeRO-3, with or without Liger."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from benchmarks.llm import (
    BETAS,
    CLIP_NORM,
    LORA,
    ROPE_BASE,
    SHAPES,
    WEIGHT_DECAY,
    Load,
    device,
    fill,
    measure,
    words,
)
from models import adapters


def build(load: Load, liger: bool, fused_head: bool, small_adapters: bool) -> Any:
    """Return the model with its adapters and the weights that `fill` names.

    Args:
        load: Names the shape.
        liger: Norm, rotary turn and gated product by Liger kernels.
        fused_head: The head and its loss too.
        small_adapters: Adapters in bfloat16; peft alone keeps them in float32.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shape = SHAPES[load.shape]
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        vocab_size=shape.vocabulary,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        max_position_embeddings=8192,
        attn_implementation="sdpa",
    )
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=fused_head)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=device())
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device())
    for name, parameter in model.named_parameters():
        fill(name.removesuffix(".weight"), parameter)
    settings = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.targets), task_type="CAUSAL_LM")
    model = get_peft_model(model, settings, autocast_adapter_dtype=not small_adapters)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            fill(adapters.plain(name), parameter)
    return model


def checkpointed(model: Any) -> None:
    """Turn gradient checkpointing on as the libraries document it."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.config.use_cache = False


def trained(model: nn.Module) -> list[dict[str, Any]]:
    """Return what the optimizer gets."""
    return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": WEIGHT_DECAY}]


def plain_loop(
    load: Load, *, liger: bool, checkpointing: bool, small_adapters: bool, autocast: bool = False
) -> dict[str, Any]:
    """Train in a loop of torch alone.

    Args:
        load: What a step trains on.
        liger: See `build`.
        checkpointing: See `checkpointed`.
        small_adapters: See `build`.
        autocast: The forward runs under torch.autocast, as transformers runs it with bf16=True: adapters that are
            kept in float32 multiply in bfloat16.
    """
    started = time.monotonic()
    model = build(load, liger, fused_head=liger, small_adapters=small_adapters).train()
    if checkpointing:
        checkpointed(model)
    optimizer = torch.optim.AdamW(trained(model), lr=load.lr, betas=BETAS, fused=torch.cuda.is_available())
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms: list[float] = []

    def step(i: int) -> float:
        total = 0.0
        for m in range(load.micro_batches):
            ids = words(load, i, m).to(device())
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss / load.micro_batches
            loss.backward()
            total += loss.detach()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, CLIP_NORM)))
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    facts = {
        "liger": liger, "checkpointing": checkpointing, "adapters": "bfloat16" if small_adapters else "float32",
        "autocast": autocast,
    }  # fmt: skip
    return measure(load, step, started) | facts | {"grad_norms": [float(f"{n:.4g}") for n in norms]}


def zero3(
    load: Load, *, liger: bool, checkpointing: bool, small_adapters: bool, zero_init: bool = True
) -> dict[str, Any]:
    """Train under ZeRO-3 with the values that the Hugging Face integration writes for "auto".

    Args:
        load: What a step trains on.
        liger: See `build`.
        checkpointing: See `checkpointed`.
        small_adapters: See `build`.
        zero_init: The parameters are shared out before DeepSpeed starts, as `from_pretrained` does with that
            integration; then DeepSpeed leaves peft's float32 adapters as they are. A model that comes whole has
            them cast to bfloat16 (its engine.py, _cast_module_mixed_precision), which is faster.
    """
    from trainers.ranks import start

    deepspeed = start(600.0)
    started = time.monotonic()
    model = build(load, liger, fused_head=False, small_adapters=small_adapters).train()
    if checkpointing:
        checkpointed(model)
    else:
        model.enable_input_require_grads()
        model.config.use_cache = False
    width = SHAPES[load.shape].width
    table = {
        "train_micro_batch_size_per_gpu": load.rows,
        "gradient_accumulation_steps": load.micro_batches,
        "gradient_clipping": CLIP_NORM,
        "bf16": {"enabled": torch.cuda.is_available()},
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "reduce_bucket_size": width**2,
            "stage3_prefetch_bucket_size": int(0.9 * width**2),
            "stage3_param_persistence_threshold": 10 * width,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
        },
    }
    if zero_init:
        deepspeed.zero.Init(module=model, config_dict_or_path=table)
    optimizer = torch.optim.AdamW(trained(model), lr=load.lr, betas=BETAS, fused=torch.cuda.is_available())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=table, dist_init_required=False)

    def step(i: int) -> float:
        total = 0.0
        for m in range(load.micro_batches):
            ids = words(load, i, m).to(device())
            loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
            engine.backward(loss)
            engine.step()
            total += loss.detach() / load.micro_batches
        return float(total)

    kinds = sorted({str(p.ds_tensor.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad})
    facts = {"zero_stage": 3, "liger": liger, "checkpointing": checkpointing, "adapters": ", ".join(kinds)}
    return measure(load, step, started) | facts
