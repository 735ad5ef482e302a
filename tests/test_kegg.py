from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import kegg
from data_pipeline.batch import GraphSample
from data_pipeline.errors import InputError
from data_pipeline.graph_files import read_folder, read_npz

KGML = """<?xml version="1.0"?>
<pathway name="path:eco00010" org="eco" number="00010">
  <entry id="1" name="cpd:C00267" type="compound"/>
  <reaction id="9" name="rn:R01786" type="irreversible">
    <substrate id="1" name="cpd:C00267"/><product id="2" name="cpd:C00668"/>
  </reaction>
  <reaction id="8" name="rn:R02740" type="reversible">
    <substrate id="2" name="cpd:C00668"/><product id="3" name="cpd:C05345"/>
  </reaction>
</pathway>"""
SBML = """<?xml version="1.0"?>
<sbml xmlns="http://www.sbml.org/sbml/level3/version1/core" level="3" version="1"><model id="toy"><listOfReactions>
  <reaction id="R_PGI" reversible="true">
    <listOfReactants><speciesReference species="M_g6p_c"/></listOfReactants>
    <listOfProducts><speciesReference species="M_f6p_c"/></listOfProducts>
  </reaction>
  <reaction id="R_PFK" reversible="false">
    <listOfReactants><speciesReference species="M_f6p_c"/><speciesReference species="M_atp_c"/></listOfReactants>
    <listOfProducts><speciesReference species="M_fdp_c"/><speciesReference species="M_adp_c"/></listOfProducts>
  </reaction>
</listOfReactions></model></sbml>"""


def edges(graph: GraphSample) -> set[tuple[str, str, int]]:
    names, kinds = graph.metabolites, graph.edge_type.tolist()
    return {(names[s], names[p], kind) for (s, p), kind in zip(graph.edge_index.T, kinds, strict=True)}


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "edges.csv").write_text("reaction,substrate,product\nmap1,A,B\nmap1,B,C\nmap2,A,C\nmap1,A,B\n")
    (tmp_path / "env.csv").write_text("pathway,pH,temp,O2,redox\nmap1,6.8,330,0.0,-0.3\n")
    return tmp_path / "edges.csv", tmp_path / "env.csv"


