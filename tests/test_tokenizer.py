"""Tokenizers trained and adopted: ids, round trips through text, and the contract that a folder keeps."""
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from data_prep import adopt_tokenizer as adopt_program
from data_prep import check_tokenizer
from data_prep.train_tokenizer import BYTE_TOKENS, frequent_characters, train
from mmbert.tokenizer import SPECIAL_TOKENS, adopt_tokenizer, load_tokenizer, save_tokenizer
from tests.published_tokenizers import modernbert_like, xlmr_like

TEXTS = [
    "All human beings are born free and equal in dignity and rights.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",  # noqa: RUF001
    "人人生而自由,在尊严和权利上一律平等。",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
]
UNSEEN = [  # nothing like it in TEXTS
    "ᎠᏂᎦᏔᎲ ꆈꌠꁱꂷ 𞤀𞤣𞤤𞤢𞤥 𐐀𐐨",
    "👩‍👩‍👧 e\u0301 a\u200cb \u2028 \u2581 U+2581",
    "  two  spaces \n\n\ttab\r\n",
    "<mask> <0x41> <eos></s>",
    "\x00\x7f\ufffd\U0010ffff",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    save_tokenizer(train(TEXTS * 2, vocab_size=600), target, origin=Path("test"))
    return target


def edit(folder: Path, target: Path, name: str, **changes: object) -> Path:
    """A copy of a tokenizer folder with some top-level keys of one file changed."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((target / name).read_text()) | changes
    (target / name).write_text(json.dumps(values))
    return target


@pytest.mark.parametrize("text", TEXTS + UNSEEN)
def test_text_of_any_script_survives_a_round_trip(folder: Path, text: str):
    tokenizer = load_tokenizer(folder)
    (ids,) = tokenizer.encode_batch([text])
    assert ids.dtype == np.uint32
    assert tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False) == text


def test_special_tokens_spelled_in_a_text_stay_text(folder: Path):
    tokenizer = load_tokenizer(folder)
    for ids in tokenizer.encode_batch(["<pad><eos><bos><unk><mask>", "a <mask> b"]):
        assert not np.isin(ids, tokenizer.special_token_ids).any()


def test_vocabulary_has_the_exact_size_and_gemmas_special_ids(folder: Path):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 600
    named = (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        tokenizer.unk_token_id,
        tokenizer.mask_token_id,
    )
    assert named == tokenizer.special_token_ids == (0, 1, 2, 3, 4)


def test_tokens_are_whole_characters_or_single_bytes(folder: Path):
    learned = set(load_tokenizer(folder).backend.get_vocab()) - set(BYTE_TOKENS)
    characters = set("".join(TEXTS))
    assert all(set(token) <= characters for token in learned if not token.startswith("<"))


def test_training_twice_gives_the_same_bytes_in_another_process(folder: Path):
    program = (
        "import json, sys; from data_prep.train_tokenizer import train; "
        "print(json.dumps(train(json.load(sys.stdin), vocab_size=600)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(TEXTS * 2),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "."},
        cwd=Path(__file__).parents[1],
    )
    assert json.loads(result.stdout) == train(TEXTS * 2, vocab_size=600)


def test_frequent_characters_cover_the_share_and_no_more():
    assert frequent_characters(["aaaaaabbbc"], coverage=0.6) == ["a"]
    assert frequent_characters(["aaaaaabbbc"], coverage=0.61) == ["a", "b"]
    assert frequent_characters(["ba"], coverage=1.0) == ["a", "b"]


def test_equally_rare_characters_are_chosen_by_code_point_not_by_chance():
    rare = [chr(0x4E00 + number) for number in range(40)]
    texts = ["ab " * 10_000, " ".join(rare)]  # 40 characters, of which the other 1 in 2,000 keeps about 15
    learned = train(texts, vocab_size=290)["model"]["vocab"]
    kept = [character for character in rare if character in learned]
    assert 0 < len(kept) < len(rare)
    assert kept == rare[: len(kept)]


@pytest.mark.parametrize("vocab_size, reason", [(270, "no room for words"), (60_000, "so small that it gives only")])
def test_a_vocabulary_the_text_cannot_fill_is_refused(vocab_size: int, reason: str):
    with pytest.raises(ValueError, match=reason):
        train(TEXTS, vocab_size)


def test_transformers_loads_the_folder_and_wraps_as_in_training(folder: Path):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    a, b = (ids.tolist() for ids in ours.encode_batch(TEXTS[:2]))
    bos, eos = ours.bos_token_id, ours.eos_token_id
    assert theirs(TEXTS[0]) == {"input_ids": [bos, *a, eos], "attention_mask": [1] * (len(a) + 2)}
    assert theirs(TEXTS[0], TEXTS[1])["input_ids"] == [bos, *a, eos, bos, *b, eos]
    assert theirs.decode(theirs("<0x41>")["input_ids"], skip_special_tokens=True) == "<0x41>"
    assert theirs.mask_token_id == ours.mask_token_id
    assert len(theirs) == ours.vocab_size


def test_words_given_apart_are_a_sentences_when_all_but_the_first_have_their_space(folder: Path):
    """What docs/data.md tells those who tag words; transformers' add_prefix_space does not help here."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prefixed = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    for text in TEXTS:
        words = text.split(" ")
        apart = tokenizer([words[0], *(f" {word}" for word in words[1:])], is_split_into_words=True)
        assert apart["input_ids"] == tokenizer(text)["input_ids"]
        assert list(dict.fromkeys(apart.word_ids()[1:-1])) == list(range(len(words)))
        for plain in (tokenizer, prefixed):
            same = plain(words, is_split_into_words=True)["input_ids"] == tokenizer(text)["input_ids"]
            assert same == (len(words) == 1)


def test_a_mask_takes_the_place_of_a_word_with_its_space(folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("are <mask> and")["input_ids"])
    assert "".join(tokens) == "<bos>are<mask> and<eos>"


def gemma_like(folder: Path) -> Path:
    """A folder as Gemma 2's: <bos> template, <mask> an ordinary added token."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    backend.add_tokens(["<mask>", "a", "b"])
    folder.mkdir()
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer", "add_bos_token": true}')
    return folder


def test_an_adopted_tokenizer_keeps_its_vocabulary_and_the_contract(tmp_path: Path):
    source = gemma_like(tmp_path / "source")
    adopted = adopt_tokenizer(source, tmp_path / "target")
    before = Backend.from_file(str(source / "tokenizer.json"))
    assert adopted.backend.get_vocab() == before.get_vocab()
    assert adopted.backend.encode("ab").tokens == ["<bos>", "a", "b", "<eos>"]


def test_adopting_again_is_a_no_op_and_never_overwrites(tmp_path: Path, folder: Path):
    source = gemma_like(tmp_path / "source")
    first = adopt_tokenizer(source, tmp_path / "target")
    assert adopt_tokenizer(source, tmp_path / "target").digest == first.digest
    with pytest.raises(FileExistsError, match="exists with other content"):
        adopt_tokenizer(folder, tmp_path / "target")
    assert load_tokenizer(tmp_path / "target").digest == first.digest


def test_a_tokenizer_without_mask_is_refused_before_anything_is_written(tmp_path: Path, folder: Path):
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    source = edit(folder, tmp_path / "source", "tokenizer.json", added_tokens=tokens[:4])
    with pytest.raises(ValueError, match="lacks <mask>"):
        adopt_tokenizer(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "name, changes, reason",
    [
        ("tokenizer.json", {"post_processor": None}, "template is not <bos> A <eos>"),
        ("tokenizer.json", {"added_tokens": []}, "<pad> is not a special token"),
        ("tokenizer.json", {"model": {"type": "none"}}, "is not a tokenizer that"),
        ("tokenizer_config.json", {"model_input_names": ["input_ids"]}, "model_input_names is"),
    ],
)
def test_a_folder_that_breaks_the_contract_is_refused(
    tmp_path: Path, folder: Path, name: str, changes: dict, reason: str
):
    with pytest.raises(ValueError, match=reason) as error:
        load_tokenizer(edit(folder, tmp_path / "broken", name, **changes))
    assert str(tmp_path / "broken" / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mask_without_lstrip_is_refused(tmp_path: Path, folder: Path):
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    tokens[4]["lstrip"] = False
    with pytest.raises(ValueError, match="<mask> has lstrip false"):
        load_tokenizer(edit(folder, tmp_path / "broken", "tokenizer.json", added_tokens=tokens))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_roles_that_were_swapped_by_hand_in_one_file_are_refused(tmp_path: Path, folder: Path, name: str):
    """The digest is that of tokenizer.json, in which no role stands; a model would be exported with another pad id."""
    broken = edit(folder, tmp_path / "broken", name, pad_token="<unk>", unk_token="<pad>")
    with pytest.raises(ValueError, match=r"pad_token is <(pad|unk)>, and special_tokens_map\.json beside it says <"):
        load_tokenizer(broken)


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_missing_file_is_named(tmp_path: Path, folder: Path, missing: str):
    broken = edit(folder, tmp_path / "broken", "special_tokens_map.json")
    (broken / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {missing}"):
        load_tokenizer(broken)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")


# --- what is told of a tokenizer -----------------------------------------------------------------------------------


def changed(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of a tokenizer whose tokenizer.json has other top-level values."""
    return edit(folder, target, "tokenizer.json", **changes)


def test_a_word_at_the_start_is_not_taken_for_one_after_a_space_unless_the_tokenizer_says_so(
    tmp_path: Path, folder: Path
):
    assert not load_tokenizer(folder).prefix_space
    words = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    source = gemma_like(tmp_path / "gemma")
    spec = json.loads((source / "tokenizer.json").read_text())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in "ab"]
    spec["model"]["vocab"] = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "\u2581": 4, "a": 5, "\u2581a": 6}
    spec["model"]["merges"] = [["\u2581", "a"]]
    spec["added_tokens"][4]["id"] = 7
    prefixed = save_tokenizer(spec | {"pre_tokenizer": words}, tmp_path / "prefixed", origin=Path("test"))
    assert prefixed.prefix_space
    assert "prefix space   yes: " in check_tokenizer.description(prefixed)


