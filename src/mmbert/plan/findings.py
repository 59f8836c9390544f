"""What is right, doubtful or wrong in a plan: one line each, with the numbers and the remedy."""
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mmbert.clock import batch_sizes, learning_rate
from mmbert.config import IMPORTED, MERGED, RunConfig
from mmbert.file_contents import parse_object
from mmbert.heldout import check_validation
from mmbert.identity import KEPT, encoder_changes
from mmbert.manifest import list_languages
from mmbert.plan.counts import loaded
from mmbert.plan.phase import Hardware, PhasePlan
from mmbert.streams import mixture_streams, read_languages

Level = Literal["ok", "warning", "error"]
REPEATS = 5.0  # the paper's aim: no language read more often (docs/recipe.md)
SHAPES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", *KEPT)
LONG_WARMUP = 0.2  # of the phase
LOW_FILL = 0.5
OVERSHOOT = 0.01  # of the phase
RAISED = 1.05  # times the rate that the parent ended with
HOURS_AT_STAKE = 3.0  # between two checkpoints
HIGH_RATE = 4e-4  # half the recipe's peak for random weights; mmBERT's decays end at 1.6e-5
UNTRAINED = {IMPORTED: "imported", MERGED: "merged"}


@dataclass(frozen=True)
class Finding:
    """One line; `phase` is a name."""

    level: Level
    phase: str
    text: str


def judge(plan: PhasePlan, hardware: Hardware | None) -> list[Finding]:
    """Everything that one phase shows by itself."""
    checks = [data_texts(plan), validation_texts(plan), language_texts(plan),
              schedule_texts(plan), checkpoint_texts(plan, hardware)]  # fmt: skip
    if hardware:
        checks += [batch_texts(plan.config, hardware), memory_texts(plan, hardware)]
    return [Finding(level, plan.config.name, text) for check in checks for level, text in check]


Texts = list[tuple[Level, str]]


def data_texts(plan: PhasePlan) -> Texts:
    """The data are there and fit."""
    config, counts = plan.config, plan.counts
    if plan.problem:
        return [("error", plan.problem)]
    if counts is None:
        return [(
            "warning",
            f"the sizes of the streams are unknown, so shares within groups and repeats are: there is no folder "
            f"data.root = {config.data.root}; prepare the rows (data_prep.prepare), or give --counts counts.csv with "
            "the columns source,language,tokens (make plan COUNTS=counts.csv)",
        )]  # fmt: skip
    texts: Texts = []
    if counts.estimated:
        texts.append(("warning", f"the sizes of the streams are {counts.origin}, for there is no folder data.root = "
                                 f"{config.data.root}; docs/data.md says how far they are guesses"))  # fmt: skip
    fill = plan.row_tokens / config.max_seq_len
    if fill < LOW_FILL:
        texts.append(("warning", f"rows are filled to {fill:.0%} of max_seq_len = {config.max_seq_len}: are they of "
                                 "another length?"))  # fmt: skip
    if counts.manifests and not texts:
        texts.append(("ok", f"rows of {config.max_seq_len} tokens, filled to {fill:.1%}, of one tokenizer"))
    return texts


def validation_texts(plan: PhasePlan) -> Texts:
    """What training would refuse of the held-out rows, and not look at, where they and the tokenizer are there."""
    config, validation = plan.config, plan.config.validation
    if validation is None or not Path(validation.root).is_dir() or not Path(config.tokenizer).is_dir():
        return []
    try:
        check_validation(config, loaded(config.tokenizer, config.model.vocab_size), is_whole=False)
    except (OSError, ValueError) as error:
        return [("error", str(error))]
    trained = {language for source, language in mixture_streams(config)[0] if source == validation.source}
    could_be = trained & set(list_languages(Path(validation.root), "heldout", validation.source))
    measured = set(read_languages(validation.languages, "validation.languages"))
    if left_out := sorted(could_be - measured):
        level: Level = "warning" if len(left_out) < len(measured) else "ok"  # many: they were chosen
        return [(level, f"{len(left_out)} languages train and have held-out text, but are not in "
                        f"validation.languages, and so never measured: {', '.join(left_out[:8])}"
                        f"{', ...' if len(left_out) > 8 else ''}")]  # fmt: skip
    return []