def test_the_legacy_tables_become_one_graph_a_reaction_with_its_environment(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kegg.main([str(tables[0]), "--environments", str(tables[1]), "--out", str(tmp_path / "npz")]) == 0
    assert "2 graphs in" in capsys.readouterr().out
    with np.load(tmp_path / "npz" / "map1.npz") as one, np.load(tmp_path / "npz" / "map2.npz") as other:
        assert one["adj"].tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
        assert json.loads(str(one["meta"]))["nodes"] == ["A", "B", "C"]
        assert one["env"].tolist() == pytest.approx([6.8, 330.0, 0.0, -0.3])
        assert other["env"].tolist() == pytest.approx([7.0, 298.0, 0.21, 0.0])  # not in the table: the legacy default


def test_a_legacy_file_is_read_and_written_back_as_a_table(tables: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "npz"
    folder.mkdir()
    adjacency = np.array([[0, 1], [1, 0]], np.int8)
    np.savez(folder / "R1.npz", adj=adjacency, env=np.array([7, 298, 0.21, 0]), meta=json.dumps({"nodes": ["A", "B"]}))
    graph, environment = read_npz(folder / "R1.npz")
    assert edges(graph) == {("A", "B", 1), ("B", "A", 1)} and environment is None  # four numbers are not our twenty
    assert kegg.main([str(folder), "--out", str(tmp_path / "back.csv")]) == 0
    assert (tmp_path / "back.csv").read_text() == "reaction,substrate,product\nR1,A,B\nR1,B,A\n"
    assert edges(kegg.read_edges(tmp_path / "back.csv")["R1"]) == edges(graph)


def test_a_kgml_pathway_keeps_directions(tmp_path: Path) -> None:
    (tmp_path / "eco00010.kgml").write_text(KGML)
    ((name, graph),) = kegg.read_any(tmp_path / "eco00010.kgml").items()
    assert name == "eco00010"
    assert edges(graph) == {("C00267", "C00668", 1), ("C00668", "C05345", 2), ("C05345", "C00668", 2)}


def test_an_sbml_model_leaves_carriers_out(tmp_path: Path) -> None:
    (tmp_path / "toy.xml").write_text(SBML)
    graph = kegg.read_any(tmp_path)["toy"]
    assert edges(graph) == {("g6p_c", "f6p_c", 2), ("f6p_c", "g6p_c", 2), ("f6p_c", "fdp_c", 1)}
    assert kegg.main([str(tmp_path), "--out", str(tmp_path / "npz")]) == 0
    ((_, again, environment),) = read_folder(tmp_path / "npz")
    assert edges(again) == edges(graph) and environment is None


def test_graphs_that_are_too_large_or_empty_are_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"big,m{n},m{n + 1}" for n in range(64)] + ["loop,A,A", "good,A,B"]
    (tmp_path / "edges.csv").write_text("\n".join(["reaction,substrate,product", *lines]))
    assert kegg.main([str(tmp_path / "edges.csv"), "--out", str(tmp_path / "npz")]) == 0
    said = capsys.readouterr()
    assert "left out (no edge, or over 64 metabolites): big, loop" in said.err and "1 graphs in" in said.out


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "reaction,substrate\n", "column product is missing; it must have reaction, substrate, product"),
        ("a.csv", "reaction,substrate,product\nr,A\n", "a.csv, line 2: .* must be filled in"),
        ("a.xml", "<pathway", "cannot be read as XML"),
        ("a.xml", "<html/>", "<html> is neither a KGML <pathway> nor <sbml>"),
        ("none.csv", None, "none.csv: cannot be read"),
        ("a.csv", "reaction;substrate;product\n", "with commas; found: reaction;substrate;product"),
        (
            "a.csv",
            "reaction,substrate,product\nr,2,3-diol,A\n",
            "line 2: more values than columns; put names that hold a",
        ),
        ("a.xml.gz", "no archive", "cannot be read as XML"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(
    tmp_path: Path, name: str, content: str | None, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=complaint):
        kegg.read_any(tmp_path / name)
    assert kegg.main([str(tmp_path / name), "--out", str(tmp_path / "npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_empty_folder_and_an_environment_that_is_no_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no .xml, .kgml or .sbml file in it"):
        kegg.read_any(tmp_path)
    for value in ("neutral", "nan"):
        (tmp_path / "env.csv").write_text(f"pathway,pH,temp,O2,redox\nmap1,{value},330,0.0,-0.3\n")
        with pytest.raises(InputError, match="env.csv, line 2: .* holds something that is no number"):
            kegg.read_environments(tmp_path / "env.csv")


def test_a_table_of_a_spreadsheet_and_a_compressed_model_are_read(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_bytes(b"\xef\xbb\xbfreaction,substrate,product\nr,A,B\n")
    assert edges(kegg.read_any(tmp_path / "edges.csv")["r"]) == {("A", "B", 1)}
    (tmp_path / "toy.xml.gz").write_bytes(gzip.compress(SBML.encode()))
    assert len(edges(kegg.read_any(tmp_path)["toy"])) == 3


def test_two_models_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for name in ("a.xml", "b.xml"):
        (tmp_path / name).write_text(SBML)
    assert list(kegg.read_any(tmp_path)) == ["toy", "toy-b"]


def test_a_reaction_that_does_not_say_is_reversible_and_a_nameless_compound_is_none(tmp_path: Path) -> None:
    (tmp_path / "level2.xml").write_text(SBML.replace(' reversible="false"', ""))
    assert ("fdp_c", "f6p_c", 2) in edges(kegg.read_any(tmp_path / "level2.xml")["toy"])
    (tmp_path / "a.kgml").write_text(KGML.replace('name="cpd:C05345"', 'name=" "'))
    assert edges(kegg.read_any(tmp_path / "a.kgml")["eco00010"]) == {("C00267", "C00668", 1)}


@pytest.mark.parametrize(
    ("lines", "out", "complaint"),
    [
        ("loop,A,A", "npz", "none of 1 graphs has an edge and at most 64 metabolites"),
        ("r 1,A,B\nr/1,B,C", "npz", "graphs 'r 1' and 'r/1' would both be r_1.npz; rename one"),
        ("r,A,B", "edges.csv/npz", "cannot be written .* give another folder"),
        ("r,A,B", "back.csv", "an edge table is written from a folder"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_exit_code_2(
    tmp_path: Path, lines: str, out: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "edges.csv").write_text(f"reaction,substrate,product\n{lines}\n")
    assert kegg.main([str(tmp_path / "edges.csv"), "--out", str(tmp_path / out)]) == 2
    assert re.search(complaint, capsys.readouterr().err)


def test_a_table_that_cannot_be_written_and_an_environment_of_no_graph_are_named(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables[1].write_text("pathway,pH,temp,O2,redox\nMap1,6.8,330,0.0,-0.3\n")
    assert kegg.main([str(tables[0]), "--environments", str(tables[1]), "--out", str(tmp_path / "npz")]) == 0
    assert "no graph is called Map1" in capsys.readouterr().err
    assert kegg.main([str(tmp_path / "npz"), "--out", str(tmp_path / "none" / "back.csv")]) == 2
    assert "cannot be written" in capsys.readouterr().err
