"""What `python -m mmbert.plan` reads, writes and ends with."""
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmbert.clock import batch_sizes
from mmbert.config import load_config
from mmbert.plan.__main__ import main
from mmbert.plan.counts import Count, read_counts
from mmbert.plan.phase import Hardware
from mmbert.streams import mixture_streams
from tests.written_streams import write_counts

DEMO = [f"yamls/demo/phase{number}.yaml" for number in (1, 2, 3)]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int), ended.value.code
    return ended.value.code


def test_the_chain_is_written_as_text_table_figure_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = write_counts(tmp_path / "counts.csv", DEMO, tokens=100_000)
    assert run([*DEMO, "--counts", str(counts), "--output", str(tmp_path / "plan")]) == 0
    assert "phase3   yamls/demo/phase3.yaml   goes on from phase2" in capsys.readouterr().out
    with (tmp_path / "plan" / "plan.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12 + 40 + 532
    for phase in ("phase1", "phase2", "phase3"):
        assert sum(float(line["share"]) for line in lines if line["phase"] == phase) == pytest.approx(1.0)
    assert (tmp_path / "plan" / "plan.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "plan" / "plan.html").read_text()
    assert "http" not in page  # it opens offline
    assert all(f"udhr/{line['language']}<" in page for line in lines)
    assert "<td data-value=\"mask_rate.start\">mask_rate.start</td><td data-value=\"0.15\">" in page  # against phase2


def test_without_rows_or_counts_groups_are_planned_and_both_remedies_named(tmp_path: Path) -> None:
    assert run([DEMO[2], "data.root=nowhere", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "plan.txt").read_text()
    assert "data_prep.prepare" in text
    assert "--counts" in text
    assert "data.root = nowhere" in text
    assert "changed against the parent" in text  # phase2.yaml lies beside
    assert "(492 languages)" in (tmp_path / "plan.csv").read_text()


def test_an_error_is_written_and_ends_with_status_1(tmp_path: Path) -> None:
    counts = tmp_path / "counts.csv"
    counts.write_text("source,language,tokens\nudhr,eng,5\n")
    assert run([DEMO[0], "--counts", str(counts), "--output", str(tmp_path)]) == 1
    assert "no line for 11 of 12 streams" in (tmp_path / "plan.txt").read_text()


@pytest.mark.parametrize(
    "text, said",
    [
        ("source,tokens\n", "columns source, tokens; must be source, language, tokens"),
        ("source,language,tokens,size\n", "may be rows"),
        ("source,language,tokens\na,b,1\na,b,2\n", "line 3: a/b stands there twice"),
        ("source,language,tokens\na,b,1.5\n", "line 2: tokens = '1.5' must be a whole number"),
        ("source,language,tokens\na,b,0\n", "line 2: tokens = '0' must be a whole number above 0"),
        ("source,language,tokens\na,b,285,000,000\n", "line 2 has more fields than the head line: write 285000000"),
    ],
)
def test_a_table_of_counts_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "counts.csv").write_text(text)
    with pytest.raises(ValueError, match="--counts") as refused:
        read_counts(tmp_path / "counts.csv")
    assert said in str(refused.value)


def test_a_table_of_counts_with_a_field_that_python_does_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text(f"source,language,tokens\n{'a' * 2000},b,1\n")
    limit = csv.field_size_limit(1000)  # of the whole process; data_prep sets it as high as it goes
    try:
        with pytest.raises(ValueError, match=r"^--counts .*counts.csv is no table: field larger than field limit"):
            read_counts(tmp_path / "counts.csv")
    finally:
        csv.field_size_limit(limit)


def test_a_table_of_counts_may_be_saved_on_windows_but_in_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_bytes("source,language,tokens\r\na,é,5\r\n".encode("utf-8-sig"))
    assert read_counts(path) == {("a", "é"): Count(5)}
    path.write_bytes("source,language,tokens\na,é,5\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"--counts .*counts\.csv is not UTF-8: convert it"):
        read_counts(path)


def test_a_gpu_that_is_in_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="--gpu 'B300' is not in the table; it has H100"):
        Hardware.named(8, "B300", 0.25, None)
    assert Hardware.named(1, "A100", 0.5, None).memory == 80e9
    assert Hardware.named(1, "H200", 0.5, None).memory == 141e9


def test_a_comparison_shows_only_what_differs(tmp_path: Path) -> None:
    counts = write_counts(tmp_path / "counts.csv", ["yamls/phase3-cont.yaml", "yamls/phase3-all.yaml"])
    files = ["yamls/phase3-cont.yaml", "yamls/phase3-all.yaml"]
    assert run(["--compare", *files, "--counts", str(counts), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "compare.txt").read_text()
    assert "data.mixture.fineweb2_new.max_repeats\n    -\n    1.2" in text
    assert "optimizer" not in text
    assert "parameters" not in text
    with (tmp_path / "compare.csv").open() as file:
        rows = {row["language"]: row for row in csv.DictReader(file)}
    assert sum(float(row["difference"]) for row in rows.values()) == pytest.approx(0.0, abs=1e-6)
    assert float(rows["fao"]["share in phase3-cont"]) == 0.0


def test_a_comparison_without_sizes_takes_no_group_for_a_language(tmp_path: Path) -> None:
    arguments = [DEMO[0], DEMO[2], f"data.root={tmp_path / 'nowhere'}", "--output", str(tmp_path)]
    assert run(["--compare", *arguments]) == 0
    text = (tmp_path / "compare.txt").read_text()
    assert "share of group" in text
    assert "languages)" not in text + (tmp_path / "compare.csv").read_text()


def test_the_plan_needs_neither_torch_nor_composer() -> None:
    check = "import sys, mmbert.plan.__main__; sys.exit(str({'torch', 'composer', 'optimi'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert ended.stderr.strip() == "set()"


def test_three_sources_of_1833_languages_fit_in_megabytes(tmp_path: Path) -> None:
    lists = ("fineweb2-hq", "phase1", "phase2", "phase3")
    languages = "[eng, " + ", ".join(f"yamls/languages/{name}.txt" for name in lists) + "]"
    groups = ", ".join(
        f"{name}: {{source: {name}, languages: {languages}, share: {share}, "
        f"tau: {{kind: linear, start: 0.7, end: 0.3}}, max_repeats: {cap}}}"
        for name, share, cap in (("one", 0.5, 5), ("two", 0.3, 5), ("three", 0.2, 5))
    )
    path = tmp_path / "large.yaml"
    base = Path("yamls/common.yaml").resolve(), Path("yamls/model/base.yaml").resolve()
    path.write_text(
        f"extends: [{base[0]}, {base[1]}]\nname: large\nduration: 3T\nmax_seq_len: 1024\n"
        "global_train_batch_size: 4608\ndevice_train_microbatch_size: 48\nmask_rate: 0.3\n"
        "model: {global_rope_theta: 10000, local_rope_theta: 10000}\nlearning_rate: {shape: one_minus_sqrt}\n"
        f"data: {{root: nowhere, period_rows: 1000000, mixture: {{{groups}}}}}\n"
    )
    streams, _ = mixture_streams(load_config(path))
    sizes = np.random.default_rng(0).lognormal(17, 3, len(streams)).astype(np.int64) * 1000 + 200
    lines = [f"{source},{language},{size}" for (source, language), size in zip(streams, sizes, strict=True)]
    (tmp_path / "counts.csv").write_text("\n".join(["source,language,tokens", *lines]))
    assert len(streams) == 3 * 1833
    assert run([str(path), "--counts", str(tmp_path / "counts.csv"), "--output", str(tmp_path / "plan")]) == 0
    assert sum(file.stat().st_size for file in (tmp_path / "plan").iterdir()) < 10e6
    with (tmp_path / "plan" / "plan.csv").open() as file:
        planned = list(csv.DictReader(file))
    assert sum(float(line["tokens"]) for line in planned) == pytest.approx(3e12, rel=1e-5)
    assert max(float(line["repeats"]) for line in planned) <= 5.001
    assert len(batch_sizes(load_config(path)).sizes) == 1


def test_the_papers_runs_are_planned_from_the_repository_alone(tmp_path: Path) -> None:
    """FineWeb2's rows do not exist here; a warning says that the sizes are estimates."""
    chain = [f"yamls/{name}.yaml" for name in ("phase1", "phase2", "phase3-all")]
    assert run([*chain, "--output", str(tmp_path)]) == 0
    text = (tmp_path / "plan.txt").read_text()
    assert text.count("estimates in yamls/published-sizes.csv, for there is no folder data.root") == 3
    assert "1,899, groups 11" in text
