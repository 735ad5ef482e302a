"""The link VAE: what it reads, what a pair's odds are, and that it holds no table of all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.live_tensors import LiveTensors
from data_pipeline.errors import InputError
from models.link_vae import (
    LinkGraph,
    LinkVAE,
    LinkVAEConfig,
    link_terms,
    linked_pairs,
    mean_over,
    surplus_of_sources,
    symmetric_average,
    weighted_rows,
)


def graph_of(edges: list[tuple[int, int]], words: list[int]) -> LinkGraph:
    """A graph whose nodes have one word each."""
    nodes = torch.arange(len(words))
    features = weighted_rows(nodes, torch.tensor(words), torch.ones(len(words)), len(words))
    return LinkGraph(edges=torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T.contiguous(), features=features)


def model_of(graph: LinkGraph, **config: float) -> LinkVAE:
    torch.manual_seed(0)
    return LinkVAE(int(graph.features.column.max()) + 1, LinkVAEConfig(width=16, direction_dim=4, **config))


@pytest.fixture
def path() -> LinkGraph:
    """0 -> 1 -> 2 <-> 3."""
    return graph_of([(0, 1), (1, 2), (2, 3), (3, 2)], [0, 1, 2, 3])


def dense(rows: Tensor, size: int) -> Tensor:
    return rows.times(torch.eye(size))  # type: ignore[attr-defined]


def test_weighted_rows_are_a_matrix_whatever_the_order_of_its_entries() -> None:
    rows = weighted_rows(torch.tensor([2, 0, 2]), torch.tensor([1, 0, 0]), torch.tensor([5.0, 2.0, 3.0]), 3)
    assert rows.times(torch.tensor([[1.0], [10.0]]))[:, 0].tolist() == [2.0, 0.0, 53.0]


def test_two_joined_nodes_average_to_the_half_of_both() -> None:
    average = symmetric_average(torch.tensor([[0], [1]]), 3)
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(dense(average, 3), expected)


def test_the_mean_over_links_that_leave_is_zero_where_none_does(path: LinkGraph) -> None:
    edges = torch.tensor([[0, 0], [1, 2]])
    torch.testing.assert_close(dense(mean_over(edges, 3), 3), torch.tensor([[0.0, 0.5, 0.5], [0.0] * 3, [0.0] * 3]))


def test_each_linked_pair_is_listed_once_with_its_state() -> None:
    pairs, state, pair_of = linked_pairs(torch.tensor([[0, 1, 2, 0], [1, 0, 1, 2]]), 3)
    assert pairs.T.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert state.tolist() == [3, 1, 2]  # <->, ->, <-
    assert pair_of.tolist() == [0, 0, 2, 1]


def test_a_source_of_three_links_has_a_surplus_of_three_quarters() -> None:
    assert surplus_of_sources(torch.tensor([[0, 0, 0], [1, 2, 3]]), 4).tolist() == [0.75, -0.5, -0.5, -0.5]


def test_a_pair_that_is_turned_round_swaps_its_directions_and_keeps_the_rest(path: LinkGraph) -> None:
    model = model_of(path).eval()
    latents = model(path)
    pairs = torch.tensor([[0, 1, 3], [2, 3, 0]])
    one, other = (model.pair_logits(latents.mean, latents.readiness, p) for p in (pairs, pairs.flip(0)))
    torch.testing.assert_close(one[:, [0, 2, 1, 3]], other)
    torch.testing.assert_close(model.which_way(latents, pairs), -model.which_way(latents, pairs.flip(0)))


def test_an_undirected_link_is_exactly_as_likely_from_either_end(path: LinkGraph) -> None:
    model = model_of(path, directed=False).eval()
    latents = model(path)
    pairs = torch.tensor([[0, 1, 3], [2, 3, 0]])
    assert torch.equal(model.probability(path, latents, pairs), model.probability(path, latents, pairs.flip(0)))


def test_with_equal_odds_of_all_states_a_known_reverse_leaves_two_of_three() -> None:
    graph = graph_of([(0, 1)], [0, 1, 2])
    model = model_of(graph).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = model.probability(graph, model(graph), torch.tensor([[1, 0, 0], [0, 1, 2]]))
    # 1 -> 0: {->, <->} of {->, <-, <->}. The others: one pair of three is linked, so each state has 1/3 of the odds of
    # none, and {->, <->} of {none, ->, <-, <->} is (1/3 + 1/3) / (1 + 3 * 1/3).
    assert found.tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3])


def test_a_link_that_is_not_read_leaves_no_trace_in_the_latents(path: LinkGraph) -> None:
    model = model_of(path).eval()
    without = LinkGraph(edges=path.edges[:, [0, 2, 3]], features=path.features)
    read = torch.tensor([True, False, True, True])
    for hidden, absent in zip(model(path, read), model(without), strict=True):
        torch.testing.assert_close(hidden, absent)


def test_embeddings_have_the_length_of_the_radius_before_they_are_averaged(path: LinkGraph) -> None:
    model = model_of(path).eval()
    assert model._embed(path.features, model.read).norm(dim=1).tolist() == pytest.approx([1.8] * 4)


def test_half_of_the_linked_pairs_are_asked_beside_as_many_random_ones() -> None:
    ring = graph_of([(i, (i + 1) % 400) for i in range(400)], list(range(400)))
    terms = link_terms(model_of(ring), ring)
    assert 2 * 160 < terms["link/pairs"].items.item() < 2 * 240
    assert terms["link/kl"].items.item() == 400


def test_nothing_hidden_asks_for_every_pair(path: LinkGraph) -> None:
    assert link_terms(model_of(path, hidden_share=0.0), path)["link/pairs"].items.item() == 2 * 3


def test_it_learns_that_even_nodes_are_the_sources() -> None:
    edges = [(i, j) for i in range(0, 20, 2) for j in range(1, 20, 2) if (i + j) % 3]
    graph = graph_of(edges, [i % 2 for i in range(20)])
    model = model_of(graph)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        terms = link_terms(model, graph)
        loss = terms["link/pairs"].total / terms["link/pairs"].items
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hidden = torch.tensor([[0, 2, 4], [3, 1, 5]])  # sums divisible by 3: never linked in the graph
    assert bool((model.eval().which_way(model(graph), hidden) > 2).all())


def test_a_training_step_holds_no_table_of_all_pairs() -> None:
    nodes = 3000
    path = graph_of([(i, i + 1) for i in range(nodes - 1)], [0] * nodes)
    with LiveTensors() as live:
        terms = link_terms(model_of(path), path)
        (terms["link/pairs"].total + terms["link/kl"].total).backward()
    assert live.largest_bytes < nodes**2 / 4  # a table of one byte a pair would be four times as large
    assert live.peak_bytes < 4 * nodes**2


def test_live_tensors_count_what_is_alive_and_not_what_was_freed() -> None:
    with LiveTensors() as live:
        a = torch.zeros(1000)
        b = a + 1
        del a, b
        c = torch.zeros(500)
    assert (live.peak_bytes, live.largest_bytes) == (8000, 4000)
    assert len(c) == 500


@pytest.mark.parametrize(
    ("edges", "said"), [([(0, 4)], "no node 4 among 3"), ([(0, -1)], "no node -1"), ([(1, 1)], "itself")]
)
def test_a_link_that_cannot_be_is_refused(edges: list[tuple[int, int]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        graph_of(edges, [0, 1, 2])


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("hidden_share", 1.0), ("feature_dropout", -0.1), ("radius", -1.0)]
)
def test_a_wrong_configuration_names_its_field(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"link.{field}"):
        LinkVAEConfig(**{field: value})
