"""How many rows of logits the head's loss holds at a time (linear_cross_entropy.py). A pure function."""

CHUNK_BYTES = {"cpu": 3 * 2**27, "cuda": 2**32}
"""At most, of a chunk's logits in fp32. Every chunk reads the weights twice, and reads and writes their whole gradient;
products of few rows are slow on a CPU besides: 128 rows of 16,384 entries took twice the time of 512."""
ALIGNED = 128
"""A GPU's products of matrices are computed in tiles; 3,687 rows at a time were slower than 2,458 or 4,916."""


def rows_of_a_chunk(num_rows: int, vocab_size: int, device: str) -> int:
    """C for so many rows on a type of device: as few chunks as may be, and all of about one size."""
    most = max(1, CHUNK_BYTES[device] // (4 * vocab_size))
    num_chunks = max(1, -(-num_rows // most))
    rows = max(1, -(-num_rows // num_chunks))
    return min(most, -(-rows // ALIGNED) * ALIGNED) if device == "cuda" else rows
