"""Contrast and foretelling losses by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from data_fixture import chain, sample
from torch import Tensor

from data_pipeline.batch import GraphBatch
from data_pipeline.collate import collate
from models.consistency import Consistency, foretelling_error, info_nce, network_key

ONE = torch.tensor(1.0)
# Two planets, two modalities; both modalities of planet 0 are (1, 0), both of planet 1 are (0, 1).
CODES = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
KEYS = torch.tensor([[1, 1], [2, 2]])
ALL = torch.ones(2, 2, dtype=torch.bool)
NETWORK = 1  # the modality whose content two planets share, in these tests


def test_finding_one_of_two_planets_with_orthogonal_codes_costs_log_1_plus_1_over_e() -> None:
    nats, valid = info_nce(CODES, ONE, ALL, KEYS)
    assert valid.tolist() == [[[False, True], [True, False]]] * 2
    assert nats[valid].tolist() == pytest.approx([math.log(1 + math.exp(-1.0))] * 4)


def test_the_same_network_on_another_planet_is_no_negative() -> None:
    keys = KEYS.clone()
    keys[:, NETWORK] = 7
    nats, valid = info_nce(CODES, ONE, ALL, keys)
    assert nats[valid].tolist() == [0.0] * 4  # no candidate is left beside the planet itself


def test_a_planet_without_the_modality_is_neither_asked_nor_a_candidate() -> None:
    present = torch.tensor([[True, True], [True, False]])
    nats, valid = info_nce(CODES, ONE, present, KEYS)
    assert valid.sum() == 2 and valid[0].sum() == 2
    assert nats[0, 0, 1].item() == 0.0  # planet 1 has no modality 1: planet 0 is the only candidate
    assert nats[0, 1, 0].item() == pytest.approx(math.log(1 + math.exp(-1.0)))


def _contrast(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    codes = CODES[rank : rank + 1].clone().requires_grad_()
    nats, valid = info_nce(codes, ONE, ALL[:1], KEYS[rank : rank + 1])
    nats[valid].sum().backward()
    torch.save((nats[valid].detach(), codes.grad), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.ranks
def test_two_ranks_contrast_like_one_process(tmp_path: Path) -> None:
    mp.spawn(_contrast, args=(str(tmp_path),), nprocs=2)
    codes = CODES.clone().requires_grad_()
    nats, valid = info_nce(codes, ONE, ALL, KEYS)
    nats[valid].sum().backward()
    for rank in range(2):
        own, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(own, nats[rank][valid[rank]])
        assert torch.allclose(gradient, codes.grad[rank : rank + 1])


def graph(*metabolites: tuple[str, ...]) -> GraphBatch:
    return collate([sample(i, chain(*m)) for i, m in enumerate(metabolites)]).graph


def permuted(given: GraphBatch, order: list[int]) -> GraphBatch:
    """The same network with its first nodes in another order."""
    full = torch.tensor(order + list(range(len(order), given.mask.shape[1])))
    return replace(
        given, metabolite_index=given.metabolite_index[:, full], adjacency=given.adjacency[:, full][:, :, full]
    )


def test_a_network_keeps_its_key_in_any_order_of_nodes_and_with_any_padding() -> None:
    short = graph(("a", "b", "c"))
    long = graph(("a", "b", "c"), tuple("abcdefghijkl"))
    assert network_key(short) == network_key(permuted(short, [2, 0, 1])) == network_key(long)[0]


def test_another_network_or_a_turned_edge_has_another_key() -> None:
    keys = network_key(graph(("a", "b", "c"), ("a", "b", "c", "d")))
    given = graph(("a", "b", "c"))
    turned = replace(given, adjacency=given.adjacency.transpose(1, 2))
    assert len({*keys.tolist(), network_key(turned).item()}) == 3


def test_foretelling_costs_the_mean_square_and_teaches_the_foreteller_only() -> None:
    foretold = {"climate": torch.tensor([[1.0, 3.0]], requires_grad=True)}
    target = torch.zeros(1, 2, requires_grad=True)
    errors, known = foretelling_error(foretold, {"climate": target}, {"climate": torch.tensor([True])})
    errors.sum().backward()
    assert errors.item() == 5.0 and known.item()
    assert foretold["climate"].grad.tolist() == [[1.0, 3.0]] and target.grad is None


def test_codes_have_unit_length_and_foretold_parts_their_sizes() -> None:
    torch.manual_seed(0)
    network = Consistency({"climate": 4, "planet": 3}, {"climate": 4, "environment": 20}, width=8, dim=5).bfloat16()
    latents: dict[str, Tensor] = {"climate": torch.ones(2, 4), "planet": torch.ones(2, 3)}
    output = network(latents, torch.ones(2, 8, dtype=torch.bfloat16))
    assert torch.allclose(output.codes.norm(dim=-1), torch.ones(2, 2)) and output.codes.dtype == torch.float32
    assert {n: tuple(t.shape) for n, t in output.foretold.items()} == {"climate": (2, 4), "environment": (2, 20)}
    assert output.sharpness.item() == pytest.approx(10.0, rel=0.01)
