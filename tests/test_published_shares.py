"""The published tokens of each language follow from phase 1's by tau; a small part of the published counts."""
import csv
import re
from pathlib import Path

import numpy as np
import pytest

from mmbert.published_shares import COLUMNS, common_languages, main, predicted_and_published, read_table, shares_of_hq
from mmbert.streams import read_languages

# Every sixth of the 59 languages that FineWeb2 has in all phases, by size: tokens in the mixtures of COLUMNS.
COUNTS = {
    "rus": (115435806777, 30190326374, 3078675542, 2840486420, 2984939168),
    "ita": (57312567533, 18295141096, 2185969200, 2041037294, 2146484815),
    "tur": (24911024070, 10099775897, 1441265305, 1378115114, 1425117928),
    "nob": (20925047379, 8894158913, 1341359992, 1273114498, 1341227367),
    "ell": (16417908793, 7493090637, 1226634379, 1168112003, 1203041657),
    "lit": (8762417832, 4796088487, 892609329, 863893366, 886817865),
    "lvs": (6150049033, 3725594886, 771803222, 750460634, 754931679),
    "fil": (2594565250, 2022473412, 513536054, 505532744, 508025244),
    "tel": (2085498015, 1723380623, 532577949, 505084684, 563981383),
    "swh": (1278170699, 1222882772, 392449755, 384229782, 378505344),
}
TAUS = {"phase2": 0.5, "phase3-cont": 0.3, "phase3-eng": 0.3, "phase3-all": 0.3}
WITHIN = {"phase2": 0.015, "phase3-cont": 0.11, "phase3-eng": 0.06, "phase3-all": 0.11}


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """The ten languages as mmBERT's file has them, with English, code, and a language of the decay alone."""
    others = {"eng": (686 * 10**9,) * 5, "code": (102 * 10**9,) * 5, "tir": (0, 0, 0, 0, 97 * 10**6)}
    rows = [f"{code},{','.join(map(str, row))}" for code, row in sorted({**COUNTS, **others}.items())]
    path = tmp_path / "counts.csv"
    path.write_text("\n".join([",".join(["language", *COLUMNS.values()]), *rows]) + "\n")
    return path


@pytest.mark.parametrize("name", TAUS)
def test_the_published_shares_of_later_phases_follow_from_phase_1_by_tau(counts: Path, name: str) -> None:
    codes, tokens = common_languages(read_table(counts))
    assert codes == list(COUNTS)
    predicted, published = predicted_and_published(tokens)[name]
    first, later = (np.array([row[i] for row in COUNTS.values()]) for i in (0, list(COLUMNS).index(name)))
    weights = first.astype(np.float64) ** (TAUS[name] / 0.7)
    assert predicted == pytest.approx(weights / weights.sum())
    assert published == pytest.approx(later / later.sum())
    assert predicted == pytest.approx(published, rel=WITHIN[name])


def test_the_program_prints_both_shares_of_every_language(counts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(counts)])
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 3 + len(TAUS) + len(COUNTS)  # heads and rules but the very first
    assert "| phase2 | 0.1% | 10 of 10 | 10 of 10 |" in printed
    first, later = (np.array([row[i] for row in COUNTS.values()], dtype=np.float64) for i in (0, 1))
    weights = first ** (0.5 / 0.7)
    cells = f"{first[0] / first.sum():.3%} | {weights[0] / weights.sum():.3%} / {later[0] / later.sum():.3%}"
    assert f"\n| rus | Russian | {cells} |" in printed


def test_what_tau_gives_the_languages_of_fineweb2_hq_follows_from_phase_2(counts: Path) -> None:
    phase2 = np.array([row[1] for row in COUNTS.values()], dtype=np.float64)
    of_hq = np.isin(list(COUNTS), ["rus", "ita", "tur", "ell"])
    found = shares_of_hq(read_table(counts))
    assert found["phase2"] == pytest.approx(phase2[of_hq].sum() / phase2.sum())
    assert found["phase3-all"] == pytest.approx((phase2**0.6)[of_hq].sum() / (phase2**0.6).sum())


def test_new_languages_that_were_all_read_twice_fit_tau_1_and_the_less_the_higher_the_cap_on_tau(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("yamls/published-sizes.csv").open(newline="") as file:
        sizes = {row["language"]: int(row["tokens"]) for row in csv.DictReader(file) if row["source"] == "fineweb2"}
    rows = [f"{code},0,0,0,0,{2 * sizes[code]}" for code in read_languages(["yamls/languages/phase3.txt"], "")]
    (tmp_path / "counts.csv").write_text("\n".join([",".join(["language", *COLUMNS.values()]), *rows]) + "\n")
    main([str(tmp_path / "counts.csv"), "--new"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| 1,724 | 2.00 | 2.00 | 2.0 | 2.0 | 2.0 |"
    *capped, proportional = [int(share) for share in re.findall(r"(\d+)%", lines[-1])]
    assert len(set(capped)) == 5
    assert capped == sorted(capped)
    assert proportional == 0


def test_another_file_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("language,ext\nrus,1\n")
    with pytest.raises(SystemExit, match=r"x\.csv has no column decay-all, decay-eng, decay-mid, pretrain; give"):
        main([str(tmp_path / "x.csv")])


def test_the_table_of_the_documentation_is_the_rule_and_the_published_counts() -> None:
    written = Path("docs/recipe.md").read_text()
    cells = re.findall(r"^\| (\w{3}) \| [^|]+ \| ([\d.]+)% \|" + r" ([\d.]+)% / ([\d.]+)% \|" * 4 + "$", written, re.M)
    shares = {code: np.array(row, dtype=np.float64) / 100 for code, *row in cells}
    assert len(shares) == 59
    table = np.array(list(shares.values()))  # (59, 9): phase 1, then predicted and published of each later mixture
    assert table.sum(axis=0) == pytest.approx(np.ones(9), abs=59 * 0.5e-5)
    for column, tau in zip((1, 3, 5, 7), TAUS.values(), strict=True):
        weights = table[:, 0] ** (tau / 0.7)
        assert table[:, column] == pytest.approx(weights / weights.sum(), rel=0.03)  # phase 1's are rounded
    for code, row in COUNTS.items():
        for column, mixture in zip((0, 2, 4, 6, 8), range(5), strict=True):
            ratio = row[mixture] / COUNTS["rus"][mixture]
            assert shares[code][column] / shares["rus"][column] == pytest.approx(ratio, rel=0.01), (code, column)
