"""The recipe's YAMLs against the published numbers that docs/recipe.md lists."""
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mmbert.clock import batch_sizes, learning_rate
from mmbert.config import RunConfig, load_config, read_yaml
from mmbert.merge_config import load_merge
from mmbert.mixture import temperature_shares
from mmbert.model import MmBertForMaskedLM
from mmbert.recipe_table import BASE, SMALL, languages, recipe
from mmbert.streams import read_languages

YAMLS = sorted(str(path) for path in Path("yamls").rglob("*.yaml"))
FRAGMENTS = {
    *(f"yamls/{name}.yaml" for name in ("common", "demo/common", "small/common", "small/after-plateau")),
    *(f"yamls/model/{name}.yaml" for name in ("base", "small", "tiny")),
}
MERGES = ["yamls/merge.yaml", "yamls/small/merge.yaml"]
RUNS = [path for path in YAMLS if path not in {*FRAGMENTS, *MERGES}]
PAPER = BASE + SMALL
SMOOTH = [f"yamls/smooth/{phase}.yaml" for phase in ("phase1", "phase2", "phase3")]
ABLATIONS = [path for path in RUNS if path.startswith("yamls/ablations/")]
TOKENS_PER_STEP = 4608 * 1024

# B tokens, in the order of phase 1: dataset cards; DCLM's 10.0 in phase 2 from the paper's table 1.
PUBLISHED = {
    "phase1": {
        "fineweb2": 1196.6, "dclm": 600.0, "starcoder": 100.6, "arxiv": 27.8, "pes2o": 8.4, "stackexchange": 18.6,
        "stackexchange_filtered": 1.4, "flan": 15.3, "math": 11.2, "books": 4.3, "wikipedia": 4.7,
    },
    "phase2": {
        "fineweb2": 506.7, "dclm": 10.0, "dclm_filtered": 40.0, "starcoder": 17.2, "arxiv": 5.4, "pes2o": 3.2,
        "stackexchange": 3.0, "stackexchange_filtered": 2.8, "flan": 3.1, "math": 4.3, "books": 3.9, "wikipedia": 1.2,
    },
    "phase3-cont": {
        "fineweb2": 78.5, "dclm_filtered": 2.0, "starcoder": 0.5, "code_prolong": 2.8, "arxiv": 3.3, "flan": 1.0,
        "math": 0.5, "books": 2.2, "textbooks": 3.1, "wikipedia": 9.5,
    },
}  # fmt: skip

# Published B tokens of whole mixtures: English without Wikipedia's part of it (not published), code, all.
ENGLISH_OF_WIKIPEDIA = 1.53 / 9.5  # in Decay-Cont: 13.63 of English less the 12.1 of its English sources
TOTALS = {
    "phase1": (686.42, 102.01, 1989.02),
    "phase2": (72.96, 19.99, 600.82),
    "phase3-eng": (18.67, 3.26, 104.40),
    "phase3-cont": (13.63, 3.26, 103.31),
    "phase3-all": (11.59, 6.29, 114.23),
}


def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of a YAML's values; the mixture counts as one, and so do the runs of a merge."""
    found: set[str] = set()
    for key, value in tree.items():
        inner = isinstance(value, dict) and key not in ("mixture", "runs")
        found |= keys(value, f"{prefix}{key}.") if inner else {prefix + key}
    return found


def ancestors(config: RunConfig) -> list[RunConfig]:
    """The runs that a paper run continues, nearest first."""
    runs = {(run.run_root, run.name): run for run in map(load_config, PAPER)}
    chain = []
    while config.parent is not None:
        config = runs[config.run_root, config.parent]
        chain.append(config)
    return chain


@pytest.mark.parametrize("path", RUNS)
def test_every_run_loads_under_its_own_name_and_says_what_it_is(path: str) -> None:
    assert load_config(path).name == Path(path).stem
    assert Path(path).read_text().startswith("# ")


@pytest.mark.parametrize("path", sorted(FRAGMENTS))
def test_what_is_no_run_is_a_fragment_that_runs_extend(path: str) -> None:
    assert "name" not in read_yaml(Path(path))


