"""The first YAML that a user gets: it loads, it is planned, its data can be opened, and its comments are true."""
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import prepare, starter
from data_prep.verify import find_streams
from mmbert.config import RunConfig, load_config
from mmbert.data import PhaseData
from mmbert.heldout import check_validation
from mmbert.manifest import read_manifest
from mmbert.plan.phase import plan_phase
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus
from tests.data_prep.programs import arguments_of, call, write_jsonl


def start(monkeypatch: pytest.MonkeyPatch, corpus: Corpus, rows: Path, output: Path) -> RunConfig:
    """Write the YAML and load it; what it plans and names must be there."""
    call(monkeypatch, starter.main, "--rows", rows, "--tokenizer", corpus.tokenizer, "--output", output)
    config = load_config(output)
    tokenizer = load_tokenizer(corpus.tokenizer)
    assert plan_phase(str(output), config, None, None).problem == ""
    PhaseData.open(config, tokenizer)
    check_validation(config, tokenizer)
    return config


@pytest.mark.parametrize("gpu", [True, False])
def test_the_yaml_loads_is_planned_and_says_what_is_there(
    shards: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpu: bool
):
    output = shards.parent / "train.yaml"
    monkeypatch.setattr(starter, "GPU", Path("/dev/null" if gpu else "/dev/nowhere"))
    config = start(monkeypatch, corpus, shards, output)
    said = capsys.readouterr().out
    program = "composer" if gpu else "python -m mmbert.launch --nproc 1"
    assert f"Train: {program} main.py {output}\n" in said
    start(monkeypatch, corpus, shards, output)  # of a YAML that is there it is what its device takes
    assert capsys.readouterr().out.endswith(f"Train: {program} main.py {output}\n")
    assert "Little text" not in said
    tokens = sum(read_manifest(folder).tokens for folder in (shards / "train" / "own").iterdir())
    assert f": {tokens:,} tokens in 3 languages." in output.read_text()
    [group] = config.data.mixture.values()
    assert (group.source, group.languages, group.share) == ("own", ["fao", "isl", "nno"], 1.0)
    assert config.validation is not None
    assert config.validation.languages == ["fao", "nno"]  # isl is one document
    assert config.parent is None
    assert config.data.num_workers == (4 if gpu else 0)
    assert (config.device, config.precision) == (("auto", "amp_bf16") if gpu else ("cpu", "fp32"))
    assert config.logging.interval_batches == (10 if gpu else 1)  # a step takes seconds on a CPU
    assert config.model.hidden_size == load_config(f"yamls/{'small' if gpu else 'demo'}/phase1.yaml").model.hidden_size
    assert config.model.vocab_size == 512
    assert config.max_seq_len == 64
    assert 0 <= config.duration - starter.PASSES * tokens < config.global_train_batch_size * 64
    assert f"# {config.duration / tokens:.1f} passes over the text; a small language is seen 4 " in output.read_text()
    assert group.max_repeats == 4


