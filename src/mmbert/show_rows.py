"""Rows that a run trained on, as text: those that an error names, or the first of a step that looks odd.

    python -m mmbert.show_rows runs/mine/phase1 4711 4712 [--data-root data/rows-1024]

A position is a row's place in the phase, from 0 on. In `python -m mmbert.ledger runs/mine/phase1 --csv steps.csv` a
step's rows are the `num_rows` from position `first_row` on.
"""
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmbert.command import errors_in_one_line
from mmbert.ledger_audit import Planned, Saved
from mmbert.shards import LanguageShards
from mmbert.tokenizer import load_tokenizer


def texts_of(run: Path, positions: Sequence[int], data_root: str | None) -> Iterator[str]:
    """Each row in words: a head line, then each of its documents, or what of a document is in this row.

    Args:
        run: a run's folder, with a checkpoint.
        positions: places in the phase.
        data_root: where the shards are now, if not where the run read them.

    Raises:
        OSError, ValueError: the run, its shards or its tokenizer are not there, or not what it trained on; or a
            position is below 0.
    """
    saved = Saved.open(run)
    planned = Planned.open(saved, data_root)
    tokenizer = load_tokenizer(Path(saved.config.tokenizer))
    if tokenizer.digest != saved.state["identity"]["tokenizer.digest"]:
        raise ValueError(f"{run} was trained with another tokenizer than {tokenizer.folder} is now; bring it back")
    shards = LanguageShards(planned.data.folders, planned.data.manifests, planned.data.remote)
    for position in positions:
        if position < 0:
            raise ValueError(f"position {position} must be at least 0")
        place = next(planned.order.periods_from(position))[:1, 1:]  # (1, 2): its stream, and its number there
        shards.fetch(place, place[:0])
        row = shards.rows(place)
        stream, number = place[0].tolist()
        yield f"position {position}: {planned.data.names[stream]} row {number}, {len(row.input_ids):,} tokens"
        for ids in row.documents():
            yield f"-- {len(ids):,} tokens"
            yield tokenizer.backend.decode(ids.tolist(), skip_special_tokens=True)


@errors_in_one_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.show_rows", description="Show rows that a run trained on, as text."
    )
    parser.add_argument("run", type=Path, help="folder of a run: run_root/name")
    parser.add_argument("positions", type=int, nargs="+", help="places of rows in the phase, from 0 on")
    parser.add_argument("--data-root", help="folder of the shards, if they were moved")
    options = parser.parse_args(arguments)
    for line in texts_of(options.run, options.positions, options.data_root):
        print(line)


if __name__ == "__main__":
    main()
