"""The reaction database and the chemistry table."""

from __future__ import annotations

import json

from data_pipeline import reaction_db
from data_pipeline.variables import EDGE_TYPES


def test_the_database_masks_what_no_reaction_makes() -> None:
    database = reaction_db.load_reaction_db()
    mask = database.mask(["g6p_c", "f6p_c", "ch4_e"])
    assert mask[0, 1] and mask[1, 0]
    assert not mask[0, 2] and not mask[2, 0]
    assert database.edge_type("g6p_c", "f6p_c") == EDGE_TYPES.index("reversible")
    assert database.edge_type("g6p_c", "ch4_e") == 0


def test_the_chemistry_table_is_json_and_counts_atoms() -> None:
    table = json.loads(json.dumps(reaction_db.chemistry_table(["f6p_c", "g6p_c"])))
    assert table["metabolites"] == ["f6p_c", "g6p_c"]
    assert table["composition"][0][:6] == [6.0, 11.0, 0.0, 9.0, 1.0, 0.0]
    assert {(s, p) for s, p, _ in table["allowed_edges"]} == {(0, 1), (1, 0)}
