"""A GPU that is not there, for `main.py` or any program: tensors say that they are on one and lie in memory.

Whoever mixes them with tensors of the CPU gets an error, as on a GPU, and every wait of the host for the device is
noted. So the branches that only a GPU takes can be run to the end anywhere; their speed cannot be seen, nor what a
kernel computes: those of attention and of the head's loss are replaced by formulas. Layers are not compiled
(tests/code_for_a_gpu.py does that).

    run(folder, ["phase1.yaml", "device=gpu"], kill_at=None)  # main.py
    run_program(folder, "pytest", ["-m", "gpu", "tests/test_attention.py"])  # python -m pytest ...

Each is a process of its own, in front of which a small library answers for CUDA's that there is one GPU, idle.
"""
import json
import os
import runpy
import subprocess
import sys
import threading
import traceback
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests import training_runs

RUNTIME = """
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaGetLastError(void) { return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
"""
DRIVER = "int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = *active = 0; return 0; }"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
waits: Counter[str] = Counter()
hosts: "weakref.WeakValueDictionary[int, Tensor]" = weakref.WeakValueDictionary()  # by id: tensors compare by element
peak_bytes = 0
sync_debug_mode = "default"


@dataclass(frozen=True)
class Outcome(training_runs.Outcome):
    """Also where the run waited for the GPU: place -> how often."""

    waits: dict[str, int]


def run(folder: Path, arguments: Sequence[Any], kill_at: int | None = None) -> Outcome:
    """Run `main.py` on these arguments; a kill comes at the end of the step `kill_at`."""
    done = _run(folder, "main.py", str(kill_at), *map(str, arguments))
    record = folder / "steps.jsonl"
    steps = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    found = folder / "waits.json"
    output = done.stderr + record.with_suffix(".log").read_text(errors="replace")
    return Outcome(done.returncode, output, steps, json.loads(found.read_text()) if found.exists() else {})


