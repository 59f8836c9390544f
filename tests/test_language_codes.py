"""One name for a language, however it was written."""
from pathlib import Path

import pytest

from data_prep.inputs import find_inputs
from data_prep.language_codes import canonical, input_language
from mmbert.languages import table
from mmbert.streams import read_languages

OTHER_SCRIPTS = """
arb_Latn asm_Latn azj_Cyrl ben_Latn bjn_Latn chr_Latn crh_Cyrl crk_Cans fuv_Arab gag_Cyrl gmv_Ethi gof_Ethi gom_Latn
guj_Latn hak_Hani hin_Latn kaa_Latn kan_Latn kas_Arab kas_Latn kmr_Cyrl kyu_Latn kyu_Mymr lad_Hebr lfn_Cyrl lif_Limb
mal_Latn mar_Latn mni_Latn mni_Mtei nan_Latn npi_Latn ojb_Latn ory_Latn pan_Latn rmn_Cyrl rmn_Grek rmy_Cyrl ron_Cyrl
san_Latn sat_Latn snd_Deva snd_Latn srp_Latn sus_Latn syl_Latn tam_Latn taq_Tfng tat_Latn tel_Latn ttq_Tfng tuk_Arab
tuk_Cyrl uig_Cyrl uig_Latn urd_Latn uzn_Latn zsm_Arab
"""
"""FineWeb2's subsets in other scripts than most of the language's text; its table has no more (docs/data.md)."""


@pytest.mark.parametrize(("code", "name"), [
    ("zh", "cmn"), ("zh-Hans", "cmn"), ("zh_Hant", "cmn_hant"), ("zh-Hant-TW", "cmn_hant_TW"), ("pt-BR", "por_BR"),
    ("cmn_Hani", "cmn"), ("yue_Hani", "yue"), ("kor_Hang", "kor"), ("ko-Kore", "kor"), ("jpn_Jpan", "jpn"),
    ("DE", "deu"), ("deu-1996", "deu_1996"), ("chi", "cmn"), ("ger", "deu"),
    ("sr-Latn", "srp_latn"), ("srp_Cyrl", "srp"), ("uz-Latn", "uzn_latn"), ("hau_Latn", "hau"),
    ("hau_Arab", "hau_arab"), ("code", "code"), ("und", "und"), ("pt_br", "por_BR"), ("por_br", "por_BR"),
])  # fmt: skip
def test_aliases_of_a_language_have_one_name(code: str, name: str) -> None:
    assert canonical(code) == name
    assert canonical(name) == name


@pytest.mark.parametrize(("macrolanguage", "language"), [
    *((code, "cmn") for code in ("zho", "zh", "chi")), ("ara", "arb"), ("ar", "arb"), ("nor", "nob"), ("no", "nob"),
    ("aze", "azj"), ("est", "ekk"), ("kur", "kmr"), ("lav", "lvs"), ("mlg", "plt"), ("mon", "khk"), ("msa", "zsm"),
    ("nep", "npi"), ("ori", "ory"), ("pus", "pbt"), ("que", "quz"), ("sqi", "als"), ("swa", "swh"), ("uzb", "uzn"),
    ("yid", "ydd"), ("fas", "fas"), ("fa", "fas"), ("sa", "san"),
])  # fmt: skip
def test_a_macrolanguage_is_the_language_that_the_recipe_trains_on(macrolanguage: str, language: str) -> None:
    assert language in table()
    assert canonical(macrolanguage) == language


def test_the_choice_of_one_language_of_several_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    input_language.cache_clear()
    for name in ("mlg.txt", "mlg/a.txt", "mlg/b.txt", "fo.txt", "fa.txt", "iw.txt", "plt.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {language for _, language in find_inputs(str(tmp_path), "own")} == {"plt", "fao", "fas", "heb"}
    assert capsys.readouterr().out == (
        "language 'mlg' (Malagasy) is several, and taken for plt (Plateau Malagasy): rename it if it is another\n"
    )
    find_inputs(str(tmp_path), "own", "zh-Hant")
    assert "'zh-Hant' (Chinese) is several, and taken for cmn_hant (Mandarin Chinese)" in capsys.readouterr().out


@pytest.mark.parametrize(("retired", "successor"), [("mol", "ron"), ("iw", "heb"), ("ajp", "apc"), ("scc", "srp")])
def test_a_retired_code_is_its_successor(retired: str, successor: str) -> None:
    assert canonical(retired) == successor


@pytest.mark.parametrize(("code", "message"), [
    ("german", r"'german' is not known; did you mean deu \(German\)\?"),
    ("fro_oo!", "letters, digits, '_' and '-' alone"),
    ("Faroes", r"did you mean fao \(Faroese\)"),
    ("Portugese", r"did you mean por \(Portuguese\)"),
    *((name, f"'{name}' is not known; see ISO 639-3") for name in ("data", "train", "text", "rows", "books", "news")),
    ("hbs", r"'hbs' \(Serbo-Croatian\) is several: name one of bos \(Bosnian\), hrv \(Croatian\), srp \(Serbian\)"),
    ("tid", r"retired: Split into Northern Tidung \[ntd\] and Southern Tidung \[itd\]"),
    ("aoh", "retired: it has no successor"),
    ("zh-Abcd", "'abcd' is no script"),
    ("srp_cyrr", "'cyrr' is no script"),
    ("afa", "'afa' is not known"),  # a group of languages of ISO 639-2
    ("-zh", "a name holds"),
    ("٢٠٢٤", "a name holds"),
    ("", "a name holds"),
])  # fmt: skip
def test_what_is_no_language_is_refused_with_a_remedy(code: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical(code)


@pytest.mark.parametrize("path", sorted(map(str, Path("yamls/languages").glob("*.txt"))))
def test_every_name_in_the_repository_is_written_our_way(path: str) -> None:
    names = read_languages([str(path)], "lists")
    assert [canonical(name) for name in names] == names


def test_every_subset_of_fineweb2_is_a_language_of_the_recipe_by_script() -> None:
    main = {f"{code}_{language.script}": code for code, language in table().items() if language.script}
    assert {subset: canonical(subset) for subset in main} == main
    others = {subset: subset.lower() for subset in OTHER_SCRIPTS.split()}
    assert {subset: canonical(subset) for subset in others} == others
    assert len(main.keys() | others.keys()) == 1832 + 58
