"""What the finished phases of a run left behind, read into one record for each phase."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert.checkpoint import newest_checkpoint, read_state
from mmbert.file_contents import sha256_of
from mmbert.json_files import read_json
from mmbert.streams import language_of

BITS_PER_BYTE = "python -m mmbert.evaluation.bits_per_byte"
CONVERT = "python -m mmbert.convert_to_hf"
CONVERTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class PhaseRecord:
    """One phase: what it was to do, what it did, and what its model scores. What was merged or imported did nothing.

    Attributes:
        tokens: trained on so far; 0 of what was merged or imported.
        finished: the phase reached its duration.
        tau: exponent of the language temperature, its last value; None where nothing was trained.
        mask_rate: its last value; None where nothing was trained.
        planned_share: share of the tokens that the mixture plans for each language of the phase.
        tokens_per_language: tokens that the phase trained on, of every language.
        bits_per_byte: of every held-out language, after the phase.
        hf_max_logit_difference: largest difference between the logits of the trained and the converted model.
        parent: the phase that it continued; None for none, or where nothing was trained.
    """

    name: str
    tokens: int
    finished: bool
    tau: float | None
    mask_rate: float | None
    planned_share: dict[str, float]
    tokens_per_language: dict[str, int]
    bits_per_byte: dict[str, float]
    hf_max_logit_difference: float
    parent: str | None

    @property
    def languages(self) -> list[str]:
        """Languages of the phase's mixture."""
        return list(self.planned_share)

    @property
    def realised_share(self) -> dict[str, float]:
        """Share of the phase's tokens that each language of the mixture really had."""
        total = sum(self.tokens_per_language.values())
        return {language: self.tokens_per_language[language] / total for language in self.planned_share}

    @property
    def max_share_deviation(self) -> float:
        """Largest difference between a language's planned and realised share of all tokens; 0 of no languages."""
        realised = self.realised_share
        return max((abs(realised[language] - planned) for language, planned in self.planned_share.items()), default=0.0)


def is_whole(folder: Path) -> bool:
    """Whether a converted model has all that it is loaded from; its card, somebody may have moved away to keep it."""
    return all((folder / name).is_file() for name in CONVERTED)


def sum_by_language(per_stream: dict[str, float]) -> dict[str, float]:
    """Add up the streams of each language."""
    sums: dict[str, float] = {}
    for stream, number in per_stream.items():
        sums[language_of(stream)] = sums.get(language_of(stream), 0) + number
    return sums


def read_phase(folder: Path, evaluation: dict[str, Any]) -> PhaseRecord:
    """Read one phase.

    Args:
        folder: the phase's run folder.
        evaluation: content of its bits_per_byte.json.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken, the phase has not trained on anything yet, or what
            was evaluated is not what it ended with.
    """
    checkpoint = newest_checkpoint(folder)
    state = read_state(checkpoint)
    is_trained = state["tokens"] > 0
    if not is_trained and not state["finished"]:
        raise ValueError(f"{folder} has a checkpoint of 0 tokens; train the phase first")
    conversion = read_json(folder / "hf" / "conversion.json", CONVERT)
    if conversion["model_sha256"] != evaluation["inputs"]["model"]["model.safetensors"]:
        raise ValueError(
            f"{folder / 'bits_per_byte.json'} was measured on another model than {folder / 'hf'}; run {BITS_PER_BYTE} "
            "again"
        )
    # While a phase trains there is always a newer checkpoint; that its numbers are of an earlier one is told.
    if state["finished"] and conversion["checkpoint_sha256"] != sha256_of(checkpoint / "manifest.json"):
        raise ValueError(
            f"{folder / 'hf'} was converted from {conversion['checkpoint']}, which is not {checkpoint} as it is now; "
            f"run {CONVERT} again, and then {BITS_PER_BYTE}"
        )
    tokens = sum_by_language(state["tokens_per_stream"])
    return PhaseRecord(
        name=folder.name,
        tokens=state["tokens"],
        finished=state["finished"],
        tau=state["tau"] if is_trained else None,
        mask_rate=state["mask_rate"] if is_trained else None,
        planned_share=sum_by_language(state["planned_share"]) if is_trained else {},
        tokens_per_language={language: int(number) for language, number in tokens.items()},
        bits_per_byte={language: scores["bits_per_byte"] for language, scores in evaluation["languages"].items()},
        hf_max_logit_difference=conversion["hf_max_logit_difference"],
        parent=state["config"].get("parent"),
    )


def read_phases(run_root: Path, names: list[str]) -> list[PhaseRecord]:
    """Read the phases in the order in which they were trained.

    Raises:
        FileNotFoundError, ValueError: a phase or one of its files is missing, or the phases' bits per byte do not
            compare because they were measured on other text.
    """
    for name in names:
        if not (run_root / name).is_dir():
            present = sorted(folder.name for folder in run_root.glob("*") if folder.is_dir())
            raise FileNotFoundError(f"phase {name} is missing: {run_root} holds {', '.join(present) or 'no phase'}")
    evaluations = {name: read_json(run_root / name / "bits_per_byte.json", BITS_PER_BYTE) for name in names}
    first = evaluations[names[0]]["inputs"]
    for name, evaluation in evaluations.items():
        for key in ("shards", "rows"):
            if evaluation["inputs"][key] != first[key]:
                raise ValueError(
                    f"{run_root / name / 'bits_per_byte.json'} was measured with other {key} than {names[0]}'s, so the "
                    f"two do not compare; run {BITS_PER_BYTE} again for both"
                )
    return [read_phase(run_root / name, evaluations[name]) for name in names]
