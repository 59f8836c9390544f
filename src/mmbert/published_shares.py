"""Compares the shares that tau gives with those that mmBERT published: python -m mmbert.published_shares COUNTS.csv.

COUNTS.csv is `statistics/language_counts.csv` of github.com/JHU-CLSP/mmBERT: tokens of each language in each mixture.
Those of phase 1 are n^0.7 already; to the power tau / 0.7 they must be those of a later phase. L languages, those of
all mixtures without English, which tau does not touch. docs/recipe.md holds what this prints.
"""
import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmbert.command import errors_in_one_line
from mmbert.config import load_config
from mmbert.languages import find
from mmbert.mixture import Floats, temperature_shares
from mmbert.recipe_table import table

# YAML -> column of the file, phase 1's first.
COLUMNS = {
    "phase1": "pretrain",
    "phase2": "ext",
    "phase3-cont": "decay-mid",
    "phase3-eng": "decay-eng",
    "phase3-all": "decay-all",
}


def read_counts(path: Path) -> tuple[list[str], Floats]:
    """Codes of the L languages, largest of phase 1 first, and their tokens in each mixture, (L, mixtures).

    Raises:
        FileNotFoundError, ValueError: the file is not there, or is another.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"language", *COLUMNS.values()} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; give mmBERT's language_counts.csv")
    counts = {row["language"]: [int(row[column]) for column in COLUMNS.values()] for row in rows}
    common = {code: row for code, row in counts.items() if min(row) > 0 and code not in ("eng", "code")}
    codes = sorted(common, key=lambda code: -common[code][0])
    return codes, np.array([common[code] for code in codes], dtype=np.float64)


def predicted_and_published(counts: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Of each later mixture both shares of the L languages, (L,) each, by the tau of its YAML."""
    taus = [load_config(f"yamls/{name}.yaml").data.groups()["fineweb2"].tau.start for name in COLUMNS]
    shares = counts / counts.sum(axis=0)
    later = enumerate(list(COLUMNS)[1:], start=1)
    return {name: (temperature_shares(counts[:, 0], taus[i] / taus[0]), shares[:, i]) for i, name in later}


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
    codes, counts = read_counts(path)
    mixtures = predicted_and_published(counts)
    short = [summary_row(name, codes, *shares) for name, shares in mixtures.items()]
    known = [find(code) for code in codes]
    full = [
        {
            "code": code,
            "language": language.name if language else "",
            "phase1": f"{counts[i, 0] / counts[:, 0].sum():.3%}",
            **{name: f"{predicted[i]:.3%} / {published[i]:.3%}" for name, (predicted, published) in mixtures.items()},
        }
        for i, (code, language) in enumerate(zip(codes, known, strict=True))
    ]
    return f"{table(short)}\n\n{table(full)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.published_shares", description="Compare tau's shares with the published ones."
    )
    parser.add_argument("counts", type=Path, help="mmBERT's language_counts.csv")
    with errors_in_one_line():
        print(comparison(parser.parse_args(arguments).counts))


if __name__ == "__main__":
    main()
