"""How many rows of logits the head's loss holds at a time (linear_cross_entropy.py). A pure function."""

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Of a chunk's logits, in fp32. Products of few rows are slow on a CPU: 128 rows of 16,384 entries took twice the time
of 512. On a GPU every chunk reads and writes the whole gradient of the weights."""


def rows_of_a_chunk(vocab_size: int, device: str) -> int:
    """C for a vocabulary on a type of device."""
    return max(1, CHUNK_BYTES[device] // (4 * vocab_size))
