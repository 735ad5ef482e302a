"""Calibration: fitted numbers undo what was done to the logits, and survive a file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import InputError
from trainers import calibration
from trainers.calibration import Calibration


def test_logits_that_were_made_too_sharp_and_shifted_are_undone() -> None:
    rng = np.random.default_rng(4)
    logit = rng.normal(size=20_000)
    truth = rng.random(20_000) < Calibration().probability(logit)
    fitted = calibration.fit(truth, 5.0 * logit + 2.0)
    assert fitted.temperature == pytest.approx(5.0, rel=0.05)
    assert fitted.offset == pytest.approx(2.0, abs=0.2)


def test_a_perfectly_separated_split_gives_a_finite_temperature() -> None:
    fitted = calibration.fit(np.array([False, True, False, True]), np.array([-2.0, 2.0, -3.0, 3.0]))
    assert 1 / 20 <= fitted.temperature <= 20 and math.isfinite(fitted.offset)


def test_one_class_alone_leaves_logits_as_they_are() -> None:
    assert calibration.fit(np.array([True, True]), np.array([1.0, 2.0])) == Calibration(1.0, 0.0)


def test_the_probability_is_the_sigmoid_of_the_shifted_and_cooled_logit() -> None:
    probability = Calibration(2.0, 1.0).probability(np.array([3.0, 1.0, -1e6]))
    assert probability == pytest.approx([1 / (1 + math.exp(-1)), 0.5, 0.0])


def test_a_saved_calibration_is_read_back_by_view(tmp_path: Path) -> None:
    assert calibration.load(tmp_path, "text") is None
    calibration.save(tmp_path, {"text": Calibration(3.0, -0.5)}, "held_out", 10)
    assert calibration.load(tmp_path, "text") == Calibration(3.0, -0.5)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"views": {"text": {"temperature": 0, "offset": 1}}}'])
def test_a_damaged_file_is_one_line_with_the_way_out(content: str, tmp_path: Path) -> None:
    (tmp_path / calibration.FILE).write_text(content)
    with pytest.raises(InputError, match=r"calibration.json: no temperature and offset of text.*evaluate"):
        calibration.load(tmp_path, "text")
