"""How sure a measured number is: 95 % confidence intervals of shares and of means."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
_MOST_DRAWS = 2**20  # at once
Interval = tuple[float, float]


def wilson(right: int, n: int, z: float = 1.96) -> Interval:
    """The Wilson score interval of a share (Wilson 1927)."""
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)


def bootstrap(sums_N: Sequence[float], counts_N: Sequence[float] | None = None, seed: int = 0) -> Interval:
    """The percentile interval of sum(sums) / sum(counts), units drawn again with their counts (Efron 1979).

    A unit is what was drawn on its own: an item, or a document whose tokens belong together. Without counts it is the
    interval of a mean.
    """
    sums_N1 = np.asarray(sums_N, dtype=np.float64)[:, None]
    counts_N1 = np.ones_like(sums_N1) if counts_N is None else np.asarray(counts_N, dtype=np.float64)[:, None]
    return bootstrap_columns(sums_N1, counts_N1, seed)[0]


def bootstrap_columns(sums_ND: np.ndarray, counts_ND: np.ndarray, seed: int = 0) -> list[Interval]:
    """The same for every column, all of them over the same draws."""
    lows_D, highs_D = np.nanquantile(_ratios(sums_ND, counts_ND, seed), [0.025, 0.975], axis=0)
    return list(zip(lows_D.tolist(), highs_D.tolist(), strict=True))


def bootstrap_gap(sums_N2: np.ndarray, counts_N2: np.ndarray, seed: int = 0) -> Interval:
    """How far the first of two such ratios is above the second, over the same draws."""
    ratios_R2 = _ratios(sums_N2, counts_N2, seed)
    low, high = np.nanquantile(ratios_R2[:, 0] - ratios_R2[:, 1], [0.025, 0.975]).tolist()
    return low, high


def _ratios(sums_ND: np.ndarray, counts_ND: np.ndarray, seed: int) -> np.ndarray:
    """sum(sums) / sum(counts) of each resample [R, D]; nan where it counts nothing."""
    rng, n = np.random.default_rng(seed), len(sums_ND)
    at_once = max(1, _MOST_DRAWS // n)
    ratios = []
    for first in range(0, RESAMPLES, at_once):
        times_RN = _draw_again(rng, min(at_once, RESAMPLES - first), n)
        counts_RD = times_RN @ counts_ND
        ratios_RD = np.full_like(counts_RD, np.nan)
        np.divide(times_RN @ sums_ND, counts_RD, out=ratios_RD, where=counts_RD > 0)
        ratios.append(ratios_RD)
    return np.concatenate(ratios)


def _draw_again(rng: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """How often each of n units is drawn in each resample [R, N]."""
    units_RN = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(units_RN.ravel(), minlength=resamples * n).reshape(resamples, n)