def test_what_decoding_loses_is_found_and_named(tmp_path: Path, folder: Path):
    assert not check_tokenizer.lost_texts(load_tokenizer(folder))
    replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    lossy = load_tokenizer(changed(folder, tmp_path / "lossy", normalizer=replace))
    assert check_tokenizer.lost_texts(lossy) == {"\u2581": " "}
    assert "U+2581 LOWER ONE EIGHTH BLOCK becomes U+0020 SPACE" in check_tokenizer.description(lossy)
    squeeze = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
    assert check_tokenizer.lost_texts(load_tokenizer(changed(folder, tmp_path / "squeezed", normalizer=squeeze))) == {
        "a  a": "a a"
    }
    lower = load_tokenizer(changed(folder, tmp_path / "lower", normalizer={"type": "Lowercase"}))
    assert "U+0041 LATIN CAPITAL LETTER A becomes U+0061 LATIN SMALL LETTER A" in check_tokenizer.description(lower)


Adopting = Callable[[Path, Path], list[str]]


@pytest.fixture
def told_by_adopting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Adopting:
    """The program adopt_tokenizer, from a folder to another; the lines that it prints."""

    def lines(source: Path, target: Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["adopt_tokenizer", str(source), str(target)])
        adopt_program.main()
        return capsys.readouterr().out.splitlines()

    return lines


