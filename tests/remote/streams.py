"""Two streams of the corpus in a store, and what the cache holds of them."""
from mmbert.manifest import Manifest, read_manifest
from mmbert.remote_rows import RemoteRows
from mmbert.shards import LanguageShards
from tests.conftest import Corpus

LAA, LAB = (f"train/invented/{name}" for name in ("laa", "lab"))
SHARD = "shard.00000.mds"


def opened(remote: RemoteRows) -> LanguageShards:
    """The streams laa and lab."""
    folders = [remote.folder / LAA, remote.folder / LAB]
    remote.fetch_manifests(folders)
    return LanguageShards(folders, [read_manifest(folder) for folder in folders], remote)


def all_rows(shards: LanguageShards) -> list[bytes]:
    return [
        shards.rows([(stream, number)]).input_ids.tobytes()
        for stream, manifest in enumerate(shards.manifests)
        for number in range(manifest.rows)
    ]


def local_rows(corpus: Corpus) -> list[bytes]:
    folders = [corpus.shards[64] / name for name in (LAA, LAB)]
    return all_rows(LanguageShards(folders, [read_manifest(folder) for folder in folders]))


def sizes(manifests: tuple[Manifest, ...] | list[Manifest]) -> list[int]:
    return [record.bytes for manifest in manifests for record in manifest.shards.values()]


def cached(remote: RemoteRows) -> list[str]:
    """Every shard in the cache, whole or not."""
    return sorted(str(path.relative_to(remote.folder)) for path in remote.cache.rglob("*.mds*") if path.is_file())
