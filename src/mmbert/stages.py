"""The jobs of a chain of phases, in an order in which they can run: python -m mmbert.stages CONFIG ... [key=value ...]

Each phase is trained, converted, and evaluated where it names a `validation`; a merge is made where a phase would be
trained; a report, of two evaluations or more, is the last. One line a stage, for slurm/all_phases.sh: name, result,
`done` or `todo`, the stages that it needs, and the arguments of Python, between tabs.
"""
import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mmbert.checkpoint import step_folders
from mmbert.checkpoint_files import read_state
from mmbert.command import errors_in_one_line, yamls_and_overrides
from mmbert.config import RunConfig, ValidationConfig, build_config, is_merge, read_yaml
from mmbert.data_config import is_remote
from mmbert.evaluation.run_records import BITS_PER_BYTE, CONVERT, is_whole
from mmbert.file_contents import sha256_of
from mmbert.finished import check_begun, is_finished
from mmbert.json_files import read_json
from mmbert.manifest import list_languages, read_manifest, stream_folder
from mmbert.merge_config import MergeConfig, of_merges
from mmbert.merge_inputs import is_merged

AnyConfig = RunConfig | MergeConfig

ARGUMENTS = "YAMLs of phases and merges, parents first; key.sub=value for all phases, and for a merge that has the key"


@dataclass(frozen=True)
class Stage:
    """One job.

    Attributes:
        result: what it writes; names the job among all of a user's.
        needs: names of the stages that must be done before.
        arguments: of Python, from the root of the repository.
    """

    name: str
    result: Path
    needs: tuple[str, ...]
    arguments: tuple[str, ...]
    is_done: bool

    def line(self) -> str:
        """For the shell; no part may hold a tab or be empty.

        Raises:
            ValueError: the shell would take the name for several, or not for a job's.
        """
        if not re.fullmatch(r"[A-Za-z0-9._+=-]+", self.name):
            raise ValueError(f"name = {self.name!r} cannot be that of a job: take letters, digits and ._+=- alone")
        state, needs = "done" if self.is_done else "todo", ",".join(self.needs) or "-"
        return "\t".join((self.name, str(self.result.absolute()), state, needs, *self.arguments))


def training(path: str, config: RunConfig, overrides: Sequence[str], earlier: Sequence[Stage]) -> Stage:
    """Train one phase.

    Raises:
        ValueError: it has not begun, and its parent is neither finished nor among the earlier ones; or it has, and its
            parent would be made anew, or training would not go on with it.
    """
    parent = config.parent
    needs = tuple(stage.name for stage in earlier if stage.name == parent)
    has_begun = bool(step_folders(config.run_folder))  # then it goes on from its own checkpoints
    if parent and not needs and not has_begun and not has_ended(Path(config.run_root) / parent):
        raise ValueError(f"{path}: its parent {parent} has not run to its end; name the YAML of {parent} before it")
    if has_begun and any(stage.name == parent and not stage.is_done for stage in earlier):
        raise ValueError(
            f"{path}: {config.run_folder} has trained, and its parent {parent} is not there whole, so it would be made "
            f"anew: leave the YAML of {parent} out, or move {config.run_folder} away to train it again, too"
        )
    check_begun(config)
    return Stage(config.name, config.run_folder, needs, ("main.py", path, *overrides), is_finished(config))


def has_ended(run_folder: Path) -> bool:
    """Whether the newest checkpoint of a run is its last."""
    return any(read_state(newest)["finished"] for newest in step_folders(run_folder)[:1])