def test_adopting_says_what_it_changed_and_keeps_the_ids(tmp_path: Path, told_by_adopting: Adopting):
    source = gemma_like(tmp_path / "source")
    assert told_by_adopting(source, tmp_path / "target")[:-1] == [
        "vocabulary and ids are as they were; changed:",
        "<mask> (id 4): lstrip: False -> True",
        "<mask> (id 4): normalized: True -> False",
        "<mask> (id 4): special: False -> True",
        "template: None -> <bos> A <eos>",
        *(f"{role}: None -> {token}" for role, token in SPECIAL_TOKENS.items()),
        "model_input_names: None -> ['input_ids', 'attention_mask']",
    ]
    assert told_by_adopting(tmp_path / "target", tmp_path / "again")[0] == "nothing was changed"


def test_a_mask_that_takes_the_space_on_its_right_or_only_stands_alone_is_mended(tmp_path: Path):
    source = gemma_like(tmp_path / "source")
    tokens = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    tokens[4] |= {"rstrip": True, "single_word": True}
    adopted = adopt_tokenizer(edit(source, tmp_path / "strips", "tokenizer.json", added_tokens=tokens), tmp_path / "to")
    (mask,) = (token for token in adopted.backend.get_added_tokens_decoder().values() if token.content == "<mask>")
    assert (mask.lstrip, mask.rstrip, mask.single_word) == (True, False, False)


