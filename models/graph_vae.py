"""The conditional, directed, hierarchical VAE of metabolic networks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data_pipeline.batch import GraphBatch
from data_pipeline.variables import EDGE_TYPES
from models import graph_decoder as decoder, noise
from models.biochemistry import COMPOSITION, Chemistry, mass_balance_penalty, valence_penalty
from models.configs import GraphVAEConfig
from models.graph_encoder import END_PRODUCT, SUPPLIED, EnvironmentEncoder, GraphEncoder, scaled_composition
from models.losses import Term
from models.prior import MixturePrior, kl_to_mixture, kl_to_normal

NODE_LATENT, GLOBAL_LATENT, NODE_SHARE, NODE_HIDE, EDGE_SHARE, EDGE_HIDE = range(1, 7)  # streams of noise
GENERATION_CHUNK = 128  # networks decoded at a time, for bounded memory; the result does not depend on it


class GraphVAEOutput(NamedTuple):
    """The pooled latent that the fusion reads, and what `graph_terms` needs (float32)."""

    latent: Float[Tensor, "B D"]  # posterior mean of the global latent beside the mean of the local ones; 0 when absent
    kl_nats: Float[Tensor, " B"]  # information in all latents
    kl_charged_nats: Float[Tensor, " B"]  # the part above the free bits
    node_logits: Float[Tensor, "B R M"]  # R draws of which metabolites are hidden
    node_target: Bool[Tensor, "B M"]
    node_weight: Float[Tensor, "B R M"]  # 1 / share hidden at hidden metabolites, else 0
    supplied_logits: Float[Tensor, "B N"]
    pair_logits: Float[Tensor, "B N N 4"]
    pair_weight: Float[Tensor, "B N N"]  # 1 / share hidden at hidden pairs i < j, else 0
    pair_hidden: Bool[Tensor, "B N N"]
    edge_type_logits: Float[Tensor, "B N N T"]
    max_in: Float[Tensor, "B N"]
    max_out: Float[Tensor, "B N"]


class GeneratedGraphs(NamedTuple):
    """Networks drawn from the model, padded to N nodes."""

    metabolite_index: Int[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]
    adjacency: Bool[Tensor, "B N N"]
    edge_type: Int[Tensor, "B N N"]
    edge_std: Float[Tensor, "B N N"]  # standard deviation of the probability of each edge; 0 at padding
    edge_probability: Float[Tensor, "B N N"]  # with which the pair was decided


class GraphVAE(nn.Module):
    """Encode a network, draw its latents, decode it again; or draw latents from the environment and decode those."""

    edge_type: Tensor
    pair_row: Tensor
    composition: Tensor
    max_in: Tensor
    max_out: Tensor

    def __init__(self, config: GraphVAEConfig, chemistry: Chemistry) -> None:
        super().__init__()
        self.config = config
        width, metabolites = config.width, len(chemistry.metabolites)
        known = chemistry.allowed
        pairs = int(known.sum())
        rows = torch.zeros_like(known, dtype=torch.int32)
        if pairs < decoder.MAX_PAIR_ROWS:
            rows[known] = torch.arange(1, pairs + 1, dtype=torch.int32)
        else:
            pairs = 0
        self.register_buffer("edge_type", chemistry.edge_type.clone(), persistent=False)
        self.register_buffer("pair_row", rows, persistent=False)
        self.register_buffer("composition", scaled_composition(chemistry.composition), persistent=False)
        self.register_buffer("max_in", chemistry.max_in.clone(), persistent=False)
        self.register_buffer("max_out", chemistry.max_out.clone(), persistent=False)

        self.identity = nn.Embedding(metabolites, width)
        nn.init.normal_(self.identity.weight, std=0.5)
        self.read_composition = nn.Linear(COMPOSITION, width)
        self.environment_encoder = EnvironmentEncoder(width)
        self.encoder = GraphEncoder(
            width, config.heads, config.encoder_layers, config.global_latent_dim, config.node_latent_dim, config.dropout
        )
        self.prior = MixturePrior(width, config.prior_components, config.global_latent_dim)
        self.condition = nn.Sequential(
            nn.Linear(width + config.global_latent_dim, width), nn.GELU(), nn.Linear(width, width)
        )
        self.node_prior = nn.Sequential(
            nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 2 * config.node_latent_dim)
        )
        self.supplied = nn.Linear(width, metabolites)
        self.read_supplied = nn.Embedding(2, width)
        self.read_node_latent = nn.Linear(config.node_latent_dim, width)
        self.node_decoder = decoder.NodeDecoder(metabolites, config.node_decoder_width, config.decoder_layers, width)
        self.edge_decoder = decoder.EdgeDecoder(
            width, config.heads, config.decoder_layers, width, pairs + 1, config.dropout
        )

    def forward(
        self,
        graph: GraphBatch,
        environment: Float[Tensor, "B V"],
        environment_present: Bool[Tensor, " B"],
        noise_seed: Int[Tensor, " B"] | None = None,
        environment_visible: Bool[Tensor, " B"] | None = None,
    ) -> GraphVAEOutput:
        """Encode the networks and predict the hidden part of each from the rest, its latents and its environment.

        Args:
            environment: Physical units, variables.ENVIRONMENT.
            environment_present: Where False, a learned vector stands in.
            noise_seed: One number a sample, from which its latent noise and its hidden parts are drawn; zeros by
                default. In evaluation mode the latents are their means and only the hidden parts are drawn.
            environment_visible: Where False the encoder, and so `latent`, does not read the environment (the decoder
                still does); `environment_present` by default.
        """
        seed = torch.zeros_like(graph.mask[:, 0], dtype=torch.long) if noise_seed is None else noise_seed
        index, mask = graph.metabolite_index, graph.mask
        surroundings = self.environment_encoder(environment, environment_present)
        visible = surroundings
        if environment_visible is not None:
            visible = torch.where(
                (environment_visible & environment_present)[:, None], surroundings, self.environment_encoder.null
            )
        identity = self.identity(index) + self.read_composition(self.composition[index])

        posterior = self.encoder(graph, identity, visible)
        global_latent = self._draw(posterior.global_mean, posterior.global_log_var, seed, GLOBAL_LATENT)
        node_latent = self._draw(posterior.node_mean, posterior.node_log_var, seed, NODE_LATENT)
        condition = self._condition(surroundings, global_latent)
        node_prior_mean, node_prior_log_var = self._node_prior(identity, condition)
        kl_global = kl_to_mixture(posterior.global_mean, posterior.global_log_var, self.prior(surroundings))
        kl_node = kl_to_normal(posterior.node_mean, posterior.node_log_var, node_prior_mean, node_prior_log_var)
        kl_node = torch.where(mask, kl_node, 0.0).sum(1)
        free = self.config.free_nats * self.config.global_latent_dim

        node_target = torch.zeros(len(index), len(self.identity.weight), dtype=torch.long, device=index.device)
        node_target = node_target.scatter_add(1, index, mask.long()) > 0
        draws = torch.arange(self.config.node_draws, device=index.device)[:, None]
        place = draws * decoder.PLACE_STRIDE + torch.arange(node_target.shape[1], device=index.device)
        node_share = decoder.hidden_share(seed, NODE_SHARE, draws[None], self.config.all_hidden)
        node_hidden = noise.uniform(seed, NODE_HIDE, place[None]) < node_share
        node_state = torch.where(node_hidden, decoder.HIDDEN_NODE, node_target.long()[:, None])
        node_logits = self.node_decoder(node_state, condition).float()

        known_type, pair_row = self._known(index, mask)
        upper = decoder.upper_triangle(mask)
        edge_share = decoder.hidden_share(seed, EDGE_SHARE, draws[None, :1, :], self.config.all_hidden)
        pair_hidden = noise.uniform(seed, EDGE_HIDE, decoder.pair_places(mask.shape[1], mask.device))
        pair_hidden = (pair_hidden < edge_share) & (upper | upper.transpose(1, 2))
        pair_state = torch.where(pair_hidden, decoder.HIDDEN_PAIR, decoder.pair_state(graph.adjacency))
        nodes = self._node_inputs(identity, node_latent, graph.features[..., SUPPLIED] > 0.5)
        scores = self.edge_decoder(nodes, mask, pair_state, known_type, pair_row, condition)

        has_graph = mask.any(1)
        pooled = (posterior.node_mean * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        latent = torch.cat([posterior.global_mean, pooled], dim=1) * has_graph[:, None]
        return GraphVAEOutput(
            latent=latent.to(self.identity.weight.dtype),
            kl_nats=kl_global + kl_node,
            kl_charged_nats=torch.relu(kl_global - free) + kl_node,
            node_logits=node_logits,
            node_target=node_target,
            node_weight=node_hidden / node_share,
            supplied_logits=self.supplied(surroundings).float().gather(1, index),
            pair_logits=decoder.pair_logits(scores),
            pair_weight=(pair_hidden & upper) / edge_share,
            pair_hidden=pair_hidden,
            edge_type_logits=scores.edge_type,
            max_in=self.max_in[index].float(),
            max_out=self.max_out[index].float(),
        )

    @torch.no_grad()
    def generate(
        self,
        environment: Float[Tensor, "B V"],
        generator: torch.Generator,
        steps: int | None = None,
        use_mask: bool = True,
        temperature: float | None = None,
        environment_present: Bool[Tensor, " B"] | None = None,
    ) -> GeneratedGraphs:
        """Draw one network for each environment from the prior.

        Args:
            environment: Physical units, variables.ENVIRONMENT.
            generator: A CPU generator; equal states give equal networks, whatever else is in the batch.
            steps: Refinement steps of each stage (config.sampling_steps by default); 1 is the one-shot decoder.
            use_mask: Never draw an edge that no reaction of the DB makes.
            temperature: Divides the log-odds (config.temperature by default); towards 0 the most likely state is taken.
            environment_present: Where False the network is drawn without a condition.
        """
        seeds = torch.randint(2**62, (len(environment),), generator=generator).to(environment.device)
        present = torch.ones_like(seeds, dtype=torch.bool) if environment_present is None else environment_present
        steps = self.config.sampling_steps if steps is None else steps
        temperature = self.config.temperature if temperature is None else temperature
        parts = [
            self._generate(
                environment[i : i + GENERATION_CHUNK],
                present[i : i + GENERATION_CHUNK],
                seeds[i : i + GENERATION_CHUNK],
                steps,
                use_mask,
                temperature,
            )
            for i in range(0, len(environment), GENERATION_CHUNK)
        ]
        nodes = max(part.mask.shape[1] for part in parts)
        return GeneratedGraphs(*(torch.cat([_pad(t, nodes) for t in field]) for field in zip(*parts, strict=True)))

    def _generate(
        self, environment: Tensor, present: Tensor, seed: Tensor, steps: int, use_mask: bool, temperature: float
    ) -> GeneratedGraphs:
        surroundings = self.environment_encoder(environment, present)
        condition = self._condition(surroundings, self.prior.sample(surroundings, seed, GLOBAL_LATENT))
        chosen, _ = decoder.sample_nodes(self.node_decoder, condition, seed, steps, temperature)
        order = torch.argsort(~chosen, dim=1, stable=True)[:, : max(1, int(chosen.sum(1).max()))]
        index, mask = order, chosen.gather(1, order)
        identity = self.identity(index) + self.read_composition(self.composition[index])
        mean, log_var = self._node_prior(identity, condition)
        place = index[..., None] * self.config.node_latent_dim + torch.arange(
            self.config.node_latent_dim, device=index.device
        )
        node_latent = mean + (0.5 * log_var).exp() * noise.normal(seed, NODE_LATENT, place)
        supplied = self.supplied(surroundings).gather(1, index) > 0
        known_type, pair_row = self._known(index, mask)
        nodes = self._node_inputs(identity, node_latent, supplied & mask)
        adjacency, scores, probability = decoder.sample_edges(
            self.edge_decoder, nodes, mask, known_type, pair_row, condition, seed, steps, temperature, use_mask
        )
        joined = (adjacency.any(1) | adjacency.any(2)) & mask
        order = torch.argsort(~joined, dim=1, stable=True)[:, : max(1, int(joined.sum(1).max()))]
        mask = joined.gather(1, order)

        def select(pairs: Tensor) -> Tensor:
            rows = torch.arange(len(pairs), device=pairs.device)[:, None, None]
            return pairs[rows, order[:, :, None], order[:, None, :]] * (mask[:, :, None] & mask[:, None, :])

        adjacency = select(adjacency)
        return GeneratedGraphs(
            metabolite_index=index.gather(1, order) * mask,
            mask=mask,
            adjacency=adjacency,
            edge_type=select(scores.edge_type.argmax(-1) + 1) * adjacency,
            edge_std=select(decoder.edge_standard_deviation(scores, probability)),
            edge_probability=select(probability),
        )

    def _draw(self, mean: Tensor, log_var: Tensor, seed: Tensor, stream: int) -> Tensor:
        if not self.training:
            return mean
        places = torch.arange(mean[0].numel(), device=mean.device).view(1, *mean.shape[1:])
        return mean + (0.5 * log_var).exp() * noise.normal(seed, stream, places)

    def _condition(self, surroundings: Tensor, global_latent: Tensor) -> Tensor:
        return self.condition(torch.cat([surroundings, global_latent.to(surroundings.dtype)], dim=1))

    def _node_prior(self, identity: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([identity, condition[:, None].expand_as(identity)], dim=-1)
        mean, log_var = self.node_prior(both).float().chunk(2, dim=-1)
        return mean, log_var.clamp(-8.0, 2.0)

    def _node_inputs(self, identity: Tensor, node_latent: Tensor, supplied: Tensor) -> Tensor:
        return identity + self.read_node_latent(node_latent.to(identity.dtype)) + self.read_supplied(supplied.long())

    def _known(self, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the DB's edge type and the row of each ordered pair; 0 at padding."""
        real = mask[:, :, None] & mask[:, None, :]
        source, target = index[:, :, None], index[:, None, :]
        return self.edge_type[source, target].long() * real, self.pair_row[source, target].long() * real


