"""Compiles the encoder's layers and kernels for a GPU that is not there, since no test machine has one.

    python -m tests.code_for_a_gpu 90

Layers are traced on the CPU, their graphs moved, and torch's compiler and Triton make machine code of these, which
nothing runs; the head's kernel, too, and FlashAttention-4 where it is installed. Prints for each graph whether it is a
backward one, and how often each of its kernels computes erf. A process of its own, for it changes torch.
"""
import copy
import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo.device_interface
import torch._inductor.config
import torch._inductor.runtime.triton_helpers
import triton
from torch import Tensor
from torch._inductor import inductor_prims
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._inductor.utils import fresh_inductor_cache
from torch._prims import TensorMeta
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmbert import head_kernel, model
from mmbert.attention import Packing, _obstacle, varlen_attention
from mmbert.config import ModelConfig

GPU = torch.device("cuda", 0)
CONFIG = ModelConfig(
    vocab_size=512, hidden_size=384, intermediate_size=1152, num_hidden_layers=4, num_attention_heads=6,
    max_position_embeddings=1024, global_rope_theta=160e3, local_rope_theta=160e3,
)  # fmt: skip
kernels: list[CachingAutotuner] = []


def pretend(capability: int) -> None:
    """Answer torch's compiler and Triton as a machine with such a GPU would."""
    major, minor = divmod(capability, 10)
    properties = SimpleNamespace(
        name="", major=major, minor=minor, multi_processor_count=108, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
    )  # fmt: skip
    cuda: Any = torch.cuda
    interface: Any = torch._dynamo.device_interface.CudaInterface
    for place in (cuda, interface, interface.Worker):
        place.get_device_properties = staticmethod(lambda *_: properties)
        place.current_device = staticmethod(lambda: 0)
    for place in (cuda, interface):
        place.device_count = staticmethod(lambda: 1)
    cuda.get_device_capability = lambda *_: (major, minor)
    interface.is_available = staticmethod(lambda: True)
    interface.is_bf16_supported = staticmethod(lambda *_, **__: True)
    helpers: Any = torch._inductor.runtime.triton_helpers
    helpers.set_driver_to_gpu = lambda: None
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", capability, 32)))
    CachingAutotuner.precompile = compile_only
    # Its own answer would index a tensor of the GPU.
    inductor_prims.lookup_seed.prim_meta_impl = lambda seeds, index: TensorMeta(
        shape=(), strides=(), dtype=torch.int64, device=seeds.device
    )


def compile_only(kernel: CachingAutotuner, *_: Any, **__: Any) -> None:
    """In place of `precompile`, which loads the machine code into the GPU, too."""
    kernel._precompile_worker()
    kernel.launchers = [lambda *_, **__: None]
    kernels.append(kernel)


def compile_moved(graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., Any]:
    """Compile what `graph` would be on the GPU, and run `graph`."""
    moved = torch.fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in moved.graph.nodes:
        node.meta.pop("tensor_meta", None)
        node.meta["val"] = tree_map(to_gpu, node.meta.get("val"))
        node.args, node.kwargs = map_aggregate(node.args, to_gpu), map_aggregate(node.kwargs, to_gpu)
    kernels.clear()
    compile_fx_inner(moved, [to_gpu(each) for each in inputs], **options)
    calls = {kernel.inductor_meta["kernel_name"]: kernel.fn.src.count("erf(") for kernel in kernels}
    print(json.dumps({"backward": options.get("is_backward", False), "erf": calls}), flush=True)

    def run(arguments: list[Any]) -> Any:
        given = list(arguments)
        arguments.clear()
        return graph(*given)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def to_gpu(x: Any) -> Any:
    """A tensor without memory, or a device, there."""
    if isinstance(x, FakeTensor):
        with no_dispatch():
            meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return FakeTensor(x.fake_mode, meta, GPU)
    return GPU if isinstance(x, torch.device) else x


def compile_layers() -> None:
    """A step of training and one of validation, in bf16."""
    compile_ = torch.compile

    def compile_for_gpu(function: Any, **options: Any) -> Any:
        backend = lambda graph, inputs: compile_fx(graph, inputs, inner_compile=compile_moved)  # noqa: E731
        return compile_(function, backend=backend, **options)

    torch.compile = compile_for_gpu
    # As FlashAttention's, the output is contiguous, whatever its inputs are.
    model.varlen_attention = lambda q, k, v, packing, window, kernel, wanted: (
        (q + k + v).contiguous() if wanted is None else (q + k + v).index_select(0, wanted)
    )
    encoder = model.MmBertForMaskedLM(CONFIG)
    encoder.model.compile_layers()
    input_ids = torch.zeros(2048, dtype=torch.int64)
    packing = Packing.from_lengths([1024, 1024], torch.device("cpu"))
    masked = torch.arange(0, 2048, 4)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return encoder.loss(input_ids, packing, masked, input_ids[masked]).total

    loss().backward()
    encoder.eval()
    with torch.no_grad():
        loss()


def compile_head_kernel(capability: int) -> None:
    """With and without gradients, as `losses_of` calls it."""
    types = {"logits": "*bf16", "bias": "*fp32", "targets": "*i64", "each": "*fp32", "correct": "*i1"}
    for differentiate in (True, False):
        source = ASTSource(
            head_kernel._kernel,
            types | {"vocab_size": "i32", "differentiate": "constexpr", "block": "constexpr"},
            {"differentiate": differentiate, "block": head_kernel.BLOCK},
        )
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": head_kernel.WARPS})
        assert compiled.asm["cubin"]


def compile_flash_attention_4(capability: int) -> None:
    """Forward and backward: whole documents, windows, and documents some of whose tokens are queries."""
    os.environ |= {  # read when it is imported
        "FLASH_ATTENTION_ARCH": f"sm_{capability}", "CUTE_DSL_ARCH": f"sm_{capability}a",
        "FLASH_ATTENTION_NUM_SMS": "132",
    }  # fmt: skip
    if _obstacle("flash_attn_4"):
        return
    with FakeTensorMode():
        qkv = torch.empty(2048, 3, 6, 64, dtype=torch.bfloat16, device=GPU, requires_grad=True)
        cu_seqlens = torch.empty(3, dtype=torch.int32, device=GPU)
        packing = Packing(cu_seqlens, 1024, [1024, 1024], torch.empty(2048, device=GPU))
        some = torch.empty(512, dtype=torch.int64, device=GPU)
        for window, wanted in ((None, None), ((64, 64), None), (None, some)):
            q, k, v = qkv.unbind(1)
            out = varlen_attention(q.contiguous(), k.contiguous(), v, packing, window, "flash_attn_4", wanted)
            backward: Any = out.grad_fn
            backward.apply(torch.empty_like(out), None)  # autograd's engine would look for the GPU


if __name__ == "__main__":
    pretend(int(sys.argv[1]))
    with (
        fresh_inductor_cache(),
        torch._inductor.config.patch(compile_threads=1, fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        compile_layers()
        compile_head_kernel(int(sys.argv[1]))
    if int(sys.argv[1]) >= 90:
        compile_flash_attention_4(int(sys.argv[1]))
