"""Rows of a run as text, for those who look for what made a step go wrong."""
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mmbert.config import RunConfig, load_config
from mmbert.data import PhaseData
from mmbert.show_rows import main
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus
from tests.test_ledger_audit import planned_records, save
from tests.training_runs import write_yamls


def opened(folder: Path, corpus: Corpus) -> tuple[RunConfig, PhaseData]:
    write_yamls(folder, corpus)
    config = load_config(folder / "phase3.yaml")
    return config, PhaseData.open(config, load_tokenizer(corpus.tokenizer))


def test_each_row_is_told_with_its_stream_its_number_and_its_text(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = opened(tmp_path, corpus)
    save(config.run_folder, config, data, planned_records(config, data)[0], {})
    positions = [*range(20), config.data.period_rows + 3]
    main([str(config.run_folder), *map(str, positions)])
    heads, texts = [], []
    for line in capsys.readouterr().out.splitlines():
        (heads if line.startswith(("position", "--")) else texts).append(line)
        if line.startswith("position"):
            language = re.findall(r"invented/(\w+) row", line)[0]
        elif not line.startswith("--"):
            assert line.strip() in (corpus.tokenizer.parent / "text" / f"{language}.txt").read_text()
    order = data.row_order(config)
    rows = [next(order.periods_from(position))[0].tolist() for position in positions]
    told = [head.rpartition(",")[0] for head in heads if head.startswith("position")]
    assert told == [f"position {position}: {data.names[stream]} row {number}" for position, stream, number in rows]
    assert len(texts) == sum(head.startswith("--") for head in heads) > len(positions)


def test_another_tokenizer_than_the_runs_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config, data = opened(tmp_path, corpus)
    other = shutil.copytree(corpus.tokenizer, tmp_path / "other")
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    save(config.run_folder, replace(config, tokenizer=str(other)), data, planned_records(config, data)[0], {})
    with pytest.raises(SystemExit, match=r"was trained with another tokenizer than .*other is now; bring it back"):
        main([str(config.run_folder), "0"])
    with pytest.raises(SystemExit, match="no-run holds no checkpoint"):
        main([str(tmp_path / "no-run"), "0"])


def test_a_position_below_0_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config, data = opened(tmp_path, corpus)
    save(config.run_folder, config, data, planned_records(config, data)[0], {})
    with pytest.raises(SystemExit, match="position -1 must be at least 0"):
        main([str(config.run_folder), "-1"])
