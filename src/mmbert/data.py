"""From per-language shards to batches: one stream per language, one fixed order, flat packed batches.

A batch is one flat stream of T tokens, no padding between documents. B rows, N documents, M masked tokens.
"""
import logging
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from time import monotonic

import numpy as np
import torch
from composer.core import DataSpec
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmbert.batch_memory import Batch, BatchMemory
from mmbert.clock import batch_sizes
from mmbert.config import RunConfig
from mmbert.manifest import Manifest
from mmbert.mixture import Group, Integers, Plan
from mmbert.packing import Rows
from mmbert.processes import die_with_parent
from mmbert.ranks import Ranks
from mmbert.remote_rows import RemoteRows, find_rows
from mmbert.row_order import Places, RowOrder, row_hashes
from mmbert.shards import LanguageShards
from mmbert.stop_request import ASKED_BY
from mmbert.streams import mixture_streams
from mmbert.tokenizer import Tokenizer
from mmbert.watchdog import dump_on_request

log = logging.getLogger(__name__)

Planned = list[Places]  # of a batch, and of later ones, whose shards should be fetched
AHEAD = 32  # batches between the one that is read and the last one whose shards are fetched
PREFETCHED = 2  # batches that a worker prepares before they are asked for


@dataclass(frozen=True)
class PhaseData:
    """The streams of a phase, checked, and how they are mixed.

    Attributes:
        names: `source/language` of each stream.
        folders, manifests: in the same order.
        groups: the mixture table over indices of `names`.
        remote: where the shards come from, if not from the folders alone.
    """

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    manifests: tuple[Manifest, ...]
    groups: tuple[Group, ...]
    remote: RemoteRows | None = None

    @classmethod
    def open(cls, config: RunConfig, tokenizer: Tokenizer | None) -> "PhaseData":
        """Find and check every stream of the mixture; without a tokenizer, the manifests alone.

        Raises:
            OSError, ValueError: a stream is missing, empty, listed twice, or was made with another tokenizer or row
                length; or the object store cannot be read.
        """
        streams, groups = mixture_streams(config)
        folders, manifests, remote = find_rows(config.data, streams, config.max_seq_len, tokenizer)
        return cls(tuple(map("/".join, streams)), folders, manifests, groups, remote)

    def plan(self, config: RunConfig) -> Plan:
        """The rows that every stream gives in every period of the phase."""
        rows = np.array([manifest.rows for manifest in self.manifests], dtype=np.int64)
        tokens = np.array([manifest.tokens for manifest in self.manifests], dtype=np.int64)
        return Plan(self.groups, rows, tokens, config.duration, config.data.period_rows)

    def bytes_of_period(self, plan: Plan) -> int:
        """About how much the shards hold that the first period reads: a part of each stream, in whole shards."""
        period = next(plan.periods())
        read = (period.last - period.first) / [manifest.rows for manifest in self.manifests]  # (S,) passes
        sizes = [[record.bytes for record in manifest.shards.values()] for manifest in self.manifests]
        whole, largest = np.array([sum(each) for each in sizes]), np.array([max(each) for each in sizes])
        return int(np.where(read > 0, np.minimum(whole, read * whole + largest), 0).sum())

    def row_order(self, config: RunConfig) -> RowOrder:
        """The order of the whole phase."""
        shard_rows = [
            np.array([shard.rows for shard in manifest.shards.values()], dtype=np.int64) for manifest in self.manifests
        ]
        return RowOrder(self.plan(config), self.names, shard_rows, config.phase_seed)

    def digests(self) -> dict[str, str]:
        """Digest of every stream's manifest, by name: what a resumed run compares."""
        return {name: manifest.digest for name, manifest in zip(self.names, self.manifests, strict=True)}


class PackedRows(Dataset):
    """Batches of rows by their places in the phase.

    Loader workers hand on NumPy arrays; tensors would need /dev/shm. An error is handed on like a batch: raised in a
    worker, it would arrive as a page of traceback.
    """

    def __init__(self, shards: LanguageShards) -> None:
        self.shards = shards

    def __getitems__(self, planned: Planned) -> Batch | Exception:
        places, later = planned
        try:
            self.shards.fetch(places[:, 1:], later[:, 1:])
            return lay_end_to_end(places, self.shards.rows(places[:, 1:]))
        except (ValueError, OSError) as error:
            return error