def merging(path: str, config: MergeConfig, overrides: Sequence[str], earlier: Sequence[Stage]) -> Stage:
    """Merge runs.

    Raises:
        FileExistsError, ValueError: one of them is not among the earlier ones, and has not ended, or lacks the
            checkpoint that is named; or see `is_merged`.
    """
    needs = tuple(stage.name for stage in earlier if stage.name in config.runs)
    for entry in config.entries:
        run, _, step = entry.partition("/")
        folder = Path(config.run_root) / entry
        if run not in needs and not (folder.is_dir() if step else has_ended(folder)):
            wanted = "is not there" if step else "has not run to its end"
            raise ValueError(f"{path}: {entry}, which it merges, {wanted}; name the YAML of {run} before it")
    arguments = ("-m", "mmbert.merge", path, *of_merges(overrides))
    return Stage(config.name, config.run_folder, needs, arguments, is_merged(config))


def conversion(config: AnyConfig, trained: Stage) -> Stage:
    """Convert a phase, or what was merged, to Hugging Face."""
    folder = config.run_folder / "hf"
    arguments = ("-m", "mmbert.convert_to_hf", "--checkpoint", str(config.run_folder), "--output", str(folder))
    return Stage(f"{config.name}-hf", folder, (trained.name,), arguments, trained.is_done and is_converted(config))


def is_converted(config: AnyConfig) -> bool:
    """Whether the converted model is that of the newest checkpoint; no file of either is hashed again for this."""
    record, folders = config.run_folder / "hf" / "conversion.json", step_folders(config.run_folder)
    if not record.is_file() or not folders or not is_whole(record.parent):
        return False
    return read_json(record, CONVERT).get("checkpoint_sha256") == sha256_of(folders[0] / "manifest.json")


def evaluation(config: AnyConfig, converted: Stage) -> list[Stage]:
    """Score the held-out text of all languages, if the phase names any; as much of each as its `validation` reads.

    Raises:
        ValueError: it lies in an object store.
    """
    validation = config.validation
    if validation is None:
        return []
    if is_remote(validation.root):
        raise ValueError(
            f"{config.name}: validation.root = {validation.root} lies in an object store, and the evaluation of "
            "converted models lists a folder: name one with the held-out rows, or give --train-only"
        )
    result = config.run_folder / "bits_per_byte.json"
    arguments = ["--model", str(converted.result), "--shards", validation.root, "--source", validation.source]
    if validation.rows is not None:
        arguments += ["--rows", str(validation.rows)]
    is_done = converted.is_done and is_evaluated(config, validation, result)
    return [Stage(
        f"{config.name}-bits", result, (converted.name,),
        ("-m", "mmbert.evaluation.bits_per_byte", *arguments, "--output", str(result)), is_done,
    )]  # fmt: skip


def is_evaluated(config: AnyConfig, validation: ValidationConfig, result: Path) -> bool:
    """Whether the converted model was scored, on what the YAML names and on the rows that are there now."""
    if not result.is_file():
        return False
    scored = read_json(result, BITS_PER_BYTE)
    model = read_json(config.run_folder / "hf" / "conversion.json", CONVERT).get("model_sha256")
    inputs = scored.get("inputs", {})
    return (
        inputs.get("model", {}).get("model.safetensors") == model
        and (scored.get("source"), inputs.get("rows")) == (validation.source, validation.rows)
        and heldout_digests(validation) in (None, inputs.get("shards"))
    )


def heldout_digests(validation: ValidationConfig) -> dict[str, str] | None:
    """Digest of each language's held-out rows; None where they cannot be read from here."""
    root, source = Path(validation.root), validation.source
    try:
        languages = list_languages(root, "heldout", source)
        return {name: read_manifest(stream_folder(root, "heldout", source, name)).digest for name in languages}
    except (OSError, ValueError):
        return None  # whoever evaluates will say what is missing


def report(run_root: str, phases: Sequence[str], evaluated: Sequence[Stage]) -> Stage:
    """One page of all that was evaluated."""
    result = Path(run_root) / "report.html"
    arguments = ("-m", "mmbert.evaluation.report", "--run-root", run_root, "--phases", *phases, "--output", run_root)
    is_done = all(stage.is_done for stage in evaluated) and is_newer(result, [stage.result for stage in evaluated])
    return Stage("report", result, tuple(stage.name for stage in evaluated), arguments, is_done)


