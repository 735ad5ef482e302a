"""Text: what is said of a planet, and where its three parts begin."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from data_fixture import built_dataset

from data_pipeline import shards, text
from data_pipeline.batch import Sample
from data_pipeline.errors import InputError
from data_pipeline.spectra import planck
from data_pipeline.variables import OBSERVABLES, SPECTRAL_BINS, WAVELENGTH_UM
from models.configs import LanguageConfig
from models.language import load_tokenizer


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    folder = built_dataset()
    return [
        s
        for shard in shards.load_manifest(folder).shards
        for s in shards.to_samples(shards.read_shard(folder / shard.file))
    ]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_observable_text_reads_nothing_that_is_hidden(samples: list[Sample]) -> None:
    for i, sample in enumerate(samples):
        bare = replace(
            sample, facts={}, climate=np.zeros_like(sample.climate), environment=np.zeros_like(sample.environment)
        )
        assert text.description(sample, True, rng(i)) == text.description(bare, True, rng(i))


def test_no_phrase_of_a_description_depends_on_the_label(samples: list[Sample]) -> None:
    words: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for observable_only in (True, False):
        for sample in samples:
            for seed in range(6):
                found = text.description(sample, observable_only, rng(seed))
                words[sample.habitable].update(set(re.findall(r"[A-Za-z]{2,}", found)))
    assert set(words[True]) == set(words[False])


def test_the_answer_gives_the_reason_with_its_numbers(samples: list[Sample]) -> None:
    for sample in samples:
        _, answer = text._habitability(sample.facts, rng(0))
        assert answer.startswith("Yes: " if sample.habitable else "No: ")
        assert f"{100 * sample.facts['liquid_water_share']:.0f} %" in answer


def test_brightness_temperature_inverts_plancks_law(samples: list[Sample]) -> None:
    sample = samples[0]
    names = [v.name for v in text.PLANET]
    radius, star, star_k = (
        float(sample.planet[names.index(n)]) for n in ("radius_earth", "star_radius_sun", "star_temperature_k")
    )
    middle_m = np.sqrt(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1]) * 1e-6
    ppm = np.zeros((len(OBSERVABLES), SPECTRAL_BINS), np.float32)
    ppm[1] = 1e6 * planck(middle_m, 300.0) / planck(middle_m, star_k) * (radius / (star * 109.2)) ** 2
    kelvin, error = text.brightness_temperature(replace(sample, spectrum_ppm=ppm))
    assert kelvin == pytest.approx(300.0, abs=1.0)
    assert error > 0


def test_band_depth_is_the_excess_over_the_continuum(samples: list[Sample]) -> None:
    middle = np.sqrt(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1])
    ppm = np.full((len(OBSERVABLES), SPECTRAL_BINS), 100.0, np.float32)
    ppm[0, (middle > 4.15) & (middle < 4.45)] += 7.0
    depths = {name: depth for name, depth, _ in text.band_depths_ppm(replace(samples[0], spectrum_ppm=ppm))}
    assert depths == pytest.approx({"CO2": 7.0, "CH4": 0.0, "O3": 0.0})


def test_parts_of_a_text_begin_where_it_says(samples: list[Sample]) -> None:
    tokenizer = load_tokenizer(LanguageConfig())
    strings = text.describe(samples[0], False, rng(0))
    found = text.encode(strings, tokenizer, 400)
    ids = found.token_ids
    assert tokenizer.decode(ids[: found.description_length]) == strings[0]
    assert tokenizer.decode(ids[found.description_length : found.answer_start]) == f"\n{strings[1]}\n"
    assert tokenizer.decode(ids[found.answer_start : -1]) == strings[2]
    assert ids[-1] == tokenizer.eos_token_id


def test_a_text_that_is_too_long_loses_sentences_of_its_description_only(samples: list[Sample]) -> None:
    tokenizer = load_tokenizer(LanguageConfig())
    strings = text.describe(samples[0], False, rng(0))
    found = text.encode(strings, tokenizer, 110)
    assert len(found.token_ids) <= 110
    kept = tokenizer.decode(found.token_ids[: found.description_length])
    assert strings[0].startswith(kept.removesuffix("."))
    assert kept.endswith(".")
    assert tokenizer.decode(found.token_ids[found.answer_start : -1]) == strings[2]
    with pytest.raises(InputError, match=r"data\.max_tokens=10: question and answer need"):
        text.encode(strings, tokenizer, 10)


def test_nutrients_have_plain_names() -> None:
    assert text.named(["ac_e", "o2_e", "xyz_e"]) == ["acetate", "O2", "xyz"]
