"""Arguments taken apart into tensors and put together again; replays are as good as what they replay."""

from __future__ import annotations

import pytest
import torch
from rank_job import CHEMISTRY, batches, config

from models.objectives import build_objective
from trainers.flat import _drops_out, flatten
from trainers.graphed import Place, fill, outline


def test_an_argument_is_put_together_as_it_was_taken_apart() -> None:
    batch = next(batches(0, 1))
    tensors: list[torch.Tensor] = []
    outlines = outline([batch.graph, {"a": batch.planet}, None, 3], tensors)
    assert len(tensors) == 6 and outlines[1] == {"a": Place(5)}
    again = fill(outlines, tuple(t + 1 if t.is_floating_point() else t for t in tensors))
    assert torch.equal(again[0].features, batch.graph.features + 1) and again[0].mask is batch.graph.mask
    assert torch.equal(again[1]["a"], batch.planet + 1) and again[2:] == [None, 3]


def test_networks_that_draw_random_numbers_are_told_from_those_that_do_not() -> None:
    assert not _drops_out(build_objective("graph_vae", config("graph_vae", 1).model, CHEMISTRY))
    assert _drops_out(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("part", ["graph_vae", "cnn"])
def test_a_replayed_step_gives_the_losses_and_gradients_of_the_kernels_one_by_one(part: str) -> None:
    given = [batch.to("cuda") for batch in batches(0, 1)]
    results = []
    for graphed in (False, True):
        torch.manual_seed(0)
        objective = build_objective(part, config(part, 1).model, CHEMISTRY).cuda().train()
        names = {id(m): n for n, m in objective.named_modules()}
        flats = [f for m in objective.leaf_modules() for f in flatten(m, names[id(m)], graphed)]
        found = []
        for batch in [*given, given[0]]:
            terms = objective(batch).terms
            sum(t.total for t in terms.values()).backward()
            found += [t.total.detach().clone() for t in terms.values()]
            for flat in flats:
                found.append(flat.parameter.grad.clone())
                flat.parameter.grad = None
        results.append(found)
    for plain, replayed in zip(*results, strict=True):
        torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-4)
