"""What one rank can find out alone: its GPUs, disks, caches and rows, and the versions of what it runs."""
import hashlib
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mmbert.attention import check_kernel
from mmbert.checkpoint import checkpoint_bytes, step_folders
from mmbert.config import RunConfig
from mmbert.device import check_c_compiler, check_device, device_of, why_no_gpu
from mmbert.heldout import check_validation
from mmbert.model import MmBertForMaskedLM
from mmbert.plan.numbers import count_checkpoints
from mmbert.preflight.meeting import Place
from mmbert.remote_rows import find_rows
from mmbert.run_lock import hold_run
from mmbert.streams import mixture_streams
from mmbert.tokenizer import Tokenizer, tokenizer_of_run

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_BYTES = 1 << 30  # what NCCL's documentation gives a container: --shm-size=1g
PACKAGES = (
    "torch", "mosaicml", "mosaicml-streaming", "numpy", "safetensors", "flash-attn", "flash-attn-4", "nvidia-nccl-cu12",
)  # fmt: skip
CACHES = ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def code_digest() -> str:
    """Of the Python files that a run imports."""
    root = Path(sys.modules["mmbert"].__path__[0])
    files = [*root.rglob("*.py"), *Path("callbacks").glob("*.py"), Path("main.py")]
    content = b"".join(path.read_bytes() for path in sorted(files) if path.is_file())
    return hashlib.sha256(content).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Name -> version of what must be the same on all nodes."""
    found = {"Python": platform.python_version(), "the code of this repository": code_digest()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def check_gpus(place: Place, wanted: int) -> None:
    """This node shows its GPUs to the job, and this rank's one computes.

    Raises:
        ValueError: says how many are seen and needed.
    """
    seen, wanted = torch.cuda.device_count(), max(wanted, place.local_world_size)
    if seen < wanted:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        reason = "" if seen else f"; torch: {why_no_gpu()}"
        raise ValueError(
            f"{seen} GPUs are seen, {wanted} are needed (CUDA_VISIBLE_DEVICES is {visible!r}{reason}): ask for them in "
            "the job, and look at `nvidia-smi` there"
        )
    try:
        torch.ones(1, device=f"cuda:{place.local_rank}").sum().item()
    except RuntimeError as error:
        raise ValueError(f"GPU {place.local_rank} does not compute: {str(error).splitlines()[0]}") from None


def check_shared_memory() -> None:
    """NCCL joins the GPUs of a node through it.

    Raises:
        OSError: it is missing, or too small.
    """
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < SHARED_MEMORY_BYTES:
        raise OSError(
            f"{SHARED_MEMORY} has {free / 1e6:,.0f} MB free, NCCL wants {SHARED_MEMORY_BYTES / 1e6:,.0f}: start the "
            "container with --shm-size=1g or more, or remove what others left there"
        )


def check_caches() -> None:
    """The folders for temporary files and caches of compiled code can be written.

    Raises:
        OSError: names the one that cannot.
    """
    for name in CACHES:
        if folder := os.environ.get(name):
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise OSError(f"{name} = {folder} cannot be written: {error.strerror}") from None


def check_rows(config: RunConfig, place: Place, tokenizer: Tokenizer) -> None:
    """This node sees every stream of the mixture whole: its manifest, its index, and the sizes of its shards.

    Of streams in an object store it fetches the manifests. Training reads the sha256 of a shard before the first row of
    it, also of those of `validation`. The ranks of a node divide the streams.

    Raises:
        OSError, ValueError: names the file.
    """
    streams, _ = mixture_streams(config)
    if own := streams[place.local_rank :: place.local_world_size]:
        find_rows(config.data, own, config.max_seq_len, tokenizer)


def check_run_root(config: RunConfig) -> None:
    """There is room for all checkpoints that are to come, and files there can be locked; for rank 0.

    Raises:
        OSError: says what is needed and what is free, or that there are no locks.
    """
    with torch.device("meta"):
        size = checkpoint_bytes(MmBertForMaskedLM(config.model))
    step_tokens = config.global_train_batch_size * config.max_seq_len
    _, most = count_checkpoints(config.checkpoint, config.duration, step_tokens)
    needed = size * max(1, most - len(step_folders(config.run_folder)))
    root = Path(config.run_root)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OSError(
            f"{root} has {free / 1e9:,.1f} GB free, {needed / 1e9:,.1f} are needed for checkpoints: free some, choose "
            "another run_root, or let fewer stay (checkpoint.keep, checkpoint.keep_every)"
        )
    with tempfile.TemporaryDirectory(prefix=".preflight-", dir=root) as folder:
        os.close(hold_run(Path(folder)))


def check_port(place: Place) -> None:
    """The ranks can meet here; for rank 0.

    Raises:
        OSError: another program listens there.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", place.port))
        except OSError as error:
            raise OSError(
                f"port {place.port} is not free ({error.strerror}): another job uses it; submit again, or give another"
            ) from None


def faults_of(checks: Iterable[Callable[[], object]]) -> list[str]:
    """What the checks find, all of them, each once."""
    faults: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            faults[str(error)] = None  # two checks may need what is missing
    return list(faults)


def look(config: RunConfig, place: Place, gpus: int) -> list[str]:
    """Every fault that this rank can find alone."""
    tokenizer = cache(lambda: tokenizer_of_run(config.tokenizer, config.model.vocab_size))  # Gemma 2's takes a second
    checks: list[Callable[[], object]] = [lambda: check_rows(config, place, tokenizer())]
    if on_gpu := on_gpus(config, gpus):
        checks += [lambda: check_gpus(place, gpus)]
        checks += [check_shared_memory] if place.local_world_size > 1 else []
        checks += [check_c_compiler] if place.local_rank == 0 else []
    else:
        checks += [lambda: check_device(config)]
    if place.local_rank == 0:
        checks += [lambda: check_validation(config, tokenizer()), check_caches]
        checks += [lambda: check_kernel(config.model.attention, on_gpu, config.precision, config.model.head_dim)]
    if place.rank == 0:
        checks += [lambda: check_run_root(config)]
    return faults_of(checks)


def on_gpus(config: RunConfig, gpus: int) -> bool:
    """Whether the run will compute on GPUs, or is meant to."""
    return device_of(config) == "gpu" or (config.device == "auto" and gpus > 0)
