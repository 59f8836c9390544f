import numpy as np
import pytest

from mmbert.packing import Rows, best_fit_decreasing, chunk_lengths, join_pieces, pack_documents, pack_pieces

BOS, EOS = 2, 1


def naive_best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The definition, in quadratic time; among equally full rows the one that changed last, as in mmbert.packing."""
    rows: list[list[int]] = []
    changed: list[int] = []  # step at which each row last took an item
    for step, item in enumerate(sorted(range(len(lengths)), key=lambda index: -lengths[index])):
        free = [capacity - sum(lengths[index] for index in row) for row in rows]
        fits = [row for row in range(len(rows)) if free[row] >= lengths[item]]
        if fits:
            row = min(fits, key=lambda row: (free[row], -changed[row]))
            rows[row].append(item)
            changed[row] = step
        else:
            rows.append([item])
            changed.append(step)
    return rows


def log_normal_documents(count: int, seed: int = 0) -> list[np.ndarray]:
    """Documents of log-normal length whose ids are all different, so that any loss or swap shows."""
    lengths = np.maximum(1, np.random.default_rng(seed).lognormal(mean=4.5, sigma=1.2, size=count).astype(int))
    ids = np.arange(lengths.sum(), dtype=np.uint32) + 10
    return np.split(ids, np.cumsum(lengths)[:-1])


def unpack(rows: list) -> list[np.ndarray]:
    """The wrapped documents of all rows."""
    return [chunk for row in rows for chunk in np.split(row.input_ids, np.cumsum(row.lengths)[:-1])]


@pytest.mark.parametrize("row_length", [16, 64, 1024])
def test_every_token_is_kept_exactly_once_and_chunks_stay_in_order(row_length: int):
    documents = log_normal_documents(300)
    rows = pack_documents(documents, row_length, BOS, EOS)
    chunks = sorted((chunk[1:-1] for chunk in unpack(rows)), key=lambda chunk: chunk[0])
    assert np.array_equal(np.concatenate(chunks), np.concatenate(documents))


def test_every_document_is_wrapped_and_no_row_overflows():
    rows = pack_documents(log_normal_documents(300), 128, BOS, EOS)
    for row in rows:
        assert len(row.input_ids) == row.lengths.sum() <= 128
        assert row.input_ids.dtype == np.uint32
        assert row.lengths.dtype == np.uint16
    for chunk in unpack(rows):
        assert chunk[0] == BOS
        assert chunk[-1] == EOS
        assert not np.isin(chunk[1:-1], (BOS, EOS)).any()


def test_rows_are_at_least_95_percent_full():
    rows = pack_documents(log_normal_documents(2000), 512, BOS, EOS)
    assert sum(len(row.input_ids) for row in rows) / (512 * len(rows)) >= 0.95


def test_packing_is_the_same_every_time():
    first, second = (pack_documents(log_normal_documents(300), 128, BOS, EOS) for _ in range(2))
    assert len(first) == len(second)
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_bisection_gives_the_rows_of_the_quadratic_best_fit(seed: int):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(5, 200))
    lengths = rng.integers(1, capacity + 1, size=150).tolist()
    assert best_fit_decreasing(lengths, capacity) == naive_best_fit_decreasing(lengths, capacity)


def test_no_two_rows_fit_into_one():
    lengths = np.random.default_rng(0).integers(1, 101, size=500).tolist()
    fills = sorted(sum(lengths[index] for index in row) for row in best_fit_decreasing(lengths, 100))
    assert fills[0] + fills[1] > 100


@pytest.mark.parametrize(
    "num_tokens, expected",
    [
        (1, [1]),
        (62, [62]),  # exactly one row of 64 with <bos> and <eos>
        (124, [62, 62]),
        (66, [62, 4]),  # 4 = 64 // 16: long enough to stand alone
        (65, [33, 32]),  # 3 would not be: shared evenly with the piece before
        (127, [62, 33, 32]),
    ],
)
def test_long_documents_are_cut_into_full_chunks_and_no_tiny_one(num_tokens: int, expected: list[int]):
    assert chunk_lengths(num_tokens, row_length=64) == expected


def test_chunks_sum_to_the_document_and_none_is_tiny_but_a_tiny_document():
    for num_tokens in range(1, 2000):
        lengths = chunk_lengths(num_tokens, row_length=128)
        assert sum(lengths) == num_tokens
        assert max(lengths) <= 126
        assert min(lengths) >= min(8, num_tokens)


@pytest.mark.parametrize("row_length", [0, 2, 65536])
def test_a_row_length_that_cannot_be_stored_is_refused(row_length: int):
    with pytest.raises(ValueError, match=f"row_length={row_length}"):
        pack_documents(log_normal_documents(1), row_length, BOS, EOS)


def test_pieces_put_the_documents_together_again_whatever_the_order_of_the_rows():
    documents = log_normal_documents(300)
    rows, pieces = pack_pieces(documents, 64, BOS, EOS)
    order = np.random.default_rng(0).permutation(len(rows))
    joined = join_pieces(Rows.of([rows[i] for i in order]), np.concatenate([pieces[i] for i in order]))
    assert [document.tolist() for document in joined] == [document.tolist() for document in documents]


@pytest.mark.parametrize(
    "pieces", [[0], [0, 2, 4], [1, 2], [0, 4], [0, 0]], ids=["missing", "many", "headless", "gap", "twice"]
)
def test_pieces_that_are_not_of_whole_documents_are_refused(pieces: list[int]):
    rows, right = pack_pieces([np.array([10]), np.array([11])], 64, BOS, EOS)
    assert np.concatenate(right).tolist() == [0, 2]
    with pytest.raises(ValueError, match="not the pieces of whole documents, each once"):
        join_pieces(Rows.of(rows), np.array(pieces, dtype=np.uint32))
