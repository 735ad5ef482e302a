"""The discrete latent of the graph VAE: which network seen in training the new one is told after."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from models import noise
from models.losses import gather_with_grad

SHARPNESS = 30.0  # p(network | exemplar) falls by e for each thirtieth of Jaccard distance
NOWHERE = -1e4  # logarithm of the share of what does not count
_NOTED = 16  # bytes of a note that are not edges
STEEPNESS = 4.0  # of the shares, for faster learning
_HIDDEN = 128


class Told(NamedTuple):
    """Which exemplar each network is told after."""

    row: Int[Tensor, " B"]
    usable: Bool[Tensor, " B"]  # there is one (from another environment, in training)
    kl_nats: Float[Tensor, " B"]  # from q(exemplar | network) to p(exemplar | environment); 0 where none is usable


class Exemplars(nn.Module):
    """A queue of the networks that training saw last, with p(exemplar | environment).

    The share of an exemplar is a softmax over how well the environment suits its metabolites (a linear map from what
    is known of the environment to each metabolite); q(exemplar | network) falls with the Jaccard distance of the edges.
    Exemplars from the environment of the network itself are left out, so that the shares carry over to environments
    that were never seen.

    Source: the exemplar VAE (Norouzi, Fleet and Norouzi 2020), made conditional and discrete.
    """

    edges: Tensor
    origin: Tensor
    written: Tensor
    place: Tensor
    incidence: Tensor

    def __init__(self, pairs: Int[Tensor, "E 2"], metabolites: int, features: int, width: int, size: int) -> None:
        """Build an empty queue.

        Args:
            pairs: The metabolites of each edge that a network may have.
            metabolites: Of the vocabulary.
            features: Numbers that describe an environment.
            width: Numbers that embed an exemplar.
            size: Networks that are kept.
        """
        super().__init__()
        self.register_buffer("edges", torch.zeros(size, len(pairs), dtype=torch.bool))
        self.register_buffer("origin", torch.zeros(size, dtype=torch.int64))  # digest of the environment
        self.register_buffer("written", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        incidence = torch.zeros(len(pairs), metabolites).scatter_(1, pairs, 1.0)
        self.register_buffer("incidence", incidence, persistent=False)
        self.suits = nn.Linear(features, metabolites)
        nn.init.zeros_(self.suits.weight)
        nn.init.zeros_(self.suits.bias)
        self.read = nn.Sequential(nn.Linear(len(pairs), _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, width))

    def log_shares(
        self, features: Float[Tensor, "B F"], origin: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
        """Return the logarithms of the shares in float32, and which exemplars count.

        Args:
            features: Of the environment (graph_encoder.environment_features); zeros where it is not known.
            origin: Digests of environments whose exemplars are left out.
        """
        dtype = self.suits.weight.dtype
        has = (self.edges.to(dtype) @ self.incidence.to(dtype) > 0).float()
        suits = STEEPNESS * self.suits(features.to(dtype)).float() @ has.T
        usable = self.written[None].expand_as(suits)
        if origin is not None:
            usable = usable & (self.origin != origin[:, None])
        return torch.log_softmax(torch.where(usable, suits, NOWHERE), dim=1), usable

    def posterior(
        self,
        edges: Bool[Tensor, "B E"],
        features: Float[Tensor, "B F"],
        origin: Int[Tensor, " B"],
        seed: Int[Tensor, " B"],
        stream: int,
    ) -> Told:
        """Draw an exemplar for each network, most likely one that is most alike."""
        log_share, usable = self.log_shares(features, origin)
        there, known = edges.float(), self.edges.float()
        shared = there @ known.T
        union = there.sum(1, keepdim=True) + known.sum(1) - shared
        alike = torch.where(usable, SHARPNESS * shared / union.clamp(min=1.0), NOWHERE)
        log_posterior = torch.log_softmax(alike, dim=1)
        any_usable = usable.any(1) & edges.any(1)
        kl = (log_posterior.exp() * (log_posterior - log_share)).sum(1)
        return Told(draw(log_posterior, seed, stream), any_usable, torch.where(any_usable, kl, 0.0))

    def embed(self, row: Int[Tensor, " B"], usable: Bool[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Return what the decoder reads of an exemplar; zeros where there is none."""
        first = self.read[0]
        assert isinstance(first, nn.Linear)
        return self.read(self.edges[row].to(first.weight.dtype)) * usable[:, None]

    @torch.no_grad()
    def remember(self, notes: UInt8[Tensor, "B N"]) -> None:
        """Put the networks of a batch, of all ranks, in place of the oldest exemplars; empty ones do not stay.

        In the order of their seeds, so that ranks give what one process gives. One collective.

        Args:
            notes: What `note` returns.
        """
        whole = gather_with_grad(notes)
        edges = whole[:, :-_NOTED].view(torch.bool)
        numbers = whole[:, -_NOTED:].clone(memory_format=torch.contiguous_format)
        origin, seed = numbers.view(torch.int64).unbind(1)
        alive = edges.any(1)
        order = torch.argsort(torch.where(alive, seed, torch.iinfo(torch.int64).max))[: len(self.written)]
        where = (self.place + torch.arange(len(order), device=order.device)) % len(self.written)
        written = alive[order]
        self.edges[where], self.origin[where], self.written[where] = edges[order], origin[order], written
        self.place.add_(written.sum()).remainder_(len(self.written))


def note(edges: Bool[Tensor, "B E"], origin: Int[Tensor, " B"], seed: Int[Tensor, " B"]) -> UInt8[Tensor, "B N"]:
    """Return what exemplars are made of, as one row of bytes a network."""
    return torch.cat([edges.view(torch.uint8), torch.stack([origin, seed], dim=1).view(torch.uint8)], dim=1)


def draw(log_share: Float[Tensor, "B Q"], seed: Int[Tensor, " B"], stream: int) -> Int[Tensor, " B"]:
    """Return one row a sample, with the probabilities of its shares; the noise depends on the seed alone."""
    place = torch.arange(log_share.shape[1], device=seed.device)[None]
    gumbel = -torch.log(-torch.log(noise.uniform(seed, stream, place)))
    return (log_share.detach() + gumbel).argmax(1)


def digest(numbers: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """Return an integer that is equal for equal rows (and hardly ever for others)."""
    bits = numbers.float().contiguous().view(torch.int32).long()
    factors = torch.arange(1, 2 * bits.shape[1], 2, device=bits.device) * 0x9E3779B1
    return ((bits ^ (bits >> 15)) * factors).sum(1)
