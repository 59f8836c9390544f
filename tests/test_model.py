"""The encoder against transformers' ModernBertForMaskedLM, and what must hold of it in itself."""

from dataclasses import replace
from functools import cache
from math import erf, exp, pi, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM

from mmbert.attention import Packing
from mmbert.config import ModelConfig
from mmbert.model import MmBertForMaskedLM

SMALLEST = ModelConfig(
    vocab_size=101,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,  # global, local, local, global: the last is as mmBERT's
    num_attention_heads=2,
    max_position_embeddings=1024,
    global_rope_theta=160_000.0,
    local_rope_theta=10_000.0,
    initializer_range=0.15,  # weights large enough that attention matters to the logits
)
LENGTHS = [1, 63, 64, 65, 128, 129, 1000]
LAST = pytest.mark.parametrize("num_layers", [4, 5], ids=["last is global", "last is local"])
THETAS = [(10_000.0, 10_000.0), (160_000.0, 160_000.0), (160_000.0, 10_000.0)]


def build(config: ModelConfig, seed: int = 0) -> MmBertForMaskedLM:
    """A model in evaluation mode whose norms and biases are not 1 and 0, so that none can be left out unseen."""
    torch.manual_seed(seed)
    model = MmBertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def build_reference(config: ModelConfig, model: MmBertForMaskedLM, attn_implementation: str) -> ModernBertForMaskedLM:
    """transformers' model with the weights of `model`, every one of them."""
    shared = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
        "global_rope_theta local_rope_theta global_attn_every_n_layers local_attention norm_eps"
    )
    special = {f"{role}_token_id": 0 for role in ("pad", "bos", "eos", "cls", "sep")}
    hf_config = ModernBertConfig(
        **{name: getattr(config, name) for name in shared.split()},
        **special,
        attn_implementation=attn_implementation,
        reference_compile=False,
    )
    reference = ModernBertForMaskedLM(hf_config).eval()
    reference.load_state_dict(model.state_dict())
    return reference


def batch_of(lengths: list[int], device: str = "cpu") -> tuple[Tensor, Packing, Tensor, Tensor]:
    """Random input_ids and where they lie; about 30 % of the places, the first one among them, and targets."""
    torch.manual_seed(1)
    input_ids = torch.randint(1, SMALLEST.vocab_size, (sum(lengths),))
    chosen = torch.rand(sum(lengths)) < 0.3
    chosen[0] = True
    masked = chosen.nonzero().squeeze(1)
    targets = torch.randint(1, SMALLEST.vocab_size, masked.shape)
    packing = Packing.from_lengths(lengths, torch.device(device))
    return input_ids.to(device), packing, masked.to(device), targets.to(device)


def assert_relatively_close(actual: Tensor, expected: Tensor, name: str) -> None:
    """The largest difference, and the norm of all, within 1e-5 of the expected tensor's."""
    difference = actual - expected
    assert difference.norm() <= 1e-5 * expected.norm(), f"{name}: norm {difference.norm() / expected.norm():.1e}"
    largest = difference.abs().max() / expected.abs().max()
    assert largest <= 1e-5, f"{name}: largest {largest:.1e}"


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("thetas", THETAS, ids=str)
@pytest.mark.parametrize("lengths", [*([length] for length in LENGTHS), LENGTHS], ids=str)
def test_logits_and_all_gradients_equal_transformers(
    lengths: list[int], thetas: tuple[float, float], attn_implementation: str
) -> None:
    """Documents packed together here, alone there; a chunk of masked tokens at a time reaches the head here."""
    config = replace(SMALLEST, global_rope_theta=thetas[0], local_rope_theta=thetas[1])
    model = build(config)
    reference = build_reference(config, model, attn_implementation)
    input_ids, packing, masked, targets = batch_of(lengths)

    expected = torch.cat([reference(ids[None]).logits[0] for ids in input_ids.split(lengths)])
    expected_loss = F.cross_entropy(expected[masked], targets, reduction="sum")
    expected_loss.backward()
    assert_relatively_close(model(input_ids, packing), expected, "logits")
    loss = model.loss(input_ids, packing, masked, targets).total
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected_gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_relatively_close(gradient, expected_gradients[name], name)


@pytest.mark.parametrize("loop", [True, False], ids=["loop", "band"])
def test_documents_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch, loop: bool) -> None:
    monkeypatch.setattr(Packing, "loop_is_cheaper", lambda self, window: loop)
    model = build(SMALLEST)
    lengths = [30, 70, 200]
    input_ids, packing, *_ = batch_of(lengths)
    changed = input_ids.clone()
    changed[30:100] = SMALLEST.vocab_size - input_ids[30:100]
    with torch.no_grad():
        before, after = (model(ids, packing).split(lengths) for ids in (input_ids, changed))
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(after[2], before[2], rtol=0, atol=1e-6)
    assert (after[1] - before[1]).abs().amax(dim=1).min() > 1e-3


@LAST
def test_masked_selects_the_logits(num_layers: int) -> None:
    model = build(replace(SMALLEST, num_hidden_layers=num_layers))
    input_ids, packing, masked, _ = batch_of([50, 150])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids, packing, masked), model(input_ids, packing)[masked])


