from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from data_pipeline.batch import GraphBatch
from data_pipeline.errors import InputError
from data_pipeline.variables import ENVIRONMENT, ENVIRONMENT_NAMES
from models.biochemistry import Chemistry
from models.configs import GraphVAEConfig
from models.graph_vae import Decoded, GraphVAE, GraphVAEOutput, graph_terms
from models.losses import Term

# Three ways to use glucose or lactate, in BiGG names: mixed-acid fermentation, lactate respiration, homolactic.
NETWORKS = (
    ("glc__D_e>glc__D_c glc__D_c>pyr_c pyr_c>lac__L_c lac__L_c>lac__L_e pyr_c>accoa_c accoa_c>ac_c", "glc__D_e"),
    ("lac__L_e>lac__L_c lac__L_c>pyr_c pyr_c>accoa_c accoa_c>cit_c accoa_c>ac_c ac_c>accoa_c", "lac__L_e"),
    ("glc__D_e>glc__D_c glc__D_c>pyr_c pyr_c>lac__L_c lac__L_c>lac__L_e", "glc__D_e"),
)
NAMES = sorted({name for text, _ in NETWORKS for edge in text.split() for name in edge.split(">")})
EDGES = sorted({tuple(edge.split(">")) for text, _ in NETWORKS for edge in text.split()})
CHEMISTRY = Chemistry.from_dict(
    {"metabolites": NAMES, "allowed_edges": [[NAMES.index(s), NAMES.index(t), 1] for s, t in EDGES]}
)
CONFIG = GraphVAEConfig(
    width=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    decoder_width=48,
    exemplars=32,
)
GLUCOSE, LACTATE = ENVIRONMENT_NAMES.index("glucose"), ENVIRONMENT_NAMES.index("lactate")


def batch_of(networks: list[int], nodes: int = 8) -> GraphBatch:
    size = len(networks)
    graph = GraphBatch(
        mask=torch.zeros(size, nodes, dtype=torch.bool),
        metabolite_index=torch.zeros(size, nodes, dtype=torch.long),
        features=torch.zeros(size, nodes, 10),
        adjacency=torch.zeros(size, nodes, nodes, dtype=torch.bool),
        edge_type=torch.zeros(size, nodes, nodes, dtype=torch.long),
    )
    for b, network in enumerate(networks):
        text, supplied = NETWORKS[network]
        pairs = [edge.split(">") for edge in text.split()]
        present = sorted({name for pair in pairs for name in pair})
        graph.mask[b, : len(present)] = True
        graph.metabolite_index[b, : len(present)] = torch.tensor([NAMES.index(name) for name in present])
        graph.features[b, present.index(supplied), 8] = 1.0
        for source, target in pairs:
            graph.adjacency[b, present.index(source), present.index(target)] = True
            graph.edge_type[b, present.index(source), present.index(target)] = 1
    return graph


def environments(networks: list[int]) -> Tensor:
    environment = torch.tensor([[(v.low + v.high) / 2 if v.scale == "linear" else 0.0 for v in ENVIRONMENT]])
    environment = environment.repeat(len(networks), 1)
    for b, network in enumerate(networks):
        environment[b, GLUCOSE if NETWORKS[network][1] == "glc__D_e" else LACTATE] = 1e-3
    return environment


def model(**changes: float) -> GraphVAE:
    torch.manual_seed(0)
    return GraphVAE(GraphVAEConfig(**{f.name: getattr(CONFIG, f.name) for f in fields(CONFIG)} | changes), CHEMISTRY)


def run(vae: GraphVAE, networks: list[int], nodes: int = 8, seeds: list[int] | None = None) -> GraphVAEOutput:
    everywhere = torch.ones(len(networks), dtype=torch.bool)
    seed = torch.tensor(seeds if seeds is not None else list(range(len(networks))))
    return vae(batch_of(networks, nodes), environments(networks), everywhere, seed)


def assert_terms_close(a: dict[str, Term], b: dict[str, Term]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].items.item() == b[name].items.item(), name
        assert a[name].total.item() == pytest.approx(b[name].total.item(), rel=2e-4, abs=1e-4), name