def test_no_two_runs_share_a_folder() -> None:
    folders = [load_config(path).run_folder for path in RUNS] + [load_merge(path).run_folder for path in MERGES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path, size", zip(MERGES, (BASE, SMALL), strict=True))
def test_a_merge_is_of_the_papers_runs_and_evaluated_as_they_are(path: str, size: list[str]) -> None:
    merge, runs = load_merge(path), {run.name: run for run in map(load_config, size)}
    assert Path(path).read_text().startswith("# ")
    assert set(merge.runs) <= runs.keys()
    assert {(run.run_root, repr(run.validation)) for run in runs.values()} == {(merge.run_root, repr(merge.validation))}


def test_base_is_merged_from_all_decays_onto_their_parent_and_small_from_decay_all_alone() -> None:
    base, small = map(load_merge, MERGES)
    assert base.ties is not None
    assert small.exponential is not None
    assert {load_config(f"yamls/{run}.yaml").parent for run in base.ties.runs} == {base.ties.base}
    assert [f"yamls/{run}.yaml" for run in base.ties.runs] == BASE[2:]
    assert small.exponential.run == "phase3-all"


@pytest.mark.parametrize("path", ABLATIONS)
def test_an_ablation_asks_a_question_and_continues_the_papers_run(path: str) -> None:
    assert "?" in Path(path).read_text().splitlines()[0]
    config = load_config(path)
    assert config.parent is None or ancestors(config)


@pytest.mark.parametrize("size, parameters", [(BASE, 307_786_240), (SMALL, 140_897_536)])
def test_models_have_the_published_number_of_parameters(size: list[str], parameters: int) -> None:
    with torch.device("meta"):
        model = MmBertForMaskedLM(load_config(size[0]).model)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("path", PAPER)
def test_every_phase_takes_as_many_tokens_a_step(path: str) -> None:
    config = load_config(path)
    assert config.global_train_batch_size * config.max_seq_len == TOKENS_PER_STEP


@pytest.mark.parametrize("path", PAPER)
def test_eight_gpus_share_every_batch_evenly(path: str) -> None:
    config = load_config(path)
    assert not any(size % (8 * config.device_train_microbatch_size) for size in batch_sizes(config).sizes)


@pytest.mark.parametrize("path", PAPER)
def test_phases_go_back_to_phase_1_and_change_nothing_of_the_weights_shape(path: str) -> None:
    config = load_config(path)
    for first in ancestors(config)[-1:]:
        assert first.name == "phase1"
        extended = replace(first.model, global_rope_theta=160_000.0, local_rope_theta=160_000.0)
        assert config.model in (first.model, extended)
        assert config.tokenizer == first.tokenizer


@pytest.mark.parametrize("path", PAPER)
def test_a_run_reads_the_rows_of_the_runs_before_it_in_another_order(path: str) -> None:
    config = load_config(path)
    assert not any(run.phase_seed == config.phase_seed for run in ancestors(config))


@pytest.mark.parametrize("size", [BASE, SMALL])
def test_the_phases_of_a_size_sum_to_3_trillion_tokens(size: list[str]) -> None:
    last = load_config(size[-1])
    assert sum(run.duration for run in [last, *ancestors(last)]) == 3_000_000_000_000


@pytest.mark.parametrize("path", [path for path in [*PAPER, *ABLATIONS] if "phase3" in path])
def test_every_decay_ends_at_the_same_learning_rate(path: str) -> None:
    config = load_config(path)
    assert learning_rate(config, config.duration) == pytest.approx(1.6e-5)


@pytest.mark.parametrize("path", PAPER)
def test_a_phase_begins_at_the_learning_rate_that_its_parent_holds(path: str) -> None:
    config = load_config(path)
    assert learning_rate(config, 0) == (config.optimizer.lr if config.parent else 0.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shares_are_the_published_tokens(name: str) -> None:
    published, groups = PUBLISHED[name], load_config(f"yamls/{name}.yaml").data.groups()
    shares = {key: group.share for key, group in groups.items()}
    if "fineweb2_hq" in shares:  # in FineWeb2's row
        shares["fineweb2"] += shares.pop("fineweb2_hq")
    assert shares.keys() == published.keys()
    total = sum(published.values())
    assert {key: share * total for key, share in shares.items()} == pytest.approx(published, abs=0.05)


# Of FineWeb2, what tau gives the 20 languages of FineWeb2-HQ: python -m mmbert.published_shares language_counts.csv
OF_HQ = {"phase2": 0.597542, "phase3-cont": 0.427215, "phase3-eng": 0.427215, "phase3-all": 0.427215}


@pytest.mark.parametrize("name", OF_HQ)
def test_languages_of_fineweb2_hq_have_the_share_that_all_their_text_gives_them(name: str) -> None:
    """tau sees a tenth of it."""
    config = load_config(f"yamls/{name}.yaml")
    groups = {key: group for key, group in config.data.groups().items() if key in ("fineweb2", "fineweb2_hq")}
    total = sum(group.share for group in groups.values())
    assert groups["fineweb2_hq"].share / total == pytest.approx(OF_HQ[name], abs=2e-6)
    with Path("yamls/published-sizes.csv").open(newline="") as file:
        sizes = {(row["source"], row["language"]): int(row["tokens"]) for row in csv.DictReader(file)}
    found, rule = {}, {}
    for key, group in groups.items():
        codes = read_languages(group.languages, key)
        shares = temperature_shares(np.array([sizes[group.source, code] for code in codes]), group.tau.start)
        found |= dict(zip(codes, shares * group.share / total, strict=True))
        rule |= {code: sizes["fineweb2", code] ** group.tau.start for code in codes}
    assert len(found) == 108
    assert found == pytest.approx({code: weight / sum(rule.values()) for code, weight in rule.items()}, rel=0.02)


@pytest.mark.parametrize("name", OF_HQ)
def test_no_language_of_fineweb2_hq_has_fineweb2s_text_too(name: str) -> None:
    groups = load_config(f"yamls/{name}.yaml").data.groups()
    of_hq = set(read_languages(groups["fineweb2_hq"].languages, "languages"))
    others = {code for key in groups if key.startswith("fineweb2") and key != "fineweb2_hq"
              for code in read_languages(groups[key].languages, key)}  # fmt: skip
    assert len(of_hq) == 20
    assert not of_hq & others


@pytest.mark.parametrize("path", BASE)
def test_shares_sum_to_one_exactly_as_written(path: str) -> None:
    groups = load_config(path).data.groups().values()
    assert sum(round(group.share * 1e6) for group in groups) == 1_000_000


@pytest.mark.parametrize("name", TOTALS)
def test_english_and_code_get_their_published_tokens(name: str) -> None:
    english, code, total = TOTALS[name]
    groups = load_config(f"yamls/{name}.yaml").data.groups()
    share_of = {
        language: sum(group.share for group in groups.values() if group.languages == [language])
        for language in ("eng", "code")
    }
    share_of["eng"] += groups["wikipedia"].share * ENGLISH_OF_WIKIPEDIA
    assert share_of["eng"] * total == pytest.approx(english, abs=0.15)
    assert share_of["code"] * total == pytest.approx(code, abs=0.05)


@pytest.mark.parametrize("pair", zip(BASE, SMALL[:1] + SMALL[2:], strict=True))
def test_small_reads_the_mixture_of_base(pair: tuple[str, str]) -> None:
    base, small = map(load_config, pair)
    assert small.data == base.data


@pytest.mark.parametrize("name, count", [("phase1", 60), ("phase2", 109), ("phase3-cont", 109), ("phase3-all", 1833)])
def test_languages_are_as_many_as_in_the_published_counts(name: str, count: int) -> None:
    config = load_config(f"yamls/{name}.yaml")
    assert len(languages(config)) == count
    assert any("code" in group.languages for group in config.data.groups().values())


@pytest.mark.parametrize("path", RUNS)
def test_no_stream_stands_in_two_groups(path: str) -> None:
    groups = load_config(path).data.groups()
    streams = [(g.source, code) for name, g in groups.items() for code in read_languages(g.languages, name)]
    assert len(set(streams)) == len(streams)


@pytest.mark.parametrize("kind", ["mask_rate", "tau"])
def test_the_smooth_recipe_has_one_curve_without_a_jump_from_the_papers_first_value_to_its_last(kind: str) -> None:
    """And without a kink: what neighbouring thousandths of a phase change it by differs by 1e-5 at most."""
    curve: list[float] = []
    for path in SMOOTH:
        config = load_config(path)
        schedule = config.mask_rate if kind == "mask_rate" else config.data.groups()["fineweb2"].tau
        curve += [schedule.value(config.duration * i // 1000, config.duration) for i in range(1001)]
    paper = [load_config(path) for path in (BASE[0], BASE[1], BASE[-1])]
    values = [
        phase.mask_rate.start if kind == "mask_rate" else phase.data.groups()["fineweb2"].tau.start for phase in paper
    ]
    assert [curve[0], curve[1001], curve[-1]] == pytest.approx(values)
    steps = np.diff(curve)
    assert (steps <= 1e-12).all()
    assert np.abs(steps).max() <= np.pi / 2 * max(-np.diff(values)) / 1000 * 1.001
    assert np.abs(np.diff(steps)).max() <= 1e-5


def test_the_smooth_recipe_is_the_papers_in_all_else() -> None:
    for path, paper in zip(SMOOTH, (BASE[0], BASE[1], BASE[-1]), strict=True):
        smooth, base = load_config(path), load_config(paper)
        groups = smooth.data.groups()
        for name in groups.keys() & {"fineweb2", "fineweb2_hq"}:
            groups[name] = replace(groups[name], tau=base.data.groups()[name].tau)
        data = replace(smooth.data, mixture=groups)
        changed = replace(smooth, name=base.name, run_root=base.run_root, mask_rate=base.mask_rate, data=data)
        assert changed == replace(base, data=replace(base.data, mixture=base.data.groups()))
    assert [load_config(path).parent for path in SMOOTH] == [None, "phase1", "phase2"]


def test_the_tables_of_the_documentation_are_those_of_the_yamls() -> None:
    written = Path("docs/recipe.md").read_text()
    assert recipe() in written, "docs/recipe.md: replace its tables with the output of python -m mmbert.recipe_table"


def test_every_key_of_the_papers_runs_has_its_source_in_the_documentation() -> None:
    written = Path("docs/recipe.md").read_text()
    trees = [OmegaConf.to_container(read_yaml(Path(path))) for path in [*PAPER, *MERGES]]
    used = {key for tree in trees for key in keys(tree)}  # type: ignore[arg-type]
    switched_off = {"batch_size_warmup", "ties"}
    assert {key for key in used if f"`{key}`" not in written} == switched_off
