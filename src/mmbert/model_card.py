"""README.md of a converted folder: the model card that Hugging Face's hub shows.

It says what is in the checkpoints: the model's size, every run that its weights went through, as far as those lie
beside it, and the tokens of each language. What only its author knows, license and use, is left to them.
"""
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmbert.checkpoint import step_folders, weights_sha256
from mmbert.checkpoint_files import read_json, read_state
from mmbert.clock import learning_rate
from mmbert.config import IMPORTED, MERGED, ModelConfig, RunConfig
from mmbert.data_config import GroupConfig
from mmbert.evaluation.run_records import sum_by_language
from mmbert.languages import find
from mmbert.page_style import quantity
from mmbert.plan.facts import path_of
from mmbert.plan.numbers import num_parameters
from mmbert.recipe_table import table
from mmbert.typed import build

CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags:
- modernbert
{languages}---

# {name}

An encoder, ModernBERT, for masked language modelling: {layers} layers of {hidden} channels, {parameters:,} parameters,
{vocabulary:,} entries in the vocabulary, texts of up to {length:,} tokens.

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{folder}")  # this folder, or its name on the hub
fill_mask("... {mask_token} ...")
```

## Training

{training}
"""
TOKENS = """
## Languages

Tokens that it was trained on, by language and run; what a run saw again counts again.

{table}
"""


@dataclass(frozen=True)
class TrainedRun:
    """A run that the weights went through, as one of its checkpoints has it."""

    name: str
    state: dict[str, Any]
    config: RunConfig

    @property
    def tokens_per_language(self) -> dict[str, float]:
        """Of all its sources; those that it had none of are not there."""
        return {code: tokens for code, tokens in sum_by_language(self.state["tokens_per_stream"]).items() if tokens}

    def row(self) -> dict[str, str]:
        """Of the table of runs."""
        config, peak = self.config, self.config.optimizer.lr
        last = learning_rate(config, self.state["tokens"])
        taus = dict.fromkeys(path_of(group.tau) for group in config.data.groups().values() if has_several(group))
        return {
            "run": in_cell(self.name),
            "tokens": quantity(self.state["tokens"]),
            "languages": f"{len(self.tokens_per_language):,}",
            "rows x length": f"{config.global_train_batch_size:,} x {config.max_seq_len:,}",
            "mask rate": path_of(config.mask_rate),
            "tau": "; ".join(taus) or "-",
            "learning rate": f"{peak:g}" if last == peak else f"{peak:g}, at the end {last:.3g}",
        }


@dataclass(frozen=True)
class History:
    """What is known of how weights came to be.

    Attributes:
        runs: that they went through, by name, parents first.
        origins: where they came from, a sentence each.
    """

    runs: dict[str, TrainedRun] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)

    def add(self, checkpoint: Path) -> None:
        """A checkpoint, and what its run began with.

        Raises:
            FileNotFoundError, ValueError: it is broken.
        """
        run, state = checkpoint.parent, read_state(checkpoint)
        if run.name in self.runs:
            return
        if (run / MERGED).is_file():
            self.add_merge(run)
        elif (run / IMPORTED).is_file():
            record = read_json(run / IMPORTED)
            source, origin = (  # where they lay is nobody's business
                Path(str(record.get(key, ""))).name for key in ("model", "changed_vocabulary_of")
            )
            changed = f", which is `{origin}` with another vocabulary" if origin else ""
            self.tell(f"`{run.name}` was imported from a Hugging Face folder, `{source}`{changed}")
        elif "name" in state["config"]:
            self.add_trained(run, state)
        else:
            self.tell_unknown(run.name)

    def add_trained(self, run: Path, state: dict[str, Any]) -> None:
        """A run that was trained here, its parents before it."""
        try:
            config = build(RunConfig, state["config"])
        except ValueError:  # of another version of this program
            return self.tell_unknown(run.name)
        if config.parent is None:
            self.tell(f"`{run.name}` began with random weights")
        else:
            self.add_parent(run, config.parent, state["callbacks"].get("Checkpointing", {}).get("parent_weights"))
        self.runs[run.name] = TrainedRun(run.name, state, config)
        if not state["finished"]:
            self.tell(f"`{run.name}` is unfinished: {state['tokens']:,} of {config.duration:,} tokens")

    def add_parent(self, run: Path, parent: str, weights: str | None) -> None:
        """What a run began with, if the parent still has the weights of this sha256."""
        try:
            is_known = weights is not None and weights == weights_sha256(run.parent / parent)
            if is_known:
                self.add(step_folders(run.parent / parent)[0])
        except (OSError, ValueError):
            is_known = False
        if not is_known:
            self.tell_unknown(parent)
        self.tell(f"`{run.name}` went on from `{parent}`")

    def add_merge(self, run: Path) -> None:
        """The runs that a merge was made of."""
        record = read_json(run / MERGED)
        names = [each["checkpoint"] for each in record["inputs"]]
        newest = {name.partition("/")[0]: name for name in names}  # of several of a run, which stand by age
        for name in newest.values():
            try:
                self.add(run.parent / name)
            except (OSError, ValueError):
                self.tell_unknown(name)
        settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
        made_of = ", ".join(f"`{name}`" for name in names)
        self.tell(f"`{run.name}` is a merge ({record['method']}, {settings}) of {made_of}")

    def tell(self, sentence: str) -> None:
        """Once."""
        if sentence not in self.origins:
            self.origins.append(sentence)

    def tell_unknown(self, name: str) -> None:
        """Nothing to be read of this run."""
        self.tell(f"what `{name}` was trained on is not known here")


def has_several(group: GroupConfig) -> bool:
    """Whether a group may have several languages, so that its tau means something."""
    return len(group.languages) > 1 or group.languages[0].endswith(".txt")


def in_cell(text: str) -> str:
    """Text within a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def language_rows(runs: Sequence[TrainedRun]) -> list[dict[str, str]]:
    """The table of languages: a row each, a column a run."""
    counts = {run.name: run.tokens_per_language for run in runs}
    rows = []
    for code in sorted(set().union(*counts.values())):
        language = find(code)
        cells = {in_cell(name): f"{tokens[code]:,}" if code in tokens else "-" for name, tokens in counts.items()}
        name, script = (language.name, language.script) if language else ("", "")
        rows.append({"code": in_cell(code), "name": in_cell(name), "script": script, **cells})
    return rows


def metadata_codes(runs: Sequence[TrainedRun]) -> list[str]:
    """ISO 639 codes of all languages that the runs read, as the hub's metadata have them, and its `code`."""
    codes = {language.split("_")[0] for run in runs for language in run.tokens_per_language}
    return sorted(code for code in codes if code == "code" or (len(code) in (2, 3) and code.isalpha()))


def model_card(checkpoint: Path, model: ModelConfig, mask_token: str, folder: str) -> str:
    """The card, as Markdown.

    Args:
        checkpoint: what is converted.
        mask_token: as the tokenizer spells it.
        folder: of the converted model, its name.

    Raises:
        FileNotFoundError, ValueError: the checkpoint, or what its run says of itself, is broken.
    """
    checkpoint = checkpoint.absolute()  # its run's name is wanted
    history = History()
    history.add(checkpoint)
    runs = list(history.runs.values())
    training = "".join(f"- {sentence}.\n" for sentence in history.origins).rstrip()
    if runs:
        training = f"{table([run.row() for run in runs])}\n\n{training}".rstrip()
    codes = "".join(f"- {json.dumps(code)}\n" for code in metadata_codes(runs))  # bare, `yes` would be a truth
    card = CARD.format(
        languages=f"language:\n{codes}" if codes else "",
        name=in_cell(checkpoint.parent.name),
        layers=model.num_hidden_layers,
        hidden=model.hidden_size,
        parameters=num_parameters(model),
        vocabulary=model.vocab_size,
        length=model.max_position_embeddings,
        folder=folder,
        mask_token=mask_token,
        training=training,
    )
    return card + (TOKENS.format(table=table(rows)) if (rows := language_rows(runs)) else "")