@pytest.fixture(scope="module")
def trained() -> GraphVAE:
    """A few seconds of training on the three networks, each in environments of three temperatures."""
    vae = model()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=4e-3)
    networks = [0, 1, 2] * 6
    graph, environment, everywhere = batch_of(networks), environments(networks), torch.ones(18, dtype=torch.bool)
    environment[:, 0] += torch.arange(18) // 6
    for step in range(250):
        seeds = 100 * step + torch.arange(18)
        output = vae(graph, environment, everywhere, seeds)
        vae.exemplars.remember(output.notes)
        loss = sum((term.total / term.items for term in output.terms.values()), torch.zeros(()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return vae.eval()


def test_padding_metabolites_changes_no_loss_term() -> None:
    vae = model()
    small, large = run(vae, [0, 1]), run(vae, [0, 1], nodes=24)
    assert_terms_close(small.terms, large.terms)
    assert torch.allclose(small.latent, large.latent, atol=1e-5)


def test_two_half_batches_add_up_to_the_whole() -> None:
    vae = model()
    whole = run(vae, [0, 1, 2, 0]).terms
    first, second = run(vae, [0, 1], seeds=[0, 1]).terms, run(vae, [2, 0], seeds=[2, 3]).terms
    assert_terms_close(
        whole, {n: Term(first[n].total + second[n].total, first[n].items + second[n].items) for n in whole}
    )


def test_an_absent_network_adds_nothing_and_has_a_zero_latent() -> None:
    vae = model()
    alone = run(vae, [0]).terms
    graph, environment = batch_of([0, 1]), environments([0, 1])
    for part in fields(graph):
        getattr(graph, part.name)[1] = 0
    environment[1] = 0.0
    present = torch.tensor([True, False])
    output = vae(graph, environment, present, torch.tensor([0, 1]), present)
    assert_terms_close(alone, output.terms)
    assert output.latent[1].abs().sum() == 0.0
    decoded = vae.decode(vae.edges(graph), environment, present, torch.tensor([0, 1]))
    assert all(numbers.isfinite().all() for numbers in (output.latent, vae.recon(output.latent), *decoded))


def test_a_network_that_does_not_count_adds_nothing_to_the_terms() -> None:
    vae, everywhere, seeds = model(), torch.ones(2, dtype=torch.bool), torch.arange(2)
    output = vae(batch_of([0, 1]), environments([0, 1]), everywhere, seeds, torch.tensor([True, False]))
    assert_terms_close(run(vae, [0]).terms, output.terms)


def test_a_batch_without_networks_gives_finite_gradients_to_every_parameter() -> None:
    vae = model()
    graph = batch_of([0, 1])
    for part in fields(graph):
        getattr(graph, part.name)[:] = 0
    absent = torch.zeros(2, dtype=torch.bool)
    output = vae(graph, torch.zeros(2, len(ENVIRONMENT)), absent, present=absent)
    terms = output.terms
    (sum((t.total for t in terms.values()), torch.zeros(())) + output.latent.sum()).backward()
    assert all(t.total.item() == 0.0 and t.items.item() == 0.0 for t in terms.values())
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_latent_does_not_carry_the_environment() -> None:
    latent = model()(batch_of([0, 0]), environments([0, 1]), torch.ones(2, dtype=torch.bool)).latent
    assert torch.equal(latent[0], latent[1])


def test_reversing_an_edge_changes_the_latent() -> None:
    vae = model().eval()
    graph, environment = batch_of([1]), environments([1])
    everywhere = torch.ones(1, dtype=torch.bool)
    before = vae(graph, environment, everywhere).latent
    reverse = GraphBatch(
        mask=graph.mask,
        metabolite_index=graph.metabolite_index,
        features=graph.features,
        adjacency=graph.adjacency.transpose(1, 2),
        edge_type=graph.edge_type.transpose(1, 2),
    )
    assert not torch.allclose(vae(reverse, environment, everywhere).latent, before, atol=1e-3)


def test_a_false_edge_costs_as_a_missing_one_does_in_nats_a_metabolite() -> None:
    graph = batch_of([2])
    edges = model().edges(graph)
    right = torch.where(edges, 30.0, -30.0)[:, None]

    def terms(logits: Tensor) -> dict[str, Term]:
        decoded = Decoded(logits, torch.ones_like(logits), torch.zeros(1), torch.zeros(1, dtype=torch.long))
        return graph_terms(edges, logits[:, 0], decoded, graph.mask)

    assert terms(right)["graph/edges"].total.item() == pytest.approx(0.0, abs=1e-4)
    for edge in (int((~edges[0]).nonzero()[0]), int(edges[0].nonzero()[0])):
        wrong = right.clone()
        wrong[:, :, edge] *= -1
        assert terms(wrong)["graph/edges"].total.item() == pytest.approx(30.0, abs=1e-3)
        assert terms(wrong)["graph/recon"].total.item() == pytest.approx(30.0, abs=1e-3)
        assert terms(wrong)["graph/edges"].items.item() == 5


def test_the_loss_of_hidden_edges_estimates_that_of_a_whole_network() -> None:
    """Hidden edges weigh 1 / share hidden, so that on average each counts once, however many are hidden."""
    vae, networks = model(draws=1), [0] * 400
    given = environments(networks), torch.ones(400, dtype=torch.bool), torch.arange(400)
    weight = vae.decode(vae.edges(batch_of(networks)), *given).weight
    assert weight.sum(2).mean().item() == pytest.approx(len(EDGES), rel=0.05)


def test_directions_are_edges_of_their_own() -> None:
    vae, graph = model(), batch_of([1])
    forward = vae.edges(graph)
    rows = [EDGES.index(("accoa_c", "ac_c")), EDGES.index(("ac_c", "accoa_c"))]
    index = graph.metabolite_index[0].tolist()
    graph.adjacency[0, index.index(NAMES.index("ac_c")), index.index(NAMES.index("accoa_c"))] = False
    assert forward[0, rows].tolist() == [True, True] and vae.edges(graph)[0, rows].tolist() == [True, False]


def test_what_is_no_known_edge_is_possible_without_the_mask_only() -> None:
    assert len(model().pairs) == len(EDGES) and len(model(mask=False).pairs) == len(NAMES) * (len(NAMES) - 1)


def test_too_many_possible_edges_are_refused() -> None:
    with pytest.raises(InputError, match="chemistry.allowed_edges: 89700 of 300 metabolites"):
        GraphVAE(CONFIG, Chemistry.from_dict({"metabolites": [f"m{i}" for i in range(300)]}))


def test_exemplars_of_other_environments_count_in_the_divergence() -> None:
    vae = model()
    everywhere, seeds = torch.ones(3, dtype=torch.bool), torch.arange(3)
    graph = batch_of([0, 1, 2])
    given = environments([0, 1, 2]), everywhere, seeds
    assert not vae.decode(vae.edges(graph), *given).kl_nats.any()  # nothing is remembered yet
    vae.exemplars.remember(vae(graph, *given).notes)
    assert vae.exemplars.written.sum() == 3
    # The two on glucose have one exemplar to choose from, that on lactate has two.
    kl_nats = vae.decode(vae.edges(graph), *given).kl_nats
    assert kl_nats[1] > 0 and kl_nats[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_bfloat16_parameters_give_float32_terms() -> None:
    output = run(model().to(torch.bfloat16), [0, 1])
    assert output.latent.dtype == torch.bfloat16
    assert all(t.total.dtype == torch.float32 and t.total.isfinite() for t in output.terms.values())


def test_generated_networks_are_the_same_for_the_same_generator_and_batch_mates_do_not_matter(
    trained: GraphVAE,
) -> None:
    environment = environments([0, 1, 2, 1])
    one = trained.generate(environment, torch.Generator().manual_seed(5))
    two = trained.generate(environment, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    first = trained.generate(environment[:1], torch.Generator().manual_seed(5))
    size = int(first.mask.sum())
    assert torch.equal(first.adjacency[0, :size, :size], one.adjacency[0, :size, :size]) and size == one.mask[0].sum()


def edges_of(drawn: object, b: int) -> set[tuple[str, str]]:
    pairs = drawn.adjacency[b].nonzero().tolist()  # type: ignore[attr-defined]
    names = [NAMES[i] for i in drawn.metabolite_index[b].tolist()]  # type: ignore[attr-defined]
    return {(names[i], names[j]) for i, j in pairs}


def test_after_training_the_environment_decides_which_network_is_drawn(trained: GraphVAE) -> None:
    truth = [{tuple(e.split(">")) for e in text.split()} for text, _ in NETWORKS]
    drawn = trained.generate(environments([0] * 20 + [1] * 20), torch.Generator().manual_seed(0))
    on_glucose = [edges_of(drawn, b) for b in range(20)]
    on_lactate = [edges_of(drawn, b) for b in range(20, 40)]
    assert sum(edges in (truth[0], truth[2]) for edges in on_glucose) >= 14
    assert sum(edges == truth[1] for edges in on_lactate) >= 14
    assert truth[0] in on_glucose and truth[2] in on_glucose


def test_generated_nodes_have_edges_and_only_real_pairs_have_numbers(trained: GraphVAE) -> None:
    drawn = trained.generate(environments([0, 1, 2]), torch.Generator().manual_seed(1), steps=1)
    touched = drawn.adjacency.any(1) | drawn.adjacency.any(2)
    assert torch.equal(touched, drawn.mask)
    padding = ~(drawn.mask[:, :, None] & drawn.mask[:, None, :])
    assert (drawn.edge_std[padding] == 0).all() and (drawn.edge_std >= 0).all()
    assert torch.equal(drawn.edge_type > 0, drawn.adjacency)


def test_a_network_is_drawn_without_an_environment_too(trained: GraphVAE) -> None:
    nowhere = torch.zeros(2, dtype=torch.bool)
    drawn = trained.generate(environments([0, 1]), torch.Generator().manual_seed(1), environment_present=nowhere)
    assert drawn.mask.shape[0] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"width": 33},
        {"exemplars": 0},
        {"temperature": -0.1},
        {"environment_shift": -1.0},
        {"sampling_steps": 0},
    ],
)
def test_a_wrong_configuration_names_its_field(change: dict) -> None:
    with pytest.raises(InputError, match=f"model.graph.{next(iter(change))}"):
        GraphVAEConfig(**{"heads": 2} | change)
