"""What chemistry allows between metabolites."""

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

    @property
    def allowed(self) -> Bool[Tensor, "M M"]:
        """Pairs (substrate, product) that some known reaction joins."""
        return self.edge_type > 0

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Chemistry:
        """Read the table that `to_dict` or data_pipeline.reaction_db.chemistry_table writes.

        `allowed_edges` lists [substrate, product, type]; None, or no such key, allows every pair as type 1. A
        missing composition means zeros.

        Raises:
            InputError: A list has the wrong length, or an edge names a metabolite or type that does not exist.
        """
        if not isinstance(table.get("metabolites"), list | tuple):
            raise InputError("chemistry.metabolites is missing; give the list of metabolite names")
        names = tuple(str(name) for name in table["metabolites"])
        size = len(names)
        if size == 0:
            raise InputError("chemistry.metabolites=[]: the vocabulary is empty; build data with at least one network")
        rows = table.get("composition")
        if rows and len(rows) != size:
            raise InputError(f"chemistry.composition has {len(rows)} rows for {size} metabolites; rebuild the data")
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
        }
