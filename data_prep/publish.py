"""A finished stream: its shards get an index and a manifest, and appear in the output folder at once."""
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.codec import Codec
from data_prep.partition import Read, read_bucket, read_files, read_of_runs, volume_of
from data_prep.rows import Shape, shuffle_seed, sort_documents, split_bucket, write_index, write_shard
from data_prep.work import PROGRAM, StreamPlan, Work, bucketfuls
from mmbert.atomic import fsync, make_folder, publish_folder, remove, remove_leftovers, write_file
from mmbert.json_files import read_json
from mmbert.manifest import SPLITS, Manifest, ShardRecord, manifest_bytes, pieces_name, shard_name, stream_folder
from mmbert.packing import TokenIds


def make_small_stream(work: Work, stream: StreamPlan, codec: Codec) -> None:
    """Do all that is to be done for a stream of one bucket, unless that was done before."""
    if work.read_record(stream):
        return
    documents, read = read_files(stream.volumes[0].files, work.settings)
    publish_stream(work, stream, read, [make_bucket(work, stream, 0, documents, codec)])


def make_large_bucket(work: Work, stream: StreamPlan, bucket: int, codec: Codec) -> None:
    """Write the shards of one bucket of a stream whose files are in runs, unless that was done before."""
    path = bucket_path(work, stream, bucket)
    if path.exists():
        return
    number, volume = volume_of(stream, bucket)
    documents = read_bucket(work, stream, number, bucket - volume.first_bucket)
    record = make_bucket(work, stream, bucket, documents, codec)
    train = work.staging(stream) / "train"
    written = {
        "train": (train / shard_name(bucket), train / pieces_name(bucket)),
        "heldout": (heldout_path(work, stream, bucket),),
    }
    for split in record["shards"]:
        for file in written[split]:
            fsync(file)
    make_folder(path.parent)
    write_file(path, json.dumps(record).encode())


def publish_large_stream(work: Work, stream: StreamPlan) -> None:
    """Publish a stream whose buckets are all written, unless that was done before."""
    if work.read_record(stream):
        return
    buckets = [read_json(bucket_path(work, stream, bucket), PROGRAM) for bucket in range(stream.num_buckets)]
    gather_heldout(work, stream, buckets)
    publish_stream(work, stream, read_of_runs(work, stream), buckets)


def bucket_path(work: Work, stream: StreamPlan, bucket: int) -> Path:
    """The record of a bucket whose shards are written."""
    return work.staging(stream) / "buckets" / f"{bucket:05d}.json"


def heldout_path(work: Work, stream: StreamPlan, bucket: int) -> Path:
    """The held-out documents of a bucket of a large stream."""
    return work.staging(stream) / "heldout-documents" / f"{bucket:05d}.npz"


def make_bucket(work: Work, stream: StreamPlan, bucket: int, documents: list[bytes], codec: Codec) -> dict[str, Any]:
    """Write one shard for each split that has documents; the record of the bucket.

    Of a large stream the held-out ones, a handful in each of thousands of buckets, wait for `gather_heldout`.
    """
    settings, staging = work.settings, work.staging(stream)
    pairs = sort_documents(documents, settings.distinct)
    shards: dict[str, dict[str, Any]] = {}
    for split, part in split_bucket(pairs, codec, settings.heldout_rate, stream.is_small).items():
        if not part.ids:
            continue
        shards[split] = {"documents": len(part.ids), "text_bytes": part.text_bytes, "hashes": part.hashes}
        if split == "train" or stream.is_small:
            shards[split] |= write_shard(staging / split, bucket, part.ids, shape_of(work, stream, bucket))
        else:
            path = heldout_path(work, stream, bucket)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, ids=np.concatenate(part.ids), lengths=np.array([len(one) for one in part.ids]))
    return {"shards": shards, "duplicates": len(documents) - len(pairs)}