def lay_end_to_end(places: Places, rows: Rows) -> Batch:
    """One batch of B rows.

    Returns:
        input_ids (T,) int32; lengths (N,) int64, tokens of each document; and per row, (B,): row_tokens and
        row_documents as ints, row_positions, row_streams and row_hashes as arrays.
    """
    positions, streams, numbers = places.T.copy()
    return {
        "input_ids": rows.input_ids.view(np.int32),  # no id needs the sign's bit
        "lengths": rows.lengths.astype(np.int64),
        "row_tokens": rows.row_tokens,
        "row_documents": rows.row_documents,
        "row_positions": positions,
        "row_streams": streams,
        "row_hashes": row_hashes(positions, streams, numbers),
    }


def with_later(batches: Iterator[Places], ahead: int) -> Iterator[Planned]:
    """Each batch with the places of those up to `ahead` after it that no batch before it came with.

    In the beginning it comes with two of them, so that the first need not wait for the shards of all.
    """
    coming = deque[Places]()
    while True:
        batch = coming.popleft() if coming else next(batches)
        new = list(islice(batches, min(2, ahead - len(coming))))
        coming.extend(new)
        yield [batch, np.concatenate([batch[:0], *new])]


class RankBatches:
    """The batches of one rank; before one is handed out, all ranks have theirs and know what is in the global batch.

    So a rank that cannot read its rows stops them all with its reason, and none waits for it in a collective. An
    iterable and no DataLoader, which Composer refuses on several ranks because its sampler is no DistributedSampler.
    """

    def __init__(self, loader: DataLoader, memory: BatchMemory, ranks: Ranks, num_streams: int) -> None:
        if loader.prefetch_factor is not None:
            assert memory.places == loader.prefetch_factor + 1, "a worker would write over a batch on its way"
        self.loader, self.memory, self.ranks, self.num_streams = loader, memory, ranks, num_streams

    def __iter__(self) -> Iterator[Batch]:
        loaded = map(self.memory.take, iter(self.loader))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise wherever the main thread is
        batches = read_ahead(loaded) if self.loader.num_workers else loaded
        while True:
            began = monotonic()
            batch = self.agree(self.fetch(batches))  # ranks leave a step together, so rank 0 waits here for the slowest
            yield {**batch, "seconds_waited": monotonic() - began}

    def fetch(self, batches: Iterator[Batch | Exception]) -> Batch | Exception:
        """The next batch, or why there is none."""
        try:
            return next(batches)
        except RuntimeError as error:  # torch's word for a worker that was killed
            if not self.loader.num_workers:
                return error
            return OSError(f"a loader worker died ({error}); out of memory? lower data.num_workers, and start again")

    def agree(self, batch: Batch | Exception) -> Batch:
        """Add what all ranks' parts hold together: stream_tokens (S,) and digest, the sum of all row hashes.

        Raises:
            ValueError: on every rank, when any of them has no batch.
        """
        told = np.zeros(2 + self.num_streams, dtype=np.int64)
        if isinstance(batch, Exception):
            told[0] = 1
        else:
            told[1] = batch["row_hashes"].sum().astype(np.int64)
            np.add.at(told[2:], batch["row_streams"], batch["row_tokens"])
        failed, digest, *_ = total = self.ranks.sum(told)
        if failed:
            self.ranks.raise_together(batch if isinstance(batch, Exception) else None)
        assert not isinstance(batch, Exception)
        return {**batch, "stream_tokens": total[2:], "digest": int(digest.astype(np.uint64))}


def read_ahead(batches: Iterator[Batch | Exception]) -> Iterator[Batch | Exception]:
    """The same batches, each received while the one before is trained on: through a pipe that takes milliseconds."""
    received: Queue[Batch | Exception | Raised] = Queue(maxsize=1)
    closed = Event()

    def receive() -> None:
        try:
            for batch in batches:
                received.put(batch)
                if closed.is_set():
                    return
            raise RuntimeError("the loader has ended, though the order of rows has no end")
        except Exception as error:  # whoever waits must hear of it, whatever it is
            received.put(Raised(error))

    thread = Thread(target=receive, daemon=True)
    thread.start()
    try:
        while not isinstance(batch := received.get(), Raised):
            yield batch
        raise batch.error
    finally:
        closed.set()
        while thread.is_alive() and not received.empty():
            received.get()
        thread.join(timeout=5.0)  # it holds the loader, whose workers end when nobody does


@dataclass(frozen=True)
class Raised:
    """An error on its way from one thread to another."""

    error: Exception


