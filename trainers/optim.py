"""Group parameters by part and set their learning rates step by step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainers.config import OptimConfig

# First letters of an objective's attribute -> part; everything else belongs to the fusion.
PARTS = ("graph", "climate", "spectrum", "language")


def part_of(parameter_name: str) -> str:
    """Return the part (graph, climate, spectrum, language or fusion) that a parameter's learning rate follows."""
    if parameter_name.startswith("language.reader"):  # starts from nothing, unlike the language model
        return "fusion"
    return next((part for part in PARTS if parameter_name.startswith(part)), "fusion")


def parameter_groups(objective: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return AdamW groups of what is trainable: matrices, and vectors without weight decay, of all parts of one rate.

    Few groups: DeepSpeed's norm and update of one keep the host busy for 1.5 ms (CHANGELOG.md).
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        part, is_matrix = part_of(name), parameter.dim() > 1
        decay = config.weight_decay if is_matrix else 0.0
        fresh = {"params": [], "lr": peak_lr(part, config), "weight_decay": decay, "parts": ()}
        group = groups.setdefault((lr_factor(part, config), is_matrix), fresh)
        group["params"].append(parameter)
        if part not in group["parts"]:
            group["parts"] += (part,)
    return list(groups.values())


def peak_lr(part: str, config: OptimConfig) -> float:
    """Return a part's highest learning rate."""
    return config.lr * lr_factor(part, config)


def lr_factor(part: str, config: OptimConfig) -> float:
    """Return what a part's learning rate is to the one of all."""
    factor: float = getattr(config, f"{part}_lr_factor")
    return factor


def lr_share(step: int, steps: int, config: OptimConfig) -> float:
    """Return the share of the peak learning rate at a step, counted from 0: linear warm-up, then a cosine.

    The step after warm-up has share 1, the step after the last has `final_lr_share`.
    """
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    done = min((step - config.lr_warmup_steps) / max(steps - config.lr_warmup_steps, 1), 1.0)
    return config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: Any, step: int, steps: int, config: OptimConfig) -> dict[str, float]:
    """Set the learning rate of every group for this step; return it by part."""
    share = lr_share(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = share * peak_lr(group["parts"][0], config)
    return {part: group["lr"] for group in optimizer.param_groups for part in group["parts"]}


def adamw(groups: list[dict[str, Any]], config: OptimConfig, on_gpu: bool) -> torch.optim.AdamW:
    """Return AdamW; fused on a GPU."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=on_gpu)
