"""What is known of the recipe's languages."""
import tomllib
from pathlib import Path

import pytest

from mmbert.languages import Language, find, table
from mmbert.streams import read_languages

LISTS = [f"yamls/languages/{name}.txt" for name in ("fineweb2-hq", "phase1", "phase2", "phase3")]
DEMO = [f"yamls/languages/demo-phase{phase}.txt" for phase in (1, 2, 3)]


def test_every_published_language_is_known_and_most_by_script_and_family() -> None:
    codes = {*read_languages(LISTS, "lists"), "eng"}
    assert len(codes) == 1833
    assert table().keys() == codes | {"code"}
    found = list(table().values())
    assert all(language.name for language in found)
    assert sum(bool(language.script) for language in found) == 1832  # not source code, nor hoc, which has two
    assert sum(bool(language.family) for language in found) == 1801  # not 32 that FineWeb2's table leaves out
    assert all(len(language.script) == 4 and language.script.istitle() for language in found if language.script)


@pytest.mark.parametrize("language", [
    Language("rus", "Russian", "Cyrl", "Indo-European"),
    Language("eng", "English", "Latn", "Indo-European"),
    Language("srp", "Serbian", "Cyrl", "Indo-European"),  # Latn has a thirteenth of the bytes
    Language("swh", "Swahili (individual language)", "Latn", "Niger-Congo"),
    Language("ald", "Alladian", "Latn", ""),
    Language("code", "source code", "", ""),
])  # fmt: skip
def test_a_language_is_found_by_its_code(language: Language) -> None:
    assert find(language.code) == language


def test_a_variant_is_its_language_and_keeps_its_own_script() -> None:
    german = find("deu")
    assert german is not None
    assert find("deu_1996") == german
    for code, script in {"srp_latn": "Latn", "azj_Cyrl": "Cyrl", "cmn_hans_beijing": "Hans", "cri_007": "Latn"}.items():
        variant = find(code)
        assert variant is not None
        assert (variant.code, variant.script) == (code[:3], script)


@pytest.mark.parametrize("code", ["xxx", "013", "", "Deu"])
def test_what_no_list_has_is_not_found(code: str) -> None:
    assert find(code) is None


def test_most_languages_of_the_demo_are_known() -> None:
    unknown = [code for code in read_languages(DEMO, "demo") if find(code) is None]
    assert len(unknown) == 77  # of 532: macrolanguages, languages that the paper has not, and numbers for names
    assert "013" in unknown


def test_the_table_is_sorted_so_that_a_change_shows() -> None:
    codes = [line.partition(",")[0] for line in Path("src/mmbert/languages.csv").read_text().splitlines()[1:]]
    assert codes == sorted(codes)


def test_an_installed_package_has_the_table() -> None:
    packaging = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]
    data = {path.name for path in Path("src/mmbert").iterdir() if path.is_file() and path.suffix != ".py"}
    assert set(packaging["package-data"]["mmbert"]) == data == {"languages.csv"}