@dataclass(frozen=True)
class Microbatches:
    """Cuts a masked batch into microbatches of whole rows, as tensors.

    Attributes:
        pad_to: tokens that every microbatch gets, with documents of padding behind the last row, so that a compiled
            model meets one shape; None for no padding.
        pad_token_id: what they are made of; nothing is predicted of them.
        max_seqlen: the longest document of a microbatch with padding; a bound for the kernels that stays the same.
    """

    pad_to: int | None = None
    pad_token_id: int = 0
    max_seqlen: int | None = None

    def __call__(self, batch: Batch, microbatch_size: int | float) -> list[Batch]:
        """Microbatches of `microbatch_size` rows; the last may have fewer.

        Returns:
            Of each: input_ids (T,) int32, and masked, targets and label_streams, the stream of each masked token, (M,)
            int64, as tensors; `lengths` as a list, `max_seqlen`, `num_labels`, and the `row_…` of its rows.
        """
        size, rows = int(microbatch_size), len(batch["row_tokens"])
        return self.at(batch, [range(first, min(first + size, rows)) for first in range(0, rows, size)])

    def at(self, batch: Batch, parts: Sequence[range]) -> list[Batch]:
        """The microbatches of these rows each; see `__call__`."""
        token = np.cumsum([0, *batch["row_tokens"]])
        document = np.cumsum([0, *batch["row_documents"]])
        label = np.searchsorted(batch["masked"], token)
        batch = {**batch, "label_streams": np.repeat(batch["row_streams"], np.diff(label))}
        return [self.cut(batch, rows, token, document, label) for rows in parts]

    def cut(self, batch: Batch, rows: range, token: Integers, document: Integers, label: Integers) -> Batch:
        """The microbatch of these rows; (B + 1,) where each row's tokens, documents and labels begin and end."""
        tokens, documents, labels = (slice(ends[rows.start], ends[rows.stop]) for ends in (token, document, label))
        input_ids, lengths = batch["input_ids"][tokens], batch["lengths"][documents].tolist()
        if self.pad_to is not None and (missing := self.pad_to - len(input_ids)) > 0:
            assert self.max_seqlen is not None
            input_ids = np.pad(input_ids, (0, missing), constant_values=self.pad_token_id)
            full, rest = divmod(missing, self.max_seqlen)
            lengths += [self.max_seqlen] * full + [rest] * (rest > 0)
        return {
            "input_ids": self.tensor(input_ids),
            "masked": self.tensor(batch["masked"][labels] - tokens.start),
            "targets": self.tensor(batch["targets"][labels]),
            "label_streams": self.tensor(batch["label_streams"][labels]),
            "num_labels": int(labels.stop - labels.start),
            "lengths": lengths,
            "max_seqlen": self.max_seqlen,
            **{key: batch[key][rows.start : rows.stop] for key in batch if key.startswith("row_")},
        }

    def tensor(self, array: np.ndarray) -> Tensor:
        """A tensor that a GPU can be sent without waiting for it: its memory must be pinned."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pad_to is not None else tensor


def count_tokens(batch: Batch) -> dict[str, int]:
    """Tokens of the batch, and those with a label once it is masked: Composer weighs microbatches by the latter."""
    return {"total": sum(batch["row_tokens"]), "loss_generating": batch.get("num_labels", 0)}


def start_worker(number: int) -> None:
    """What a loader worker does first: signals are its parent's business, and it ends when its parent does."""
    for asked in ASKED_BY:  # a terminal and Slurm send them to every process of a job
        signal.signal(asked, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
    dump_on_request()


def build_data(
    config: RunConfig, data: PhaseData, start: int, ranks: Ranks, microbatches: Microbatches
) -> DataSpec:
    """The training batches of this rank from row `start` of the phase on, as Composer takes them."""
    if data.remote and data.remote.limit and ranks.is_first:
        needed = data.bytes_of_period(data.plan(config))
        if needed > data.remote.limit:
            log.warning(
                "data.cache_limit holds %.1f GB, and the shards of a period of %s rows are about %.1f GB: they will be "
                "fetched several times; raise it, or lower data.period_rows before the phase begins",
                data.remote.limit / 1e9, f"{config.data.period_rows:,}", needed / 1e9,
            )  # fmt: skip
    rows = -(-config.global_train_batch_size // ranks.world_size)
    memory = BatchMemory(rows * config.max_seq_len, config.data.num_workers, PREFETCHED)
    batches = data.row_order(config).batches(start, batch_sizes(config), ranks.rank, ranks.world_size)
    loader = DataLoader(
        PackedRows(LanguageShards(data.folders, data.manifests, data.remote)),
        batch_sampler=with_later(batches, AHEAD if data.remote else 0),
        collate_fn=memory.put,  # `PackedRows` has laid the rows out already
        num_workers=config.data.num_workers,
        prefetch_factor=PREFETCHED if config.data.num_workers else None,
        worker_init_fn=start_worker,
    )
    return DataSpec(
        RankBatches(loader, memory, ranks, len(data.names)),
        split_batch=microbatches,
        get_num_samples_in_batch=lambda batch: len(batch["row_tokens"]),
        get_num_tokens_in_batch=count_tokens,
    )
