"""The conditional VAE of directed metabolic networks, with an encoder that tells the fusion what a network is like."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from data_pipeline.batch import GraphBatch
from data_pipeline.errors import InputError
from models import edge_set, noise
from models.biochemistry import COMPOSITION, Chemistry
from models.configs import GraphVAEConfig
from models.exemplars import Exemplars, digest, draw, note
from models.graph_encoder import (
    ENVIRONMENT_FEATURES,
    EnvironmentEncoder,
    GraphEncoder,
    environment_features,
    scaled_composition,
)
from models.losses import Term

EXEMPLAR, SHARE, HIDE, SHIFT = range(1, 5)  # streams of noise
TOLD = 100  # first of the streams of the exemplars over which the probability of an edge is averaged
TOLD_DRAWS = 32
GENERATION_CHUNK = 128  # networks decoded at a time, for bounded memory; the result does not depend on it
MAX_EDGES = 65_536  # that may be known: the decoder has a row of weights for each
_DRAW_STRIDE = 1 << 20  # noise of an edge does not depend on how many draws there are


class GraphVAEOutput(NamedTuple):
    """What the fusion reads of networks, what they cost, and what is kept of them."""

    latent: Float[Tensor, "B Z"]  # 0 when the network is absent
    terms: dict[str, Term]  # of the loss, see `graph_terms`
    notes: UInt8[Tensor, "B N"]  # for `exemplars.remember`, which every rank calls in training


class Decoded(NamedTuple):
    """What the decoder says of the hidden edges of each network (float32)."""

    logits: Float[Tensor, "B R E"]  # in R draws of which edges are hidden
    weight: Float[Tensor, "B R E"]  # 1 / share hidden at hidden edges, else 0
    kl_nats: Float[Tensor, " B"]  # information in the choice of the exemplar
    origin: Int[Tensor, " B"]  # see GraphVAE.origin


class GeneratedGraphs(NamedTuple):
    """Networks drawn from the model, padded to N nodes."""

    metabolite_index: Int[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]
    adjacency: Bool[Tensor, "B N N"]
    edge_type: Int[Tensor, "B N N"]  # that the reaction DB gives
    edge_probability: Float[Tensor, "B N N"]  # GraphVAE.marginals of each pair
    edge_std: Float[Tensor, "B N N"]


class GraphVAE(nn.Module):
    """Tell a network after one that training saw, edge by edge, so that it suits its environment."""

    pairs: Tensor
    edge_row: Tensor
    edge_type: Tensor
    composition: Tensor

    def __init__(self, config: GraphVAEConfig, chemistry: Chemistry) -> None:
        """Build it for a vocabulary.

        Raises:
            InputError: More edges are possible than the decoder has rows for.
        """
        super().__init__()
        self.config = config
        width, metabolites = config.width, len(chemistry.metabolites)
        possible = chemistry.allowed if config.mask else ~torch.eye(metabolites, dtype=torch.bool)
        pairs = possible.nonzero()
        if not 0 < len(pairs) <= MAX_EDGES:
            raise InputError(
                f"chemistry.allowed_edges: {len(pairs)} of {metabolites} metabolites; the graph VAE takes 1 to "
                f"{MAX_EDGES}; leave out metabolites or name the edges that are possible"
            )
        rows = torch.zeros(metabolites, metabolites, dtype=torch.int64)
        rows[possible] = torch.arange(1, len(pairs) + 1)
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("edge_row", rows, persistent=False)  # 0: no such edge
        self.register_buffer("edge_type", chemistry.edge_type.long().clamp(min=1), persistent=False)
        self.register_buffer("composition", scaled_composition(chemistry.composition), persistent=False)

        self.identity = nn.Embedding(metabolites, width)
        nn.init.normal_(self.identity.weight, std=0.5)
        self.read_composition = nn.Linear(COMPOSITION, width)
        self.encoder = GraphEncoder(width, config.heads, config.encoder_layers, config.latent_dim)
        self.recon = nn.Linear(config.latent_dim, len(pairs))
        self.surroundings = EnvironmentEncoder(width)
        self.exemplars = Exemplars(pairs, metabolites, ENVIRONMENT_FEATURES, width, config.exemplars)
        self.decoder = edge_set.EdgeSetDecoder(len(pairs), config.decoder_width, config.decoder_layers, width)

    def forward(
        self,
        graph: GraphBatch,
        environment: Float[Tensor, "B V"],
        environment_present: Bool[Tensor, " B"],
        noise_seed: Int[Tensor, " B"] | None = None,
        present: Bool[Tensor, " B"] | None = None,
    ) -> GraphVAEOutput:
        """Encode the networks, and predict the hidden edges of each from the rest, an exemplar and its environment.

        Args:
            environment: Physical units, variables.ENVIRONMENT.
            environment_present: Where False, a learned vector stands in.
            noise_seed: One number a sample, from which its exemplar and its hidden edges are drawn; zeros by default.
            present: Where False, a network adds nothing to the terms; all count by default.
        """
        seed = torch.zeros_like(graph.mask[:, 0], dtype=torch.long) if noise_seed is None else noise_seed
        latent, edges = self.encode(graph), self.edges(graph)
        decoded = self.decode(edges, environment, environment_present, seed)
        real = graph.mask if present is None else graph.mask & present[:, None]
        terms = graph_terms(edges, self.recon(latent).float(), decoded, real)
        return GraphVAEOutput(latent, terms, note(edges, decoded.origin, seed))

    def encode(self, graph: GraphBatch) -> Float[Tensor, "B Z"]:
        """Return the latent that the fusion reads; the environment has no part in it."""
        index = graph.metabolite_index
        identity = self.identity(index) + self.read_composition(self.composition[index])
        return self.encoder(graph, identity) * graph.mask.any(1, keepdim=True)

    def edges(self, graph: GraphBatch) -> Bool[Tensor, "B E"]:
        """Return which of the known edges a network has; what is not known is left out."""
        index = graph.metabolite_index
        row = self.edge_row[index[:, :, None], index[:, None, :]] * graph.adjacency
        there = torch.zeros(len(row), len(self.pairs) + 1, dtype=torch.bool, device=row.device)
        return there.scatter(1, row.flatten(1), True)[:, 1:]

    def decode(
        self,
        edges: Bool[Tensor, "B E"],
        environment: Float[Tensor, "B V"],
        present: Bool[Tensor, " B"],
        seed: Int[Tensor, " B"],
    ) -> Decoded:
        """Hide edges, draw an exemplar that is like the network, and predict what is hidden.

        In training the environment is shifted a little.
        """
        shift = None
        if self.training:
            shift = noise.normal(seed, SHIFT, torch.arange(environment.shape[1], device=seed.device)[None])
            shift = self.config.environment_shift * shift
        features = environment_features(environment, shift) * present[:, None]
        origin = self.origin(edges, environment, present)
        told = self.exemplars.posterior(edges, features, origin, seed, EXEMPLAR)
        exemplar = self.exemplars.embed(told.row, told.usable)
        draws = torch.arange(self.config.draws, device=seed.device)[:, None]
        place = draws * _DRAW_STRIDE + torch.arange(edges.shape[1], device=seed.device)
        share = edge_set.hidden_share(seed, SHARE, draws[None])
        hidden = noise.uniform(seed, HIDE, place[None]) < share
        state = torch.where(hidden, edge_set.HIDDEN, edges.long()[:, None])
        condition = self.surroundings(features, present) + exemplar
        return Decoded(self.decoder(state, condition).float(), hidden / share, told.kl_nats, origin)

    def origin(
        self, edges: Bool[Tensor, "B E"], environment: Float[Tensor, "B V"], present: Bool[Tensor, " B"]
    ) -> Int[Tensor, " B"]:
        """Return a digest of the environment; of the network itself where there is none."""
        return torch.where(present, digest(environment), digest(edges.float()))

    @torch.no_grad()
    def generate(
        self,
        environment: Float[Tensor, "B V"],
        generator: torch.Generator,
        steps: int | None = None,
        temperature: float | None = None,
        environment_present: Bool[Tensor, " B"] | None = None,
        exemplar_temperature: float | None = None,
    ) -> GeneratedGraphs:
        """Draw one network for each environment from the prior.

        Args:
            environment: Physical units, variables.ENVIRONMENT.
            generator: A CPU generator; equal states give equal networks, whatever else is in the batch.
            steps: Refinement steps (config.sampling_steps by default); 1 is the one-shot decoder.
            temperature: Divides the log-odds of exemplars and edges (config.temperature by default); towards 0 the most
                likely is taken.
            environment_present: Where False the network is drawn without a condition.
            exemplar_temperature: Of the exemplars alone, in place of `temperature`.
        """
        seeds = torch.randint(2**62, (len(environment),), generator=generator).to(environment.device)
        present = torch.ones_like(seeds, dtype=torch.bool) if environment_present is None else environment_present
        steps = self.config.sampling_steps if steps is None else steps
        temperature = max(self.config.temperature if temperature is None else temperature, 1e-4)
        of_exemplars = max(temperature if exemplar_temperature is None else exemplar_temperature, 1e-4)
        parts = []
        for first in range(0, len(environment), GENERATION_CHUNK):
            chunk = slice(first, first + GENERATION_CHUNK)
            condition = self._told(environment[chunk], present[chunk], seeds[chunk], EXEMPLAR, of_exemplars)
            chosen = edge_set.sample(self.decoder, condition, seeds[chunk], steps, temperature)
            alone = self.marginals(environment[chunk], present[chunk], seeds[chunk])
            parts.append(self._assemble(chosen, *alone))
        nodes = max(part.mask.shape[1] for part in parts)
        return GeneratedGraphs(*(torch.cat([_pad(t, nodes) for t in field]) for field in zip(*parts, strict=True)))

    @torch.no_grad()
    def marginals(
        self, environment: Float[Tensor, "B V"], present: Bool[Tensor, " B"], seed: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """Return the probability of each known edge in an environment, whatever else there is, and its doubt.

        The probability is the mean over exemplars, the doubt the standard deviation between them; no temperature
        sharpens them.
        """
        nothing = torch.full((len(seed), 1, len(self.pairs)), edge_set.HIDDEN, device=seed.device)
        conditions = (self._told(environment, present, seed, TOLD + n) for n in range(TOLD_DRAWS))
        alone = torch.stack([self.decoder(nothing, c)[:, 0].float().sigmoid() for c in conditions])
        return alone.mean(0), alone.std(0)

    def _told(
        self, environment: Tensor, present: Tensor, seed: Tensor, stream: int, temperature: float = 1.0
    ) -> Float[Tensor, "B D"]:
        """Return what the decoder is told: the environment and an exemplar drawn for it."""
        features = environment_features(environment) * present[:, None]
        shares, usable = self.exemplars.log_shares(features)
        row = draw(torch.log_softmax(shares / temperature, dim=1), seed, stream)
        return self.surroundings(features, present) + self.exemplars.embed(row, usable.any(1))

    def _assemble(self, chosen: Tensor, probability: Tensor, std: Tensor) -> GeneratedGraphs:
        """Turn sets of edges into networks whose nodes are the metabolites that the edges join."""
        source, target = self.pairs.unbind(1)
        metabolites = len(self.edge_row)
        joined = torch.zeros(len(chosen), metabolites, dtype=torch.int64, device=chosen.device)
        joined = joined.index_add(1, source, chosen.long()).index_add(1, target, chosen.long()) > 0
        index = torch.argsort(~joined, dim=1, stable=True)[:, : max(1, int(joined.sum(1).max()))]
        mask = joined.gather(1, index)
        row = self.edge_row[index[:, :, None], index[:, None, :]] * (mask[:, :, None] & mask[:, None, :])

        def of_pairs(values: Tensor) -> Tensor:
            flat = F.pad(values, (1, 0)).gather(1, row.flatten(1))
            return flat.view(row.shape)

        adjacency = of_pairs(chosen)
        return GeneratedGraphs(
            metabolite_index=index * mask,
            mask=mask,
            adjacency=adjacency,
            edge_type=self.edge_type[index[:, :, None], index[:, None, :]] * adjacency,
            edge_probability=of_pairs(probability),
            edge_std=of_pairs(std),
        )


def graph_terms(
    edges: Bool[Tensor, "B E"], recon_logits: Float[Tensor, "B E"], decoded: Decoded, real: Bool[Tensor, "B N"]
) -> dict[str, Term]:
    """Return the loss terms in nats a metabolite; networks without one add 0 to sums and items.

    graph/edges and graph/kl add up to the negative evidence bound with equal weights; graph/recon is the
    cross-entropy of all known edges, told from the latent alone.

    Args:
        edges: Of the networks, among those that are known.
        recon_logits: What the latent alone says of them.
        real: Which nodes are metabolites of a network that counts.
    """
    nodes = real.sum().float()
    has_graph = real.any(1)
    truth = edges.float()
    hidden = F.binary_cross_entropy_with_logits(
        decoded.logits, truth[:, None].expand_as(decoded.logits), reduction="none"
    )
    recon = F.binary_cross_entropy_with_logits(recon_logits, truth, reduction="none").sum(1)

    def per_node(nats: Tensor) -> Term:
        return Term(torch.where(has_graph, nats, 0.0).sum().float(), nodes)

    return {
        "graph/edges": per_node((hidden * decoded.weight).sum(2).mean(1)),
        "graph/kl": per_node(decoded.kl_nats),
        "graph/recon": per_node(recon),
    }


def _pad(t: Tensor, nodes: int) -> Tensor:
    """Pad every axis but the first with zeros up to `nodes`."""
    padding: list[int] = []
    for axis in range(t.dim() - 1, 0, -1):
        padding += [0, nodes - t.shape[axis]]
    return F.pad(t, padding)
