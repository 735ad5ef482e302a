"""The distilled tables: growth ranges, formulas, and what is said when they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline import reaction_tables
from data_pipeline.errors import InputError


def test_growth_ranges_are_cited_row_by_row() -> None:
    rows = reaction_tables.growth_ranges()
    assert len(rows) == 20
    assert all(row["citation"] and float(row["min_ph"]) < float(row["max_ph"]) for row in rows)


def test_formulas_are_counted() -> None:
    assert reaction_tables.parse_formula("C6H12O6") == {"C": 6.0, "H": 12.0, "O": 6.0}
    assert reaction_tables.base_of("glc__D_e") == "glc__D"


def test_missing_tables_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps carveme"):
        reaction_tables.carveme_data()


def test_a_cache_folder_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXOBIOME_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="EXOBIOME_CACHE"):
        reaction_tables.cache_dir()
    with pytest.raises(InputError, match="cannot write"):
        reaction_tables.write_atomically(tmp_path / "file" / "x.npz", b"")
