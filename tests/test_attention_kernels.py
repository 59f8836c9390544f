"""Which kernel computes attention, why another cannot, and what each is given."""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmbert import attention
from mmbert.attention import GPU_KERNELS, Kernel, Packing, Window, check_kernel, resolve_kernel, varlen_attention
from mmbert.config import load_config
from mmbert.ranks import Ranks
from mmbert.trainer import Phase
from tests.conftest import Corpus
from tests.test_attention import packing_of, random_qkv
from tests.training_runs import write_yamls


@pytest.fixture(autouse=True)
def _forget_kernels() -> None:
    resolve_kernel.cache_clear()


def test_auto_takes_torch_on_a_cpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mmbert.attention"):
        assert [resolve_kernel("auto", "cpu") for _ in range(3)] == ["cpu"] * 3
    assert caplog.messages == ["attention: auto on cpu runs the kernel cpu (no GPU)"]


@pytest.mark.parametrize(
    "able, taken, reason",
    [
        (GPU_KERNELS, "flash_attn", "the first choice"),
        (("torch_varlen", "torch_flash"), "torch_varlen", "flash_attn: broken"),
        (("torch_flash", "flash_attn_4"), "torch_flash", "flash_attn: broken; torch_varlen: broken"),
    ],
)
def test_auto_on_a_gpu_takes_the_first_that_can_run_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, able: tuple[Kernel], taken: Kernel, reason: str
) -> None:
    monkeypatch.setattr(attention, "_obstacle", lambda kernel: None if kernel in able else "broken")
    with caplog.at_level(logging.INFO, logger="mmbert.attention"):
        assert resolve_kernel("auto", "cuda") == taken
    assert caplog.messages == [f"attention: auto on cuda runs the kernel {taken} ({reason})"]


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_a_kernel_asked_for_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kernel: Kernel
) -> None:
    monkeypatch.setattr(attention, "_obstacle", lambda kernel: None)
    with caplog.at_level(logging.INFO, logger="mmbert.attention"):
        assert resolve_kernel(kernel, "cuda") == kernel
    assert caplog.messages == [f"attention: {kernel} on cuda runs the kernel {kernel} (as asked)"]


