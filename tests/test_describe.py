from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from data_fixture import PLANETS, built_dataset, chain

from data_pipeline import build, describe, pictures, shards
from data_pipeline.variables import CLIMATE_FIELDS, ENVIRONMENT, PLANET, climate_field


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = shutil.copytree(built_dataset(), tmp_path_factory.mktemp("page") / "planets")
    assert build.main(["--describe", str(folder)]) == 0
    return (folder / "describe.html").read_text()


def test_the_page_is_whole_and_needs_no_other_file(page: str) -> None:
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "img", "line", "rect", "br", "i", "p", "tr", "td"}:
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in {"i", "p", "td", "tr", "rect", "line"}:
                assert open_tags.pop() == tag

    Reader().feed(page)
    assert open_tags == []
    assert not re.findall(r'(?:src|href)=(?!"data:)', page) and "http" not in page
    assert len(page) < 5e6


def test_the_page_counts_the_planets_and_their_labels(page: str) -> None:
    manifest = shards.load_manifest(built_dataset())
    assert f"<b>{PLANETS}</b>planets" in page
    for split, rows in manifest.facts["rows"].items():
        if rows:
            some = round(rows * manifest.facts["habitable_share"][split])
            assert f"{some} of {rows}, {100 * some / rows:.0f} %" in page
    for package, version in manifest.sources.items():
        assert f"<td>{package}<td>{version}" in page


def test_every_variable_has_its_distribution(page: str) -> None:
    for variable in (*PLANET, *ENVIRONMENT[:4]):
        assert f'aria-label="{describe.words_of(variable.name)}"' in page, variable.name
    assert page.count("<figure class=h>") > 45
    assert page.count('alt="spectrum"') == page.count('alt="surface temperature of both sides"') >= 3
    assert 'alt="metabolic network"' in page


def test_a_histogram_holds_each_planet_once_in_the_colour_of_its_label() -> None:
    picture = pictures.histogram(
        "a & b", "K", np.array([1.0, 1.0, 2.0, 3.0]), np.array([True, False, True, True]), False
    )
    heights = re.findall(r'height="?([\d.]+)"? fill="(#\w+)"|height=([\d.]+) fill="(#\w+)"', picture)
    found = [(float(a or c), b or d) for a, b, c, d in heights]
    assert sum(h for h, colour in found if colour == pictures.LIFE) == pytest.approx(3 * 31)  # two planets: 62 high
    assert sum(h for h, colour in found if colour == pictures.BARREN) == pytest.approx(31)
    assert "a &amp; b" in picture and "<b>1.5</b>" in picture


def test_a_variable_of_one_value_or_of_none_can_be_drawn() -> None:
    assert "<rect" in pictures.histogram("x", "", np.array([2.0, 2.0]), np.array([True, True]), True)
    assert pictures.histogram("x", "", np.zeros(0), np.zeros(0, bool), True) == ""


def test_the_substellar_point_is_in_the_middle_of_the_day_side() -> None:
    cube = np.full((len(CLIMATE_FIELDS), 32, 64), 200.0, np.float32)
    cube[climate_field("surface_temperature_k"), 14:18, 30:34] = 380.0  # longitude 0 lies between columns 31 and 32
    day, night = (pictures._globe(cube[0], centre, 101) for centre in (0.0, 180.0))
    hot, cold = day[50, 50], night[50, 50]
    assert hot[0] > 0.6 and hot[2] < 0.2 and cold[2] > cold[0]  # red there, blue on the other side
    assert day[0, 0, 3] == 0.0  # outside the sphere


def test_parts_of_a_network_stay_together_in_the_picture() -> None:
    import networkx as nx

    drawn = nx.Graph([(0, 1), (2, 3)])
    place = pictures._layout(drawn)
    assert set(place) == {0, 1, 2, 3} and max(np.abs(p).max() for p in place.values()) <= 1.01
    assert pictures.network(chain("a", "b", "c")).startswith("<img")
