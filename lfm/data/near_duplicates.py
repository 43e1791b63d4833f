"""Which 64-bit hashes of images are close to each other, found without comparing all with all.

Letters in the names give shapes: U distinct hashes, P pairs of them, M some of them.
"""

import numpy as np
from numpy.typing import NDArray

from lfm.data.sources.base import Index

Hashes = NDArray[np.uint64]

NEAR = 3
"""Images whose 64-bit hashes differ in at most so many bits look alike."""
BUCKET = 64
"""Hashes that share a band are compared all with all, up to so many; above, they are split by a further band."""
DEEPEST, LAST = 3, 1024
"""After so many bands, buckets of at most so many are compared and larger ones are counted as not compared."""
MOST_PAIRS = 5_000_000
"""Once so many pairs are found, the large buckets that remain are counted as not compared: memory stays bounded."""


def close_pairs(hash_U: Hashes) -> tuple[Index, NDArray[np.bool_]]:
    """All pairs of hashes that differ in at most `NEAR` bits, without comparing all with all.

    Split the bits into NEAR + 1 bands: such a pair agrees in at least one of them, so only hashes that share a band
    are compared. Those of a large bucket must also share a band of the other bits, and so on. A pair counts where its
    bands agree first, so it is found once.

    Args:
        hash_U: distinct.

    Returns:
        (P, 2) places in hash_U, and whether a hash lay in a bucket too large even so. (U,).
    """
    found: list[Index] = []
    skipped_U = np.zeros(len(hash_U), bool)

    def search(index_M: Index, bits: list[int], fixed: int, earlier: list[int], depth: int) -> None:
        for k in range(NEAR + 1):
            # Every fourth bit: contiguous bands would be rows of the image, and those at its border tell little.
            band = sum(1 << bit for bit in bits[k :: NEAR + 1])
            key_M = hash_U[index_M] & np.uint64(fixed | band)
            order = np.argsort(key_M, kind="stable")
            sorted_M = index_M[order]
            start = np.flatnonzero(np.diff(key_M[order], prepend=~key_M[order][:1]))
            size = np.diff(start, append=len(order))
            large_M = np.repeat(size > (BUCKET if depth < DEEPEST else LAST), size)
            if depth == DEEPEST or sum(map(len, found)) > MOST_PAIRS:
                skipped_U[sorted_M[large_M]] = True
            elif large_M.any():
                rest = [bit for bit in bits if not band >> bit & 1]
                search(sorted_M[large_M], rest, fixed | band, earlier, depth + 1)
            end_M = np.where(large_M, 0, np.repeat(start + size, size))
            found.extend(_compared(hash_U, sorted_M, end_M, earlier))
            earlier = [*earlier, band]

    search(np.arange(len(hash_U)), list(range(64)), 0, [], 1)
    return np.concatenate([np.zeros((0, 2), np.int64), *found]), skipped_U


def _compared(hash_U: Hashes, sorted_M: Index, end_M: Index, earlier: list[int]) -> list[Index]:
    """The close pairs inside each bucket; `end_M` is where the bucket of each place ends, 0 to leave it out."""
    found = []
    hash_M, step = hash_U[sorted_M], 1
    place = np.flatnonzero(end_M > np.arange(len(end_M)) + 1)
    while len(place):
        differ = hash_M[place] ^ hash_M[place + step]
        close = np.flatnonzero(np.bitwise_count(differ) <= NEAR)
        for band in earlier:
            close = close[differ[close] & np.uint64(band) != 0]
        found.append(np.stack([sorted_M[place[close]], sorted_M[place[close] + step]], axis=1))
        step += 1
        place = place[end_M[place] > place + step]
    return found


def chained(nodes: int, pair_P2: Index) -> Index:
    """The smallest node that each node is connected to. (nodes,)."""
    root = np.arange(nodes)
    while True:
        a, b = root[pair_P2[:, 0]], root[pair_P2[:, 1]]
        apart = a != b
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]