def language_texts(plan: PhasePlan) -> Texts:
    """No language is read too often, or never."""
    if plan.counts is None:
        return []
    texts: Texts = []
    for name, group in plan.config.data.groups().items():
        lines = [line for line in plan.lines if line.group == name]
        often = sorted((line for line in lines if (line.repeats or 0.0) > REPEATS * (1 + 1e-3)),
                       key=lambda line: -(line.repeats or 0.0))  # fmt: skip
        if often and group.max_repeats is None:  # which the plan keeps to, but for what the last step has too many
            worst = ", ".join(f"{line.language} {line.repeats:.3g}" for line in often[:3])
            texts.append(("warning", f"{name}: {len(often)} of {len(lines)} streams read more than {REPEATS:g} times "
                                     f"({worst}); lower the share or set max_repeats"))  # fmt: skip
        never = [line.language for line in lines if (line.rows or 0.0) < 1.0]
        if never:
            texts.append(("warning", f"{name}: {len(never)} of {len(lines)} streams with less than one row "
                                     f"({', '.join(never[:8])}{', ...' if len(never) > 8 else ''})"))  # fmt: skip
    return texts or [("ok", f"no stream is read more than {REPEATS:g} times or its max_repeats, none less than a row")]


def schedule_texts(plan: PhasePlan) -> Texts:
    """Durations against schedules."""
    config = plan.config
    texts: Texts = []
    warmup = config.learning_rate.warmup
    if warmup > LONG_WARMUP * config.duration:
        texts.append(("warning", f"learning_rate.warmup takes {warmup / config.duration:.0%} of the phase"))
    growing = config.batch_size_warmup
    if growing and plan.stretches[-1].batch_rows != config.global_train_batch_size:
        texts.append(("warning", f"the phase ends within batch_size_warmup ({growing.tokens:,} tokens): it never sees "
                                 f"global_train_batch_size = {config.global_train_batch_size}"))  # fmt: skip
    for group in plan.groups:
        if max(group.tau.values()) > 1.0:
            texts.append(("warning", f"data.mixture.{group.name}.tau = {group.tau.values()} is above 1: large "
                                     "languages get more than their share of the text"))  # fmt: skip
    late = {"mask_rate": config.mask_rate} | {f"data.mixture.{group.name}.tau": group.tau for group in plan.groups}
    for key, schedule in late.items():
        if schedule.at is not None and schedule.at >= config.duration:
            texts.append(("warning", f"{key} steps at {schedule.at:,} tokens, behind the end of the phase"))
    periods = plan.rows / config.data.period_rows
    if periods < 1:
        texts.append(("warning", f"data.period_rows = {config.data.period_rows:,} is more than the {plan.rows:,} rows "
                                 "of the phase: tau never moves, and shares are met by chance only"))  # fmt: skip
    elif periods < 10 and any(group.tau.kind != "constant" for group in plan.groups):
        texts.append(("warning", f"tau is scheduled, and moves only {int(periods)} times: lower data.period_rows"))
    over = plan.tokens - config.duration
    if over > OVERSHOOT * config.duration:
        texts.append(("warning", f"the last step ends {over / config.duration:.1%} behind duration: a step is "
                                 f"{plan.step_tokens:,.0f} tokens"))  # fmt: skip
    return texts or [("ok", "warm-ups, schedules and periods lie within the phase")]