def graph_terms(
    output: GraphVAEOutput, graph: GraphBatch, environment: Float[Tensor, "B V"], present: Bool[Tensor, " B"]
) -> dict[str, Term]:
    """Return the loss terms; absent networks add 0 to sums and items.

    graph/nodes, graph/edges and graph/kl are nats a metabolite, so with equal weights they add up to the negative
    evidence bound (but for free bits and the weight of existing edges). graph/edges reads every pair of metabolites.
    graph/nodes holds the log-likelihood of "supplied" too. graph/edge_types is nats an edge; graph/valence and
    graph/mass_balance are the penalties of models/biochemistry.py a metabolite, on the clean prediction: the truth
    where a pair was shown, probabilities where it was hidden.
    """
    real = graph.mask & present[:, None]
    nodes = real.sum().float()

    node_target = output.node_target[:, None].expand_as(output.node_logits).float()
    node_loss = F.binary_cross_entropy_with_logits(output.node_logits, node_target, reduction="none")
    supplied = (graph.features[..., SUPPLIED] > 0.5).float()
    supplied_loss = F.binary_cross_entropy_with_logits(output.supplied_logits, supplied, reduction="none")
    has_graph = real.any(1)
    node_total = _sum((node_loss * output.node_weight).mean(1), has_graph) + _sum(supplied_loss, real)

    state = decoder.pair_state(graph.adjacency)
    exists = state > 0
    more = math.log(decoder.POSITIVE_WEIGHT)
    weighted = torch.cat([output.pair_logits[..., :1], output.pair_logits[..., 1:] + more], dim=-1)
    pair_loss = F.cross_entropy(weighted.permute(0, 3, 1, 2), state, reduction="none")
    pair_loss = pair_loss * torch.where(exists, decoder.POSITIVE_WEIGHT, 1.0) * output.pair_weight

    edges = graph.adjacency & present[:, None, None]
    known_type = (graph.edge_type - 1).clamp(0, len(EDGE_TYPES) - 2)
    type_loss = F.cross_entropy(output.edge_type_logits.permute(0, 3, 1, 2), known_type, reduction="none")

    pairs = graph.mask[:, :, None] & graph.mask[:, None, :]
    predicted = decoder.edge_probability(output.pair_logits)
    predicted = torch.where(output.pair_hidden, predicted, graph.adjacency.float()) * pairs
    end_product = (graph.features[..., END_PRODUCT] > 0.5).float()
    valence = valence_penalty(predicted, output.max_in, output.max_out)
    balance = mass_balance_penalty(predicted, source=supplied, sink=end_product)

    def per_node(total: Tensor) -> Term:
        return Term(total.float(), nodes)

    return {
        "graph/edges": per_node(_sum(pair_loss, present)),
        "graph/nodes": per_node(node_total),
        "graph/edge_types": Term(_sum(type_loss, edges), edges.sum().float()),
        "graph/kl": per_node(_sum(output.kl_charged_nats, has_graph)),
        "graph/valence": per_node(_sum(valence, real)),
        "graph/mass_balance": per_node(_sum(balance, real)),
    }


def _sum(values: Tensor, counted: Tensor) -> Tensor:
    """Add the values where `counted`, which covers their leading axes (indexing would make the host wait for a GPU)."""
    return torch.where(counted.view(*counted.shape, *[1] * (values.dim() - counted.dim())), values, 0.0).sum()


def _pad(t: Tensor, nodes: int) -> Tensor:
    """Pad every axis but the first with zeros up to `nodes`."""
    padding: list[int] = []
    for axis in range(t.dim() - 1, 0, -1):
        padding += [0, nodes - t.shape[axis]]
    return F.pad(t, padding)
