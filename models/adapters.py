"""Read and write adapters in the format of peft, and tell which of them never got a gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline.errors import InputError
from models.configs import LoRAConfig
from models.fused_decoder import FusedDecoder
from models.peft_decoder import PeftDecoder

TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_BLOCK = {p: "self_attn" for p in ("q_proj", "k_proj", "v_proj", "o_proj")} | {
    p: "mlp" for p in ("gate_proj", "up_proj", "down_proj")
}


class Piece(NamedTuple):
    """One tensor of peft inside the adapter matrix of a layer of the fused decoder."""

    name: str  # as a module of the checkpoint: model.layers.0.self_attn.q_proj.lora_A
    parameter: str  # of the decoder: layers.0.adapter
    columns: slice
    transposed: bool  # B is stored transposed


def pieces(decoder: FusedDecoder) -> Iterator[Piece]:
    """Yield where each tensor of peft lies."""
    for i, layer in enumerate(decoder.layers):
        for slot in (s for group in layer.slots for s in group):  # type: ignore[union-attr]
            name = f"model.layers.{i}.{_BLOCK[slot.projection]}.{slot.projection}"
            yield Piece(f"{name}.lora_A", f"layers.{i}.adapter", slot.a, False)
            yield Piece(f"{name}.lora_B", f"layers.{i}.adapter", slot.b, True)


def to_peft(decoder: FusedDecoder, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of peft, by their name in the checkpoint, from the decoder's weights by name."""
    parts = {p.name: weights[p.parameter][:, p.columns] for p in pieces(decoder)}
    return {p.name: (parts[p.name].t() if p.transposed else parts[p.name]).contiguous() for p in pieces(decoder)}


def from_peft(decoder: FusedDecoder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the decoder's weights by name from the tensors of peft.

    Raises:
        KeyError: One is missing.
        ValueError: One has another shape.
    """
    weights: dict[str, Tensor] = {}
    for i, layer in enumerate(decoder.layers):
        columns = layer.columns
        weights[f"layers.{i}.adapter"] = torch.zeros(decoder.rank, columns)  # type: ignore[call-overload]
    for piece in pieces(decoder):
        given = tensors[piece.name].float()
        target = weights[piece.parameter][:, piece.columns]
        given = given.t() if piece.transposed else given
        if given.shape != target.shape:
            raise ValueError(f"{piece.name} is {tuple(tensors[piece.name].shape)}")
        target.copy_(given)
    return weights


def write(folder: Path, tensors: Mapping[str, Tensor], lora: LoRAConfig, base: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(causal_model, folder)` loads.

    Args:
        folder: Made when it is not there.
        tensors: By name in the checkpoint, such as model.layers.0.self_attn.q_proj.lora_A.
        lora: What the adapters were made with.
        base: Name of the checkpoint that they belong to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{n}.weight": t for n, t in tensors.items()}, folder / TENSORS)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": list(lora.targets),
        "bias": "none", "fan_in_fan_out": False, "modules_to_save": None, "init_lora_weights": True,
    }  # fmt: skip
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def read(folder: Path, lora: LoRAConfig) -> dict[str, Tensor]:
    """Return the tensors of a folder in the peft format, by name in the checkpoint.

    Raises:
        InputError: The folder holds no adapter, or it was made with another rank, alpha or other targets.
    """
    name = f"model.language.lora.start_from={str(folder)!r}"
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{name}: no adapter in the peft format ({error}); give its folder") from None
    for key, mine in (("r", lora.rank), ("lora_alpha", lora.alpha), ("target_modules", sorted(lora.targets))):
        given = sorted(settings[key]) if key == "target_modules" else settings.get(key)
        if given != mine:
            raise InputError(f"{name}: its {key} is {given}, this run has {mine}; make them equal")
    return {plain(n): t for n, t in tensors.items()}


def plain(name: str) -> str:
    """Return a peft name without what only peft needs: its wrapper in front, the adapter's name and .weight behind."""
    return name.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".default")


class GradientAudit:
    """Watches the first steps for adapter tensors that no gradient reaches: such a tensor is cut off from the loss.

    B starts as zero, so the gradient of A is zero in the first step and comes with the second. A step in which no
    adapter got a gradient (there was no text) does not count.
    """

    STEPS = 2

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.names: list[str] = []
        self._largest: dict[str, Tensor] = {}
        self._device, self._steps, self._hooks = device, 0, []
        for decoder in (m for m in module.modules() if isinstance(m, FusedDecoder | PeftDecoder)):
            fused = list(pieces(decoder)) if isinstance(decoder, FusedDecoder) else []
            for name, parameter in decoder.named_parameters():
                if parameter.requires_grad:
                    parts = [(p.name, p.columns) for p in fused if p.parameter == name] or [(plain(name), slice(None))]
                    self.names += [n for n, _ in parts]
                    self._hooks.append(parameter.register_hook(partial(self._look, parts)))
        self._reached = torch.zeros(len(self.names), dtype=torch.bool, device=device)

    def _look(self, parts: list[tuple[str, slice]], grad: Tensor) -> None:
        for name, columns in parts:
            largest = grad[:, columns].detach().abs().max()
            self._largest[name] = torch.maximum(self._largest[name], largest) if name in self._largest else largest

    def step(self, over_ranks: Callable[[Tensor], Tensor]) -> list[str] | None:
        """Count a step; after the second with gradients return the names that none reached, before that None.

        Args:
            over_ranks: Sums a tensor over all ranks; every rank calls this method.
        """
        if not self.names:
            return []
        nothing = torch.zeros((), device=self._device)
        largest = torch.stack([self._largest.get(n, nothing).float() for n in self.names])
        self._largest.clear()
        now = over_ranks((largest > 0).float()) > 0
        self._reached |= now
        self._steps += int(now.any())
        if self._steps < self.STEPS:
            return None
        for hook in self._hooks:
            hook.remove()
        return [name for name, reached in zip(self.names, self._reached.tolist(), strict=True) if not reached]
