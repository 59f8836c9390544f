"""Which module may import which, read from the syntax trees (docs/architecture.md)."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"schedules", "mixture", "row_order", "masking", "packing", "spikes", "head_chunks", "fixed_masks"}
    | {"atomic", "command", "file_contents", "json_files", "processes", "stop_request"}
    | {"run_lock", "watchdog"},
    {"config", "data_config", "typed", "flops", "device_peaks", "clock", "streams", "identity", "languages"}
    | {"page_style", "merge_config"},
    {"model", "attention", "banded_attention", "linear", "rope", "geglu", "linear_cross_entropy", "head_kernel"}
    | {"tokenizer", "manifest", "shards", "mds_samples", "heldout", "checkpoint_files", "object_store", "remote_rows"}
    | {"merging", "device"},
    {"trainer", "mlm", "optim", "data", "batch_memory", "ranks", "checkpoint", "ledger", "ledger_lines"}
    | {"ledger_audit", "scores", "validation", "loggers", "finished", "untrained_run"},
    {"convert_to_hf", "import_from_hf", "published_model", "recipe_table", "evaluation", "launch", "benchmark"}
    | {"plan", "run_report", "published_shares", "preflight", "stages", "status", "merge", "merge_inputs"}
    | {"model_card", "show_rows", "change_vocabulary"},
]
OUTSIDE = {"composer", "streaming", "torch", "transformers", "optimi", "omegaconf"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "mmbert").parts[0].removesuffix(".py")


def level(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


MODULES = sorted(path for path in (ROOT / "src" / "mmbert").rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_its_own_layer_or_below(path: Path) -> None:
    own = level(module_of(path))
    for name in imports(path):
        package, _, rest = name.partition(".")
        assert package not in {"callbacks", "data_prep", "main"}, f"{path} imports {name}"
        if package == "mmbert" and rest:
            assert level(rest.partition(".")[0]) <= own, f"{path} imports {name}"


@pytest.mark.parametrize("module", sorted(LAYERS[0]))
def test_the_maths_needs_numpy_at_most(module: str) -> None:
    packages = {name.partition(".")[0] for name in imports(ROOT / "src" / "mmbert" / f"{module}.py")}
    assert not packages & OUTSIDE


def test_data_preparation_and_callbacks_do_not_know_each_other() -> None:
    for package, stranger in (("data_prep", "callbacks"), ("callbacks", "data_prep")):
        for path in (ROOT / package).glob("*.py"):
            assert stranger not in {name.partition(".")[0] for name in imports(path)}
