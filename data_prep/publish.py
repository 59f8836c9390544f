"""A finished stream: its shards get an index and a manifest, and appear in the output folder at once."""
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.codec import Codec
from data_prep.partition import Read, read_bucket, read_files, read_of_runs, volume_of
from data_prep.rows import Shape, shuffle_seed, sort_documents, split_bucket, write_index, write_shard
from data_prep.work import PROGRAM, StreamPlan, Work
from mmbert.atomic import fsync, make_folder, publish_folder, remove, write_file
from mmbert.json_files import read_json
from mmbert.manifest import SPLITS, Manifest, ShardRecord, manifest_bytes, pieces_name, shard_name, stream_folder


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
    for split in record["shards"]:
        for name in (shard_name(bucket), pieces_name(bucket)):
            fsync(work.staging(stream) / split / name)
    make_folder(path.parent)
    write_file(path, json.dumps(record).encode())


def publish_large_stream(work: Work, stream: StreamPlan) -> None:
    """Publish a stream whose buckets are all written, unless that was done before."""
    if work.read_record(stream):
        return
    buckets = [read_json(bucket_path(work, stream, bucket), PROGRAM) for bucket in range(stream.num_buckets)]
    publish_stream(work, stream, read_of_runs(work, stream), buckets)


def bucket_path(work: Work, stream: StreamPlan, bucket: int) -> Path:
    """The record of a bucket whose shards are written."""
    return work.staging(stream) / "buckets" / f"{bucket:05d}.json"


def make_bucket(
    work: Work, stream: StreamPlan, bucket: int, documents: list[bytes], codec: Codec
) -> dict[str, Any]:
    """Write one shard for each split that has documents; the record of the bucket."""
    settings, staging = work.settings, work.staging(stream)
    pairs = sort_documents(documents, settings.distinct)
    seed = shuffle_seed(settings.seed, stream.source, stream.language, bucket)
    shape = Shape(settings.row_length, work.tokenizer.bos_token_id, work.tokenizer.eos_token_id, seed)
    shards = {}
    for split, part in split_bucket(pairs, codec, settings.heldout_rate, stream.is_small).items():
        if part.ids:
            counts = {"documents": len(part.ids), "text_bytes": part.text_bytes, "hashes": part.hashes}
            shards[split] = write_shard(staging / split, bucket, part.ids, shape) | counts
    return {"shards": shards, "duplicates": len(documents) - len(pairs)}


def publish_stream(work: Work, stream: StreamPlan, read: Read, buckets: list[dict[str, Any]]) -> None:
    """Move the shards of all buckets into place, and write the stream's record last.

    A stream of which nothing could be read stays as it was.
    """
    splits = [split for split in SPLITS if any(split in bucket["shards"] for bucket in buckets)]
    if splits:
        work.remove_record(stream)
    for split in SPLITS if splits else ():
        folder = stream_folder(work.output, split, stream.source, stream.language)
        staged = work.staging(stream) / split
        if split not in splits:
            shutil.rmtree(folder, ignore_errors=True)
        elif staged.exists():  # else a run that was stopped published it
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
