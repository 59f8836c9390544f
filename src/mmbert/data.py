"""From per-language shards to batches: one `Stream` per language, one fixed order, flat packed batches.

A batch is one flat stream of T tokens with `cu_seqlens`, as FlashAttention takes it: no padding between documents.
B rows, N documents.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from streaming import Stream, StreamingDataset
from torch.utils.data import DataLoader, Dataset, Sampler

from mmbert.config import RunConfig
from mmbert.manifest import Manifest, check_stream, stream_folder
from mmbert.masking import IGNORE
from mmbert.mixture import Group, Plan
from mmbert.row_order import RowOrder
from mmbert.schedules import BatchSizes
from mmbert.tokenizer import Tokenizer

Batch = dict[str, Any]
Place = tuple[int, int, int]  # position in the phase, stream, row in the stream


def read_languages(entries: Sequence[str], key: str) -> list[str]:
    """Language codes; an entry that ends in `.txt` is a file with one code a line and `#` comments.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no language, or one twice.
    """
    codes: list[str] = []
    for entry in entries:
        path = Path(entry)
        if path.suffix != ".txt":
            codes.append(entry)
        elif path.is_file():
            lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
            codes += [code for code in lines if code]
        else:
            raise FileNotFoundError(f"{key}.languages: no such file: {path}")
    twice = sorted({code for code in codes if codes.count(code) > 1})
    if twice or not codes:
        raise ValueError(f"{key}.languages: {'listed twice: ' + ', '.join(twice) if twice else 'no language'}")
    return codes


@dataclass(frozen=True)
class PhaseData:
    """The streams of a phase, checked, and how they are mixed.

    Attributes:
        names: `source/language` of each stream.
        folders, manifests: in the same order.
        groups: the mixture table over indices of `names`.
    """

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    manifests: tuple[Manifest, ...]
    groups: tuple[Group, ...]

    @classmethod
    def open(cls, config: RunConfig, tokenizer: Tokenizer) -> "PhaseData":
        """Find and check every stream of the mixture.

        Raises:
            FileNotFoundError, ValueError: a stream is missing, empty, listed twice, or was made with another tokenizer
                or row length.
        """
        names: dict[str, Path] = {}
        groups = []
        for name, group in config.data.groups().items():
            key = f"data.mixture.{name}"
            start = len(names)
            for language in read_languages(group.languages, key):
                stream = f"{group.source}/{language}"
                if stream in names:
                    raise ValueError(f"{key}: {stream} stands in two groups; a stream belongs to one")
                names[stream] = stream_folder(Path(config.data.root), "train", group.source, language)
            members = np.arange(start, len(names))
            groups.append(Group(name, group.share, group.tau, group.max_repeats, members))
        manifests = tuple(
            check_stream(folder, config.max_seq_len, tokenizer.digest, tokenizer.vocab_size)
            for folder in names.values()
        )
        return cls(tuple(names), tuple(names.values()), manifests, tuple(groups))

    def plan(self, config: RunConfig) -> Plan:
        """The rows that every stream gives in every period of the phase."""
        rows = np.array([manifest.rows for manifest in self.manifests], dtype=np.int64)
        tokens = np.array([manifest.tokens for manifest in self.manifests], dtype=np.int64)
        return Plan(self.groups, rows, tokens, config.duration, config.data.period_rows)

    def row_order(self, config: RunConfig) -> RowOrder:
        """The order of the whole phase."""
        shard_rows = [
            np.array([shard.rows for shard in manifest.shards.values()], dtype=np.int64) for manifest in self.manifests
        ]
        return RowOrder(self.plan(config), self.names, shard_rows, config.phase_seed)

    def digests(self) -> dict[str, str]:
        """Digest of every stream's manifest, by name: what a resumed run compares."""
        return {name: manifest.digest for name, manifest in zip(self.names, self.manifests, strict=True)}


