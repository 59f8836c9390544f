"""Compares the shares that tau gives with those that mmBERT published.

    python -m mmbert.published_shares COUNTS.csv
    python -m mmbert.published_shares COUNTS.csv --new

COUNTS.csv is `statistics/language_counts.csv` of github.com/JHU-CLSP/mmBERT: tokens of each language in each mixture.
Those of phase 1 are n^0.7 already; to the power tau / 0.7 they must be those of a later phase. L languages, those of
all mixtures without English, which tau does not touch. With --new it is about those that Decay-All adds, and n is the
estimate in yamls/published-sizes.csv. docs/recipe.md holds what this prints.

The last line is what tau gives the languages of FineWeb2-HQ, among those of phase 2, from what they had there: the
shares of the YAMLs' group `fineweb2_hq` within FineWeb2's.
"""
import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmbert.command import errors_in_one_line
from mmbert.config import load_config
from mmbert.languages import find
from mmbert.mixture import Floats, Group, group_shares, temperature_shares
from mmbert.plan.counts import ESTIMATES, read_counts
from mmbert.recipe_table import table
from mmbert.streams import read_languages

# YAML -> column of the file, phase 1's first.
COLUMNS = {
    "phase1": "pretrain",
    "phase2": "ext",
    "phase3-cont": "decay-mid",
    "phase3-eng": "decay-eng",
    "phase3-all": "decay-all",
}
NO_TAU = ("eng", "code")
CAPS = (1.0, 1.2, 1.5, 2.0, 5.0)
SOME = ("div", "kin", "uig")  # large ones, of which Decay-All read little


def read_table(path: Path) -> dict[str, list[int]]:
    """Tokens of every language in each mixture.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or is another.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"language", *COLUMNS.values()} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; give mmBERT's language_counts.csv")
    return {row["language"]: [int(row[column]) for column in COLUMNS.values()] for row in rows}


def common_languages(counts: Mapping[str, Sequence[int]]) -> tuple[list[str], Floats]:
    """Codes of the L languages, largest of phase 1 first, and their tokens in each mixture, (L, mixtures)."""
    common = {code: row for code, row in counts.items() if min(row) > 0 and code not in NO_TAU}
    codes = sorted(common, key=lambda code: -common[code][0])
    return codes, np.array([common[code] for code in codes], dtype=np.float64)


def predicted_and_published(tokens: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Of each later mixture both shares of the L languages, (L,) each, by the tau of its YAML."""
    taus = [load_config(f"yamls/{name}.yaml").data.groups()["fineweb2"].tau.start for name in COLUMNS]
    shares = tokens / tokens.sum(axis=0)
    later = enumerate(list(COLUMNS)[1:], start=1)
    return {name: (temperature_shares(tokens[:, 0], taus[i] / taus[0]), shares[:, i]) for i, name in later}


def shares_of_hq(counts: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """What tau gives the languages of FineWeb2-HQ of FineWeb2's tokens in each mixture from phase 2 on."""
    column = list(COLUMNS).index("phase2")
    tokens = {code: row[column] for code, row in counts.items() if row[column] and code not in NO_TAU}
    sizes = np.array(list(tokens.values()), dtype=np.float64)
    groups = {name: load_config(f"yamls/{name}.yaml").data.groups()["fineweb2_hq"] for name in list(COLUMNS)[1:]}
    of_hq = np.isin(list(tokens), read_languages(groups["phase2"].languages, "fineweb2_hq"))
    taus = {name: group.tau.start for name, group in groups.items()}
    return {name: temperature_shares(sizes, tau / taus["phase2"])[of_hq].sum() for name, tau in taus.items()}


def summary_row(name: str, codes: Sequence[str], predicted: Floats, published: Floats) -> dict[str, str]:
    """How far one mixture is from the rule."""
    ratio = published / predicted
    most, least = int(ratio.argmax()), int(ratio.argmin())
    return {
        "mixture": name,
        "misplaced": f"{np.abs(predicted - published).sum() / 2:.1%}",
        "within 2 %": f"{int((np.abs(ratio - 1) <= 0.02).sum())} of {len(codes)}",
        "within 10 %": f"{int((np.abs(ratio - 1) <= 0.1).sum())} of {len(codes)}",
        "most above": f"{codes[most]} {ratio[most] - 1:+.0%}",
        "most below": f"{codes[least]} {ratio[least] - 1:+.0%}",
    }


def comparison(path: Path) -> str:
    """Two tables: each mixture in short, and each language's predicted and published share in percent."""
    counts = read_table(path)
    codes, tokens = common_languages(counts)
    mixtures = predicted_and_published(tokens)
    short = [summary_row(name, codes, *shares) for name, shares in mixtures.items()]
    known = [find(code) for code in codes]
    full = [
        {
            "code": code,
            "language": language.name if language else "",
            "phase1": f"{tokens[i, 0] / tokens[:, 0].sum():.3%}",
            **{name: f"{predicted[i]:.3%} / {published[i]:.3%}" for name, (predicted, published) in mixtures.items()},
        }
        for i, (code, language) in enumerate(zip(codes, known, strict=True))
    ]
    of_hq = ", ".join(f"{name} {share:.4%}" for name, share in shares_of_hq(counts).items())
    return f"{table(short)}\n\n{table(full)}\n\nThe languages of FineWeb2-HQ have of FineWeb2: {of_hq}"


def new_languages(path: Path) -> str:
    """What Decay-All read of its new languages, in passes over the estimated sizes; what each cap on tau misplaces."""
    config = load_config("yamls/phase3-all.yaml")
    group, counts, sizes = config.data.groups()["fineweb2_new"], read_table(path), read_counts(ESTIMATES)
    codes = [code for code in read_languages(group.languages, "fineweb2_new") if code in counts]
    published = np.array([counts[code][-1] for code in codes])
    tokens = np.array([sizes[group.source, code].tokens for code in codes])
    passes, tau, shares = published / tokens, group.tau.start, {}
    for cap in CAPS:
        capped = Group("fineweb2_new", group.share, group.tau, cap, np.arange(len(codes)))
        shares[f"tau {tau:g}, cap {cap:.1f}"] = group_shares(capped, tokens, tau, config.duration)
    shares["tau 1, no cap"] = tokens / tokens.sum()
    read = {"languages": f"{len(codes):,}", "passes, median": f"{np.median(passes):.2f}"}
    read["all together"] = f"{published.sum() / tokens.sum():.2f}"
    read |= {code: f"{passes[codes.index(code)]:.1f}" for code in SOME}
    misplaced = {name: f"{np.abs(each - published / published.sum()).sum() / 2:.0%}" for name, each in shares.items()}
    return f"{table([read])}\n\n{table([misplaced])}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.published_shares", description="Compare tau's shares with the published ones."
    )
    parser.add_argument("counts", type=Path, help="mmBERT's language_counts.csv")
    parser.add_argument("--new", action="store_true", help="of the languages that are new in Decay-All instead")
    parsed = parser.parse_args(arguments)
    with errors_in_one_line():
        print((new_languages if parsed.new else comparison)(parsed.counts))


if __name__ == "__main__":
    main()
