"""Configurations: what is merged, what is refused, and in which words."""
from pathlib import Path

import pytest

from mmbert.clock import learning_rate
from mmbert.config import load_config
from mmbert.data_config import parse_tokens
from mmbert.schedules import Schedule

DEMO = "yamls/demo/phase1.yaml"


@pytest.mark.parametrize(
    "written, tokens", [(4096, 4096), ("2.3T", 2_300_000_000_000), ("600B", 600 * 10**9), ("1e9", 10**9), (1e3, 1000)]
)
def test_tokens_are_read_as_the_paper_writes_them(written: object, tokens: int) -> None:
    assert parse_tokens(written) == tokens


@pytest.mark.parametrize("written", ["1.5", -1, "many", True, None, "1.0000001K", "nan"])
def test_numbers_that_are_no_tokens_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match="no number of tokens"):
        parse_tokens(written)


def test_a_file_states_only_what_differs_from_what_it_extends() -> None:
    parent, child = load_config("yamls/demo/phase2.yaml"), load_config("yamls/demo/phase3.yaml")
    assert child.model == parent.model
    assert child.mask_rate == Schedule(0.05)
    assert child.parent == "phase2"


def test_overrides_come_last_and_reach_every_level() -> None:
    config = load_config(
        DEMO, ["mask_rate={start: 0.3, end: 0.1, kind: cosine}", "data.mixture.declaration.tau=0.25", "duration=5M"]
    )
    assert config.mask_rate == Schedule(0.3, "cosine", 0.1)
    assert config.data.groups()["declaration"].tau == Schedule(0.25)
    assert config.duration == 5_000_000


def test_where_a_step_lies_is_a_number_of_tokens() -> None:
    config = load_config(DEMO, ["mask_rate={start: 0.3, end: 0.1, kind: step, at: 300K}"])
    assert config.mask_rate == Schedule(0.3, "step", 0.1, at=300_000)
    with pytest.raises(ValueError, match="mask_rate: 'soon' is no number of tokens"):
        load_config(DEMO, ["mask_rate={start: 0.3, end: 0.1, kind: step, at: soon}"])


def test_phases_of_one_seed_do_not_share_their_randomness() -> None:
    seeds = {load_config(DEMO, [override]).phase_seed for override in ("seed=21", "seed=22", "name=phase2")}
    assert len(seeds) == 3


def test_a_group_is_switched_off_with_null() -> None:
    overrides = ["data.mixture.new_languages=null", "data.mixture.declaration.share=1"]
    config = load_config("yamls/demo/phase3.yaml", overrides)
    assert list(config.data.groups()) == ["declaration"]


