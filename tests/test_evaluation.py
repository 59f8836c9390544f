"""Bits per byte of held-out text: the maths, the masks, and the program from shards to JSON."""
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, ModernBertConfig, ModernBertForMaskedLM

from mmbert import device
from mmbert.evaluation import bits_per_byte as program
from mmbert.evaluation.scoring import batches_of_like_length, masked_logits, pad_batch, score_languages
from mmbert.fixed_masks import fixed_mask, num_masked_tokens
from mmbert.heldout import HeldoutLanguage, MaskedDocument, bits_per_byte, mask_documents
from mmbert.packing import Rows, TokenIds, pack_documents
from mmbert.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from tests.written_streams import write_stream

VOCAB_SIZE = 40
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def make_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    words = [*SPECIAL, "a", *(f"w{number}" for number in range(vocab_size - 6))]
    backend = Backend(WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL))
    return save_tokenizer(json.loads(backend.to_str()), folder, origin=folder)


def make_model(seed: int = 0) -> ModernBertForMaskedLM:
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        global_attn_every_n_layers=2,
        local_attention=8,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.4,
        initializer_cutoff_factor=3.0,
        reference_compile=False,
        attn_implementation="sdpa",
    )
    return ModernBertForMaskedLM(config).eval()


def make_documents(count: int, seed: int) -> list[TokenIds]:
    """Text ids, without <bos> and <eos>, of 1 to 29 tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(5, VOCAB_SIZE, random.integers(1, 30)).astype(np.uint32) for _ in range(count)]


def wrap(documents: list[TokenIds]) -> list[TokenIds]:
    return [np.array([2, *document, 1], dtype=np.uint32) for document in documents]


def make_languages() -> list[HeldoutLanguage]:
    return [
        HeldoutLanguage("eng", wrap(make_documents(12, seed=1)), text_bytes=700),
        HeldoutLanguage("tir", wrap(make_documents(5, seed=2)), text_bytes=450),
    ]


def write_heldout(root: Path, language: str, documents: list[TokenIds], tokenizer: Tokenizer) -> None:
    """Write text whose tokens are `documents`."""
    texts = [" ".join(tokenizer.backend.id_to_token(id_) for id_ in document) for document in documents]
    text_bytes = sum(len(text.encode()) for text in texts)
    write_stream(root, ("heldout", "udhr", language), tokenizer.encode_batch(texts), tokenizer, text_bytes)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return make_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Command line of the program on a model and two languages that this writes."""
    model = tmp_path / "hf"
    tokenizer = make_tokenizer(model)
    make_model().save_pretrained(model)
    for language, seed in (("eng", 1), ("tir", 2)):
        write_heldout(tmp_path / "shards", language, make_documents(9, seed), tokenizer)
    paths = {"--model": model, "--shards": tmp_path / "shards", "--output": tmp_path / "bits_per_byte.json"}
    return ["--source", "udhr", *(text for key, path in paths.items() for text in (key, str(path)))]


def fail_with(arguments: list[str]) -> str:
    """Run the program, expect it to refuse, and return the line it says."""
    with pytest.raises(SystemExit) as refusal:
        program.main(arguments)
    assert isinstance(refusal.value.code, str)  # Python prints it to stderr and exits with 1
    assert "\n" not in refusal.value.code
    return refusal.value.code


def test_bits_per_byte_is_the_loss_in_bits_times_tokens_per_byte() -> None:
    assert bits_per_byte(nll_per_token=3 * math.log(2), num_tokens=50, text_bytes=100) == pytest.approx(1.5)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token(tokenizer: Tokenizer) -> None:
    model = make_model()
    model.decoder.weight.data.zero_()  # tied to the embeddings; all logits are 0
    languages = make_languages()
    scores = score_languages(model, languages, tokenizer, batch_tokens=128)
    for heldout in languages:
        tokens = sum(len(document) - 2 for document in heldout.documents)
        expected = math.log2(VOCAB_SIZE) * tokens / heldout.text_bytes
        assert scores[heldout.language].bits_per_byte == pytest.approx(expected, rel=1e-6)


