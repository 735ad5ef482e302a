"""Pairs that are known to feed each other: an acetogen or a fermenter, and who lives on its acetate."""

from __future__ import annotations

from pathlib import Path

import pytest
from known_organisms import ECOLI, GEOBACTER, LJUNGDAHLII, METHANOSARCINA

from data_pipeline import communities, flux_balance
from data_pipeline.environment import parse_environment
from data_pipeline.graph_files import read_npz
from data_pipeline.variables import EDGE_TYPES, NODE_FEATURES


@pytest.mark.parametrize(
    ("feeder", "fed", "offered"),
    [
        (LJUNGDAHLII, GEOBACTER, ("co2_e", "fe3_e", "h2_e")),  # acetate from H2 and CO2, burnt with ferric iron
        (ECOLI, METHANOSARCINA, ("glc__D_e",)),  # acetate from glucose, split to methane
    ],
)
def test_acetate_feeds_who_could_not_live_there_alone(feeder: str, fed: str, offered: tuple[str, ...]) -> None:
    pair = communities.community(feeder, fed, offered)
    assert pair is not None
    assert "ac_e" in pair.exchanged and flux_balance.solve(fed, offered) is None
    graph = communities.community_graph(pair)
    names = graph.metabolites
    kinds = dict(zip([(names[s], names[p]) for s, p in graph.edge_index.T], graph.edge_type.tolist(), strict=True))
    transport = EDGE_TYPES.index("transport")
    assert any(kinds[s, p] == transport for s, p in kinds if p == "ac_e" and s.endswith("@1"))
    assert any(kinds[s, p] == transport for s, p in kinds if s == "ac_e" and p.endswith("@2"))
    assert not any({s[-2:], p[-2:]} == {"@1", "@2"} for s, p in kinds)  # only what is outside joins the two
    acetate = dict(zip(NODE_FEATURES, graph.features[names.index("ac_e")].tolist(), strict=True))
    assert (acetate["C"], acetate["supplied"], acetate["end_product"]) == (2.0, 0.0, 0.0)


def test_from_salts_alone_no_community_lives() -> None:
    organisms = list(flux_balance.load_organisms())
    assert not any(communities.community(a, b, ()) for a in organisms for b in organisms if a != b)
    assert communities.community(ECOLI, LJUNGDAHLII, tuple(flux_balance.SALTS)) is None


def test_who_lives_there_alone_is_fed_by_nobody() -> None:
    assert communities.community(ECOLI, METHANOSARCINA, ("glc__D_e", "meoh_e")) is None
    assert communities.community(METHANOSARCINA, ECOLI, ("meoh_e",)) is None  # E. coli cannot use methane


def test_the_command_writes_each_community_of_an_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = "temperature_k=310,ph=7,o2=0,redox=-0.4,h2=0,glucose=0.001"
    assert communities.main([environment, "--out", str(tmp_path / "out")]) == 0
    found = communities.communities(parse_environment(environment))
    assert (ECOLI, METHANOSARCINA) in {(pair.feeder.organism, pair.fed.organism) for pair in found}
    files = sorted((tmp_path / "out").glob("*.npz"))
    assert len(files) == len(found) and f"{len(found)} communities in" in capsys.readouterr().out
    small = [number for number, pair in enumerate(found) if len(communities.community_graph(pair).metabolites) <= 64]
    graph, stored = read_npz(files[small[0]])
    assert stored is not None and " + " in graph.organism


def test_a_wrong_environment_or_folder_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert communities.main(["temprature_k=310", "--out", str(tmp_path)]) == 2
    assert "did you mean temperature_k" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert communities.main(["o2=0,glucose=0.001", "--out", str(tmp_path / "file")]) == 2
    assert "file: File exists; give another file or folder" in capsys.readouterr().err