def shape_of(work: Work, stream: StreamPlan, bucket: int) -> Shape:
    """What decides the rows of the shard that is named after a bucket."""
    settings, tokenizer = work.settings, work.tokenizer
    seed = shuffle_seed(settings.seed, stream.source, stream.language, bucket)
    return Shape(settings.row_length, tokenizer.bos_token_id, tokenizer.eos_token_id, seed)


def gather_heldout(work: Work, stream: StreamPlan, buckets: list[dict[str, Any]]) -> None:
    """Write the held-out documents of a large stream's buckets, those of neighbours to one shard of a bucket's size.

    The shard is named after the first of them, and in that one's record; the others' have none then.
    """
    held_out = {
        number: bucket["shards"].pop("heldout")
        for number, bucket in enumerate(buckets)
        if "heldout" in bucket["shards"]
    }
    for numbers in bucketfuls({number: counts["text_bytes"] for number, counts in held_out.items()}):
        first, parts = numbers[0], [held_out[number] for number in numbers]
        documents: list[TokenIds] = []
        for number in numbers:
            with np.load(heldout_path(work, stream, number), allow_pickle=False) as saved:
                documents += np.split(saved["ids"], np.cumsum(saved["lengths"])[:-1])
        buckets[first]["shards"]["heldout"] = {
            "documents": sum(part["documents"] for part in parts),
            "text_bytes": sum(part["text_bytes"] for part in parts),
            "hashes": "".join(part["hashes"] for part in parts),
            **write_shard(work.staging(stream) / "heldout", first, documents, shape_of(work, stream, first)),
        }


def publish_stream(work: Work, stream: StreamPlan, read: Read, buckets: list[dict[str, Any]]) -> None:
    """Move the shards of all buckets into place, and write the stream's record last.

    A stream of which nothing could be read stays as it was.
    """
    splits = [split for split in SPLITS if any(split in bucket["shards"] for bucket in buckets)]
    if splits:
        work.remove_record(stream)
    if (work.staging(stream) / "train").exists():  # never new rows beside what older ones held out
        shutil.rmtree(stream_folder(work.output, "heldout", stream.source, stream.language), ignore_errors=True)
    for split in SPLITS if splits else ():
        folder = stream_folder(work.output, split, stream.source, stream.language)
        staged = work.staging(stream) / split
        if split not in splits:
            shutil.rmtree(folder, ignore_errors=True)
        elif not staged.exists():  # a run that was stopped published it
            remove_leftovers(folder.parent, stream.language)
        else:
            shards = {
                number: bucket["shards"][split] for number, bucket in enumerate(buckets) if split in bucket["shards"]
            }
            index_sha256 = write_index(staged, [shard["entry"] for shard in shards.values()])
            content = manifest_bytes(manifest_of(work, stream, split, shards, index_sha256))
            (staged / "manifest.json").write_bytes(content)
            make_folder(folder.parent)
            publish_folder(staged, folder)
    record = asdict(read) | {
        "digest": work.digest(stream),
        "splits": splits,
        "duplicates": read.duplicates + sum(bucket["duplicates"] for bucket in buckets),
    }
    work.write_record(stream, record)
    remove(work.staging(stream).parent)


def manifest_of(work: Work, stream: StreamPlan, split: str, shards: dict[int, dict[str, Any]], index: str) -> Manifest:
    """The manifest of one split of a stream; `index` is the sha256 of its index.json."""
    tokenizer, settings = work.tokenizer, work.settings

    def total(key: str) -> int:
        return sum(shard[key] for shard in shards.values())

    return Manifest(
        split=split,
        source=stream.source,
        language=stream.language,
        row_length=settings.row_length,
        seed=settings.seed,
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        documents=total("documents"),
        rows=sum(shard["record"]["rows"] for shard in shards.values()),
        tokens=total("tokens"),
        text_bytes=total("text_bytes"),
        documents_sha256=hashlib.sha256("".join(shard["hashes"] for shard in shards.values()).encode()).hexdigest(),
        index_sha256=index,
        shards={shard_name(number): ShardRecord(**shard["record"]) for number, shard in shards.items()},
    )