@LAST
def test_a_batch_without_masked_tokens_has_no_loss_and_no_gradient(num_layers: int) -> None:
    model = build(replace(SMALLEST, num_hidden_layers=num_layers))
    input_ids, packing, masked, targets = batch_of([20])
    assert model(input_ids, packing, masked[:0]).shape == (0, SMALLEST.vocab_size)
    loss = model.loss(input_ids, packing, masked[:0], targets[:0]).total
    loss.backward()
    assert loss.item() == 0.0
    assert not any(parameter.grad.any() for parameter in model.parameters())


@LAST
def test_documents_of_padding_change_nothing(num_layers: int) -> None:
    """What a microbatch for a GPU is filled up with: the same loss and gradients."""
    input_ids, packing, masked, targets = batch_of([50, 150])
    padded = torch.cat([input_ids, torch.zeros(230, dtype=input_ids.dtype)])
    gradients = []
    for ids, places in ((input_ids, packing), (padded, Packing.from_lengths([50, 150, 200, 30], torch.device("cpu")))):
        model = build(replace(SMALLEST, num_hidden_layers=num_layers))
        model.loss(ids, places, masked, targets).total.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_relatively_close(gradients[1][name], gradient, name)


@cache
def fresh_model() -> MmBertForMaskedLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "num_attention_heads": 6}
    return MmBertForMaskedLM(replace(SMALLEST, **shape, vocab_size=2000, initializer_range=0.02))


OUT_STD = 0.02 / sqrt(2 * 6)


@pytest.mark.parametrize(
    "name, std",
    [
        ("model.embeddings.tok_embeddings.weight", 0.02),
        ("model.layers.2.attn.Wqkv.weight", 0.02),
        ("model.layers.2.mlp.Wi.weight", 0.02),
        ("head.dense.weight", 0.02),
        ("model.layers.2.attn.Wo.weight", OUT_STD),
        ("model.layers.2.mlp.Wo.weight", OUT_STD),
    ],
)
def test_matrices_start_as_normals_cut_at_two_standard_deviations(name: str, std: float) -> None:
    weight = fresh_model().get_parameter(name)
    inside = erf(2 / sqrt(2))  # mass of a normal within two standard deviations
    cut_std = std * sqrt(1 - 4 * exp(-2) / sqrt(2 * pi) / inside)
    num_standard_errors = 5
    assert abs(weight.std().item() / cut_std - 1) < num_standard_errors / sqrt(2 * weight.numel())
    assert abs(weight.mean().item()) < num_standard_errors * cut_std / sqrt(weight.numel())
    assert 1.99 * std < weight.abs().max().item() <= 2 * std * (1 + 1e-6)


def test_norms_start_at_one_and_biases_at_zero() -> None:
    vectors = {name: p for name, p in fresh_model().named_parameters() if p.dim() == 1}
    assert torch.equal(vectors.pop("decoder.bias"), torch.zeros(2000))
    assert len(vectors) == 1 + 6 * 2 - 1 + 1 + 1  # embeddings, layers but one of layer 0, final, head
    assert all(torch.equal(weight, torch.ones(384)) for weight in vectors.values())


def test_same_seed_builds_the_same_model() -> None:
    first, second, other = (build(SMALLEST, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.dense.weight"], other["head.dense.weight"])


def test_decoder_shares_the_embedding_matrix() -> None:
    model = MmBertForMaskedLM(SMALLEST)
    assert model.decoder.weight is model.model.embeddings.tok_embeddings.weight


def test_dropout_falls_on_the_output_of_attention_and_nowhere_else() -> None:
    """When all of it is dropped, what is left equals a model whose attention writes nothing."""
    input_ids, packing, *_ = batch_of([40])
    dropping = build(replace(SMALLEST, attn_out_dropout=1.0)).train()
    silent = build(SMALLEST)
    with torch.no_grad():
        for layer in silent.model.layers:
            layer.attn.Wo.weight.zero_()
        assert torch.equal(dropping(input_ids, packing), silent(input_ids, packing))


def bf16_close_to_fp32(device: str) -> None:
    """On a GPU fp32 has no other attention than the CPU's."""
    config = replace(SMALLEST, initializer_range=0.1)
    model, exact = build(config).to(device), build(replace(config, attention="cpu")).to(device)
    input_ids, packing, masked, targets = batch_of([1, 64, 129, 300], device)

    def loss_and_gradient(model: MmBertForMaskedLM) -> tuple[Tensor, Tensor]:
        loss = model.loss(input_ids, packing, masked, targets).total / len(targets)
        return loss.detach(), torch.autograd.grad(loss, model.model.layers[1].attn.Wqkv.weight)[0]

    loss, gradient = loss_and_gradient(exact)
    with torch.autocast(device, dtype=torch.bfloat16):
        half_loss, half_gradient = loss_and_gradient(model)
        assert model(input_ids, packing).dtype == torch.bfloat16
    assert abs(half_loss / loss - 1) < 0.01  # bf16 has 8 bits
    assert (half_gradient - gradient).norm() < 0.05 * gradient.norm()


def test_bf16_autocast_stays_close_to_fp32_on_a_cpu() -> None:
    bf16_close_to_fp32("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bf16_autocast_stays_close_to_fp32_on_a_gpu() -> None:
    bf16_close_to_fp32("cuda")
