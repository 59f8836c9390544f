"""Rows in an object store: what is read of them is fetched into a local folder, once for all processes of a machine.

The folder is a copy of a part of the store, and what lies in it is checked like rows that were always there. Processes
share it by locks that the kernel frees when their holder dies, and by renames; so a kill leaves nothing to repair.
"""
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread

from tqdm import tqdm

from mmbert.atomic import partial_folder, remove
from mmbert.data_config import DataConfig, is_remote
from mmbert.manifest import Manifest, ShardRecord, check_shard, check_stream, read_manifest, stream_folder
from mmbert.object_store import WAITS, download
from mmbert.tokenizer import Tokenizer

THREADS = 10  # as many connections as S3's client keeps
THREADS_AHEAD = 4  # of each loader worker
MOST_ASKED = 4096  # shards that wait for them
ROOM = "room"  # a file without content, as long as the shard that is being fetched beside it
SECONDS_FULL = 0.2  # between two looks whether there is room

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a file, made for that, against other processes and threads; the kernel frees it.

    Raises:
        BlockingIOError: another holds it, and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def is_locked(path: Path) -> bool:
    """Whether anybody holds it; FileNotFoundError if there is no such file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@dataclass(frozen=True)
class RemoteRows:
    """Rows below a URL, and the folder on a local disk to which they are fetched.

    Attributes:
        url: without a slash at its end.
        cache: of all URLs.
        limit: most bytes of shards in `cache`, those under way included; None for no limit.
    """

    url: str
    cache: Path
    limit: int | None = None

    @property
    def folder(self) -> Path:
        """The local root: below it everything has the place that it has below the URL."""
        return self.cache / self.url.replace("://", "/")

    def url_of(self, path: Path) -> str:
        """Where a file of the local root comes from."""
        return f"{self.url}/{path.relative_to(self.folder).as_posix()}"

    def open_streams(self, folders: Sequence[Path], check: Callable[[Path], Manifest]) -> tuple[Manifest, ...]:
        """The manifest of every stream as it is in the store now, after its check.

        Args:
            folders: of the streams, below the local root.
            check: reads a stream's manifest from its folder, which lacks the shards, and checks it.

        Raises:
            OSError, ValueError: one cannot be had, is not what it should be, or has a shard above the limit.
        """
        self.fetch_manifests(folders)
        try:
            manifests = tuple(map(check, folders))
        except ValueError as error:
            raise ValueError(str(error).replace(str(self.folder), self.url)) from None
        self.check_limit(manifests)
        return manifests

    def fetch_manifests(self, folders: Sequence[Path]) -> None:
        """Get the manifest of every stream as it is in the store now.

        One process does it for all those of a machine that start together.

        Args:
            folders: of the streams, below the local root.

        Raises:
            OSError, ValueError: one cannot be had, or is damaged; names its URL.
        """
        asked = time.time_ns()
        with locked(self.cache / ".locks" / "manifests"), ThreadPoolExecutor(THREADS) as pool:
            waiting = [pool.submit(self._fetch_manifest, folder, asked) for folder in folders]
            try:
                for fetched in tqdm(waiting, unit="manifest", disable=None, leave=False):
                    fetched.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _fetch_manifest(self, folder: Path, asked: int) -> None:
        path = folder / "manifest.json"
        if not path.is_file() or path.stat().st_mtime_ns < asked:
            with partial_folder(path) as partial:
                download(self.url_of(path), partial / path.name, lambda: read_manifest(partial), WAITS)
                (partial / path.name).replace(path)

    def check_limit(self, manifests: Iterable[Manifest]) -> None:
        """Refuse a limit that is too small for a shard.

        Raises:
            ValueError: names it and the shard.
        """
        largest, where = max(
            (record.bytes, f"{manifest.split}/{manifest.source}/{manifest.language}/{name}")
            for manifest in manifests
            for name, record in manifest.shards.items()
        )
        if self.limit is not None and self.limit < largest:
            raise ValueError(
                f"data.cache_limit = {self.limit:,} bytes is smaller than {self.url}/{where}, {largest:,} bytes; "
                "raise it: the shards of a whole period should fit"
            )

    def open(self, folder: Path, name: str, record: ShardRecord) -> int:
        """Descriptor of a shard, fetched if it is not there, and checked; it stays readable when the shard is evicted.

        Raises:
            OSError, ValueError: it cannot be had, or is not what was written; names its URL.
        """
        path = folder / name
        try:
            check_shard(folder, name, record)
            os.utime(path)  # what is evicted first is what was not asked for longest
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            pass  # not fetched yet, or evicted
        except ValueError as error:
            log.warning("%s; it is fetched again", error)
            path.unlink(missing_ok=True)
        return self._fetch(path, record, WAITS)

    def prepare(self, folder: Path, name: str, record: ShardRecord) -> None:
        """Have a shard there for later; an error is left to whoever needs it then, and tells it."""
        with suppress(OSError, ValueError):
            try:
                os.utime(folder / name)
            except FileNotFoundError:
                os.close(self._fetch(folder / name, record, ()))

    def _fetch(self, path: Path, record: ShardRecord, waits: Sequence[float]) -> int:
        """Descriptor of a shard that was not there."""
        with locked(self._lock_of(path)):
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY)  # another process has fetched it meanwhile, and checked it
            with partial_folder(path) as partial, self._room_for(record.bytes, partial):
                arrived = partial / path.name
                download(self.url_of(path), arrived, lambda: check_shard(partial, path.name, record), waits)
                file = os.open(arrived, os.O_RDONLY)
                arrived.replace(path)
                return file

    def _lock_of(self, path: Path) -> Path:
        """What whoever fetches a shard holds; 256 locks serve any number of shards."""
        return self.cache / ".locks" / hashlib.sha256(str(path.relative_to(self.cache)).encode()).hexdigest()[:2]

    @contextmanager
    def _room_for(self, size: int, partial: Path) -> Iterator[None]:
        """Keep `size` bytes of the limit for a shard on its way, by a locked file that claims to be as long."""
        if self.limit is None:
            yield
            return
        with ExitStack() as held:
            while True:
                with locked(self.cache / ".locks" / "limit"):
                    if self._evict(size):
                        held.enter_context(locked(partial / ROOM))
                        os.truncate(partial / ROOM, size)
                        break
                time.sleep(SECONDS_FULL)
            yield

    def _evict(self, size: int) -> bool:
        """Remove shards, those not asked for longest first, until `size` bytes more fit; or tell that they cannot."""
        assert self.limit is not None
        shards, on_their_way = [], 0
        for folder, subfolders, names in os.walk(self.cache):
            for hidden in [name for name in subfolders if name.startswith(".")]:
                subfolders.remove(hidden)
                on_their_way += self.kept_room(Path(folder, hidden))
            for path in [Path(folder, name) for name in names if name.endswith(".mds")]:
                with suppress(FileNotFoundError):  # its owner found it damaged
                    status = path.stat()
                    shards.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(length for _, length, _ in shards) + on_their_way + size - self.limit
        if on_their_way + size > self.limit:
            return False
        for _, length, path in sorted(shards):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= length
        return True

    def kept_room(self, partial: Path) -> int:
        """Bytes kept for the shard that is fetched into a hidden folder; what a kill left there is removed."""
        with suppress(FileNotFoundError, BlockingIOError):
            if is_locked(partial / ROOM):
                return (partial / ROOM).stat().st_size
            shard = partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))
            with locked(self._lock_of(shard), wait=False):  # else it is just done, or about to be fetched again
                remove(partial)
        return 0


def place_of(root: str, data: DataConfig) -> tuple[Path, RemoteRows | None]:
    """The local root of the rows below `root`, and where their shards come from, if not from there alone."""
    if not is_remote(root):
        return Path(root), None
    assert data.cache is not None
    remote = RemoteRows(root.rstrip("/"), Path(data.cache), data.cache_limit)
    return remote.folder, remote


def find_rows(
    data: DataConfig, streams: Sequence[tuple[str, str]], row_length: int, tokenizer: Tokenizer | None,
    is_whole: bool = True,
) -> tuple[tuple[Path, ...], tuple[Manifest, ...], RemoteRows | None]:  # fmt: skip
    """Folder and manifest of the training rows of each stream, all checked, and where their shards come from.

    Args:
        streams: source and language of each.
        row_length: most token ids that the run allows in a row.
        tokenizer: the run's; None for manifests of any rows, which need not be there.
        is_whole: whether all files of a folder must be there, and not the manifests alone.

    Raises:
        OSError, ValueError: a stream is missing, empty, or was made with another tokenizer or row length; or the object
            store cannot be read.
    """
    is_whole = is_whole and not is_remote(data.root)

    def check(folder: Path) -> Manifest:
        if tokenizer is None:
            return read_manifest(folder)
        return check_stream(folder, row_length, tokenizer.digest, tokenizer.vocab_size, is_whole)

    root, remote = place_of(data.root, data)
    folders = tuple(stream_folder(root, "train", source, language) for source, language in streams)
    return folders, remote.open_streams(folders, check) if remote else tuple(map(check, folders)), remote


class Prefetcher:
    """Threads that fetch shards before they are needed, in the process that asks."""

    def __init__(self, remote: RemoteRows) -> None:
        self.remote, self.threads = remote, list[Thread]()
        self.asked: Queue[tuple[Path, str, ShardRecord]] = Queue()

    def ask(self, shards: Iterable[tuple[Path, str, ShardRecord]]) -> None:
        """Begin to fetch them, if the threads are not too far behind to be of use."""
        if not self.threads:  # here and not before: threads do not survive the fork of a loader worker
            self.threads = [Thread(target=self._run, daemon=True) for _ in range(THREADS_AHEAD)]
            for thread in self.threads:
                thread.start()
        if self.asked.qsize() < MOST_ASKED:
            for shard in shards:
                self.asked.put(shard)

    def _run(self) -> None:
        while True:
            self.remote.prepare(*self.asked.get())
