"""Sample and Batch: what one planet is, and what a training step reads.

Axis letters, used in every shape of the project: B samples, N nodes (metabolites), E edges, F node features, C climate
fields, H latitudes, W longitudes, O observables of a spectrum, S spectral bins, K planet parameters, V environment
variables, L tokens, Q modalities, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch_geometric.data import Batch as PyGBatch, Data

MODALITIES = ("climate", "spectrum", "graph", "text", "planet", "environment")
CLIMATE, SPECTRUM, GRAPH, TEXT, PLANET_PARAMETERS, ENVIRONMENT_VECTOR = range(len(MODALITIES))
OBSERVABLE = ("spectrum", "planet", "text")  # what a telescope gives; the rest exists in training only


@dataclass(frozen=True, kw_only=True)
class GraphSample:
    """One directed metabolic network (substrate -> product). An absent network has no nodes."""

    metabolites: tuple[str, ...]  # BiGG ids with compartment, such as "pyr_c"; any names for other people's graphs
    metabolite_index: np.ndarray  # N int64, rows of the data set's vocabulary
    features: np.ndarray  # N F float32, variables.NODE_FEATURES
    edge_index: np.ndarray  # 2 E int64, [substrate, product]
    edge_type: np.ndarray  # E int64, rows of variables.EDGE_TYPES, never 0
    organism: str = ""
    nutrients: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextSample:
    """Tokens of [description, question, answer]; the answer is the part that is learnt."""

    token_ids: np.ndarray  # L int64
    description_length: int  # tokens [0, description_length) are the description: the text modality reads only these
    answer_start: int  # tokens [answer_start, L) carry the language-model loss


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One planet. Parts that are absent hold zeros and `present[q]` is False."""

    sample_id: str
    system_id: str
    name: str
    split: str  # train, held_out or test
    climate: np.ndarray  # C H W float32, physical units, variables.CLIMATE_FIELDS
    spectrum_ppm: np.ndarray  # O S float32, as observed (noisy)
    spectrum_error_ppm: np.ndarray  # O S float32, one sigma
    spectrum_clean_ppm: np.ndarray  # O S float32, before the noise
    planet: np.ndarray  # K float32, variables.PLANET
    environment: np.ndarray  # V float32, variables.ENVIRONMENT
    graph: GraphSample
    habitable: bool
    present: np.ndarray  # Q bool
    facts: dict[str, Any] = field(default_factory=dict)  # JSON numbers and names that the text is written from
    text: TextSample | None = None  # written by the stream (data_pipeline/text.py), not stored


