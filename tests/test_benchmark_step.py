"""The step's benchmark: documents, candidates, gates; one small run of the whole program."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from mmbert.benchmark import __main__ as program
from mmbert.benchmark import candidates, step
from mmbert.benchmark.documents import (
    BOS,
    EOS,
    MASK,
    MEDIAN,
    NOT_MASKED,
    PAD,
    SHORTEST,
    SIGMA,
    even_lengths,
    padded_batches,
    synthetic_documents,
)
from mmbert.benchmark.peers import PEERS, build_peers
from mmbert.benchmark.products import bare_products
from mmbert.benchmark.result import OURS
from mmbert.benchmark.step import MODELS
from mmbert.config import read_yaml
from mmbert.flops import training_flops
from mmbert.mlm import MaskedLM
from mmbert.model import MmBertForMaskedLM
from tests.test_flops import OPERATORS

CPU = torch.device("cpu")
TINY = replace(
    step.BASE, vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
    max_position_embeddings=128, local_attention=16,
)  # fmt: skip
WORDS = ["step", "--seq", "128", "--tokens", "600", "--microbatch", "2", "--repetitions", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step.MODELS, "narrow", TINY)


@pytest.mark.parametrize("name", ["small", "base"])
def test_shapes_are_the_published_ones(name: str) -> None:
    published: Any = OmegaConf.to_container(read_yaml(Path("yamls/model") / f"{name}.yaml"))
    own = vars(replace(step.MODELS[name], attn_out_dropout=0.1))
    assert {key: own[key] for key in published["model"]} == published["model"]


@pytest.mark.parametrize("num_tokens, longest", [(8, 8), (9, 9), (20, 12), (5000, 100), (4096, 4096)])
def test_lengths_sum_up_and_keep_to_their_bounds(num_tokens: int, longest: int) -> None:
    lengths = even_lengths(num_tokens, longest)
    assert sum(lengths) == num_tokens
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= longest


@pytest.mark.parametrize("longest", [1024, 4096])
def test_the_few_documents_of_a_step_weigh_in_attention_as_many_would(longest: int) -> None:
    """A token meets as many others on average as where lengths are drawn, many of them."""
    drawn = np.random.default_rng(0).lognormal(np.log(longest * MEDIAN), SIGMA, 100_000).clip(SHORTEST, longest)
    lengths = np.array(even_lengths(8192, longest))
    assert (lengths**2).sum() / 8192 == pytest.approx((drawn**2).sum() / drawn.sum(), rel=0.06)


def test_rows_and_single_documents_hold_the_same_tokens_and_labels() -> None:
    documents = synthetic_documents(2000, 128, 300, 0.3)
    rows = documents.rows
    input_ids = np.concatenate([input_ids for input_ids, _ in documents.alone])
    labels = np.concatenate([labels for _, labels in documents.alone])
    assert documents.num_tokens == sum(rows["row_tokens"]) == 2000
    assert documents.lengths == rows["lengths"].tolist()
    assert (input_ids == rows["input_ids"]).all()
    assert (np.flatnonzero(labels != NOT_MASKED) == rows["masked"]).all()
    assert (labels[rows["masked"]] == rows["targets"]).all()
    assert documents.num_masked / 2000 == pytest.approx(0.3, abs=0.05)
    assert (input_ids == MASK).sum() / documents.num_masked == pytest.approx(0.8, abs=0.06)
    assert all(ids[0] == BOS and ids[-1] == EOS and PAD not in ids for ids, _ in documents.alone)


def test_padded_batches_keep_every_document_once() -> None:
    documents = synthetic_documents(1000, 128, 300, 0.3)
    order = list(range(len(documents.alone)))[::-1]
    batches = padded_batches(documents.alone, order, 4)
    rows = [row for batch in batches for row in zip(*batch.values(), strict=True)]
    assert [len(batch["input_ids"]) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    for number, (input_ids, attention_mask, labels) in zip(order, rows, strict=True):
        real = attention_mask.astype(bool)
        assert (input_ids[real] == documents.alone[number][0]).all()
        assert (labels[real] == documents.alone[number][1]).all()
        assert (input_ids[~real] == PAD).all()
        assert (labels[~real] == NOT_MASKED).all()


def test_the_peer_sorts_by_length_and_so_pads_little() -> None:
    encoder, documents = MmBertForMaskedLM(TINY), synthetic_documents(3000, 128, 300, 0.3)
    peer = PEERS["hf-tuned"]
    tuned, single = (peer.candidate(peer.build(encoder, CPU), documents, size, "fp32") for size in (4, 1))
    assert 0.8 < tuned.fill < single.fill == 1.0
    real = sum(int(batch["attention_mask"].sum()) for batch in tuned.microbatches)
    assert tuned.fill == real / sum(batch["input_ids"].numel() for batch in tuned.microbatches)


def test_microbatches_change_neither_loss_nor_gradients() -> None:
    torch.manual_seed(0)
    encoder, documents = MmBertForMaskedLM(TINY), synthetic_documents(900, 128, 300, 0.3)
    whole, cut = (candidates.our_candidate(encoder, documents, rows, "fp32", CPU) for rows in (100, 1))
    assert (len(whole.microbatches), len(cut.microbatches)) == (1, len(documents.rows["row_tokens"]))
    assert whole.fill == cut.fill == 1.0
    loss = whole.backward()
    gradients = {name: gradient.clone() for name, gradient in step.gradients(whole).items()}
    torch.testing.assert_close(cut.backward(), loss, rtol=1e-6, atol=0)
    assert step.worst_gradient(step.gradients(cut), gradients) < 1e-5


def test_a_timed_step_leaves_no_gradients() -> None:
    encoder, documents = MmBertForMaskedLM(TINY), synthetic_documents(300, 128, 300, 0.3)
    candidate = candidates.our_candidate(encoder, documents, 100, "fp32", CPU)
    candidate.backward()
    assert step.gradients(candidate)
    candidate.step()
    assert all(parameter.grad is None for parameter in encoder.parameters())


def run(path: Path, *words: str) -> dict[str, Any]:
    program.main([*WORDS, *words, "--json", str(path / "step.json")])
    return json.loads((path / "step.json").read_text())


def test_all_candidates_agree_and_are_timed(tmp_path: Path) -> None:
    made = run(tmp_path)
    assert list(made["candidates"]) == [OURS, "hf-tuned", "products"]
    assert len(made["gates"]) == 3
    assert made["facts"]["tokens"] == 600
    assert made["facts"]["attention"] == "cpu"
    assert made["candidates"]["hf-tuned"]["fill"] <= made["candidates"][OURS]["fill"] == 1.0
    assert "documents a batch 1: " in made["candidates"]["hf-tuned"]["note"]
    assert made["environment"]["threads"] == 1


def test_bare_products_are_those_that_the_flops_count() -> None:
    """Without attention, which is no product of a matrix that is learned."""
    encoder = MmBertForMaskedLM(MODELS["narrow"])
    microbatches = [{"input_ids": torch.zeros(96), "targets": torch.zeros(17)}]
    with FlopCounterMode(display=False, custom_mapping=OPERATORS) as counter:
        bare_products(encoder, microbatches, torch.float32)()
    one_token_each = training_flops(encoder.config, np.ones(96, dtype=np.int64), 17)
    pairs = 96 * (encoder.config.num_hidden_layers - 1) + 17
    attention = 3 * 4 * encoder.config.hidden_size * pairs
    assert counter.get_total_flops() == one_token_each - attention


def test_bf16_agrees_within_its_precision(tmp_path: Path) -> None:
    made = run(tmp_path, "--precision", "amp_bf16")
    assert [gate["limit"] for gate in made["gates"]] == [1e-2, 1e-2]
    assert all(gate["value"] > 0.0 for gate in made["gates"])


def test_a_gradient_that_is_off_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By 0.1 % in a small parameter, which neither the loss nor the norm of all would show."""
    encoder_loss = MaskedLM.forward

    def forward(self: MaskedLM, batch: dict[str, Any]) -> torch.Tensor:
        norm = self.encoder.model.layers[1].attn_norm.weight
        loss = encoder_loss(self, batch)
        if not norm._backward_hooks:
            norm.register_hook(lambda gradient: 1.001 * gradient)
        return loss

    monkeypatch.setattr(MaskedLM, "forward", forward)
    with pytest.raises(SystemExit, match="nothing was timed: worst gradient of a parameter, fp32, ours against hf"):
        run(tmp_path)
    assert not (tmp_path / "step.json").exists()


