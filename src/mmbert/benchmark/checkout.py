"""One file of a checkout of ModernBERT, as a module: the peer's own code, run as it is."""
import importlib.util
from pathlib import Path
from types import ModuleType


def load_module(checkout: Path, name: str) -> ModuleType:
    """ModernBERT's src/`name`.py.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or a package that it needs is missing.
    """
    path = checkout / "src" / f"{name}.py"
    if not path.is_file():
        raise FileNotFoundError(f"--modernbert {checkout}: no src/{name}.py; name a checkout of ModernBERT")
    spec = importlib.util.spec_from_file_location(f"modernbert_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        missing = error.name
        raise ValueError(f"--modernbert {checkout} needs {missing}: pip install {missing}, or leave it out") from None
    return module
