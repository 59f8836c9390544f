r"""Make rows of another length from finished rows, without their text: nothing is tokenised again.

    python -m data_prep.repack --input data/rows-1024 --output data/rows-8192 --row-length 8192

The bytes are those that `data_prep.prepare` would have written. A stream that is there already is left alone.
"""
import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.inputs import check_apart
from data_prep.parallel import spread
from data_prep.pieces import read_documents
from data_prep.rows import Shape, shuffle_seed, write_index, write_shard
from data_prep.totals import totals_table
from data_prep.verify import find_streams
from data_prep.work import FOLDER, check_output
from mmbert.atomic import partial_folder, publish_folder
from mmbert.command import errors_in_one_line, local_folder
from mmbert.manifest import Manifest, ShardRecord, check_stream, read_manifest, stream_folder, write_manifest
from mmbert.packing import check_row_length
from mmbert.run_lock import sole_writer
from mmbert.shards import LanguageShards


def repack_stream(folder: Path, output: Path, row_length: int) -> Manifest:
    """Write one stream with rows of `row_length` tokens below `output`, unless it is there already.

    Raises:
        OSError, ValueError: the stream is damaged; or another one is there.
    """
    old = read_manifest(folder)
    target = stream_folder(output, old.split, old.source, old.language)
    if target.exists():
        return check_made_of(old, target, row_length)
    shards = LanguageShards([folder], [old])
    written = {}
    with partial_folder(target) as partial:
        for number, name in enumerate(old.shards):
            bucket = int(name.split(".")[1])
            seed = shuffle_seed(old.seed, old.source, old.language, bucket)
            shape = Shape(row_length, old.bos_token_id, old.eos_token_id, seed)
            written[name] = write_shard(partial, bucket, read_documents(shards, number), shape)
        manifest = replace(
            old,
            row_length=row_length,
            rows=sum(shard["record"]["rows"] for shard in written.values()),
            tokens=sum(shard["tokens"] for shard in written.values()),
            index_sha256=write_index(partial, [shard["entry"] for shard in written.values()]),
            shards={name: ShardRecord(**shard["record"]) for name, shard in written.items()},
        )
        write_manifest(partial, manifest)
        publish_folder(partial, target)
    return manifest


def check_made_of(old: Manifest, target: Path, row_length: int) -> Manifest:
    """The manifest of a stream that is there already; FileExistsError if it holds other documents, or other rows."""
    new = check_stream(target, row_length, old.tokenizer, old.vocab_size)
    if (new.documents_sha256, new.seed) != (old.documents_sha256, old.seed):
        raise FileExistsError(f"{target} holds other documents: remove it, or choose another --output")
    return new


def repack_all(folders: Sequence[Path], output: Path, row_length: int, workers: int) -> list[Manifest]:
    """Repack streams in `workers` processes."""
    repack = partial(repack_stream, output=output, row_length=row_length)
    return list(spread(repack, folders, workers, "repack", unit="stream"))


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description="Make rows of another length from finished rows.")
    parser.add_argument("--input", type=local_folder, required=True, help="shards folder, made by data_prep.prepare")
    parser.add_argument("--output", type=local_folder, required=True, help="shards folder to make")
    parser.add_argument("--row-length", type=int, required=True, help="most tokens in a row")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    arguments = parser.parse_args()
    check_row_length(arguments.row_length)
    folders = find_streams(arguments.input)
    check_apart(str(arguments.input), arguments.output)
    check_output(arguments.output)
    with sole_writer(arguments.output / FOLDER):
        manifests = repack_all(folders, arguments.output, arguments.row_length, arguments.workers)
    print(totals_table(manifests))


if __name__ == "__main__":
    main()
