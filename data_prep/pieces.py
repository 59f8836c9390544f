"""The documents of a shard, put together again from the pieces in its rows."""
import io

import numpy as np

from mmbert.file_contents import sha256_of
from mmbert.manifest import pieces_name
from mmbert.packing import TokenIds, join_pieces
from mmbert.shards import LanguageShards


def read_documents(shards: LanguageShards, shard: int) -> list[TokenIds]:
    """The documents of one shard of the only stream in `shards`, in the order in which they were packed.

    Raises:
        OSError, ValueError: the shard or its pieces are missing, damaged, or do not fit each other; names the file.
    """
    [folder], [manifest] = shards.folders, shards.manifests
    (_, name), begin = shards.shards[shard], int(shards.begins[shard])
    record = manifest.shards[name]
    path = folder / pieces_name(int(name.split(".")[1]))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy it again, or prepare the rows again from their text")
    if sha256_of(path) != record.pieces_sha256:
        raise ValueError(f"{path} was changed after it was written: copy it again, or prepare the rows again")
    rows = shards.rows([(0, number) for number in range(begin, begin + record.rows)])
    try:
        return join_pieces(rows, np.load(io.BytesIO(path.read_bytes()), allow_pickle=False))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; prepare the rows again from their text") from None
