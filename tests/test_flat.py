"""Flat parameters: what lies where, and that nothing else about a network changes."""

from __future__ import annotations

import torch
from rank_job import CHEMISTRY, batches, config
from torch import Tensor, nn

from models.objectives import build_objective
from trainers import optim
from trainers.config import OptimConfig
from trainers.flat import flatten, only_holders, remember, take_apart


class Pair(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 1), nn.LayerNorm(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def pair() -> Pair:
    module = Pair()
    with torch.no_grad():
        for parameter, values in zip(module.parameters(), ([[1.0, 2.0]], [3.0], [4.0], [5.0]), strict=True):
            parameter.copy_(torch.tensor(values))
    return module


def test_matrices_lie_in_one_tensor_and_vectors_in_another() -> None:
    module = pair()
    matrices, vectors = flatten(module, "net")
    assert matrices.parameter.tolist() == [[1.0, 2.0]] and vectors.parameter.tolist() == [3.0, 4.0, 5.0]
    assert [slot.name for slot in vectors.slots] == ["net.a.bias", "net.b.weight", "net.b.bias"]
    assert [n for n, _ in module.named_parameters()] == ["flat.matrices_float32", "flat.vectors_float32"]


def test_values_are_taken_apart_by_name_and_shape() -> None:
    matrices, vectors = flatten(pair(), "net")
    assert take_apart(matrices, torch.tensor([7.0, 8.0]))["net.a.weight"].tolist() == [[7.0, 8.0]]
    assert take_apart(vectors, torch.tensor([7.0, 8.0, 9.0]))["net.b.bias"].tolist() == [9.0]


def test_weight_decay_still_tells_matrices_from_vectors() -> None:
    module = nn.ModuleDict({"graph": pair()})
    flatten(module["graph"], "graph")
    groups = optim.parameter_groups(module, OptimConfig(weight_decay=0.1))
    assert [(sum(p.numel() for p in g["params"]), g["weight_decay"]) for g in groups] == [(2, 0.1), (3, 0.0)]


def test_a_frozen_parameter_stays_where_it_is() -> None:
    module = pair()
    module.b.requires_grad_(False)
    matrices, vectors = flatten(module, "net")
    assert (matrices.parameter.numel(), vectors.parameter.numel()) == (2, 1)
    assert isinstance(module.b.weight, nn.Parameter)


def test_outputs_and_gradients_are_those_of_the_network_before() -> None:
    batch = next(batches(0, 1))
    terms: list[dict[str, Tensor]] = []
    gradients: list[dict[str, Tensor]] = []
    for flattened in (False, True):
        torch.manual_seed(0)
        objective = build_objective("graph_vae", config("graph_vae", 1).model, CHEMISTRY)
        flats = flatten(objective.graph_vae, "graph_vae") if flattened else []
        made = objective(batch).terms
        sum(t.total for t in made.values()).backward()
        terms.append({n: t.total.detach() for n, t in made.items()})
        found = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None and not flattened}
        for flat in flats:
            found |= take_apart(flat, flat.parameter.grad)
        gradients.append(found)
    assert terms[0] == terms[1]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_the_backward_hook_of_the_module_finds_complete_gradients_although_no_input_wants_one() -> None:
    """DeepSpeed reduces in that hook: an incomplete gradient would be lost."""
    module, seen = pair(), []
    flats = flatten(module, "net")
    module.flat.register_full_backward_hook(lambda *_: seen.append([f.parameter.grad is not None for f in flats]))
    output = module(torch.ones(3, 2))
    output.sum().backward()
    assert seen == [[True, True]]


def test_no_view_outlives_the_forward_pass() -> None:
    module = pair()
    flatten(module, "net")
    module(torch.ones(3, 2))
    assert module.a.weight is None and "bias=False" in repr(module)


def test_in_the_place_of_a_network_deepspeed_finds_its_flat_parameters_alone() -> None:
    root = nn.ModuleDict({"net": pair(), "other": nn.Linear(1, 1)})
    flatten(root["net"], "net")
    before = list(root.modules())
    with only_holders(root):
        assert list(root.modules()) == [root, before[1].flat, before[-1]]
    assert list(root.modules()) == before


def test_parameters_and_modules_are_named_without_a_walk_and_as_before() -> None:
    module = nn.ModuleDict({"net": pair(), "other": nn.Linear(1, 1)})
    before = [name for name, _ in module.named_parameters(prefix="all")]
    modules = list(module.modules())
    remember(module)
    assert [name for name, _ in module.named_parameters(prefix="all")] == before and list(module.modules()) == modules
    assert list(module.named_parameters(recurse=False)) == []
    assert sum(1 for _ in module.parameters()) == 6
