"""Train the climate CNN with the spectrum autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from data_pipeline.batch import CLIMATE, SPECTRUM, Batch
from data_pipeline.variables import climate_field
from models.cnn import restore_climate
from trainers import figures
from trainers.engine import Engine

_SURFACE = climate_field("surface_temperature_k")


@dataclass(frozen=True)
class CNNTrainer:
    """Scores reconstructions in kelvin and in units of the observational error."""

    engine: Engine

    def judge(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return each sample's error of the surface temperature and of the spectrum; NaN where there is none."""
        rebuilt, given = (
            restore_climate(outputs[f"climate_{name}"].float())[:, _SURFACE] for name in ("reconstruction", "target")
        )
        kelvin = (rebuilt - given).abs().mean((1, 2)).cpu().numpy()
        spectrum = batch.spectrum
        residual = outputs["spectrum_reconstruction_ppm"].float().cpu() - spectrum.clean_ppm.cpu()
        sigmas = (residual.abs() / spectrum.error_ppm.cpu().clamp(min=1e-9)).mean((1, 2)).numpy()
        present = batch.present.cpu().numpy()
        return {
            "surface_error_k": np.where(present[:, CLIMATE], kelvin, np.nan),
            "spectrum_error_sigma": np.where(present[:, SPECTRUM], sigmas, np.nan),
        }

    def scores(self, means: Mapping[str, float], judged: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the mean absolute errors over samples, in kelvin and in standard deviations of the noise."""
        names = {"climate/surface_error_k": "surface_error_k", "spectrum/error_sigma": "spectrum_error_sigma"}
        return {n: float(np.nanmean(judged[key])) for n, key in names.items() if np.isfinite(judged[key]).any()}

    def figures(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Draw the first climate and the first spectrum of the batch beside their reconstructions."""
        drawn: dict[str, Figure] = {}
        if not self.engine.is_main:
            return drawn
        for b in np.flatnonzero(batch.present[:, CLIMATE].cpu().numpy())[:1]:
            rebuilt = restore_climate(outputs["climate_reconstruction"].float())[b, _SURFACE].cpu().numpy()
            given = batch.climate[b, _SURFACE].float().cpu().numpy()
            maps = {"surface temperature": given, "reconstruction (coarse)": rebuilt}
            drawn["climate"] = figures.climate_maps(maps, "K")
        for b in np.flatnonzero(batch.present[:, SPECTRUM].cpu().numpy())[:1]:
            spectrum = batch.spectrum
            parts = (spectrum.ppm, spectrum.error_ppm, spectrum.clean_ppm, outputs["spectrum_reconstruction_ppm"])
            drawn["spectrum"] = figures.spectra(*(part[b].float().cpu().numpy() for part in parts))
        return drawn
