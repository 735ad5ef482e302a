"""Frozen weights in shares: what modules see of them, how often they are fetched, and copies like gathers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainers import communication as c, frozen
from trainers.frozen import FrozenShares, Holding, Source

LAYERS, WORLD = 5, 3
CPU = torch.device("cpu")


def layers() -> list[nn.Module]:
    """Return modules of two frozen tensors of different types and odd sizes."""
    found: list[nn.Module] = []
    for i in range(LAYERS):
        module = nn.Module()
        generator = torch.Generator().manual_seed(i)
        for name, size, dtype in (("wide", (3, 7 + i), torch.float32), ("narrow", (11,), torch.bfloat16)):
            values = torch.randn(size, generator=generator).to(dtype)
            module.register_parameter(name, nn.Parameter(values, requires_grad=False))
        found.append(module)
    return found


def shares_of(modules: list[nn.Module], rank: int, owns: list[Tensor]) -> FrozenShares:
    """Return the shares of one of WORLD ranks that read each other's memory; `owns` holds that memory."""
    tensors = [[[(m, "wide")], [(m, "narrow")]] for m in modules]

    def source(size: int) -> Source:
        if not owns:
            owns.extend(torch.empty(size, dtype=torch.uint8) for _ in range(WORLD))
        return Source(owns[rank], tuple(owns))

    return FrozenShares(tensors, CPU, rank, WORLD, source)


def test_modules_see_their_weights_while_their_unit_is_used_and_nothing_of_them_otherwise() -> None:
    owns: list[Tensor] = []
    ranks = [layers() for _ in range(WORLD)]
    shares = [shares_of(modules, rank, owns) for rank, modules in enumerate(ranks)]
    expected = layers()
    for unit in (*range(LAYERS), *reversed(range(LAYERS))):
        for mine, modules in zip(shares, ranks, strict=True):
            mine.use(unit)
            for name in ("wide", "narrow"):
                assert torch.equal(getattr(modules[unit], name), getattr(expected[unit], name))
            whole = [m for m in modules if m.wide.numel()]
            assert len(whole) <= frozen.BUFFERS
            assert not list(modules[unit].parameters())


def test_each_rank_keeps_its_part_alone() -> None:
    owns: list[Tensor] = []
    (mine,) = [shares_of(layers(), 0, owns)]
    assert mine.kept_bytes * WORLD == sum(mine.unit_bytes())
    assert all(size >= 4 * 3 * 7 + 2 * 11 for size in mine.unit_bytes())
    assert mine.buffer_bytes == frozen.BUFFERS * max(mine.unit_bytes())


def test_a_step_fetches_all_units_but_two_forward_and_all_but_two_backward() -> None:
    sizes = [3, 5, 7, 11, 13]
    holding, fetched = Holding(LAYERS), []
    for _ in range(2):
        fetched = [u for unit in (*range(LAYERS), *reversed(range(LAYERS - 1))) for u, _ in holding.use(unit)]
    assert sum(sizes[u] for u in fetched) == c.of_frozen_step(sizes) == (7 + 11 + 13) + (3 + 5 + 7)


def test_the_next_unit_is_under_way_before_it_is_used() -> None:
    holding = Holding(LAYERS)
    for unit in (*range(LAYERS), *reversed(range(LAYERS - 1)), 0, 1, 2):
        ahead = holding.use(unit)
        assert unit in holding.held
        late = [u for u, _ in ahead if u == unit]
        assert not late or unit in (0, 1)  # the first pass begins with nothing


def test_a_buffer_is_not_filled_while_the_unit_before_may_still_be_read_from_it() -> None:
    holding = Holding(LAYERS)
    before = None
    for unit in (0, 1, 2, 3, 4, 3, 2, 4, 0, 3):
        here = None if before is None else holding.held.index(before)
        first = holding.use(unit)[:1]
        if first and first[0][0] == unit and here is not None:
            assert first[0][1] != here
        before = unit


@pytest.mark.parametrize("rank", range(WORLD))
def test_copies_lay_the_parts_of_all_ranks_end_to_end(rank: int) -> None:
    unit = frozen.Unit((), begin=4, part=2)
    owns = tuple(torch.arange(6, dtype=torch.uint8) + 10 * r for r in range(WORLD))
    target = torch.empty(2 * WORLD, dtype=torch.uint8)
    frozen.fetch(Source(owns[rank], owns), unit, target, rank, WORLD)
    assert target.tolist() == [4, 5, 14, 15, 24, 25]


def test_a_walk_of_units_foretells_the_fetches_of_a_step() -> None:
    modules = [nn.Linear(2, 2, bias=False).requires_grad_(False) for _ in range(LAYERS)]
    root = nn.Sequential(*modules)
    walked = c.walk(root, [root], lambda: root(torch.ones(1, 2, requires_grad=True)).sum().backward(), None,
                    [[m] for m in modules])  # fmt: skip
    sizes = [3, 5, 7, 11, 13]
    assert sum(t.bytes for t in c.of_frozen(walked, sizes)) == c.of_frozen_step(sizes)
    assert c.of_frozen(walked, []) == []
    # DeepSpeed knows nothing of them.
    assert c.of_step(walked, c.Sharing(2, persistence_threshold=0), 1)["all_reduce"] == 8
