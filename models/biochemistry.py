"""What chemistry allows between metabolites, with the losses that ask a predicted network to respect it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.variables import EDGE_TYPES

COMPOSITION = 8  # C H N O P S charge mass_da


@dataclass(frozen=True)
class Chemistry:
    """The vocabulary of metabolites (M of them) and what the reaction DB says about each and about each pair."""

    metabolites: tuple[str, ...]
    composition: Float[Tensor, "M 8"]  # C H N O P S atoms, charge, mass in dalton
    edge_type: Int[Tensor, "M M"]  # [substrate, product], row of variables.EDGE_TYPES; 0: no known reaction
    max_in: Int[Tensor, " M"]  # substrates that the DB knows for this product, at most
    max_out: Int[Tensor, " M"]

    @property
    def allowed(self) -> Bool[Tensor, "M M"]:
        """Pairs (substrate, product) that some known reaction joins."""
        return self.edge_type > 0

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Chemistry:
        """Read the table that `to_dict` or data_pipeline.reaction_db.chemistry_table writes.

        `allowed_edges` lists [substrate, product, type]; None, or no such key, allows every pair as type 1. Missing
        degree limits mean none (the size of the vocabulary); a missing composition means zeros.

        Raises:
            InputError: A list has the wrong length, or an edge names a metabolite or type that does not exist.
        """
        if "metabolites" not in table:
            raise InputError("chemistry.metabolites is missing; give the list of metabolite names")
        names = tuple(str(name) for name in table["metabolites"])
        size = len(names)
        if size == 0:
            raise InputError("chemistry.metabolites=[]: the vocabulary is empty; build data with at least one network")
        for name in ("composition", "max_in", "max_out"):
            if table.get(name) and len(table[name]) != size:
                raise InputError(
                    f"chemistry.{name} has {len(table[name])} rows for {size} metabolites; rebuild the data"
                )
        edges = table.get("allowed_edges")
        if edges is None:
            edge_type = torch.ones(size, size, dtype=torch.int8).fill_diagonal_(0)
        else:
            rows = torch.tensor(edges, dtype=torch.long).reshape(-1, 3)
            types = len(EDGE_TYPES)
            if len(rows) and (int(rows.min()) < 0 or int(rows[:, :2].max()) >= size or int(rows[:, 2].max()) >= types):
                raise InputError(
                    f"chemistry.allowed_edges names a row outside 0..{size - 1} or a type outside "
                    f"0..{types - 1}; rebuild the data"
                )
            edge_type = torch.zeros(size, size, dtype=torch.int8)
            edge_type[rows[:, 0], rows[:, 1]] = rows[:, 2].to(torch.int8)
        return cls(
            metabolites=names,
            composition=torch.tensor(table.get("composition") or [[0.0] * COMPOSITION] * size, dtype=torch.float32),
            edge_type=edge_type,
            max_in=torch.tensor(table.get("max_in") or [size] * size, dtype=torch.long),
            max_out=torch.tensor(table.get("max_out") or [size] * size, dtype=torch.long),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the table as lists of numbers and names, for JSON; `allowed_edges` is None where every pair is."""
        everything = torch.ones_like(self.edge_type).fill_diagonal_(0)
        edges = self.allowed.nonzero()
        types = self.edge_type[edges[:, 0], edges[:, 1]].long()
        listed = None if torch.equal(self.edge_type, everything) else torch.cat([edges, types[:, None]], 1).tolist()
        return {
            "metabolites": list(self.metabolites),
            "composition": self.composition.tolist(),
            "allowed_edges": listed,
            "max_in": self.max_in.tolist(),
            "max_out": self.max_out.tolist(),
        }


def valence_penalty(
    edge_probability: Float[Tensor, "B N N"], max_in: Float[Tensor, "B N"], max_out: Float[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Return by how many edges the expected in- and out-degree of each metabolite exceed what the DB knows.

    0 for every network that uses known reactions only; an edge that no reaction makes counts once its metabolite is
    full.
    """
    excess_in = torch.relu(edge_probability.sum(1) - max_in)
    excess_out = torch.relu(edge_probability.sum(2) - max_out)
    return excess_in + excess_out


def mass_balance_penalty(
    edge_probability: Float[Tensor, "B N N"], source: Float[Tensor, "B N"], sink: Float[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Return the probability that a metabolite is made from nothing, plus that it piles up for ever.

    At steady state production equals consumption (S v = 0), so a metabolite that is neither taken up from (`source` 1)
    nor given off to (`sink` 1) the environment needs at least one edge in and one edge out. The probability of "no edge
    in" is the product of (1 - p) over the possible substrates.
    """
    absent = torch.log1p(-edge_probability.clamp(max=1.0 - 1e-4))
    from_nothing = torch.exp(absent.sum(1)) * (1.0 - source)
    into_nothing = torch.exp(absent.sum(2)) * (1.0 - sink)
    return from_nothing + into_nothing
