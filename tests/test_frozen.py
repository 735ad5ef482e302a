"""Frozen weights in shares: what modules see of them, how often they are fetched, and copies like gathers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.fused_decoder import DecoderShape, FusedDecoder
from models.packed_attention import Packing
from trainers import communication as c, ds_config, frozen
from trainers.frozen import FrozenShares, Holding, Source
from trainers.tracing import language_parameters

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
    assert c.of_step(walked, c.Sharing(2, persistence_threshold=0))["all_reduce"] == 8


SHAPE = DecoderShape(width=32, inner=48, layers=3, heads=4, kv_heads=2, head_width=8, vocabulary=40)


def decoder(tied: bool = False, layers: int = 3) -> FusedDecoder:
    """Return a tiny decoder with random weights."""
    torch.manual_seed(0)
    shape = DecoderShape(**{**SHAPE.__dict__, "tied": tied, "layers": layers})
    made = FusedDecoder(shape, rank=2, alpha=4.0, targets=("q_proj", "down_proj"), frequencies=torch.ones(4))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def ranks(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    monkeypatch.setattr(frozen.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(frozen.dist, "get_world_size", lambda: world)
    monkeypatch.setattr(frozen, "WHOLE_ON_CPU", 100)


def test_one_rank_keeps_all_as_plain_tensors_and_computes_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, 1)
    plain, taken = decoder(), decoder()
    assert frozen.share_out(taken, CPU) is None
    assert {n.split(".")[-1] for n, _ in taken.named_parameters()} == {"adapter"}
    embedded, places, packing = torch.randn(5, 32), torch.arange(5), Packing.of((5,), CPU)
    for made in (plain, taken):
        made(embedded, places, packing).square().sum().backward()
    for (name, one), (_, other) in zip(
        ((n, p) for n, p in plain.named_parameters() if p.requires_grad), taken.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_frozen_weights_still_count_among_those_that_a_token_passes(
    tied: bool, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks(monkeypatch, world)
    root = nn.Module()
    root.language = decoder(tied)
    before = language_parameters(root)
    frozen.share_out(root.language, CPU, "gathers")
    assert language_parameters(root) == before and before[0] > 0


@pytest.mark.parametrize("tied", [False, True])
def test_the_estimate_knows_what_a_rank_keeps_and_its_buffers(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, 2)
    made = decoder(tied)
    kept, buffers = frozen.standing(made, 2, whole=100, beside=0)
    norms = sum(p.numel() * 4 for n, p in made.named_parameters() if "norm" in n)
    shares = frozen.share_out(made, CPU, "gathers")
    assert shares is not None and buffers == shares.buffer_bytes
    assert kept == shares.kept_bytes + norms
    assert len(shares.units) == (4 if tied else 5)


def test_layers_stay_whole_where_the_limit_leaves_room_beside_the_buffers() -> None:
    table, layer = 503_316_480, 634_388_480  # bytes at 13 B
    sizes = [table, *[layer] * 40, table]
    for gpus, layers in ((2, 5), (4, 3), (8, 3), (1024, 2)):
        stay = frozen.staying(sizes, gpus, frozen.BESIDE)
        assert stay == tuple(range(1, 1 + layers))
        held = frozen.BUFFERS * layer + sum(sizes) / gpus + (1 - 1 / gpus) * layer * layers
        assert held <= 2 * (sum(sizes) / 2) / gpus + 3e9 < held + layer
    assert frozen.staying([9, 9, 9], 3, 18) == (0, 1, 2)
    assert frozen.staying([9, 9, 9], 3, 17) == ()


@pytest.mark.parametrize(("beside", "fetched"), [(0, 10), (80_000, 9), (10**9, 0)])
def test_units_that_stay_are_whole_and_not_fetched(beside: int, fetched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, 2)
    made = decoder(layers=8)
    _, buffers = frozen.standing(made, 2, whole=100, beside=beside)
    shares = frozen.share_out(made, CPU, "gathers", beside)
    assert (len(shares.units) if shares else 0) == fetched
    stay = made.__dict__["frozen_division"].stay
    whole = [u for u, modules in enumerate(made.__dict__["frozen_units"]) if all(
        t.numel() for m in modules for t in vars(m).values() if isinstance(t, Tensor) and t.dtype == torch.float32
    )]  # fmt: skip
    assert set(stay) <= set(whole) and len(stay) == 10 - fetched
    assert buffers == (shares.buffer_bytes if shares else 0)


def test_a_walk_foretells_no_fetch_of_units_that_stay() -> None:
    modules = [nn.Linear(2, 2, bias=False).requires_grad_(False) for _ in range(LAYERS)]
    root = nn.Sequential(*modules)
    walked = c.walk(root, [root], lambda: root(torch.ones(1, 2, requires_grad=True)).sum().backward(), None,
                    [[m] for m in modules])  # fmt: skip
    sizes = [3, 5, 7, 11, 13]
    found = c.of_frozen(walked, sizes, stay=(1,))
    assert {u for t in found for u in t.parameters} == {0, 2, 3, 4}
    assert sum(t.bytes for t in found) == c.of_frozen_step([3, 7, 11, 13])


def test_deepspeed_keeps_frozen_parameters_that_are_to_lie_elsewhere_or_in_fewer_bits() -> None:
    for name, moves in (("zero3.json", False), ("zero3_cpu.json", False), ("zero3_offload.json", True)):
        assert ds_config.moves_parameters(ds_config.read(ds_config.FOLDER / name)) == moves
    for key, value in (("zero_quantized_weights", True), ("zero_hpz_partition_size", 8)):
        assert ds_config.moves_parameters({"zero_optimization": {key: value}})