@dataclass(frozen=True, kw_only=True)
class GraphBatch:
    """The networks of a batch, padded to N nodes; padding has mask False and no edges."""

    mask: Bool[Tensor, "B N"]
    metabolite_index: Int[Tensor, "B N"]
    features: Float[Tensor, "B N F"]
    adjacency: Bool[Tensor, "B N N"]  # [b, substrate, product]
    edge_type: Int[Tensor, "B N N"]

    def to_pyg(self) -> PyGBatch:
        """Return the same networks as one sparse PyG batch (x, metabolite_index, edge_index, edge_type)."""
        graphs = []
        for b, size in enumerate(self.mask.sum(1).tolist()):
            edges = self.adjacency[b, :size, :size].nonzero().T
            graphs.append(
                Data(
                    x=self.features[b, :size],
                    metabolite_index=self.metabolite_index[b, :size],
                    edge_index=edges,
                    edge_type=self.edge_type[b][edges[0], edges[1]],
                    num_nodes=size,
                )
            )
        return PyGBatch.from_data_list(graphs)


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Right-padded tokens; `label_ids` is -100 outside the answer, `description_mask` what the text modality reads."""

    token_ids: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    description_mask: Bool[Tensor, "B L"]
    label_ids: Int[Tensor, "B L"]


@dataclass(frozen=True, kw_only=True)
class SpectrumBatch:
    """Observed spectra in ppm with their errors and their star, and the noiseless spectra that a denoiser aims at."""

    ppm: Float[Tensor, "B O S"]
    error_ppm: Float[Tensor, "B O S"]
    clean_ppm: Float[Tensor, "B O S"]
    star_temperature_k: Float[Tensor, " B"]  # a spectrum is against its star, also where the planet is unknown


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step reads. An absent modality is zeros with `present[b, q]` False, never None."""

    graph: GraphBatch
    climate: Float[Tensor, "B C H W"]
    spectrum: SpectrumBatch
    text: TextBatch
    planet: Float[Tensor, "B K"]
    environment: Float[Tensor, "B V"]
    habitable: Float[Tensor, " B"]  # 0 or 1
    present: Bool[Tensor, "B Q"]  # the modality is there: its own network learns from it
    visible: Bool[Tensor, "B Q"]  # the fusion may read it; training hides some of what is present (see stream.py)
    sample_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse parts that disagree about the number of samples or hold values that are not finite."""
        size = len(self.sample_ids)
        parts = {
            "graph": self.graph.mask,
            "climate": self.climate,
            "spectrum": self.spectrum.ppm,
            "text": self.text.token_ids,
            "planet": self.planet,
            "environment": self.environment,
            "habitable": self.habitable,
            "present": self.present,
            "visible": self.visible,
        }
        for name, part in parts.items():
            if part.shape[0] != size:
                raise ValueError(f"batch.{name} holds {part.shape[0]} samples, sample_ids holds {size}")
        if bool((self.visible & ~self.present).any()):
            raise ValueError("batch.visible shows a modality that is not present")
        if self.present.shape[1] != len(MODALITIES):
            raise ValueError(
                f"batch.present has {self.present.shape[1]} columns, expected {len(MODALITIES)}: {MODALITIES}"
            )

    def to(self, device: torch.device | str) -> Batch:
        """Copy every tensor to a device."""
        return _map(self, lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Pin every tensor, for asynchronous copies."""
        return _map(self, lambda t: t.pin_memory())

    def hide(self, *modalities: str) -> Batch:
        """Return the batch with these modalities marked absent and their content zeroed."""
        return self.keep(*(m for m in MODALITIES if m not in modalities))

    def keep(self, *modalities: str) -> Batch:
        """Return the batch with only these modalities: the others are marked absent and their content zeroed.

        Raises:
            ValueError: A name is not one of MODALITIES.
        """
        unknown = set(modalities) - set(MODALITIES)
        if unknown:
            raise ValueError(f"unknown modality {sorted(unknown)}; choose from {MODALITIES}")
        mask = torch.tensor([m in modalities for m in MODALITIES], device=self.present.device)
        return self.mask_present(self.present & mask)

    def mask_present(self, present: Bool[Tensor, "B Q"]) -> Batch:
        """Return the batch with `present` replaced; what is absent is zeroed, so that nothing hidden can be read."""

        def zero(part: Tensor, q: int) -> Tensor:
            return part * present[:, q].to(part.dtype).view(-1, *[1] * (part.dim() - 1))

        spectrum = SpectrumBatch(
            **{f.name: zero(getattr(self.spectrum, f.name), SPECTRUM) for f in fields(SpectrumBatch)}
        )
        graph = GraphBatch(**{f.name: zero(getattr(self.graph, f.name), GRAPH) for f in fields(GraphBatch)})
        text = self.text
        keep_text = present[:, TEXT]
        text = TextBatch(
            token_ids=zero(text.token_ids, TEXT),
            attention_mask=text.attention_mask & keep_text[:, None],
            description_mask=text.description_mask & keep_text[:, None],
            label_ids=torch.where(keep_text[:, None], text.label_ids, -100),
        )
        return replace(
            self,
            climate=zero(self.climate, CLIMATE),
            spectrum=spectrum,
            graph=graph,
            text=text,
            planet=zero(self.planet, PLANET_PARAMETERS),
            environment=zero(self.environment, ENVIRONMENT_VECTOR),
            present=present,
            visible=self.visible & present,
        )


def _map(part: Any, move: Any) -> Any:
    """Apply `move` to every tensor of a nested dataclass."""
    if isinstance(part, Tensor):
        return move(part)
    if hasattr(part, "__dataclass_fields__"):
        return replace(part, **{f.name: _map(getattr(part, f.name), move) for f in fields(part)})
    return part
