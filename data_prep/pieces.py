"""The documents of a shard, put together again from the pieces in its rows."""
import io

import numpy as np

from mmbert.file_contents import sha256_of
from mmbert.manifest import pieces_name
from mmbert.packing import Rows, TokenIds, join_pieces
from mmbert.shards import LanguageShards


def read_documents(shards: LanguageShards, shard: int) -> list[TokenIds]:
    """The documents of one shard of the only stream in `shards`, in the order in which they were packed.

    Raises:
        OSError, ValueError: the shard or its pieces are missing, damaged, or do not fit each other; names the file.
    """
    return documents_in(read_rows(shards, shard), shards, shard)


def read_rows(shards: LanguageShards, shard: int) -> Rows:
    """The rows of one shard of the only stream in `shards`; see `read_documents`."""
    begin, end = int(shards.begins[shard]), int(shards.ends[shard])
    return shards.rows([(0, number) for number in range(begin, end)])


def documents_in(rows: Rows, shards: LanguageShards, shard: int) -> list[TokenIds]:
    """The documents in the rows of a shard; see `read_documents`."""
    [folder], [manifest] = shards.folders, shards.manifests
    _, name = shards.shards[shard]
    path = folder / pieces_name(int(name.split(".")[1]))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy it again, or prepare the rows again from their text")
    if sha256_of(path) != manifest.shards[name].pieces_sha256:
        raise ValueError(f"{path} was changed after it was written: copy it again, or prepare the rows again")
    try:
        return join_pieces(rows, np.load(io.BytesIO(path.read_bytes()), allow_pickle=False))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; prepare the rows again from their text") from None
