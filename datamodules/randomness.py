"""Random streams that belong to a sample, not to the process that happens to read it."""

import numpy as np


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random stream of one sample in one epoch.

    A counter-based generator keyed by its coordinates: the same whatever worker, rank or order it is used in.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, index))))


def epoch_permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..length-1, its stream apart from those of the samples."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))).permutation(
        length
    )