def is_newer(result: Path, sources: Sequence[Path]) -> bool:
    """Whether it is there and younger than what it was made from."""
    return result.is_file() and all(result.stat().st_mtime >= source.stat().st_mtime for source in sources)


def stages(paths: Sequence[str], overrides: Sequence[str] = (), train_only: bool = False) -> list[Stage]:
    """All stages of these phases, each behind what it needs.

    Args:
        paths: YAMLs of phases and merges, parents first.
        overrides: `key.sub=value`, for every phase, and for a merge where it has the key.

    Raises:
        FileNotFoundError, ValueError: a configuration cannot be read, a parent is missing, the run roots or the texts
            that are evaluated differ, or two names do not.
    """
    configs = load_all(paths, overrides)
    if len(roots := sorted({config.run_root for config in configs})) > 1:
        raise ValueError(f"the phases of a chain share one run_root, not {' and '.join(roots)}")
    names = [config.name for config in configs]
    if twins := [path for path, name in zip(paths, names, strict=True) if names.count(name) > 1]:
        raise ValueError(f"{' and '.join(twins)} have the same name, and so one run folder; give each its own `name`")
    if train_only:
        paths = [path for path, config in zip(paths, configs, strict=True) if isinstance(config, RunConfig)]
        configs = [config for config in configs if isinstance(config, RunConfig)]
    found: list[Stage] = []
    for path, config in zip(paths, configs, strict=True):
        if isinstance(config, MergeConfig):
            found.append(merging(path, config, overrides, found))
        else:
            found.append(training(path, config, overrides, found))
    if train_only:
        return found
    for config, trained in zip(configs, tuple(found), strict=True):
        converted = conversion(config, trained)
        found += [converted, *evaluation(config, converted)]
    evaluated = [stage for stage in found if stage.result.name == "bits_per_byte.json"]
    if len(evaluated) < 2:
        return found
    validations = {config.name: config.validation for config in configs if config.validation}
    check_comparable(validations)
    return [*found, report(roots[0], list(validations), evaluated)]


def check_comparable(validations: Mapping[str, ValidationConfig]) -> None:
    """Refuse phases whose scores the report could not compare.

    Args:
        validations: phase -> its section.

    Raises:
        ValueError: they are to be evaluated on different text; names two phases.
    """
    (first, reference), *others = validations.items()
    for key, (name, validation) in product(("root", "source", "rows"), others):
        if (own := getattr(validation, key)) != (wanted := getattr(reference, key)):
            raise ValueError(
                f"validation.{key} = {own} of {name} is {wanted} in {first}, and the report compares what both score: "
                f"give all phases one (validation.{key}=...), or --train-only"
            )


def load_all(paths: Sequence[str], overrides: Sequence[str]) -> list[AnyConfig]:
    """Phases and merges.

    Raises:
        FileNotFoundError, ValueError: a configuration cannot be read, or an override is none of any of them.
    """
    trees = [read_yaml(Path(path)) for path in paths]
    for_merges = of_merges(overrides)
    if all(map(is_merge, trees)) and (others := [text for text in overrides if text not in for_merges]):
        raise ValueError(f"{others[0]}: a merge has no such key; leave it out")
    return [
        build_config(MergeConfig, tree, path, for_merges)
        if is_merge(tree)
        else build_config(RunConfig, tree, path, overrides)
        for path, tree in zip(paths, trees, strict=True)
    ]


def main() -> None:
    """Print the stages; a mistake of the user ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m mmbert.stages", description="The jobs of a chain of phases.")
    parser.add_argument("--train-only", action="store_true", help="no merge, conversion, evaluation and report")
    parser.add_argument("arguments", nargs="+", metavar="CONFIG", help=ARGUMENTS)
    options = parser.parse_args()
    with errors_in_one_line():
        for stage in stages(*yamls_and_overrides(options.arguments), options.train_only):
            print(stage.line())


if __name__ == "__main__":
    main()