def test_the_fastest_batch_size_is_taken_from_the_best_of_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is hopeless, 16 here, is not tried again."""
    seconds = {1: iter([1.0, 3.0, 4.0, 5.0]), 4: iter([9.0, 5.0, 6.0, 2.0]), 8: iter([9.0, 6.0, 7.0, 6.0])}
    seconds[16] = iter([9.0, 9.0, 6.1])
    model = torch.nn.Linear(1, 1)
    tried = {size: candidates.Candidate(model, [], lambda _: torch.zeros(()), 1.0, str(size)) for size in seconds}
    monkeypatch.setattr(candidates, "_seconds", lambda candidate, _: next(seconds[int(candidate.note)]))
    assert candidates.fastest(tried, CPU) == (4, {1: 3.0, 4: 2.0, 8: 6.0, 16: 6.1})


def test_of_batch_sizes_that_hold_all_documents_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_seconds", lambda candidate, _: 1.0)
    documents = synthetic_documents(300, 128, 300, 0.3)
    assert 4 < len(documents.alone) <= 8
    peers = build_peers(MmBertForMaskedLM(TINY), documents, ["hf-tuned"], "fp32", CPU)
    trial = peers["hf-tuned"].note.split("documents a batch ")[1]
    assert [part.split(":")[0] for part in trial.split(", ")] == ["1", "2", "4", "8"]


def test_a_batch_size_that_does_not_fit_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(candidate: candidates.Candidate, device: torch.device) -> float:
        if candidate.note == "8":
            raise torch.cuda.OutOfMemoryError("no memory")
        return 1.0

    model = torch.nn.Linear(1, 1)
    tried = {size: candidates.Candidate(model, [], lambda _: torch.zeros(()), 1.0, str(size)) for size in (4, 8)}
    monkeypatch.setattr(candidates, "_seconds", seconds)
    assert candidates.fastest(tried, CPU) == (4, {4: 1.0})
    with pytest.raises(ValueError, match="lower --tokens"):
        candidates.fastest({8: tried[8]}, CPU)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--peers", "hf-tuned,hf-tuned"], "--peers hf-tuned,hf-tuned"),
        (["--peers", "bert"], "--peers bert"),
        (["--peers", "hf-fa2"], "--peers hf-fa2 needs --device gpu"),
        (["--seq", "9000"], "--seq 9000"),
        (["--tokens", "100"], "--tokens 100"),
        (["--mask", "1"], "--mask 1.0"),
        (["--microbatch", "0"], "--microbatch 0"),
        (["--attention", "flash_attn_4"], "attention: flash_attn_4 needs a GPU"),
        (["--min-ratio", "hf-fa2=1"], "--min-ratio hf-fa2=1"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(words: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        program.main([*WORDS, *words])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_step_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step.MODELS, "narrow", replace(TINY, hidden_size=128))
    made = run(tmp_path, "--device", "gpu", "--precision", "amp_bf16", "--peers", "hf-sdpa")
    timed = [made["candidates"][name] for name in ("ours", "hf-sdpa")]
    assert all(figure["peak_bytes"] > 0 for figure in timed)
