"""Maps: representations in two dimensions, similar ones side by side."""

import numpy as np

from keras_simclr import _checks
from keras_simclr.neighbours import unit_rows

_FEWEST = 10  # Rows that t-SNE is of use for.
_COLUMNS = 50  # Of what t-SNE is given.
_PERPLEXITY = 30.0
_ROUNDING = 1e-6  # Rows that differ by less are equal.


def lay_out(features, seed=0):
    """Lays out rows in the plane by PCA and, from there, by t-SNE.

    Rows are brought to length 1 first: as for neighbours, the angles count.

    Args:
        features: Array of shape `(N, D)`. 1,000 rows take some seconds; the
            time grows faster than their number.
        seed: Integer.

    Returns:
        float32 array of shape `(N, 2)`, centred, the farthest value at 1. With
        fewer than 10 rows by PCA alone; equal rows all lie at 0.

    Example:

    >>> places = lay_out(np.random.default_rng(0).normal(size=(12, 4)))
    >>> places.shape, float(abs(places).max())
    ((12, 2), 1.0)

    References:
        - van der Maaten and Hinton 2008, JMLR 9 (t-SNE).
        - Kobak and Berens 2019, doi:10.1038/s41467-019-13056-x (start from
          PCA).
    """
    from sklearn import decomposition, manifold
    from threadpoolctl import threadpool_limits

    _checks.seed("seed", seed)
    rows = unit_rows(features)
    rows = rows - rows.mean(axis=0)
    # Sums of several threads are never quite the same, and t-SNE is chaotic.
    with threadpool_limits(1):
        width = min(_COLUMNS, *rows.shape)
        plane = np.zeros((len(rows), max(2, width)), "float32")
        if np.abs(rows).max() > _ROUNDING:
            pca = decomposition.PCA(width, svd_solver="full", random_state=seed)
            plane[:, :width] = pca.fit_transform(rows)
        if len(rows) >= _FEWEST and plane.any():
            plane = manifold.TSNE(
                perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3),
                init="pca",
                random_state=seed % 2**32,
                n_jobs=1,
            ).fit_transform(plane)
    plane = plane[:, :2] - plane[:, :2].mean(axis=0)
    return (plane / (np.abs(plane).max() or 1.0)).astype("float32")
