"""Attention against a float64 reference that scores every pair of tokens, and the choice of its kernels."""

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
from mmbert.trainer import Phase
from tests.conftest import Corpus
from tests.training_runs import write_yamls

CPU, GPU = torch.device("cpu"), torch.device("cuda")
AROUND_THE_WINDOW = [1, 63, 64, 65, 128, 129, 300]
SHORT = [5, 40, 1, 130, 64, 65, 90]


def packing_of(lengths: list[int]) -> Packing:
    return Packing.from_lengths(lengths, CPU)


def random_qkv(num_tokens: int, dtype: torch.dtype = torch.float64, head_dim: int = 16) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, num_tokens, 2, head_dim, dtype=torch.float64).to(dtype).requires_grad_()


def reference(qkv: Tensor, lengths: list[int], window: Window | None) -> Tensor:
    """Softmax over all T x T pairs, with every pair that must not meet set to minus infinity."""
    q, k, v = (x.transpose(0, 1) for x in qkv)  # (H, T, K)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(qkv.device)
    place = torch.arange(len(document), device=qkv.device)
    offset = place[None, :] - place[:, None]
    visible = document[None, :] == document[:, None]
    if window is not None:
        visible &= (offset >= -window[0]) & (offset <= window[1])
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~visible, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(0, 1)


@pytest.fixture(autouse=True)
def _forget_kernels() -> None:
    resolve_kernel.cache_clear()