def test_the_yaml_may_be_for_another_machine(
    shards: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(starter, "GPU", Path("/dev/nowhere"))
    for device, hidden_size in (("gpu", 384), ("cpu", 128)):
        output = tmp_path / f"{device}.yaml"
        words = ("--rows", shards, "--tokenizer", corpus.tokenizer, "--output", output, "--device", device)
        call(monkeypatch, starter.main, *words)
        assert load_config(output).model.hidden_size == hidden_size
        monkeypatch.setattr(starter, "GPU", Path("/dev/null"))


def test_the_yaml_may_lie_behind_a_link(
    shards: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where data/ or a cluster's scratch is a link to another disk, deeper than the link itself."""
    (tmp_path / "disks" / "big").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to(tmp_path / "disks" / "big")
    start(monkeypatch, corpus, shards, tmp_path / "scratch" / "mine" / "train.yaml")


def test_names_and_places_are_read_back_as_they_are(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """YAML takes 2024 for a number, yes for a truth, and a place like this for anything but a place."""
    (tmp_path / "text").mkdir()
    for language in ("fao", "yes"):
        write_jsonl(tmp_path / "text" / f"{language}.jsonl", [f"beda gola {number} " for number in range(60)])
    monkeypatch.setattr(starter, "GPU", Path("/dev/null"))
    folder = tmp_path / "a: b, [c] #d é" / "2024"
    arguments = arguments_of(tmp_path / "text", corpus, folder / "rows", "--source", "123")
    call(monkeypatch, prepare.main, *arguments)
    for _ in range(2):  # a shell reads the command back, too, also when the file is there already
        config = start(monkeypatch, corpus, folder / "rows", folder / "train.yaml")
        assert f"Train: composer main.py '{folder}/train.yaml'\n" in capsys.readouterr().out
    [group] = config.data.mixture.values()
    assert (config.name, group.source, group.languages) == ("2024", "123", ["fao", "yes"])
    monkeypatch.chdir(folder)
    manifests = [read_manifest(stream) for stream in find_streams(folder / "rows")]
    relative = starter.starter(manifests, Path("rows"), Path("tokenizer"), Path("train.yaml"), on_gpu=False)
    assert 'name: "2024"' in relative


def test_text_of_which_nothing_is_held_out_has_no_validation(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text").mkdir()
    write_jsonl(tmp_path / "text" / "fao.jsonl", ["the only one"])
    call(monkeypatch, prepare.main, *arguments_of(tmp_path / "text", corpus, tmp_path / "rows"))
    config = start(monkeypatch, corpus, tmp_path / "rows", tmp_path / "train.yaml")
    assert config.validation is None
    [manifest] = [read_manifest(folder) for folder in find_streams(tmp_path / "rows")]
    [group] = config.data.mixture.values()
    assert config.duration == 10 * starter.SMALLEST * 64  # ten steps at least
    assert group.max_repeats == -(-config.duration // manifest.tokens)
    passes = f"{config.duration / manifest.tokens:,.0f}"
    told = f"Little text: the phase passes over it {passes} times. That shows that everything works"
    assert told in capsys.readouterr().out
    assert f"# {told}" in (tmp_path / "train.yaml").read_text()


def test_a_file_that_is_there_stays_as_it_is(
    shards: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "train.yaml"
    output.write_text("mine")
    call(monkeypatch, starter.main, "--rows", shards, "--tokenizer", corpus.tokenizer, "--output", output)
    assert output.read_text() == "mine"
    assert f"{output} is there already, and stays as it is" in capsys.readouterr().out


def test_a_file_that_is_there_and_does_not_fit_the_rows_is_told(
    text: Path, shards: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """Else languages that were added would not be trained on, and nobody would know."""
    output = tmp_path / "train.yaml"
    start(monkeypatch, corpus, shards, output)
    written = output.read_text()

    def told(rows: Path = shards) -> str:
        capsys.readouterr()
        call(monkeypatch, starter.main, "--rows", rows, "--tokenizer", corpus.tokenizer, "--output", output)
        return capsys.readouterr().out.splitlines()[0].removeprefix(f"{output} is there already, and stays as it is")

    assert told() == ""
    output.write_text(written.replace('"isl", "nno"', '"nno"'))
    assert told() == ", but it leaves out own/isl: move it away to have a new one"
    shutil.rmtree(shards / "train" / "own" / "fao")
    (text / "dan.jsonl").write_text('{"text": "one"}\n')
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards, "--languages", "dan"))
    names = "leaves out own/dan, own/isl and names own/fao, of which there are no rows"
    assert told() == f", but it {names}: move it away to have a new one"
    (tmp_path / "list.txt").write_text("dan\nisl\nnno\n")
    output.write_text(written.replace('["fao", "isl", "nno"]', f"[{tmp_path}/list.txt]"))
    assert told() == ""
    other = shards.rename(tmp_path / "rows-128")
    assert told(other) == f", but it trains on {shards}, not on {other}: move it away to have a new one"
    output.write_text(written + "duration: 3x\n")
    assert told(other).startswith(f", but it cannot be loaded: {output}")


def test_the_folder_of_the_yaml_is_made(shards: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "runs" / "first" / "train.yaml"
    call(monkeypatch, starter.main, "--rows", shards, "--tokenizer", corpus.tokenizer, "--output", output)
    assert load_config(output).name == "first"


def test_rows_of_several_sources_and_no_rows_are_refused(
    text: Path, shards: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["--tokenizer", corpus.tokenizer, "--output", tmp_path / "train.yaml"]
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards, "--source", "other"))
    with pytest.raises(SystemExit, match=r"error: .* holds several sources, other, own: write the mixture yourself"):
        call(monkeypatch, starter.main, "--rows", shards, *arguments)
    with pytest.raises(SystemExit, match=r"error: .* holds no <split>/<source>/<language>"):
        call(monkeypatch, starter.main, "--rows", tmp_path, *arguments)
    assert not (tmp_path / "train.yaml").exists()


@pytest.mark.parametrize("tokens", [1, 10**5, 3 * 10**7, 10**8, 10**9, 10**12])
def test_a_batch_is_the_largest_that_leaves_enough_steps(tokens: int):
    fitting = [rows for rows in (8, 16, 32, 64, 128, 256, 512) if 2 * tokens >= rows * 1024 * 1000]
    assert starter.batch_rows(tokens, 1024) == max(fitting, default=8)


def test_rows_of_any_length_fit_the_model(shards: Path, tmp_path: Path):
    manifest = replace(read_manifest(shards / "train" / "own" / "fao"), row_length=2**15)
    output = tmp_path / "train.yaml"
    output.write_text(starter.starter([manifest], shards, Path("tokenizer"), output, on_gpu=False))
    assert load_config(output).model.max_position_embeddings == 2**15


@pytest.mark.parametrize("tokens", [1, 500, 10**5, 10**9])
def test_times_of_a_phase_follow_from_its_tokens(shards: Path, tmp_path: Path, tokens: int):
    manifest = replace(read_manifest(shards / "train" / "own" / "fao"), tokens=tokens)
    output = tmp_path / "train.yaml"
    output.write_text(starter.starter([manifest], shards, Path("tokenizer"), output, on_gpu=False))
    config = load_config(output)
    assert ("Little text" in output.read_text()) == (config.duration > 4 * tokens)
    step = config.global_train_batch_size * 64
    assert config.duration % step == 0
    assert config.duration // step == max(10, -(-2 * tokens // step))
    assert config.learning_rate.warmup == config.duration // 20
    assert config.learning_rate.decay == config.duration // 4
    assert config.checkpoint.interval == config.duration // 10
    assert config.data.period_rows == config.global_train_batch_size * min(config.duration // step, 100)


@pytest.mark.parametrize("status, programs", [(0, 3), (3, 3), (1, 1)])
def test_make_data_goes_on_without_a_broken_file_and_ends_with_an_error(tmp_path: Path, status: int, programs: int):
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$2"\n[ "$2" != data_prep.prepare ] || exit {status}\n')
    (tmp_path / "python").chmod(0o755)
    makefile = Path(__file__).parents[2] / "Makefile"
    words = ["make", "-s", "-f", makefile, "-o", "env", "data", f"BIN={tmp_path}", "INPUT=my text", "OUTPUT=out"]
    made = subprocess.run([*words, "TEXT_TOKENIZER=t"], cwd=tmp_path, capture_output=True, text=True)
    expected = ["data_prep.prepare", "data_prep.verify", "data_prep.starter"][:programs]
    assert (made.stdout.splitlines(), made.returncode) == (expected, 2 if status else 0)
    assert made.stderr.startswith("error: some files of my text gave no rows, see 'quarantined' above") == (status == 3)


@pytest.mark.parametrize("tokenizer, fetched", [([], True), (["TEXT_TOKENIZER=data/misspelt"], False)])
def test_make_data_fetches_gemma2_to_no_place_but_its_own(tmp_path: Path, tokenizer: list[str], fetched: bool):
    """Where another tokenizer is not there, its users say so; Gemma 2's in its place would train unnoticed."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "python").chmod(0o755)
    makefile = Path(__file__).parents[2] / "Makefile"
    words = ["make", "-f", makefile, "-o", "env", "data", f"BIN={tmp_path}", "INPUT=text", "OUTPUT=out", *tokenizer]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    fetching = [line for line in made if line.startswith("-m data_prep.gemma2 ")]
    assert fetching == ["-m data_prep.gemma2 --output data/tokenizer-gemma2"] * fetched
    used = tokenizer[0].partition("=")[2] if tokenizer else "data/tokenizer-gemma2"
    assert f"-m data_prep.prepare --input text --tokenizer {used} --row-length 1024 --output out/rows-1024" in made


@pytest.mark.parametrize(
    "output, reason", [("out", "--input {}/mytext does not exist"), ("mytext", "lies in the input, {}/mytext")]
)
def test_make_data_refuses_input_and_output_before_it_fetches_a_tokenizer(tmp_path: Path, output: str, reason: str):
    if output == "mytext":
        (tmp_path / "mytext").mkdir()
        write_jsonl(tmp_path / "mytext" / "fao.jsonl", ["beda"])
    program = f'#!/bin/sh\n[ "$2" != data_prep.gemma2 ] || echo fetched\nexec "{sys.executable}" "$@"\n'
    (tmp_path / "python").write_text(program)
    (tmp_path / "python").chmod(0o755)
    words = ["make", "-s", "-o", "env", "data", f"BIN={tmp_path}", "GEMMA2=" + str(tmp_path / "gemma2")]
    words += [f"INPUT={tmp_path}/mytext", f"OUTPUT={tmp_path}/{output}"]
    made = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert reason.format(tmp_path) in made.stderr
    assert (made.stdout, made.returncode) == ("", 2)
    assert not (tmp_path / "out").exists()