def run_program(folder: Path, module: str, arguments: Sequence[Any]) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module` on these arguments."""
    return _run(folder, module, *map(str, arguments))


def _run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    for name, source in (("libruntime.so", RUNTIME), ("libcuda.so.1", DRIVER)):
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / name)]
        subprocess.run(command, input=source, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": str(folder / "libruntime.so"),
        "LD_LIBRARY_PATH": str(folder),
        "TORCHDYNAMO_DISABLE": "1",
    }
    command = [sys.executable, "-m", "tests.emulated_gpu", str(folder), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


class GpuTensor(Tensor):
    """A tensor that says it is on the GPU; `host` holds its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "GpuTensor":
        made = Tensor._make_wrapper_subclass(
            cls, host.size(), host.stride(), host.storage_offset(), dtype=host.dtype, device=GPU
        )
        made.host = host
        hosts[id(host)] = host
        return made

    def tolist(self) -> Any:
        wait()
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operator, args, kwargs or {})


class Emulation(TorchDispatchMode):
    """Catches the operators that make tensors on the GPU or move them there."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operator, args, kwargs or {})


def compute(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operator, on the GPU where an operand or the argument `device` is.

    Raises:
        RuntimeError: operands are on both devices.
    """
    leaves = tree_leaves((args, kwargs))
    operands = {id(x.host): x for x in leaves if isinstance(x, GpuTensor)}
    here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, GpuTensor)]
    device = next((x for x in leaves if isinstance(x, torch.device)), None)
    is_there = device.type == "cuda" if device is not None else bool(operands)
    name = operator._schema.name
    if operands and (name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal") or not is_there):
        wait()
    if name == "aten::copy_":
        is_there = isinstance(args[0], GpuTensor)
    elif operands and any(x.dim() > 0 for x in here):
        raise RuntimeError(f"{operator}: a tensor on the CPU among those on the GPU")
    args, kwargs = tree_map(to_host, (args, kwargs))
    if name == "aten::_to_copy":
        kwargs = {key: value for key, value in kwargs.items() if key != "non_blocking"}
    results = operator(*args, **kwargs)
    if not is_there:
        return results

    def moved(x: Any) -> Any:
        if id(x) in operands:  # it was written to
            return operands[id(x)]
        return GpuTensor(x) if isinstance(x, Tensor) else x

    moved_results = tree_map(moved, results)
    if peak_bytes:
        note_peak()
    return moved_results


def to_host(x: Any) -> Any:
    """What stands for it in memory."""
    if isinstance(x, GpuTensor):
        return x.host
    return CPU if isinstance(x, torch.device) and x.type == "cuda" else x


def bytes_there() -> int:
    """What all tensors on the GPU take together."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in hosts.values()}
    return sum(storages.values())


def note_peak() -> None:
    """Called after each operator once a program has asked for the most memory; it goes through all tensors."""
    global peak_bytes
    peak_bytes = max(peak_bytes, bytes_there())


def forget_peak() -> None:
    global peak_bytes
    peak_bytes = bytes_there()


def set_sync_debug_mode(mode: str) -> None:
    global sync_debug_mode
    sync_debug_mode = mode


def wait() -> None:
    """Note who waits: the innermost function of this repository or Composer, and whether within a microbatch.

    Raises:
        RuntimeError: in the debug mode that turns a wait into an error.
    """
    if sync_debug_mode == "error":
        raise RuntimeError("called a synchronizing CUDA operation")
    frames = traceback.extract_stack()
    in_microbatch = threading.current_thread() is not threading.main_thread() or any(
        frame.name == "_train_microbatch" for frame in frames
    )
    places = [Path(frame.filename) for frame in frames]
    known = [path.name for path in places if path.parent.name in ("mmbert", "callbacks", "trainer", "optimi", "utils")]
    waits[f"{'microbatch: ' if in_microbatch else ''}{known[-1] if known else 'elsewhere'}"] += 1


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Any, cu_seqlens_q: Tensor, window: tuple[int, int]) -> Tensor:
    """In place of FlashAttention."""
    assert q.dtype in (torch.bfloat16, torch.float16)
    assert max(packing.lengths) <= packing.max_seqlen
    lengths_q = to_host(cu_seqlens_q).diff().tolist()
    outputs = []
    for query, key, value in zip(q.split(lengths_q), k.split(packing.lengths), v.split(packing.lengths), strict=True):
        mask = None
        if window != (-1, -1):
            tokens = torch.arange(len(key), device=GPU)
            offset = tokens - tokens.unsqueeze(1)
            outside = (offset < -window[0]) | (offset > window[1])
            mask = torch.zeros(outside.shape, device=GPU).masked_fill(outside, float("-inf"))
        output = attend_document(*(x.float().transpose(0, 1) for x in (query, key, value)), attn_mask=mask)
        outputs.append(output.transpose(0, 1).to(q.dtype))
    return torch.cat(outputs)


def attend_document(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """In place of torch's attention, which asks CUDA for the GPU's generation."""
    assert dropout_p == 0.0
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def losses_of(logits: GpuTensor, bias: GpuTensor, targets: GpuTensor, differentiate: bool) -> tuple[Tensor, Tensor]:
    """In place of the head's kernel."""
    scores, goals = logits.host.float() + bias.host, targets.host
    each = torch.nn.functional.cross_entropy(scores, goals, reduction="none")
    correct = scores.argmax(1) == goals
    if differentiate:
        gradient = scores.softmax(1) - torch.nn.functional.one_hot(goals, scores.shape[1])
        logits.host.copy_(gradient)
    return GpuTensor(each), GpuTensor(correct)


class HostGenerator(torch.Generator):
    """Draws in memory, whatever its device is said to be."""

    def __new__(cls, device: Any = CPU) -> "HostGenerator":
        return super().__new__(cls)


def emulate() -> None:
    """Make this process one with a GPU."""
    cuda: Any = torch.cuda
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "NVIDIA H100 80GB HBM3",
        "get_device_capability": (9, 0), "get_device_properties": SimpleNamespace(major=9, minor=0),
        "memory_stats": defaultdict(int), "get_rng_state": torch.zeros(1, dtype=torch.uint8),
    }  # fmt: skip
    answers |= dict.fromkeys(("set_device", "synchronize", "manual_seed_all", "empty_cache", "_lazy_init"))
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, _answer=answer, **__: _answer)
    cuda.memory_allocated, cuda.max_memory_allocated = bytes_there, lambda: peak_bytes
    cuda.reset_peak_memory_stats, cuda.set_sync_debug_mode = forget_peak, set_sync_debug_mode
    torch.Generator = HostGenerator  # type: ignore[misc]
    torch.inference_mode = torch.no_grad  # type: ignore[misc]  # in which a tensor cannot be of another class
    for name in ("all_reduce", "broadcast", "barrier"):  # one rank
        setattr(torch.distributed, name, lambda *_, **__: None)
    make: Callable[..., Tensor] = torch.tensor
    torch.tensor = lambda *args, device=None, **kwargs: make(*args, **kwargs).to(device or CPU)
    Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter cannot turn into another class

    from mmbert import attention, head_kernel

    attention._torch_flash = attention._torch_varlen = attend
    torch.nn.functional.scaled_dot_product_attention = attend_document
    head_kernel.losses_of = losses_of


def run_here(folder: Path, program: str, words: list[str]) -> None:
    """The program, within the emulation."""
    if program != "main.py":
        sys.argv = [program, *words]
        runpy.run_module(program, run_name="__main__")
        return
    kill_at = None if words[0] == "None" else int(words[0])
    try:
        training_runs._run(words[1:], str(folder / "steps.jsonl"), str(folder / "steps.log"), kill_at, 9, (), {})
    finally:
        (folder / "waits.json").write_text(json.dumps(waits))


def let_go() -> None:
    """One more backward, outside the emulation.

    The engine's thread for the device then no longer holds the `Emulation` of the last one: it frees that a moment
    after the backward has returned, and Python, if it ends in that moment, aborts the process.
    """
    GpuTensor(torch.ones(1)).requires_grad_().sum().backward()


if __name__ == "__main__":
    emulate()
    try:
        with Emulation():
            run_here(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    finally:
        let_go()