@pytest.mark.parametrize("window", [None, (64, 64), (8, 8), (3, 6)])
@pytest.mark.parametrize("lengths", [AROUND_THE_WINDOW, SHORT, [1], [257], [128, 128]], ids=str)
@pytest.mark.parametrize("path", ["loop", "band", "cheaper"])
def test_every_path_equals_the_reference_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch, path: str, lengths: list[int], window: Window | None
) -> None:
    if path != "cheaper":
        monkeypatch.setattr(Packing, "loop_is_cheaper", lambda self, window: path == "loop")
    qkv = random_qkv(sum(lengths))
    out = varlen_attention(*qkv, packing_of(lengths), window, "cpu")
    expected = reference(qkv, lengths, window)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(out)
    gradient, expected_gradient = (torch.autograd.grad(x, qkv, direction)[0] for x in (out, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


WANTED = {
    "some": [0, 5, 44, 45, 180, 181, 394],  # of SHORT: first and last tokens among them, two documents without any
    "all": list(range(395)),
    "none": [],
}


@pytest.mark.parametrize("window", [None, (64, 64)])
@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_outputs_that_are_wanted_are_those_of_all(wanted: list[int], window: Window | None) -> None:
    qkv = random_qkv(sum(SHORT))
    out = varlen_attention(*qkv, packing_of(SHORT), window, "cpu", torch.tensor(wanted, dtype=torch.int64))
    expected = reference(qkv, SHORT, window)[wanted]
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(out)
    gradient, expected_gradient = (torch.autograd.grad(x, qkv, direction)[0] for x in (out, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


def test_only_wanted_tokens_are_queries_of_a_global_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[int] = []

    def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        queries.append(query.shape[2])
        return query

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", scaled_dot_product_attention)
    varlen_attention(*random_qkv(sum(SHORT)), packing_of(SHORT), None, "cpu", torch.tensor(WANTED["some"]))
    assert queries == [1, 2, 1, 0, 2, 0, 1]


def test_window_is_inclusive_on_both_sides() -> None:
    """With equal scores a query averages its keys: 129 of them for (64, 64)."""
    qkv = torch.zeros(3, 400, 1, 8)
    qkv[2, :, 0, 0] = torch.eye(400)[200] * 129  # only token 200 has a value
    out = varlen_attention(*qkv, packing_of([400]), (64, 64), "cpu")[:, 0, 0]
    seen_from = out.nonzero().flatten()
    assert seen_from.tolist() == list(range(136, 265))
    assert torch.allclose(out[136:265], torch.ones(129))


def test_longer_documents_take_the_band_and_short_ones_the_loop() -> None:
    """The band scores 64 + 32 + 64 keys a query, at 1.25 times the cost of the loop's."""
    assert packing_of([20] * 8).loop_is_cheaper((64, 64))
    assert packing_of([200] * 4).loop_is_cheaper((64, 64))
    assert not packing_of([201] * 4).loop_is_cheaper((64, 64))
    assert packing_of([1000] * 4).loop_is_cheaper((512, 512))


@pytest.mark.parametrize("lengths", [[20, 30], [300]])
def test_mask_is_built_once_per_batch(lengths: list[int]) -> None:
    packing = packing_of(lengths)
    assert packing.mask((64, 64), torch.float32) is packing.mask((64, 64), torch.float32)
    assert packing.mask((64, 64), torch.float32) is not packing.mask((8, 8), torch.float32)
    assert packing.mask((64, 64), torch.float64).dtype == torch.float64


def test_packing_numbers_documents_and_positions() -> None:
    packing = packing_of([2, 3, 1])
    assert packing.lengths == [2, 3, 1]
    assert packing.max_seqlen == 3
    assert packing.cu_seqlens.tolist() == [0, 2, 5, 6]
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.document_ids.tolist() == [0, 0, 1, 1, 1, 2]
    assert packing.positions.tolist() == [0, 1, 0, 1, 2, 0]


def test_packing_from_lengths_reads_nothing_from_the_device() -> None:
    """A meta tensor has no data to read."""
    packing = Packing.from_lengths([2, 3], torch.device("meta"))
    assert {packing.cu_seqlens.device.type, packing.positions.device.type} == {"meta"}
    assert "document_ids" not in vars(packing)  # made only where the banded path asks for it


@pytest.mark.parametrize(
    "lengths, max_seqlen, message",
    [([], None, "no empty document"), ([3, 0], None, "no empty"), ([5], 4, "max_seqlen=4")],
)
def test_impossible_lengths_are_refused(lengths: list[int], max_seqlen: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing.from_lengths(lengths, CPU, max_seqlen)


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


def test_what_the_first_batch_would_refuse_is_refused_before_a_run_begins(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_yamls(tmp_path, corpus)
    monkeypatch.setattr("mmbert.trainer.Ranks.connect", lambda *_: None)  # and not with anything after it
    with pytest.raises(ValueError, match="attention: flash_attn needs a GPU"):
        Phase.open(load_config(tmp_path / "phase1.yaml", ["model.attention=flash_attn"]))
    monkeypatch.setattr(attention, "_obstacle", lambda kernel: None)
    check_kernel("auto", True, "amp_bf16")
    check_kernel("cpu", True, "fp32")
    with pytest.raises(ValueError, match="precision = fp32: attention: flash_attn has none; write precision: amp"):
        check_kernel("auto", True, "fp32")


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


def able(kernel: Kernel) -> torch.device:
    """Where `kernel` runs here; else the test is skipped with the reason."""
    if kernel == "cpu":
        return CPU
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    obstacle = attention._obstacle(kernel)
    if obstacle is not None:
        pytest.skip(obstacle)
    return GPU


def errors(out: Tensor, qkv: Tensor, expected: tuple[Tensor, Tensor], direction: Tensor) -> tuple[float, float]:
    """The largest difference to the expected output, and to the expected gradient."""
    (gradient,) = torch.autograd.grad(out, qkv, direction.to(out))
    pairs = zip((out, gradient), expected, strict=True)
    out_error, gradient_error = ((x.double() - y).abs().max().item() for x, y in pairs)
    return out_error, gradient_error


ON_A_GPU = [pytest.param(kernel, marks=pytest.mark.gpu) for kernel in GPU_KERNELS]


@pytest.mark.parametrize("window", [None, (64, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["cpu", *ON_A_GPU])
def test_every_kernel_is_as_exact_as_its_dtype_allows(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel, dtype: torch.dtype, window: Window | None
) -> None:
    monkeypatch.setattr(Packing, "loop_is_cheaper", lambda self, window: False)
    device = able(kernel)
    as_exact_as_its_dtype_allows(kernel, dtype, window, device)


@pytest.mark.parametrize("kernel", ["cpu", *ON_A_GPU])
def test_every_kernel_takes_documents_without_a_query(kernel: Kernel) -> None:
    as_exact_as_its_dtype_allows(kernel, torch.bfloat16, None, able(kernel), [64, 100, 250, 256, 299, 621])


@pytest.mark.parametrize("window", [None, (64, 64)])
@pytest.mark.parametrize("loop", [True, False], ids=["loop", "band"])
def test_cpu_is_as_exact_as_fp32_allows(monkeypatch: pytest.MonkeyPatch, loop: bool, window: Window | None) -> None:
    monkeypatch.setattr(Packing, "loop_is_cheaper", lambda self, window: loop)
    as_exact_as_its_dtype_allows("cpu", torch.float32, window, CPU)


def as_exact_as_its_dtype_allows(
    kernel: Kernel,
    dtype: torch.dtype,
    window: Window | None,
    device: torch.device,
    wanted: list[int] | None = None,
) -> None:
    """Documents around the tiles and the window, head size 64, against float64 on the same rounded inputs.

    The yardstick is the same dense computation in `dtype`: FlashAttention's own tests allow twice its error, and
    three times in the gradient.
    """
    lengths = [1, 63, 64, 65, 129, 300]
    qkv = random_qkv(sum(lengths), dtype, head_dim=64).detach().to(device).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    places = torch.tensor(range(sum(lengths)) if wanted is None else wanted, device=device)
    direction = torch.randn(len(places), 2, 64).to(device, dtype)
    expected_out = reference(exact, lengths, window)[places]
    expected = (expected_out.detach(), torch.autograd.grad(expected_out, exact, direction.double())[0])
    yardstick = errors(reference(qkv, lengths, window)[places], qkv, expected, direction)
    packing = Packing.from_lengths(lengths, device)
    out = varlen_attention(*qkv, packing, window, kernel, None if wanted is None else places)
    assert out.dtype == dtype
    actual = errors(out, qkv, expected, direction)
    assert actual[0] <= 2 * yardstick[0], (actual, yardstick)
    assert actual[1] <= 3 * yardstick[1], (actual, yardstick)


@pytest.mark.parametrize("kernel", ON_A_GPU)
def test_no_gpu_kernel_waits_for_the_device(kernel: Kernel) -> None:
    """From the lengths to the gradient; the debug mode turns a wait into an error."""
    device = able(kernel)
    qkv = random_qkv(300, torch.bfloat16, head_dim=64).detach().to(device).requires_grad_()
    wanted = torch.tensor([7, 120, 250], device=device)
    for mode in ("default", "error"):  # the first time loads the kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            packing = Packing.from_lengths([100, 200], device)
            varlen_attention(*qkv, packing, (64, 64), kernel).sum().backward()
            varlen_attention(*qkv, packing, None, kernel, wanted).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
