"""The configuration of a run: frozen typed sections, read once from YAML, checked, and passed on.

A YAML may name others under `extends`; it then states only what differs. `key.sub=value` on the command line
comes last. Whatever does not fit the types below is refused with its path and the nearest right name.
"""
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmbert.data_config import DataConfig, ScheduleOf, Tokens, check_data, is_remote
from mmbert.typed import build, join

T = TypeVar("T")

Kernel = Literal["cpu", "flash_attn", "torch_varlen", "torch_flash", "flash_attn_4"]
"""What computes attention (attention.py)."""

MERGE_METHODS = ("ties", "exponential")  # sections of a merge's YAML, which has one of them
IMPORTED, MERGED = "import.json", "merge.json"  # records in the folders of runs that trained on nothing


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the encoder, in the words of Hugging Face's ModernBertConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    global_rope_theta: float
    local_rope_theta: float
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    attn_out_dropout: float = 0.1
    attention: Literal["auto", Kernel] = "auto"

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if key not in ("attention", "attn_out_dropout") and value <= 0:
                raise ValueError(f"{key} = {value} must be above 0")
        if not 0 <= self.attn_out_dropout <= 1:
            raise ValueError(f"attn_out_dropout = {self.attn_out_dropout} must lie in [0, 1]; 10% is 0.1")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_attention_heads {self.num_attention_heads} must be an even "
                "number: rotary embeddings turn pairs of channels"
            )
        if self.local_attention < 2 or self.local_attention % 2:
            raise ValueError(f"local_attention = {self.local_attention} must be even: half of it lies on each side")

    @property
    def head_dim(self) -> int:
        """Channels of a head, K."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class BatchWarmupConfig:
    """The global batch grows from `start` rows, in steps of `start` rows, for `tokens` tokens."""

    start: int
    tokens: Tokens


@dataclass(frozen=True)
class OptimizerConfig:
    """StableAdamW with fully decoupled weight decay: a step shrinks weights by weight_decay * (lr / peak lr)."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)} must both be at least 0 and below 1")
        if self.eps <= 0:
            raise ValueError(f"eps = {self.eps} must be above 0")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay = {self.weight_decay} must be at least 0 and below 1")