@pytest.mark.parametrize(
    "override, words",
    [
        ("mask_rat=0.2", "unknown key mask_rat; did you mean mask_rate?"),
        ("model.hidden_sise=3", "unknown key model.hidden_sise; did you mean hidden_size?"),
        ("data.mixture.declaration.tua=3", "unknown key data.mixture.declaration.tua; did you mean tau?"),
        ("model.vocab_size=1.5", "model.vocab_size = 1.5 must be of type int"),
        ("seed=true", "seed = True must be of type int"),
        ("device=tpu", "device = 'tpu' must be one of 'auto', 'cpu', 'gpu'"),
        ("mask_rate={kind: linear}", "missing key mask_rate.start"),
        ("mask_rate=1.5", "must lie between 0 and 1"),
        ("data.mixture.declaration.tau=-1", "data.mixture.declaration.tau"),
        ("data.mixture.declaration.floor=0", "data.mixture.declaration.floor = 0 must lie above 0 and not above 1"),
        ("data.mixture.declaration.share=0.5", "the shares sum to 0.5, not 1: declaration 0.5"),
        ("data.mixture.declaration.share=-0.5", "data.mixture.declaration.share = -0.5 must be above 0"),
        ("data.mixture.declaration.share=0", "share = 0 must be above 0; data.mixture.declaration: null leaves the"),
        ("data.mixture.declaration.share=.nan", "data.mixture.declaration.share = nan must be a finite number"),
        ("data.period_rows=0", "data.period_rows = 0 must be above 0"),
        ("data.num_workers=-1", "data.num_workers = -1 must be at least 0"),
        ("optimizer.lr=.nan", "optimizer.lr = nan must be a finite number"),
        ("max_minutes=.inf", "max_minutes = inf must be a finite number"),
        ("checkpoint.keep=0", "checkpoint.keep = 0 must be above 0"),
        ("checkpoint.keep_every=0", "checkpoint.keep_every = 0 must be above 0"),
        ("optimizer.lr=0", "optimizer.lr = 0.0 must be above 0"),
        ("learning_rate.floor=5", "learning_rate.floor = 5.0 must lie in"),
        ("learning_rate.floor=-2", "learning_rate.floor = -2.0 must lie in"),
        ("learning_rate.floor=0.02", "learning_rate.floor = 0.02 is never reached"),
        ("batch_size_warmup={start: 0, tokens: 1K}", "batch_size_warmup.start = 0 must be above 0"),
        ("learning_rate.warmup=1T", "exceed duration"),
        ("learning_rate.shape=one_minus_sqrt", "neither `warmup` nor `decay`"),
        ("max_seq_len=100000", "longer than model.max_position_embeddings"),
        ("model.num_attention_heads=7", "must be an even number"),
        ("model.local_attention=127", "local_attention = 127 must be even"),
        ("optimizer.betas=[1]", "optimizer.betas"),
        ("validation.languages=[]", "languages = [] must name at least one, or leave `validation` out"),
        ("global_train_batch_size=0", "must be at least 1"),
        ("model.num_attention_heads=0", "model: num_attention_heads = 0 must be above 0"),
        ("model.num_hidden_layers=-2", "model: num_hidden_layers = -2 must be above 0"),
        ("model.global_rope_theta=0", "model: global_rope_theta = 0.0 must be above 0"),
        ("model.attn_out_dropout=10", "model: attn_out_dropout = 10.0 must lie in [0, 1]; 10% is 0.1"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer: betas = [0.9, 1.5] must both be at least 0 and below 1"),
        ("optimizer.eps=0", "optimizer: eps = 0.0 must be above 0"),
        ("optimizer.weight_decay=-1", "optimizer: weight_decay = -1.0 must be at least 0 and below 1"),
        ("seed=-1", "seed = -1 must be at least 0"),
        ("data.mixture.declaration.max_repeats=-1", "data.mixture.declaration.max_repeats = -1 must be above 0"),
        ("batch_size_warmup={start: 3, tokens: 1K}", "batch_size_warmup.start = 3 must divide global_train_batch_size"),
        ("batch_size_warmup={start: 1, tokens: 0}", "batch_size_warmup.tokens = 0 must be above 0"),
        ("name=../elsewhere", "name = '../elsewhere' must be the name of a folder below run_root"),
        ("run_root=s3://bucket/runs", "run_root = s3://bucket/runs lies in an object store: name a folder on a disk"),
        ("name=.hidden", "name = '.hidden' must be the name of a folder below run_root"),
        ("parent=phase0/step-0000000012", "parent = 'phase0/step-0000000012' must be the name of a run"),
        ("parent=phase1", "parent = 'phase1' is this phase itself"),
        ("wandb=x", "unknown key wandb; the keys here are name, run_root, tokenizer, "),
        ("warmup=5K", "unknown key warmup; did you mean learning_rate.warmup?"),
        ("mixture={}", "unknown key mixture; did you mean data.mixture?"),
        ("interval=5K", "unknown key interval; did you mean checkpoint.interval or validation.interval?"),
        ("mask_rate=15%", "mask_rate: '15%' is neither a number, as 0.15, nor a curve, as {kind: linear"),
        ("learning_rate.floor=2%", "learning_rate.floor = '2%' must be of type float; write a number without quotes"),
        ("data.mixture.declaration.languages=[no]", "languages[0] = False must be of type str; YAML takes no, off"),
        ("name=2024", "name = 2024 must be of type str; put it in quotes"),
        ("data.mixture.declaration.languages=fao", "languages = 'fao' must be a list, as in [a, b]"),
        ("data.mixture=fao", "data.mixture = 'fao' must be a mapping of names"),
        ("optimizer.betas=[1]", "optimizer.betas = [1] must be a list of 2"),
        ("mask_rate=15", "mask_rate = 15 must lie between 0 and 1; 15% is 0.15"),
        ("data.mixture=[fao]", "'data.mixture=[fao]': a list cannot take the place of a mapping"),
        ("name=${nowhere}", "nowhere"),
        ("nothing", "write key.sub=value"),
        ("name=[", "no valid YAML"),
        ("[=3", "'[=3' is no override; write key.sub=value"),
    ],
)
def test_bad_values_are_refused_with_key_value_and_remedy(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        load_config(DEMO, [override])
    assert words in str(refusal.value)


def test_a_floor_is_for_a_decay_that_ends_there() -> None:
    """Without `decay` warmup_stable_decay stays at its peak, and a floor would be silently unused."""
    with pytest.raises(ValueError, match=r"give learning_rate\.decay, or leave the floor out$"):
        load_config(DEMO, ["learning_rate.floor=0.02", "learning_rate.decay=0"])
    config = load_config(DEMO, ["learning_rate.floor=0.02", "learning_rate.decay=10K"])
    assert learning_rate(config, config.duration) == pytest.approx(0.02 * config.optimizer.lr)
    decaying = load_config("yamls/demo/phase3.yaml")  # one_minus_sqrt decays over the whole phase
    assert learning_rate(decaying, decaying.duration) == pytest.approx(0.02 * decaying.optimizer.lr)


def test_missing_files_are_named_with_the_file_that_wants_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]")
    with pytest.raises(FileNotFoundError, match=r"b\.yaml, extended by .*a\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_a_file_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]")
    (tmp_path / "b.yaml").write_text("extends: [a.yaml]")
    with pytest.raises(ValueError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


def test_broken_yaml_and_lists_are_refused(tmp_path: Path) -> None:
    for text in ("a: [", "- 1", "extends: a.yaml"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml"):
            load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text, words",
    [
        ("data: {mixture: [{source: udhr}]}", "data.mixture = [{'source': 'udhr'}] must be a mapping of keys"),
        ("optimizer: {betas: {first: 0.9}}", "optimizer.betas = {'first': 0.9} must be a list, as in what this file"),
    ],
)
def test_a_list_where_the_extended_file_has_a_mapping_is_refused_with_its_key(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "a.yaml").write_text(f"extends: [{Path(DEMO).absolute()}]\n{text}\n")
    with pytest.raises(ValueError, match=r"a\.yaml: ") as refusal:
        load_config(tmp_path / "a.yaml")
    assert words in str(refusal.value)


def test_what_yaml_says_stands_in_one_line_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data:\n\troot: data/rows\n")
    with pytest.raises(ValueError, match=r"^.* \(a tab\? indent with spaces\) in .*, line 2, column 1$"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"^'optimizer\.lr=\[1' is no valid YAML: .*$"):
        load_config(DEMO, ["optimizer.lr=[1"])


def test_a_file_that_may_not_be_read_is_not_called_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))  # root may read anything

    (tmp_path / "a.yaml").touch()
    monkeypatch.setattr("mmbert.config.OmegaConf.load", refuse)
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] Permission denied: '.*/a\.yaml'$"):
        load_config(tmp_path / "a.yaml")


def test_extends_is_relative_to_the_file_and_a_list_of_names(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: [yamls/common.yaml]")
    with pytest.raises(FileNotFoundError, match=r"what `extends` names lies relative to that file$"):
        load_config(tmp_path / "a.yaml")
    for key in ("extend", "extnds"):
        (tmp_path / "a.yaml").write_text(f"{key}: [yamls/common.yaml]")
        with pytest.raises(ValueError, match=rf"a\.yaml: unknown key {key}; did you mean extends\?"):
            load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("extends: [1]")
    with pytest.raises(ValueError, match=r"extends = \[1\] must be a list of files, as in \[common\.yaml\]$"):
        load_config(tmp_path / "a.yaml")