def checkpoint_texts(plan: PhasePlan, hardware: Hardware | None) -> Texts:
    """Checkpoints are neither too few nor too many."""
    rule, duration = plan.config.checkpoint, plan.config.duration
    if rule.interval > duration:
        return [("warning", f"checkpoint.interval = {rule.interval:,} is longer than the phase, {duration:,}: the only "
                            "checkpoint is the last")]  # fmt: skip
    if rule.interval < plan.step_tokens:
        return [("warning", f"checkpoint.interval = {rule.interval:,} is less than a step of {plan.step_tokens:,.0f} "
                            "tokens: every step is saved")]  # fmt: skip
    if hardware and (hours := plan.seconds(hardware) * rule.interval / plan.tokens / 3600) > HOURS_AT_STAKE:
        return [("warning", f"{hours:.1f} hours lie between two checkpoints, and a node that dies loses them; lower "
                            "checkpoint.interval")]  # fmt: skip
    return []


def batch_texts(config: RunConfig, hardware: Hardware) -> Texts:
    """The batches of all sizes cut well into ranks and microbatches."""
    sizes, gpus, micro = batch_sizes(config).sizes, hardware.gpus, config.device_train_microbatch_size
    if min(sizes) < gpus:
        return [("error", f"a global batch of {min(sizes)} rows is too small for {gpus} GPUs")]
    uneven = [size for size in sizes if size % gpus]
    if uneven:
        return [("warning", f"a global batch of {uneven[0]} rows is {uneven[0] / gpus:.1f} rows a GPU: some wait for "
                            "the others")]  # fmt: skip
    for size in sizes:
        rows = size // gpus
        needed = -(-rows // micro)
        if rows % micro:
            empty = 1 - rows / (needed * micro)
            why = f"{rows} rows a GPU are {rows / micro:.2f} microbatches of {micro}"
            return [("warning", f"device_train_microbatch_size = {micro}: {why}; on a GPU the last is filled up with "
                                f"padding, {empty:.0%} of the work of such a step: lower it, or give --gpus where "
                                f"there are not {gpus}")]  # fmt: skip
    return [("ok", f"every global batch cuts into whole microbatches of {micro} rows on {gpus} GPUs")]


def memory_texts(plan: PhasePlan, hardware: Hardware) -> Texts:
    """The model fits, by the formula."""
    if plan.config.model.attention == "cpu":
        why = "plain torch is slow on a GPU, and takes more memory than the formula says"
        return [("warning", f"model.attention = cpu: {why}")]
    if plan.config.precision == "fp32":
        return [("error", "precision = fp32: the GPU's attention kernels need amp_bf16")]
    needed = plan.memory(hardware).total
    text = f"{needed / 1e9:.0f} of {hardware.memory / 1e9:.0f} GB of a {hardware.gpu}, by the formula"
    if needed > 0.9 * hardware.memory:
        return [("warning", f"{text}, are likely too much; lower device_train_microbatch_size")]
    return [("ok", text)]


def judge_chain(plans: Sequence[PhasePlan]) -> list[Finding]:
    """What a phase and its parent must have in common."""
    findings = []
    folders = [plan.config.run_folder for plan in plans]
    for plan, folder in zip(plans, folders, strict=True):
        config = plan.config
        texts = pair_texts(plan)
        if folders.count(folder) > 1:
            texts.append(("error", f"two phases would run in {folder}; give each a `name`"))
        if config.parent in [later.config.name for later in plans[folders.index(folder) + 1 :]]:
            texts.append(("error", f"it stands before its parent {config.parent}: give the phases in order"))
        if config.parent is None and plan is not plans[0]:
            texts.append(("warning", "it has no `parent`: it begins with random weights"))
        findings += [Finding(level, config.name, text) for level, text in texts]
    digests = {manifest.tokenizer for plan in plans if plan.counts for manifest in plan.counts.manifests}
    last = plans[-1].config
    if len(digests) > 1:
        findings.append(Finding("error", last.name, "the rows of the phases were made with different tokenizers"))
    end, peak = learning_rate(last, last.duration), last.optimizer.lr
    if len(plans) > 1 and end > 0.5 * peak:
        text = f"the chain ends at a learning rate of {end:.2g}, its peak is {peak:.2g}: a model is best after a decay"
        findings.append(Finding("warning", last.name, text))
    return findings


def pair_texts(plan: PhasePlan) -> Texts:
    """A phase against its parent."""
    config, parent = plan.config, plan.parent
    if config.parent is None:
        return []
    if parent is None:
        return untrained_texts(plan)
    texts: Texts = []
    if changed := encoder_changes(asdict(parent.model), asdict(config.model), SHAPES):
        texts.append(("error", f"another encoder than its parent's: {'; '.join(changed)}"))
    if parent.run_root != config.run_root:
        texts.append(("error", f"run_root = {config.run_root}, its parent's is {parent.run_root}: it is looked for in "
                               "the phase's own"))  # fmt: skip
    if parent.tokenizer != config.tokenizer:
        texts.append(("warning", f"tokenizer = {config.tokenizer}, its parent's is {parent.tokenizer}: a phase with "
                                 "other ids is refused"))  # fmt: skip
    sizes = [one.global_train_batch_size * one.max_seq_len for one in (parent, config)]
    if sizes[0] != sizes[1]:
        texts.append(("warning", f"a step has {sizes[1]:,} tokens, its parent's has {sizes[0]:,}"))
    if config.max_seq_len > parent.max_seq_len and config.model.global_rope_theta <= parent.model.global_rope_theta:
        texts.append(("warning", f"rows grow from {parent.max_seq_len} to {config.max_seq_len} tokens, and "
                                 "model.global_rope_theta does not"))  # fmt: skip
    ended, begins = learning_rate(parent, parent.duration), learning_rate(config, 0)
    if begins > RAISED * ended:
        texts.append(("warning", f"the learning rate jumps from {ended:.3g}, where {parent.name} ends, to {begins:.3g} "
                                 "without a warm-up"))  # fmt: skip
    return texts or [("ok", f"as many tokens a step as {parent.name}, the same encoder, tokenizer and run_root")]


def untrained_texts(plan: PhasePlan) -> Texts:
    """A phase whose parent has no YAML: its weights were imported or merged, and the run itself says of what shape."""
    config, folder = plan.config, plan.config.run_folder.with_name(str(plan.config.parent))
    made = next((how for record, how in UNTRAINED.items() if (folder / record).is_file()), None)
    if made is None:
        return [("warning", f"its parent {config.parent} is not among the phases given, nor a phase's YAML "
                            f"beside {plan.path}, nor a run in {config.run_root}: nothing is compared with "
                            "it")]  # fmt: skip
    state = folder / "step-0000000000" / "state.json"  # checkpoint_files.read_state would import torch for seconds
    model = parse_object(state.read_bytes(), state, f"make {folder} anew")["config"]["model"]
    texts: Texts = []
    if changed := encoder_changes(model, asdict(config.model), SHAPES):
        texts.append(("error", f"another encoder than that of {folder}, which was {made}: {'; '.join(changed)}"))
    if not (rate := config.learning_rate).warmup:
        remedy = "give a warm-up" if rate.shape == "warmup_stable_decay" else "take warmup_stable_decay and a warm-up"
        texts.append(("warning", f"learning_rate.warmup = 0, and its parent {config.parent} was {made}: its moments "
                                 f"are zero, so {remedy}"))  # fmt: skip
    if (peak := config.optimizer.lr) > HIGH_RATE:
        texts.append(("warning", f"optimizer.lr = {peak:g} is for random weights, and its parent {config.parent} was "
                                 f"{made}: unless that has yet to decay, begin lower, with 1e-4 say"))  # fmt: skip
    return texts or [("ok", f"the same encoder as {folder}, which was {made}; a warm-up, for its moments are zero")]
