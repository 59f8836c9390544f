"""Attention against a float64 reference that scores every pair of tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmbert import attention
from mmbert.attention import GPU_KERNELS, Kernel, Packing, Window, varlen_attention

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
