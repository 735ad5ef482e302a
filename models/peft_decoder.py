"""Any causal model of transformers with injected peft adapters, behind the interface of the fused decoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.packed_attention import Packing


class PeftDecoder(nn.Module):
    """Runs the model over padded rows; its submodules keep the names that they have in the checkpoint."""

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self._causal = (causal,)  # in a tuple: not a submodule, so that no name gets a second beginning
        for name, child in causal.named_children():
            self.add_module(name, child)

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return int(self._causal[0].config.hidden_size)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self._causal[0].config.num_hidden_layers)

    def forward(
        self,
        embedded: Float[Tensor, "N h"],
        places: Int[Tensor, " N"],
        packing: Packing,
        cache: list[Any] | None = None,
        taps: dict[int, Tensor] | None = None,
        layers: int | None = None,
    ) -> Float[Tensor, "N h"]:
        """Return the last hidden states; see FusedDecoder.forward. The cache holds the one of transformers."""
        lengths = packing.lengths
        rows = nn.utils.rnn.pad_sequence(embedded.split(lengths), batch_first=True)
        base, past = self._causal[0].base_model, cache[0] if cache else None
        if cache is not None:
            step = base(inputs_embeds=rows, past_key_values=past, use_cache=True)
            cache[:] = [step.past_key_values]
        else:
            length = torch.tensor(lengths, device=embedded.device)
            place = torch.arange(rows.shape[1], device=embedded.device)
            step = base(
                inputs_embeds=rows,
                attention_mask=place < length[:, None],
                position_ids=place.expand(len(rows), -1),
                use_cache=False,
                output_hidden_states=bool(taps) or layers is not None,
            )
        if layers is not None:
            return _packed(step.hidden_states[layers], lengths)
        if taps is not None:
            taps.update({after: _packed(step.hidden_states[after], lengths) for after in taps})
        return _packed(step.last_hidden_state, lengths)

    def embed(self, token_ids: Int[Tensor, "*s"]) -> Float[Tensor, "*s h"]:
        """Return the embeddings of words."""
        out: Tensor = self._causal[0].get_input_embeddings()(token_ids)
        return out

    def nats(self, hidden: Float[Tensor, "n h"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return what each label costs that these states foresee."""
        return F.cross_entropy(self.logits(hidden).float(), labels, reduction="none")

    def logits(self, hidden: Float[Tensor, "n h"]) -> Float[Tensor, "n V"]:
        """Return a score for each word of the vocabulary."""
        out: Tensor = self._causal[0].get_output_embeddings()(hidden)
        return out


def _packed(rows: Float[Tensor, "R L h"], lengths: tuple[int, ...]) -> Float[Tensor, "N h"]:
    return torch.cat([row[:n] for row, n in zip(rows.unbind(), lengths, strict=True)])
