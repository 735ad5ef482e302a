from __future__ import annotations

import json

import pytest
import torch

from data_pipeline.errors import InputError
from models.biochemistry import Chemistry

GLUCOSE = [6, 12, 6, 0, 0, 0, 0, 180.16]
LACTATE = [3, 5, 3, 0, 0, 0, -1, 89.07]
TABLE = {
    "metabolites": ["glc__D_c", "lac__L_c", "co2_c"],
    "composition": [GLUCOSE, LACTATE, [1, 0, 2, 0, 0, 0, 0, 44.01]],
    "allowed_edges": [[0, 1, 1], [1, 2, 2]],
}


def test_chemistry_survives_json_unchanged() -> None:
    chemistry = Chemistry.from_dict(TABLE)
    again = Chemistry.from_dict(json.loads(json.dumps(chemistry.to_dict())))
    assert again.metabolites == ("glc__D_c", "lac__L_c", "co2_c")
    assert torch.equal(again.edge_type, chemistry.edge_type)
    assert torch.equal(again.composition, chemistry.composition)
    assert again.allowed.sum() == 2 and again.edge_type[1, 2] == 2


def test_a_table_without_reactions_allows_every_pair_but_self_loops() -> None:
    chemistry = Chemistry.from_dict({"metabolites": ["a", "b", "c"]})
    assert chemistry.allowed.sum() == 6
    assert chemistry.to_dict()["allowed_edges"] is None  # a list of every pair of 9,000 names would be 80 million rows


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metabolites": []}, "chemistry.metabolites"),
        ({"composition": [GLUCOSE]}, "chemistry.composition"),
        ({"allowed_edges": [[0, 3, 1]]}, "chemistry.allowed_edges"),
        ({"allowed_edges": [[0, 1, 9]]}, "chemistry.allowed_edges"),
    ],
)
def test_a_wrong_table_is_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Chemistry.from_dict({**TABLE, **change})


def test_a_table_without_metabolites_is_refused() -> None:
    with pytest.raises(InputError, match="chemistry.metabolites is missing"):
        Chemistry.from_dict({"allowed_edges": []})
