"""Terms are sums and items; weighting them gives on two ranks what one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_pipeline.errors import InputError
from models.losses import Term, first_row, gather_with_grad, masked, weighted_total


def term(total: float, items: float) -> Term:
    return Term(torch.tensor(total, requires_grad=True), torch.tensor(items))


def test_masked_sums_what_every_mask_keeps() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    total, items = masked(values, torch.tensor([True, True]), torch.tensor([[True, False], [True, True]]))
    assert (total.item(), items.item()) == (8.0, 3.0)


def test_an_absent_sample_adds_nothing_even_when_its_value_is_nan() -> None:
    total, items = masked(torch.tensor([float("nan"), 5.0]), torch.tensor([False, True]))
    assert (total.item(), items.item()) == (5.0, 1.0)


def test_the_sum_of_bfloat16_values_is_float32() -> None:
    total, _ = masked(torch.ones(1000, dtype=torch.bfloat16), torch.ones(1000, dtype=torch.bool))
    assert total.dtype == torch.float32 and total.item() == 1000.0


def test_the_loss_is_the_weighted_sum_of_means() -> None:
    loss, means = weighted_total({"a": term(6.0, 3.0), "b": term(8.0, 2.0)}, {"a": 1.0, "b": 0.5})
    assert loss.item() == pytest.approx(1.0 * 2 + 0.5 * 4)
    assert {k: v.item() for k, v in means.items()} == {"a": 2.0, "b": 4.0, "loss": 4.0}


def test_a_term_without_items_gives_zero_and_a_finite_gradient() -> None:
    empty = term(0.0, 0.0)
    loss, means = weighted_total({"a": empty}, {"a": 1.0})
    loss.backward()
    assert (loss.item(), means["a"].item(), empty.total.grad.item()) == (0.0, 0.0, 0.0)


def test_the_average_over_two_unequal_ranks_is_the_loss_of_one_process() -> None:
    ranks = [{"a": term(2.0, 1.0), "b": term(0.0, 0.0)}, {"a": term(10.0, 3.0), "b": term(7.0, 2.0)}]
    weights = {"a": 1.0, "b": 0.1}
    packed: list[torch.Tensor] = []
    for terms in ranks:
        weighted_total(terms, weights, lambda x: packed.append(x) or x)
    parts = [weighted_total(terms, weights, lambda _: packed[0] + packed[1]) for terms in ranks]
    whole = weighted_total({"a": term(12.0, 4.0), "b": term(7.0, 2.0)}, weights)
    assert sum(p.loss.item() for p in parts) / 2 == pytest.approx(whole.loss.item())
    for part in parts:
        assert part.means["loss"].item() == pytest.approx(whole.loss.item())
        part.loss.backward()
    gradients = [r["a"].total.grad.item() for r in ranks]
    assert gradients == pytest.approx([2 * 1.0 / 4] * 2)  # halved by the engine's average over two ranks


@pytest.mark.parametrize("weights", [{}, {"graph/edges": 1.0, "graph/egdes": 1.0}])
def test_a_missing_or_unknown_weight_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match="loss_weights"):
        weighted_total({"graph/edges": term(1.0, 1.0)}, weights)


def test_in_a_single_process_gathering_returns_its_argument() -> None:
    rows = torch.ones(2, 3)
    assert gather_with_grad(rows) is rows and first_row(2) == 0


def _gather(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = torch.tensor([[1.0 + rank]], requires_grad=True)
    everything = gather_with_grad(own)
    ((rank + 1) * (everything * torch.tensor([[3.0], [5.0]])).sum()).backward()
    seen = gather_with_grad(torch.tensor([rank == 0]))
    torch.save((everything.detach(), own.grad, seen, first_row(1)), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.ranks
def test_a_gathered_row_receives_the_gradient_of_every_rank(tmp_path: Path) -> None:
    mp.spawn(_gather, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        everything, gradient, seen, first = torch.load(tmp_path / f"{rank}.pt")
        assert everything.flatten().tolist() == [1.0, 2.0]
        assert gradient.item() == (1 + 2) * (3.0, 5.0)[rank]  # rank 0 weighs its loss by 1, rank 1 by 2
        assert seen.tolist() == [True, False] and first == rank