def batch_sizes(config: RunConfig) -> BatchSizes:
    """Rows of every global batch; the warm-up counts a row as `max_seq_len` tokens."""
    final, warmup = config.global_train_batch_size, config.batch_size_warmup
    if warmup is None:
        return BatchSizes([0], [final])
    return BatchSizes.build(final, warmup.start, warmup.tokens // config.max_seq_len)


class LanguageShards(StreamingDataset):
    """The shards of every language of a phase, read by row number.

    Only storage: Streaming finds, decompresses and reads the shards, while their order is `RowOrder`'s. Streaming's
    own order is not exact enough at 1,833 streams, and its iterator ends an epoch early when a shard cannot be read;
    a look-up raises (docs/architecture.md).
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(streams=[Stream(local=str(folder)) for folder in folders], batch_size=1, shuffle=False)
        self.first_row = np.cumsum(self.samples_per_stream) - self.samples_per_stream


class PackedRows(Dataset):
    """Rows by their place in the phase."""

    def __init__(self, shards: LanguageShards) -> None:
        self.shards = shards

    def __getitem__(self, place: Place) -> dict[str, Any]:
        position, stream, row = place
        try:
            sample = self.shards[int(self.shards.first_row[stream]) + row]
        except Exception as error:  # Streaming's many errors, few of which name the file
            folder = self.shards.streams[stream].local
            raise OSError(f"{folder}: cannot read row {row} ({error}); run `python -m data_prep.verify`") from error
        return {**sample, "position": position, "stream": stream}


class PlannedBatches(Sampler):
    """This rank's places of every batch, from a position of the phase on; without end."""

    def __init__(self, order: RowOrder, sizes: BatchSizes, start: int, rank: int, world_size: int) -> None:
        self.order, self.sizes, self.start = order, sizes, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[Place]]:
        return self.order.batches(self.start, self.sizes, self.rank, self.world_size)


class RankBatches:
    """The batches of one rank, as an iterable: a DataLoader itself Composer refuses on several ranks, for its sampler
    is no DistributedSampler. Ours gives each rank its own part (`RowOrder.batches`).
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


def collate(rows: list[dict[str, Any]]) -> Batch:
    """Lay B rows end to end.

    Returns:
        input_ids (T,) int64; cu_seqlens (N + 1,) int32; max_seqlen int; and per row, (B,): row_tokens and
        row_documents as ints, row_positions and row_streams as arrays.
    """
    lengths = [row["lengths"].astype(np.int64) for row in rows]
    documents = np.concatenate(lengths)
    return {
        "input_ids": torch.from_numpy(np.concatenate([row["input_ids"] for row in rows]).astype(np.int64)),
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], np.cumsum(documents)]).astype(np.int32)),
        "max_seqlen": int(documents.max()),
        "row_tokens": [int(row.sum()) for row in lengths],
        "row_documents": [len(row) for row in lengths],
        "row_positions": np.array([row["position"] for row in rows], dtype=np.int64),
        "row_streams": np.array([row["stream"] for row in rows], dtype=np.int64),
    }


def split_batch(batch: Batch, microbatch_size: int | float) -> list[Batch]:
    """Cut a masked batch into microbatches of `microbatch_size` rows."""
    size = int(microbatch_size)
    rows = len(batch["row_tokens"])
    if rows <= size:
        return [batch]
    token = np.concatenate([[0], np.cumsum(batch["row_tokens"])])
    document = np.concatenate([[0], np.cumsum(batch["row_documents"])])
    parts = []
    for first in range(0, rows, size):
        last = min(first + size, rows)
        cu_seqlens = batch["cu_seqlens"][document[first] : document[last] + 1]
        labels = batch["labels"][token[first] : token[last]]
        parts.append(
            {
                "input_ids": batch["input_ids"][token[first] : token[last]],
                "labels": labels,
                "num_labels": int((labels != IGNORE).sum()),
                "cu_seqlens": cu_seqlens - cu_seqlens[0],
                "max_seqlen": int(cu_seqlens.diff().max()),
                **{key: batch[key][first:last] for key in batch if key.startswith("row_")},
            }
        )
    return parts


def count_tokens(batch: Batch) -> dict[str, int]:
    """Tokens of the batch, and those with a label once it is masked: Composer weighs microbatches by the latter."""
    return {"total": len(batch["input_ids"]), "loss_generating": batch.get("num_labels", 0)}


def build_data(config: RunConfig, data: PhaseData, start: int, rank: int, world_size: int) -> DataSpec:
    """The training batches of this rank from row `start` of the phase on, as Composer takes them."""
    loader = DataLoader(
        PackedRows(LanguageShards(data.folders)),
        batch_sampler=PlannedBatches(data.row_order(config), batch_sizes(config), start, rank, world_size),
        collate_fn=collate,
        num_workers=config.data.num_workers,
    )
    return DataSpec(
        RankBatches(loader),
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: len(batch["row_tokens"]),
        get_num_tokens_in_batch=count_tokens,
    )
