"""The YAML of a merge: what is read, what is refused, and in which words."""
from pathlib import Path

import pytest

from mmbert.config import is_merge, read_yaml
from mmbert.merge_config import ExponentialConfig, TiesConfig, load_merge, of_merges

TIES = "ties: {base: phase2, runs: {a: 1, b/step-0000000012: 2}, density: 0.2, scale: 1}"
MEAN = "exponential: {run: a, ratio: 0.5}"
VALIDATION = "validation: {interval: 1B, root: rows, source: text, languages: [fao]}"


def write(folder: Path, *lines: str) -> Path:
    path = folder / "merge.yaml"
    path.write_text("\n".join(("name: merged", "run_root: runs", *lines)) + "\n")
    return path


def test_a_merge_is_read_and_knows_the_runs_that_it_needs(tmp_path: Path) -> None:
    config = load_merge(write(tmp_path, TIES, VALIDATION))
    assert config.method == TiesConfig("phase2", {"a": 1.0, "b/step-0000000012": 2.0}, 0.2, 1.0)
    assert config.runs == ("phase2", "a", "b")
    assert config.run_folder == Path("runs/merged")
    assert config.validation is not None
    assert config.validation.source == "text"
    mean = load_merge(write(tmp_path, MEAN))
    assert (mean.method, mean.runs) == (ExponentialConfig("a", 0.5), ("a",))


def test_overrides_and_extends_work_as_in_a_phase(tmp_path: Path) -> None:
    base = write(tmp_path, TIES)
    (tmp_path / "other.yaml").write_text("extends: [merge.yaml]\nname: other\nties: {density: 0.4}\n")
    config = load_merge(tmp_path / "other.yaml", ["ties.scale=0.5", "ties.runs.c=3"])
    assert (config.name, config.ties) == (
        "other", TiesConfig("phase2", {"a": 1.0, "b/step-0000000012": 2.0, "c": 3.0}, 0.4, 0.5),
    )  # fmt: skip
    assert load_merge(base).name == "merged"


REFUSALS = {
    ("nme=x",): "unknown key nme; did you mean name",
    ("ties.densty=1",): r"unknown key ties\.densty; did you mean density",
    ("validation={intervall: 1}",): r"unknown key validation\.intervall; did you mean interval",
    ("ties.density=0",): r"ties: density = 0\.0 must be above 0 and at most 1",
    ("ties.density=1.5",): r"ties: density = 1\.5 must be above 0 and at most 1",
    ("ties.density=half",): r"ties\.density = 'half' must be of type float",
    ("ties.scale=0",): r"ties: scale = 0\.0 must be a number above 0",
    ("ties.scale=.inf",): "ties.scale = inf must be a finite number",
    ("ties.runs.a=0",): r"ties: runs\.a = 0\.0 must be a number above 0; take out what shall not count",
    ("ties.runs.a=-1",): r"ties: runs\.a = -1\.0 must be a number above 0",
    ("ties.runs.a=.nan",): r"ties\.runs\.a = nan must be a finite number",
    ("ties.runs={1: 1, b: 2}",): "a key of ties.runs = 1 must be of type str; put it in quotes",
    ("ties.runs={true: 1, b: 2}",): "a key of ties.runs = True must be of type str; .* put a name in quotes",
    ("ties.runs.phase2=1",): "ties: runs: phase2 is the base; take it out",
    ("ties.runs.a/b/c=1",): r"ties: runs: 'a/b/c' must be a run's name, or name/step-0000000123",
    ("ties.runs.a/step-12=1",): r"ties: runs: 'a/step-12' must be a run's name, or name/step-0000000123",
    ("ties.base=''",): "ties: base: '' must be a run's name",
    ("ties.base=..",): r"ties: base: '\.\.' must be a run's name",
    ("exponential={run: a, ratio: 0.5}",): "give one of ties and exponential, and not the other",
    ("ties=null",): "give one of ties and exponential, and not the other",
    ("ties=null", "exponential={run: a, ratio: 1}"): r"exponential: ratio = 1\.0 must lie between 0 and 1",
    ("ties=null", "exponential={run: a, ratio: 0}"): r"exponential: ratio = 0\.0 must lie between 0 and 1",
    ("ties=null", "exponential={run: a/step-0000000001, ratio: 0.5}"): "exponential: run = .* must be a run's name",
    ("run_root=s3://bucket/runs",): "run_root = s3://bucket/runs lies in an object store: name a folder on a disk",
    ("name=a/b",): "name = 'a/b' must be the name of a folder below run_root",
}


@pytest.mark.parametrize("overrides", REFUSALS)
def test_what_makes_no_sense_is_refused_with_its_key_and_value(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"merge\.yaml: {REFUSALS[overrides]}"):
        load_merge(write(tmp_path, TIES), overrides)


def test_ties_of_one_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ties: runs = .* must name at least two"):
        load_merge(write(tmp_path, "ties: {base: phase2, runs: {a: 1}, density: 1, scale: 1}"))


def test_a_merge_is_known_by_its_method(tmp_path: Path) -> None:
    assert is_merge(read_yaml(Path(write(tmp_path, TIES))))
    assert is_merge(read_yaml(Path(write(tmp_path, MEAN))))
    assert not is_merge(read_yaml(Path("yamls/phase2.yaml")))
    assert is_merge(read_yaml(Path("yamls/small/merge.yaml")))


def test_of_a_chains_overrides_a_merge_takes_those_whose_key_it_has() -> None:
    overrides = ["run_root=x", "validation.rows=3", "optimizer.lr=1", "ties.density=1", "namely=1"]
    assert of_merges(overrides) == ["run_root=x", "validation.rows=3", "ties.density=1"]
