"""Place the nodes of a directed graph: eigenvectors of the magnetic Laplacian."""

from __future__ import annotations

import numpy as np

from data_pipeline.variables import POSITIONAL_DIM

POTENTIAL = 0.1  # q: a directed edge turns the phase by 2 pi q


def magnetic_laplacian(adjacency: np.ndarray) -> np.ndarray:
    """Return N P float32: real and imaginary parts of the eigenvectors with the smallest eigenvalues.

    Each eigenvector's phase is fixed so that its largest entry (the first of equals) is real and positive, and it is
    scaled by sqrt(N), so that entries are near 1 whatever the size. Graphs with fewer than P/2 nodes are padded with 0.

    Args:
        adjacency: N N bool, [source, target].

    Source:
        Zhang et al. 2021 (MagNet, NeurIPS); Geisler et al. 2023 (ICML): H = I - D^-1/2 (A_s * exp(i theta)) D^-1/2.
    """
    size, vectors = len(adjacency), POSITIONAL_DIM // 2
    encoding = np.zeros((size, POSITIONAL_DIM), np.float32)
    if size == 0:
        return encoding
    directed = adjacency.astype(float)
    symmetric = np.maximum(directed, directed.T)
    theta = 2.0 * np.pi * POTENTIAL * (directed - directed.T)
    degree = symmetric.sum(1)
    scale = np.where(degree > 0, 1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)
    laplacian = np.eye(size) - scale[:, None] * symmetric * np.exp(1j * theta) * scale[None, :]
    _, basis = np.linalg.eigh(laplacian)
    basis = basis[:, :vectors]
    largest = np.argmax(np.round(np.abs(basis), 6), axis=0)
    phase = np.exp(-1j * np.angle(basis[largest, range(basis.shape[1])]))
    basis = basis * phase * np.sqrt(size)
    encoding[:, : basis.shape[1]] = basis.real
    encoding[:, vectors : vectors + basis.shape[1]] = basis.imag
    return encoding