def test_batches_score_like_one_document_at_a_time_with_dense_logits(tokenizer: Tokenizer) -> None:
    model, languages = make_model(), make_languages()
    scores = score_languages(model, languages, tokenizer, batch_tokens=128)
    for heldout in languages:
        losses, hits = [], []
        for document in mask_documents([heldout], tokenizer):
            ids = torch.from_numpy(document.input_ids.astype(np.int64))
            corrupted = ids.clone()
            corrupted[document.masked] = tokenizer.mask_token_id
            with torch.no_grad():
                predicted = model(corrupted[None]).logits[0].log_softmax(-1)
            losses += [-predicted[place, ids[place]].item() for place in document.masked]
            hits += [predicted[place].argmax().item() == ids[place].item() for place in document.masked]
        tokens = sum(len(document) - 2 for document in heldout.documents)
        score = scores[heldout.language]
        assert score.masked_tokens == len(losses)
        assert score.accuracy == pytest.approx(np.mean(hits))
        expected = np.mean(losses) * tokens / heldout.text_bytes / math.log(2)
        assert score.bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_logits_of_masked_positions_equal_the_models_own(tokenizer: Tokenizer) -> None:
    model = make_model()
    batch = mask_documents(make_languages(), tokenizer)[:6]
    input_ids, attention_mask, masked = pad_batch(batch, tokenizer)
    with torch.no_grad():
        dense = model(input_ids=input_ids, attention_mask=attention_mask).logits[masked]
        torch.testing.assert_close(masked_logits(model, input_ids, attention_mask, masked), dense)


@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_batch_size_and_order_of_languages_change_nothing(tokenizer: Tokenizer, batch_tokens: int) -> None:
    model, languages = make_model(), make_languages()
    reference = score_languages(model, languages, tokenizer, batch_tokens=256)
    scores = score_languages(model, languages[::-1], tokenizer, batch_tokens)
    for language, score in reference.items():
        assert scores[language].masked_tokens == score.masked_tokens
        assert scores[language].correct == score.correct
        assert scores[language].nll == pytest.approx(score.nll, rel=1e-5)


def test_a_language_scores_the_same_alone(tokenizer: Tokenizer) -> None:
    model, languages = make_model(), make_languages()
    together = score_languages(model, languages, tokenizer, batch_tokens=256)["tir"]
    alone = score_languages(model, languages[1:], tokenizer, batch_tokens=256)["tir"]
    assert alone.nll == pytest.approx(together.nll, rel=1e-5)


def test_special_tokens_are_never_masked() -> None:
    random = np.random.default_rng(0)
    for trial in range(200):
        document = random.integers(0, 8, 20).astype(np.uint32)  # mostly special
        positions = fixed_mask(document, (0, 1, 2, 3, 4), 0.9, key=str(trial))
        assert (document[positions] > 4).all()


def test_a_mask_hides_the_rounded_share_and_at_least_one_token() -> None:
    assert [num_masked_tokens(count, 0.15) for count in (0, 1, 2, 10, 100)] == [0, 1, 1, 2, 15]
    document = np.array([2, *range(5, 105), 1], dtype=np.uint32)
    assert len(set(fixed_mask(document, (1, 2), 0.15, key="k"))) == 15
    assert len(fixed_mask(np.array([2, 1], dtype=np.uint32), (1, 2), 0.15, key="k")) == 0


def test_masks_are_pinned_so_that_old_numbers_stay_comparable(tokenizer: Tokenizer) -> None:
    document = np.array([2, *range(5, 25), 1], dtype=np.uint32)
    masked = mask_documents([HeldoutLanguage("eng", [document] * 4, text_bytes=1)], tokenizer)
    assert masked[3].masked.tolist() == [9, 13, 17]


