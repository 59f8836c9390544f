"""Objects of a store that Streaming knows how to read (S3, Google, Azure, ...), tried again while that may help."""
import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmbert.atomic import remove

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 60.0, 60.0, 60.0)  # seconds between tries: five minutes
MOST_DAMAGED = 3  # times that an object may arrive damaged: it is so in the store
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}  # of the local disk; no socket says these
WITHOUT_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}  # of two clients
MAY_PASS = {408, 425, 429}  # of HTTP's 4xx: too slow, too early, too many

log = logging.getLogger(__name__)


@cache
def client(scheme: str, process: int) -> Any:
    """Streaming's downloader; one for each process, for a fork must not write to its parent's connections.

    Raises:
        ValueError: there is none for such URLs, or what it needs is not installed.
    """
    from streaming.base.storage import CloudDownloader  # takes seconds, which local rows need not wait for

    try:
        return CloudDownloader.get(scheme)
    except (ValueError, ImportError) as error:
        raise ValueError(f"Streaming cannot read {scheme}...: {error}") from None


def download(url: str, target: Path, check: Callable[[], object], waits: Sequence[float]) -> None:
    """Get an object into the new file `target`.

    Args:
        check: raises ValueError if what arrived is not what it should be; it is then fetched again.
        waits: seconds before each try but the first.

    Raises:
        OSError: there is no such object, the store refuses it or cannot be reached, or the disk is full.
        ValueError: it arrives damaged each time.
    """
    store = client(url.partition("://")[0] + "://", os.getpid())
    for tries, wait in enumerate((*waits, None), 1):
        try:
            store.download(url, str(target))
            check()
            return
        except Exception as error:  # of any store's client
            remove(target)
            is_damaged = isinstance(error, ValueError)  # of `check`
            if wait is None or is_final(error) or (is_damaged and tries == MOST_DAMAGED):
                raise refusal(url, target, error, tries) from None
            log.warning("%s: %s; again in %g s", url, reason(error).replace(str(target), url), wait)
            time.sleep(wait)


def is_final(error: Exception) -> bool:
    """Whether another try would end alike."""
    status = http_status(error)
    return (
        isinstance(error, FileNotFoundError)
        or is_of_disk(error)
        or type(error).__name__ in WITHOUT_CREDENTIALS
        or (status is not None and 400 <= status < 500 and status not in MAY_PASS)
    )


def is_of_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in DISK


def http_status(error: Exception) -> int | None:
    """What the store answered; every client keeps it elsewhere."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "code", getattr(error, "status_code", None))  # Google's and Azure's
    return status if isinstance(status, int) else None


def reason(error: Exception) -> str:
    """In one line."""
    return " ".join(str(error).split()) or type(error).__name__


def refusal(url: str, target: Path, error: Exception, tries: int) -> Exception:
    """The error that a person can do something about."""
    status = http_status(error)
    if is_of_disk(error):
        return OSError(
            f"{target} cannot be written: {os.strerror(getattr(error, 'errno', 0))}; free some space, or set a lower "
            "data.cache_limit"
        )
    if status == 404 or isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{url} does not exist, or its bucket does not; upload it, or mend the configuration")
    if status in (401, 403) or type(error).__name__ in WITHOUT_CREDENTIALS:
        return PermissionError(f"{url} may not be read ({reason(error)}); look at your credentials for that bucket")
    if isinstance(error, ValueError):  # of `check`
        told = reason(error).replace(str(target), url)
        return ValueError(f"{url} arrived damaged, {tries} times: {told}; upload it again")
    return OSError(
        f"{url} cannot be fetched, tried {tries} times: {reason(error)}; look at the network and the store, and run "
        "the same command again"
    )
