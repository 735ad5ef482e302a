"""The climate network knows the sphere, and its physics losses vanish for what they should accept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.variables import CLIMATE_FIELDS, LATITUDES, LEVELS, LONGITUDES, climate_field
from models.cnn import (
    DRY_ADIABAT,
    PRESSURE_PA,
    ClimateCNN,
    area_average,
    climate_terms,
    energy_imbalance,
    hydrostatic_violation,
    restore_climate,
    standardise_climate,
)
from models.configs import ClimateConfig


def climate(exponent: float = 0.0) -> Tensor:
    """A planet with T = 300 K (p / p_lowest)^exponent everywhere, warmer days than nights, dry and still air."""
    cube = torch.zeros(1, len(CLIMATE_FIELDS), LATITUDES, LONGITUDES)
    temperature = 300.0 * torch.tensor(PRESSURE_PA / PRESSURE_PA[0]).pow(exponent).float()
    first = climate_field("temperature_k")
    cube[:, first : first + LEVELS] = temperature.view(1, -1, 1, 1)
    cube[:, climate_field("absorbed_shortwave_w_m2")] = 240.0 + 100.0 * torch.cos(torch.linspace(0, 6.28, LONGITUDES))
    cube[:, climate_field("outgoing_longwave_w_m2")] = 240.0
    cube[:, climate_field("specific_humidity") : climate_field("specific_humidity") + LEVELS] = 10.0**-4.05
    return cube


def test_the_lowest_level_lies_at_0_925_bar_and_the_top_at_10_mbar() -> None:
    assert PRESSURE_PA[[0, -1]] == pytest.approx([92_500.0, 1_000.0])


def test_standardising_centres_and_takes_the_logarithm_of_humidity() -> None:
    standardised = standardise_climate(climate())
    assert standardised[0, climate_field("specific_humidity"), 0, 0].item() == pytest.approx(0.0, abs=1e-5)
    assert standardised[0, climate_field("temperature_k"), 0, 0].item() == pytest.approx((300 - 253) / 24)


def test_air_without_any_water_is_as_dry_as_the_floor() -> None:
    cube = climate()
    cube[:, climate_field("specific_humidity", 3)] = 0.0
    humidity = restore_climate(standardise_climate(cube))[0, climate_field("specific_humidity", 3), 0, 0]
    assert humidity.item() == pytest.approx(-9.0, abs=1e-5)


def test_coarse_cells_keep_the_global_mean() -> None:
    sine = torch.sin(torch.linspace(-np.pi / 2 + 0.049, np.pi / 2 - 0.049, LATITUDES))
    field = (250.0 + 40.0 * sine**2 + 5 * sine).view(1, 1, -1, 1).expand(1, 1, LATITUDES, LONGITUDES).contiguous()
    edges = torch.sin(torch.linspace(-np.pi / 2, np.pi / 2, LATITUDES + 1))
    area = edges.diff() / 2
    coarse_area = area.view(-1, 4).sum(1)
    mean = (field.mean(-1)[0, 0] @ area).item()
    assert (area_average(field).mean(-1)[0, 0] @ coarse_area).item() == pytest.approx(mean)


def test_turning_a_planet_turns_its_features() -> None:
    torch.manual_seed(0)
    network, cube = ClimateCNN(ClimateConfig(width=8)), standardise_climate(climate(0.1))
    cube = cube + torch.cos(torch.linspace(0, 6.28, LONGITUDES))

    def features(x: Tensor) -> Tensor:
        return network.coarse(network.down(network.fine(network.patches(x))))

    turned = features(cube.roll(24, dims=-1))  # 3 of the 8-cell places after both strides
    assert torch.allclose(turned, features(cube).roll(3, dims=-1), atol=1e-5)


def test_no_physics_loss_for_a_perfect_reconstruction() -> None:
    for exponent in (0.0, DRY_ADIABAT, 0.5):  # the last is a given climate that is itself unstable
        given = restore_climate(area_average(standardise_climate(climate(exponent))))
        assert energy_imbalance(given, given).item() == 0.0
        assert hydrostatic_violation(given, given).item() == 0.0


def test_ten_watts_too_much_absorbed_everywhere_cost_one_half() -> None:
    given = area_average(climate())
    rebuilt = given.clone()
    rebuilt[:, climate_field("absorbed_shortwave_w_m2")] += 10.0
    assert energy_imbalance(rebuilt, given).item() == pytest.approx(0.5, abs=1e-4)


def test_moving_energy_from_day_to_night_costs_nothing() -> None:
    given = area_average(climate())
    rebuilt = given.clone()
    absorbed = climate_field("absorbed_shortwave_w_m2")
    rebuilt[:, absorbed] = given[:, absorbed].mean(-1, keepdim=True)
    assert energy_imbalance(rebuilt, given).item() == pytest.approx(0.0, abs=1e-6)


def test_one_per_cent_warmer_columns_are_one_unit_thicker() -> None:
    given = area_average(climate(0.1))
    rebuilt = given.clone()
    rebuilt[:, climate_field("temperature_k") :][:, :LEVELS] *= 1.01
    assert hydrostatic_violation(rebuilt, given).item() == pytest.approx(0.5, rel=1e-3)


def test_only_a_lapse_steeper_than_the_dry_adiabat_is_unstable() -> None:
    given, steady, steep = (area_average(climate(x)) for x in (0.0, 0.9 * DRY_ADIABAT, 0.5))
    first, layers = climate_field("temperature_k"), -np.diff(np.log(PRESSURE_PA))

    def thickness(x: Tensor) -> float:
        t = x[0, first : first + LEVELS, 0, 0].double().numpy()
        return float(((t[1:] + t[:-1]) / 2 * layers).sum())

    def stretched(x: Tensor) -> float:
        return abs(thickness(x) / thickness(given) - 1) / 0.01 - 0.5

    assert hydrostatic_violation(steady, given).item() == pytest.approx(stretched(steady), rel=1e-3)
    unstable = (0.5 - DRY_ADIABAT) / 0.1 - 0.5
    assert hydrostatic_violation(steep, given).item() == pytest.approx(stretched(steep) + unstable, rel=1e-3)


def test_an_error_of_one_deviation_costs_one_and_absent_climates_nothing() -> None:
    target = area_average(standardise_climate(climate().repeat(2, 1, 1, 1)))
    reconstruction = target + 1.0
    reconstruction[1] = 1e6
    terms = climate_terms(reconstruction, target, torch.tensor([True, False]))
    assert terms["climate/recon"].total.item() == pytest.approx(1.0, rel=1e-4)
    assert {t.items.item() for t in terms.values()} == {1.0}


def test_the_network_learns_a_climate_by_heart() -> None:
    torch.manual_seed(0)
    network, cube = ClimateCNN(ClimateConfig(width=16, latent_dim=8)), climate(0.15)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        loss = network(cube).terms["climate/recon"].total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.02


def test_an_absent_climate_gives_finite_numbers_in_either_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        network = ClimateCNN(ClimateConfig(width=8)).to(dtype)
        output = network(torch.zeros(1, len(CLIMATE_FIELDS), LATITUDES, LONGITUDES))
        assert output.latent.dtype == dtype
        assert output.latent.isfinite().all() and output.reconstruction.isfinite().all()