@pytest.mark.parametrize("name", ["auto", *GPU_KERNELS])
def test_a_kernel_that_cannot_run_is_an_error_in_one_line_and_never_replaced(
    monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setattr(attention, "_obstacle", lambda kernel: f"{kernel} is broken, mend it")
    with pytest.raises(ValueError, match=r"is broken, mend it; or set attention: cpu") as error:
        resolve_kernel(name, "cuda")
    assert "\n" not in str(error.value)
    assert [kernel for kernel in GPU_KERNELS if f"{kernel} is broken" in str(error.value)] == (
        list(GPU_KERNELS) if name == "auto" else [name]
    )


@pytest.mark.parametrize(
    "capability, refused",
    [((7, 5), ["torch_flash", "flash_attn_4"]), ((8, 0), ["flash_attn_4"]), ((9, 0), []), ((12, 0), [])],
    ids=["T4", "A100", "H100", "RTX 50"],
)
def test_flash_attention_is_refused_on_a_gpu_that_is_too_old(
    capability: tuple[int, int], refused: list[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "flash_attn.cute", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    kernels: tuple[Kernel, ...] = ("torch_flash", "flash_attn_4")
    for kernel in kernels:
        if kernel in refused:
            with pytest.raises(ValueError, match=r"(an Ampere|on Hopper) GPU.*Tesla T4; or set attention: cpu"):
                resolve_kernel(kernel, "cuda")
        else:
            assert resolve_kernel(kernel, "cuda") == kernel
    assert attention._obstacle("cpu") is None


def test_torchs_own_kernels_are_refused_on_amd_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn", lambda: None)
    monkeypatch.setattr(torch.version, "hip", "6.3")
    own: tuple[Kernel, ...] = ("torch_flash", "torch_varlen")
    for kernel in own:
        with pytest.raises(ValueError, match="wrongly on AMD GPUs in several versions, install flash_attn; or set"):
            resolve_kernel(kernel, "cuda")
    assert resolve_kernel("auto", "cuda") == "flash_attn"


def test_what_the_first_batch_would_refuse_is_refused_before_a_run_begins(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_yamls(tmp_path, corpus)
    monkeypatch.setattr("mmbert.trainer.Ranks.connect", lambda *_: Ranks(0, 1, None))
    with pytest.raises(ValueError, match="attention: flash_attn needs a GPU"):
        Phase.open(load_config(tmp_path / "phase1.yaml", ["model.attention=flash_attn"]))
    monkeypatch.setattr(attention, "_obstacle", lambda kernel: None)
    check_kernel("auto", True, "amp_bf16", 64)
    check_kernel("cpu", True, "fp32", 10)
    with pytest.raises(ValueError, match="precision = fp32: attention: flash_attn has none; write precision: amp"):
        check_kernel("auto", True, "fp32", 64)
    for head_dim in (10, 264):
        with pytest.raises(ValueError, match=f"heads = {head_dim} must be a multiple of 8 and at most 256 for"):
            check_kernel("torch_flash", True, "amp_bf16", head_dim)


@pytest.mark.parametrize("kernel", GPU_KERNELS)
def test_gpu_kernels_are_refused_on_a_cpu_and_in_fp32(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="needs a GPU"):
        resolve_kernel(kernel, "cpu")
    with pytest.raises(ValueError, match="amp_bf16"):
        varlen_attention(*random_qkv(4, torch.float32), packing_of([4]), None, kernel)


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    """A module with a flash_attn_varlen_func; the one above it is empty, as flash-attn-4 alone leaves it."""
    for each in ("flash_attn", name):
        monkeypatch.setitem(sys.modules, each, ModuleType(each))
    monkeypatch.setattr(sys.modules[name], "flash_attn_varlen_func", function, raising=False)


def remove(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Where flash-attn cannot be imported, for that reason."""

    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(attention, "import_module", fail)


@pytest.mark.parametrize(("kernel", "package"), [("flash_attn", "requirements-gpu.txt"), ("flash_attn_4", "attn-4==")])
def test_flash_attn_that_is_not_installed_cannot_run(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel, package: str
) -> None:
    install(monkeypatch, attention.PACKAGES[kernel][0], lambda: None)
    assert attention._obstacle(kernel) is None
    reasons = {
        "the package is not installed": ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn"),
        "cannot be imported (No module named 'cutlass')": ModuleNotFoundError(
            "No module named 'cutlass'", name="cutlass"
        ),
        "cannot be imported (undefined symbol)": ImportError("undefined symbol"),
        "cannot be imported (module 'torch' has no attribute 'float4')": AttributeError(
            "module 'torch' has no attribute 'float4'"
        ),
    }
    for words, error in reasons.items():
        remove(monkeypatch, error)
        obstacle = str(attention._obstacle(kernel))
        assert words in obstacle
        assert package in obstacle


def test_flash_attn_4_alone_is_not_taken_for_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn.cute", lambda: None)
    assert "the package is not installed" in str(attention._obstacle("flash_attn"))
    assert attention._obstacle("flash_attn_4") is None


def fake_torch_varlen(monkeypatch: pytest.MonkeyPatch, varlen_attn: Any) -> None:
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(attention, "find_spec", lambda name: name)


def test_torch_varlen_without_windows_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.10 has the function and no windows; 2.7 has not even the module."""

    def of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False): ...

    def of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)): ...

    fake_torch_varlen(monkeypatch, of_torch_2_11)
    assert attention._obstacle("torch_varlen") is None
    fake_torch_varlen(monkeypatch, of_torch_2_10)
    assert "2.11" in str(attention._obstacle("torch_varlen"))
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    assert "2.11" in str(attention._obstacle("torch_varlen"))


FLASH_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, Tensor? cum_seq_k, SymInt max_q, SymInt max_k, "
    "float dropout_p, bool is_causal, bool return_debug_mask, *, float? scale=None, SymInt? window_size_left=None, "
)
SCHEMAS = {
    "2.7": "SymInt? window_size_right=None, Tensor? seqused_k=None, Tensor? alibi_slopes=None",
    "2.12": "SymInt? window_size_right=None, Tensor? seqused_k=None, Tensor? alibi_slopes=None, "
    "Tensor? block_table=None, int? num_splits=None",
    "demands more": "SymInt? window_size_right=None, int num_sinks",
    "lost a window": "Tensor? seqused_k=None",
}


def schema_of(arguments: str) -> torch.FunctionSchema:
    return torch._C.parse_schema(f"aten::_flash_attention_forward({FLASH_ARGUMENTS}{arguments}) -> Tensor")


def test_torch_flash_fits_this_torch_and_those_whose_new_arguments_have_defaults() -> None:
    assert attention._obstacle("torch_flash") is None
    assert attention._schema_obstacle(schema_of(SCHEMAS["2.7"])) is None
    assert attention._schema_obstacle(schema_of(SCHEMAS["2.12"])) is None


def test_torch_flash_of_an_unknown_torch_cannot_run() -> None:
    assert "demands ['num_sinks']" in str(attention._schema_obstacle(schema_of(SCHEMAS["demands more"])))
    assert "lacks ['window_size_right']" in str(attention._schema_obstacle(schema_of(SCHEMAS["lost a window"])))


class Calls(TorchDispatchMode):
    """Keeps the arguments of every operator called by their names, backward's too."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, dict[str, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        self.made[func.__name__] = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("window, window_size", [(None, (-1, -1)), ((64, 64), (64, 64)), ((3, 6), (3, 6))])
def test_torch_flash_passes_the_window_to_backward(window: Window | None, window_size: Window) -> None:
    """On meta tensors: this operator has no CPU kernel. _efficient_attention_forward would fail here."""
    meta = torch.device("meta")
    qkv = torch.empty(3, 7, 2, 16, dtype=torch.bfloat16, device=meta, requires_grad=True)
    with Calls() as calls:
        out = varlen_attention(*qkv, Packing.from_lengths([3, 4], meta), window, "torch_flash")
        out.backward(torch.empty_like(out))
    assert (out.shape, out.dtype) == ((7, 2, 16), torch.bfloat16)
    assert type(out.grad_fn).__name__ == "FlashAttentionBackward0"
    assert qkv.grad is not None
    for operator in ("_flash_attention_forward.default", "_flash_attention_backward.default"):
        made = calls.made[operator]
        assert (made["window_size_left"], made["window_size_right"]) == window_size, operator


def test_torch_flash_passes_the_wanted_queries_to_backward() -> None:
    meta = torch.device("meta")
    qkv = torch.empty(3, 7, 2, 16, dtype=torch.bfloat16, device=meta, requires_grad=True)
    wanted = torch.empty(4, dtype=torch.int64, device=meta)
    with Calls() as calls:
        out = varlen_attention(*qkv, Packing.from_lengths([3, 4], meta), None, "torch_flash", wanted)
        out.backward(torch.empty_like(out))
    assert out.shape == (4, 2, 16)
    assert qkv.grad is not None
    made = calls.made["_flash_attention_forward.default"]
    assert made["cum_seq_q"] is not made["cum_seq_k"]
    assert "_flash_attention_backward.default" in calls.made


@pytest.mark.parametrize(
    "window, wanted, lengths_q, window_size",
    [
        (None, None, [3, 4], (-1, -1)),
        ((64, 64), None, [3, 4], (64, 64)),
        (None, [3, 5, 6], [0, 3], (-1, -1)),
        ((64, 64), [3, 5, 6], [3, 4], (64, 64)),
    ],
)
@pytest.mark.parametrize("kernel", ["flash_attn", "torch_varlen", "flash_attn_4"])
def test_public_kernels_get_the_packing_and_the_window(
    monkeypatch: pytest.MonkeyPatch,
    kernel: Kernel,
    window: Window | None,
    wanted: list[int] | None,
    lengths_q: list[int],
    window_size: Window,
) -> None:
    calls: list[dict[str, Any]] = []

    def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        assert (len(q), len(k), len(v)) == (sum(lengths_q), 7, 7)
        calls.append({**options, "cu_seqlens_q": options["cu_seqlens_q"].tolist()})
        assert options["cu_seqlens_q"].dtype == torch.int32
        return q

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size) -> Tensor:
        return flash_attn_varlen_func(
            query, key, value,
            cu_seqlens_q=cu_seq_q, cu_seqlens_k=cu_seq_k, max_seqlen_q=max_q, max_seqlen_k=max_k,
            window_size=window_size,
        )  # fmt: skip

    def flash_attn_4(*qkv: Tensor, window_size: tuple[int | None, int | None], **options: Any) -> Any:
        assert window_size != (-1, -1)  # None is how it spells that there is none
        if window_size == (None, None):  # and here as the betas that give a pair
            return flash_attn_varlen_func(*qkv, window_size=(-1, -1), **options), None
        return flash_attn_varlen_func(*qkv, window_size=window_size, **options)

    install(monkeypatch, "flash_attn.cute", flash_attn_4)
    if kernel == "flash_attn":
        install(monkeypatch, "flash_attn", flash_attn_varlen_func)
    fake_torch_varlen(monkeypatch, varlen_attn)
    packing = packing_of([3, 4])
    places = None if wanted is None else torch.tensor(wanted)
    out = varlen_attention(*random_qkv(7, torch.bfloat16), packing, window, kernel, places)
    assert len(out) == (7 if wanted is None else len(wanted))
    assert calls == [
        {
            "cu_seqlens_q": [0, lengths_q[0], sum(lengths_q)],
            "cu_seqlens_k": packing.cu_seqlens,
            "max_seqlen_q": 4,
            "max_seqlen_k": 4,
            "window_size": window_size,
        }
    ]
