from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline import assemble, solved_networks

ON_GLUCOSE = ("Escherichia coli K-12 MG1655", ("glc__D_e", "o2_e"))
ON_NOTHING = ("Escherichia coli K-12 MG1655", ())


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("solved")
    solved_networks.solve(folder, [ON_GLUCOSE, ON_NOTHING])
    return folder


def test_what_was_solved_is_read_back_and_what_makes_no_atp_is_left_out(solved: Path) -> None:
    file = solved_networks.file_of(solved, [ON_GLUCOSE, ON_NOTHING])
    places = solved_networks.feasible(file)
    assert list(places) == [ON_GLUCOSE]
    (graph,) = solved_networks.read(places).values()
    again = assemble.solve(ON_GLUCOSE)
    assert again is not None
    assert (graph.metabolites, graph.nutrients, graph.organism) == (again.metabolites, again.nutrients, again.organism)
    for name in ("metabolite_index", "features", "edge_index", "edge_type"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(again, name))
    assert places[ON_GLUCOSE].key == assemble.network_keys({ON_GLUCOSE: again})[ON_GLUCOSE]


def test_other_pairs_have_another_file() -> None:
    assert solved_networks.file_of(Path(), [ON_GLUCOSE]) != solved_networks.file_of(Path(), [ON_NOTHING])


def test_a_file_that_was_cut_is_removed(solved: Path) -> None:
    file = solved_networks.file_of(solved, [ON_GLUCOSE, ON_NOTHING])
    assert solved_networks.whole(file)
    content = file.read_bytes()
    file.write_bytes(content[:200])
    assert not solved_networks.whole(file) and not file.exists()
    assert not solved_networks.whole(file)
    file.write_bytes(content)
