from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.two_stream import emission, gauss, reflectance


def layers(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None]


@pytest.mark.parametrize("cosine", [0.3, 0.5, 0.8])  # 0.5 is where the formula divides by zero
def test_air_that_only_absorbs_dims_the_beam_on_its_way_down_and_the_diffuse_light_on_its_way_up(
    cosine: float,
) -> None:
    seen = reflectance(layers(0.3, 0.2), layers(0, 0), layers(0, 0), np.array([0.4]), cosine)
    assert seen[0] == pytest.approx(0.4 * np.exp(-0.5 / cosine) * np.exp(-2 * 0.5), rel=2e-4)  # diffusivity 2


@pytest.mark.parametrize("asymmetry", [0.0, 0.85])
def test_light_is_conserved_over_white_ground(asymmetry: float) -> None:
    seen = reflectance(layers(0.5, 8.0), layers(1, 1), layers(0.0, asymmetry), np.array([1.0]), cosine=0.7)
    assert seen[0] == pytest.approx(1.0, abs=2e-4)


def test_a_conservative_layer_over_black_ground_has_the_albedo_of_the_two_stream_formula() -> None:
    # Meador & Weaver 1980, equation 24: (g1 t + (g3 - g1 mu)(1 - exp(-t / mu))) / (1 + g1 t), g1 = 3/4, g3 = 1/2
    t, mu = 2.0, 0.6
    by_hand = (0.75 * t + (0.5 - 0.75 * mu) * (1 - np.exp(-t / mu))) / (1 + 0.75 * t)
    assert by_hand == pytest.approx(0.6193, abs=1e-4)
    seen = reflectance(layers(t), layers(1), layers(0), np.array([0.0]), mu)
    assert seen[0] == pytest.approx(by_hand, abs=2e-4)


def test_two_halves_of_a_cloud_are_one_cloud() -> None:
    whole = reflectance(layers(6.0), layers(0.99), layers(0.8), np.array([0.1]), 0.5)
    halves = reflectance(layers(3.0, 3.0), layers(0.99, 0.99), layers(0.8, 0.8), np.array([0.1]), 0.5)
    assert halves[0] == pytest.approx(whole[0], rel=1e-6)


def test_an_isothermal_column_sends_out_pi_times_the_black_body() -> None:
    flux = emission(layers(0.2, 3.0), layers(5.0, 5.0, 5.0), np.array([5.0]))
    assert flux[0] == pytest.approx(np.pi * 5.0, rel=1e-9)


def test_a_deep_column_sends_out_what_lies_two_thirds_deep() -> None:
    """Eddington and Barbier: with a source b + c t the flux is pi (b + 2/3 c)."""
    depth = np.full((200, 1), 0.2)
    below = np.concatenate([np.cumsum(depth[::-1])[::-1], [0.0]])[:, None]
    flux = emission(depth, 1.0 + 3.0 * below, (1.0 + 3.0 * below)[0])
    assert flux[0] == pytest.approx(np.pi * (1.0 + 2.0), rel=2e-3)


def test_a_thin_layer_is_followed_where_exponentials_cancel() -> None:
    thick, thin = (emission(layers(t), layers(3.0, 1.0), np.array([0.0]))[0] for t in (2e-3, 1e-4))
    assert thin == pytest.approx(thick / 20, rel=5e-3)
    assert thin == pytest.approx(2 * np.pi * 1e-4 * 2.0, rel=5e-3)  # both sides of the layer's mean source 2


def test_gauss_weights_add_up_to_one() -> None:
    cosines, weights = gauss(4)
    assert weights.sum() == pytest.approx(1.0) and (weights * cosines).sum() == pytest.approx(0.5)