def test_keys_that_a_tokenizer_lacks_are_told_as_none(tmp_path: Path, told_by_adopting: Adopting):
    source = gemma_like(tmp_path / "source")
    spec = json.loads((source / "tokenizer.json").read_text())
    for key in ("truncation", "padding", "post_processor"):
        del spec[key]
    for key in ("lstrip", "rstrip", "single_word"):
        del spec["added_tokens"][4][key]
    (source / "tokenizer.json").write_text(json.dumps(spec))
    told = told_by_adopting(source, tmp_path / "target")
    assert "<mask> (id 4): lstrip: None -> True" in told
    assert "template: None -> <bos> A <eos>" in told


def test_the_programs_refuse_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = gemma_like(tmp_path / "source")
    for program, *arguments in ((check_tokenizer, source), (adopt_program, tmp_path / "nowhere", tmp_path / "target")):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^error: "):
            program.main()


def test_names_that_transformers_wrote_with_their_properties_are_read(tmp_path: Path, folder: Path):
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True}
    assert load_tokenizer(edit(folder, tmp_path / "saved", "tokenizer_config.json", mask_token=mask)).mask_token_id == 4


def test_the_programs_tell_names_as_the_tokenizer_spells_them(tmp_path: Path, told_by_adopting: Adopting):
    source = modernbert_like(tmp_path / "source", TEXTS)
    assert told_by_adopting(source, tmp_path / "target")[:-1] == [
        "vocabulary and ids are as they were; changed:",
        "template of a pair: [CLS] A [SEP] B [SEP] -> [CLS] A [SEP] [CLS] B [SEP]",
        "eos_token: None -> [SEP]",
        "bos_token: None -> [CLS]",
    ]
    told = check_tokenizer.description(load_tokenizer(tmp_path / "target"))
    assert "special ids    [PAD] 504, [SEP] 503, [CLS] 502, [UNK] 501, [MASK] 505\n" in told


def test_a_unigram_model_makes_no_special_token_of_a_text_that_spells_one(
    tmp_path: Path, told_by_adopting: Adopting
):
    source = xlmr_like(tmp_path / "xlmr", "<>/abcdefghijklmnopqrstuvwxyz")
    plain = Backend.from_file(str(source / "tokenizer.json"))
    plain.encode_special_tokens = True
    text = "a <s>struck</s> <pad> <mask> <unk> end"
    assert {0, 1, 2} < set(plain.encode(text, add_special_tokens=False).ids)  # as it is published
    told = told_by_adopting(source, tmp_path / "adopted")
    for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        assert f"{token}: score: 0.0 -> -1000.0" in told
    tokenizer = load_tokenizer(tmp_path / "adopted")
    (ids,) = tokenizer.encode_batch([text])
    assert not set(ids.tolist()) & set(tokenizer.special_token_ids)
    assert tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False) == text
    assert tokenizer.backend.get_vocab() == plain.get_vocab()
    (usual,) = tokenizer.encode_batch(["struck by an Ö"])
    assert usual.tolist() == plain.encode("struck by an Ö", add_special_tokens=False).ids  # also with an unknown letter


def test_a_tokenizer_that_cannot_help_making_special_tokens_of_text_is_refused(tmp_path: Path):
    """It has no piece for `<`, and a special token costs less than two unknown letters."""
    source = xlmr_like(tmp_path / "xlmr", "/abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(ValueError, match=r"a text that spells <(s|pad|/s|mask)> becomes the special token; "):
        adopt_tokenizer(source, tmp_path / "adopted")