def test_language_and_document_each_give_another_mask(tokenizer: Tokenizer) -> None:
    document = np.array([2, *range(5, 105), 1], dtype=np.uint32)
    languages = [HeldoutLanguage(language, [document] * 2, text_bytes=1) for language in ("eng", "tir")]
    assert len({tuple(masked.masked) for masked in mask_documents(languages, tokenizer)}) == 4


def test_masked_positions_are_hit_evenly() -> None:
    document = np.array([2, *range(5, 15), 1], dtype=np.uint32)
    hits = np.zeros(12)
    for trial in range(2000):
        hits[fixed_mask(document, (1, 2), 0.3, key=str(trial))] += 1
    assert hits[[0, 11]].tolist() == [0, 0]
    assert np.abs(hits[1:-1] / 2000 - 0.3).max() < 0.05  # 5 standard deviations


def test_batches_hold_every_document_once_within_their_budget() -> None:
    random = np.random.default_rng(3)
    documents = [
        MaskedDocument(number, np.ones(random.integers(3, 80), dtype=np.uint32), np.array([1]))
        for number in range(60)
    ]
    batches = list(batches_of_like_length(documents, batch_tokens=70))
    assert sorted(document.language for batch in batches for document in batch) == list(range(60))
    for batch in batches:
        padded = len(batch) * max(len(document.input_ids) for document in batch)
        assert padded <= 70 or len(batch) == 1


def test_rows_split_into_the_documents_they_were_packed_from() -> None:
    documents = make_documents(20, seed=4)
    rows = Rows.of(pack_documents(documents, 64, bos=2, eos=1))
    found = [document.tolist() for document in rows.documents()]
    assert sorted(found) == sorted(document.tolist() for document in wrap(documents))


