r"""Make rows of another length from finished rows, without their text: nothing is tokenised again.

    python -m data_prep.repack --input data/rows-1024 --output data/rows-8192 --row-length 8192

The bytes are those that `data_prep.prepare` would have written. A stream that is there already is left alone.
"""
import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep.inputs import check_apart
from data_prep.parallel import spread
from data_prep.pieces import read_documents
from data_prep.rows import Shape, shuffle_seed, write_index, write_shard
from data_prep.totals import totals_table
from data_prep.verify import Part, find_streams, parts_of
from data_prep.work import FOLDER, check_output
from mmbert.atomic import partial_folder, publish_folder
from mmbert.command import errors_in_one_line, local_folder
from mmbert.manifest import Manifest, ShardRecord, check_stream, read_manifest, stream_folder, write_manifest
from mmbert.packing import check_row_length
from mmbert.run_lock import sole_writer
from mmbert.shards import LanguageShards


def repack_part(task: tuple[Part, Path], row_length: int) -> dict[str, Any]:
    """Write some shards of a stream anew.

    Args:
        task: which, and the folder for them.

    Returns:
        Basename -> what `write_shard` says of it.

    Raises:
        OSError, ValueError: a shard is damaged.
    """
    part, target = task
    old = read_manifest(part.folder)
    shards, names = LanguageShards([part.folder], [old]), list(old.shards)
    written = {}
    for number in part.numbers:
        bucket = int(names[number].split(".")[1])
        seed = shuffle_seed(old.seed, old.source, old.language, bucket)
        shape = Shape(row_length, old.bos_token_id, old.eos_token_id, seed)
        written[names[number]] = write_shard(target, bucket, read_documents(shards, number), shape)
    return written


def publish(old: Manifest, made: Path, target: Path, written: dict[str, Any], row_length: int) -> Manifest:
    """Give the shards of a whole stream, in the folder `made`, an index and a manifest, and move them into place."""
    manifest = replace(
        old,
        row_length=row_length,
        rows=sum(shard["record"]["rows"] for shard in written.values()),
        tokens=sum(shard["tokens"] for shard in written.values()),
        index_sha256=write_index(made, [shard["entry"] for shard in written.values()]),
        shards={name: ShardRecord(**shard["record"]) for name, shard in written.items()},
    )
    write_manifest(made, manifest)
    publish_folder(made, target)
    return manifest


def check_made_of(old: Manifest, target: Path, row_length: int) -> Manifest:
    """The manifest of a stream that is there already; FileExistsError if it holds other documents, or other rows."""
    new = check_stream(target, row_length, old.tokenizer, old.vocab_size)
    if (new.documents_sha256, new.seed) != (old.documents_sha256, old.seed):
        raise FileExistsError(f"{target} holds other documents: remove it, or choose another --output")
    return new


def repack_all(folders: Sequence[Path], output: Path, row_length: int, workers: int) -> list[Manifest]:
    """Write streams with rows of `row_length` tokens below `output`, but for those that are there already.

    The workers share out parts of streams, for one stream may be larger than all others together.

    Raises:
        OSError, ValueError: a stream is damaged; or another one is there.
    """
    manifests = {folder: read_manifest(folder) for folder in folders}
    targets = {folder: stream_folder(output, m.split, m.source, m.language) for folder, m in manifests.items()}
    for folder in [folder for folder, target in targets.items() if target.exists()]:
        manifests[folder] = check_made_of(manifests[folder], targets.pop(folder), row_length)
    with ExitStack() as stack:
        made = {folder: stack.enter_context(partial_folder(target)) for folder, target in targets.items()}
        tasks = [(part, made[folder]) for folder in targets for part in parts_of(folder, manifests[folder])]
        results = spread(partial(repack_part, row_length=row_length), tasks, workers, "repack", unit="part")
        for folder, of_stream in groupby(zip(tasks, results, strict=True), lambda pair: pair[0][0].folder):
            written = {name: shard for _, shards in of_stream for name, shard in shards.items()}
            manifests[folder] = publish(manifests[folder], made[folder], targets[folder], written, row_length)
    return list(manifests.values())


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.repack", description="Make rows of another length from finished rows."
    )
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