@dataclass(frozen=True)
class LearningRateConfig:
    """Shape of the learning rate over the phase; `floor` is the multiplier at its end."""

    shape: Literal["warmup_stable_decay", "one_minus_sqrt"]
    warmup: Tokens = 0
    decay: Tokens = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.shape == "one_minus_sqrt" and (self.warmup or self.decay):
            raise ValueError(
                f"one_minus_sqrt has neither `warmup` nor `decay`: it decays over the whole phase; warmup = "
                f"{self.warmup} and decay = {self.decay} must be 0, also where a YAML that this one extends gives them"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint every `interval` tokens and at the end.

    Attributes:
        keep: the newest ones that stay.
        keep_every: the first one after every so many tokens stays too.
        give_up_minutes: how long training goes on when none can be written, because the disk is full, say.
    """

    interval: Tokens
    keep: int = 2
    keep_every: Tokens | None = None
    give_up_minutes: float = 20.0


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out bits per byte every `interval` tokens and at the end, under the same masks in all phases.

    Attributes:
        root: place of the shards whose held-out split is read, as `data.root`; phases with the same one compare.
        source: folder of the source below `root/heldout`.
        languages: codes; an entry that ends in `.txt` is a file with one code a line.
        rows: the first so many of each language; None for all of them.
    """

    interval: Tokens
    root: str
    source: str
    languages: list[str]
    rows: int | None = None

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("validation: languages = [] must name at least one, or leave `validation` out")


@dataclass(frozen=True)
class SpikesConfig:
    """A loss that stays high sends the run back to its last checkpoint from before, past the rows that were read since.

    Attributes:
        sigma: a step is high when its loss exceeds the mean of the last calm steps by so many standard deviations.
        window: how many calm steps that are.
        patience: how many high steps in a row make a spike.
    """

    sigma: float
    window: int
    patience: int

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.window < 2 or self.patience < 1:
            raise ValueError(f"sigma = {self.sigma}, window = {self.window} and patience = {self.patience} must be "
                             "above 0, at least 2 and at least 1")  # fmt: skip


@dataclass(frozen=True)
class LoggingConfig:
    """A line on the console every `interval_batches`; wandb when a project is named.

    Attributes:
        scores_interval_batches: steps between two looks at the loss and accuracy of every language.
        tensorboard: whether to write TensorBoard's files, below the run's folder.
    """

    interval_batches: int = 10
    scores_interval_batches: int = 100
    wandb_project: str | None = None
    tensorboard: bool = False


@dataclass(frozen=True)
class RunConfig:
    """One phase. It lives in the folder `run_root/name`; `parent` is the name of the phase it continues.

    Attributes:
        seed: of the first weights and, with the phase's name, of the data order, the masks and the dropout.
        tokenizer: folder with tokenizer.json; its digest must be the shards'.
        max_seq_len: tokens of a row; the shards' row length.
        duration: tokens the phase trains on.
        global_train_batch_size: rows of one optimizer step, over all ranks.
        device_train_microbatch_size: rows that one device computes at a time; changes memory, and dropout's draws.
        max_minutes: after so long the run stops as if it were asked to; Slurm's own limit it knows by itself.
        hang_minutes: after so long without a finished step a rank shows what it hangs in, and ends.
    """

    name: str
    run_root: str
    tokenizer: str
    max_seq_len: int
    duration: Tokens
    global_train_batch_size: int
    device_train_microbatch_size: int
    mask_rate: ScheduleOf
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    learning_rate: LearningRateConfig
    checkpoint: CheckpointConfig
    seed: int = 21
    parent: str | None = None
    precision: Literal["fp32", "amp_bf16"] = "amp_bf16"
    device: Literal["auto", "cpu", "gpu"] = "auto"
    batch_size_warmup: BatchWarmupConfig | None = None
    spikes: SpikesConfig | None = None
    validation: ValidationConfig | None = None
    max_minutes: float | None = None
    hang_minutes: float = 30.0
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        check_run(self)
        check_limits(self)
        check_learning_rate(self.learning_rate, self.duration)

    @property
    def run_folder(self) -> Path:
        """Folder of this run's checkpoints."""
        return Path(self.run_root) / self.name

    @property
    def phase_seed(self) -> int:
        """63-bit seed of this phase: with its parent's it would read again the rows that the parent read first."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.name}".encode()).digest()[:8], "big") >> 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as saved in every checkpoint."""
        return asdict(self)


def check_run(config: RunConfig) -> None:
    """Refuse what no single section can see.

    Raises:
        ValueError: names the key, the value and the remedy.
    """
    check_data(config.data, config.validation.root if config.validation else None)
    check_run_root(config.run_root)
    if not re.fullmatch(r"(?!\.)[^/]+", config.name):
        raise ValueError(f"name = {config.name!r} must be the name of a folder below run_root")
    if config.parent is not None and "/" in config.parent:
        raise ValueError(
            f"parent = {config.parent!r} must be the name of a run; how to go on from one of its checkpoints stands in "
            "docs/operations.md, It stopped"
        )
    if config.parent == config.name:
        raise ValueError(f"parent = {config.parent!r} is this phase itself; name the one before, or leave `parent` out")
    if any(not 0.0 < rate < 1.0 for rate in config.mask_rate.values()):
        rates = " and ".join(f"{rate:g}" for rate in config.mask_rate.values())
        raise ValueError(f"mask_rate = {rates} must lie between 0 and 1; 15% is 0.15")
    warmup, rows = config.batch_size_warmup, config.global_train_batch_size
    if warmup is not None and warmup.start > 0 and rows % warmup.start:
        raise ValueError(f"batch_size_warmup.start = {warmup.start} must divide global_train_batch_size = {rows}: the "
                         "batch grows in steps of `start` rows")  # fmt: skip
    if config.max_seq_len > config.model.max_position_embeddings:
        raise ValueError(
            f"max_seq_len = {config.max_seq_len} is longer than model.max_position_embeddings = "
            f"{config.model.max_position_embeddings}"
        )


def check_run_root(run_root: str) -> None:
    """Refuse an object store: runs are locked and renamed in folders, and here its name would become a folder `s3:`.

    Raises:
        ValueError: names the value and the remedy.
    """
    if is_remote(run_root):
        raise ValueError(
            f"run_root = {run_root} lies in an object store: name a folder on a disk that outlives the machine, and "
            "copy from it"
        )


def check_limits(config: RunConfig) -> None:
    """Refuse numbers that are none.

    Raises:
        ValueError: names the key, the value and the remedy.
    """
    for key in ("duration", "max_seq_len", "global_train_batch_size", "device_train_microbatch_size"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key} = {getattr(config, key)} must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed = {config.seed} must be at least 0 and below 2^32 = {2**32}")
    if config.data.num_workers < 0:
        raise ValueError(f"data.num_workers = {config.data.num_workers} must be at least 0")
    positive = {
        "optimizer.lr": config.optimizer.lr,
        "data.period_rows": config.data.period_rows,
        "checkpoint.interval": config.checkpoint.interval,
        "checkpoint.keep": config.checkpoint.keep,
        "checkpoint.keep_every": config.checkpoint.keep_every,
        "max_minutes": config.max_minutes,
        "hang_minutes": config.hang_minutes,
        "logging.interval_batches": config.logging.interval_batches,
        "logging.scores_interval_batches": config.logging.scores_interval_batches,
    }
    if config.batch_size_warmup is not None:
        growing = config.batch_size_warmup
        positive |= {"batch_size_warmup.start": growing.start, "batch_size_warmup.tokens": growing.tokens}
    if config.validation is not None:
        positive |= {"validation.interval": config.validation.interval, "validation.rows": config.validation.rows}
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ValueError(f"{key} = {value} must be above 0")
    if config.checkpoint.give_up_minutes >= config.hang_minutes:
        raise ValueError(
            f"checkpoint.give_up_minutes = {config.checkpoint.give_up_minutes} must be below hang_minutes = "
            f"{config.hang_minutes}: a finished run that waits for disk space is not one that hangs"
        )


def check_learning_rate(config: LearningRateConfig, duration: int) -> None:
    """Refuse a shape that does not fit the phase, or says something that never comes true.

    Args:
        duration: tokens of the phase.

    Raises:
        ValueError: names the key, the value and the remedy.
    """
    if not 0 <= config.floor <= 1:
        raise ValueError(f"learning_rate.floor = {config.floor} must lie in [0, 1], a share of the peak")
    if config.shape == "warmup_stable_decay" and config.floor and not config.decay:
        raise ValueError(
            f"learning_rate.floor = {config.floor} is never reached, for warmup_stable_decay decays over the last "
            "learning_rate.decay tokens alone, and there are none: give learning_rate.decay, or leave the floor out"
        )
    lasting = config.warmup + config.decay
    if lasting > duration:
        raise ValueError(f"learning_rate: warmup + decay = {lasting} tokens exceed duration = {duration}; shorten "
                         "them, or raise duration")  # fmt: skip


def read_yaml(path: Path, readers: tuple[Path, ...] = ()) -> DictConfig:
    """One YAML with everything it extends, merged; paths under `extends` are relative to the file.

    Raises:
        FileNotFoundError: names the file and the one that extends it.
        ValueError: the file extends itself, or is no mapping.
    """
    path = path.resolve()
    if path in readers:
        raise ValueError(f"{path} extends itself through {readers[-1]}")
    if not path.is_file():
        asked = f", extended by {readers[-1]}: what `extends` names lies relative to that file" if readers else ""
        raise FileNotFoundError(f"no such configuration: {path}{asked}")
    try:
        own = OmegaConf.load(path)
    except OSError:  # the file cannot be read, whatever is in it
        raise
    except Exception as error:  # PyYAML's many errors: each carries the line
        raise ValueError(f"{path} is no valid YAML: {in_one_line(error)}") from None
    if not isinstance(own, DictConfig):
        raise ValueError(f"{path} must be a mapping of keys to values")
    bases = own.pop("extends", [])
    if not isinstance(bases, list | ListConfig) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: extends = {bases!r} must be a list of files, as in [common.yaml]")
    tree = OmegaConf.create()
    for upper in (*(read_yaml(path.parent / base, (*readers, path)) for base in bases), own):
        check_same_kinds(OmegaConf.to_container(tree), OmegaConf.to_container(upper), path)
        tree.merge_with(upper)
    return tree


def check_same_kinds(lower: Any, upper: Any, path: Path, key: str = "") -> None:
    """Refuse a list over a mapping, or a mapping over a list: OmegaConf cannot merge them, and does not say where.

    Args:
        lower: plain values that stand under `key` in what the file extends.
        upper: those that the file itself has there.
        path: the file.

    Raises:
        ValueError: names file and key.
    """
    if {type(lower), type(upper)} == {dict, list}:
        wanted = "a mapping of keys to values" if isinstance(lower, dict) else "a list"
        raise ValueError(f"{path}: {key} = {upper} must be {wanted}, as in what this file extends")
    if isinstance(lower, dict) and isinstance(upper, dict):
        for name in lower.keys() & upper.keys():
            check_same_kinds(lower[name], upper[name], path, join(key, name))


def in_one_line(error: Exception) -> str:
    """What PyYAML says over several lines; of a tab, which it does not name, also what to do."""
    words = " ".join(str(error).split())
    return words.replace("cannot start any token", "cannot start any token (a tab? indent with spaces)")


def is_merge(tree: DictConfig) -> bool:
    """Whether a YAML, as `read_yaml` gives it, is a merge's and no phase's."""
    return any(method in tree for method in MERGE_METHODS)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: YAML file.
        overrides: `key.sub=value`, applied last.

    Raises:
        FileNotFoundError, ValueError: one line that names the key or file, the value and the remedy.
    """
    tree = read_yaml(Path(path))
    if is_merge(tree):
        raise ValueError(f"{path} is no phase but a merge: python -m mmbert.merge {path}")
    return build_config(RunConfig, tree, path, overrides)


def build_config(cls: type[T], tree: DictConfig, path: str | Path, overrides: Sequence[str]) -> T:
    """Any YAML of ours, as `read_yaml` gives it, as its dataclass; see `load_config`. Overrides are put into `tree`."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{override!r} is no override; write key.sub=value")
        try:
            parsed = OmegaConf.to_container(OmegaConf.create(f"value: {value}"))["value"]  # type: ignore[call-overload, index]
        except Exception as error:  # PyYAML's many errors
            raise ValueError(f"{override!r} is no valid YAML: {in_one_line(error)}") from None
        try:
            OmegaConf.update(tree, key, parsed, merge=True, force_add=True)
        except IndexError:  # of "[", in which OmegaConf finds no key
            raise ValueError(f"{override!r} is no override; write key.sub=value") from None
        except TypeError:
            raise ValueError(
                f"{override!r}: a list cannot take the place of a mapping, nor a mapping that of a list"
            ) from None
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    try:
        return build(cls, plain, others=["extends"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