def test_program_writes_bits_per_byte_of_every_language(arguments: list[str], tmp_path: Path) -> None:
    program.main(arguments)
    written = json.loads((tmp_path / "bits_per_byte.json").read_text())
    assert written["source"] == "udhr"
    assert list(written["languages"]) == ["eng", "tir"]
    tokenizer = load_tokenizer(tmp_path / "hf")
    documents = make_documents(9, seed=2)
    score = written["languages"]["tir"]
    assert score["maskable_tokens"] == sum(len(document) for document in documents)
    assert score["masked_tokens"] == sum(num_masked_tokens(len(document), 0.15) for document in documents)
    words = [[tokenizer.backend.id_to_token(id_) for id_ in document] for document in documents]
    assert score["text_bytes"] == sum(len(" ".join(text)) for text in words)
    assert score["bits_per_byte"] > 0
    assert 0 <= score["accuracy"] <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_what_a_cpu_does(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bits_per_byte.json"
    program.main(arguments)
    on_gpu = json.loads(output.read_text())["languages"]
    output.unlink()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    program.main(arguments)
    on_cpu = json.loads(output.read_text())["languages"]
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(", on cuda")
    assert second.endswith(", on cpu")
    assert on_gpu.keys() == on_cpu.keys()
    for language, scores in on_cpu.items():
        assert on_gpu[language] == pytest.approx(scores, rel=1e-4)


def test_program_skips_work_only_while_its_inputs_stay_the_same(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bits_per_byte.json"
    program.main(arguments)
    first = output.read_bytes()
    assert re.search(r" languages \(eng \d+\.\d\d\*, tir \d+\.\d\d\*; \*: fewer than 1,0", capsys.readouterr().out)
    program.main([*arguments, "--batch-tokens", "64"])  # changes no number
    assert "up to date" in capsys.readouterr().out
    make_model(seed=1).save_pretrained(tmp_path / "hf")
    program.main(arguments)
    assert "up to date" not in capsys.readouterr().out
    assert output.read_bytes() != first


def test_the_first_rows_of_each_language_may_do(arguments: list[str], tmp_path: Path) -> None:
    found = []
    for options in ([], ["--rows", "1"], ["--rows", "1000"]):
        program.main([*arguments, *options])
        found.append(json.loads((tmp_path / "bits_per_byte.json").read_text())["languages"])
    whole, part, more = found
    assert more == whole
    for language, score in part.items():
        assert 0 < score["maskable_tokens"] < whole[language]["maskable_tokens"]
        assert 0 < score["text_bytes"] < whole[language]["text_bytes"]


def test_weights_saved_in_half_precision_are_evaluated_in_float32(arguments: list[str], tmp_path: Path) -> None:
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    assert program.load_model(tmp_path / "hf", tokenizer).dtype == torch.float32


def test_missing_files_are_named_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    assert str(tmp_path / "none" / "config.json") in fail_with([*arguments, "--model", str(tmp_path / "none")])
    assert str(tmp_path / "none") in fail_with([*arguments, "--shards", str(tmp_path / "none")])
    assert "did you mean udhr?" in fail_with([*arguments, "--source", "udr"])
    (tmp_path / "hf" / "model.safetensors").unlink()
    assert "model.safetensors is missing" in fail_with(arguments)


def test_shards_of_another_tokenizer_are_refused(arguments: list[str], tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other", vocab_size=30)
    write_heldout(tmp_path / "shards", "yor", [np.array([6, 7, 8], dtype=np.uint32)], other)
    assert "yor" in fail_with(arguments)
    assert "tokenizer" in fail_with(arguments)


def test_another_architecture_is_refused(arguments: list[str], tmp_path: Path) -> None:
    BertConfig(vocab_size=VOCAB_SIZE).save_pretrained(tmp_path / "hf")
    assert "model of type bert" in fail_with(arguments)


def test_weights_that_are_not_all_there_are_refused(arguments: list[str], tmp_path: Path) -> None:
    """transformers would draw what is missing, as for a model that was fine-tuned, and warn."""
    path = tmp_path / "hf" / "model.safetensors"
    whole = load_file(path)
    save_file({name: tensor for name, tensor in whole.items() if name != "head.dense.weight"}, path, {"format": "pt"})
    assert "model.safetensors lacks head.dense.weight" in fail_with(arguments)
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.safetensors is no safetensors file" in fail_with(arguments)


def test_a_language_of_special_tokens_only_is_refused(tokenizer: Tokenizer) -> None:
    empty = HeldoutLanguage("xxx", [np.array([2, 3, 1], dtype=np.uint32)], text_bytes=3)
    with pytest.raises(ValueError, match="text of xxx holds special tokens only"):
        score_languages(make_model(), [empty], tokenizer, batch_tokens=64)


def test_a_gpu_that_torch_does_not_see_is_no_reason_to_take_the_cpu_unasked(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SystemExit, match=r"^error: this machine has NVIDIA GPUs \(nvidia0\), but torch .* on the CPU$"):
        program.main(arguments)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    program.main(arguments)
    assert capsys.readouterr().out.endswith(", on cpu\n")


def test_no_rows_are_refused(arguments: list[str]) -> None:
    assert "--rows 0 must be at least 1" in fail_with([*arguments, "--rows=0"])


def test_a_damaged_output_file_is_named(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "bits_per_byte.json").write_text("{")
    assert "bits_per_byte.json is no JSON" in fail_with(arguments)


def test_an_output_that_cannot_be_written_is_told_before_anything_is_measured(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "load_model", lambda *_: pytest.fail("measures"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^error: .*File exists: '.*/file'; that, or a part of it, is no folder"):
        program.main([*arguments, "--output", str(tmp_path / "file" / "bits_per_byte.json")])

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))  # root may write anywhere

    monkeypatch.setattr(program, "TemporaryFile", refuse)
    with pytest.raises(SystemExit, match=r"^error: .*Permission denied: .* the right to it, or name another path$"):
        program.main(arguments)


def test_a_folder_is_no_output(arguments: list[str], tmp_path: Path) -> None:
    said = fail_with([*arguments, "--output", str(tmp_path)])
    assert said == f"error: --output {tmp_path} is a folder; name a file in it, bits_per_byte.json say"
