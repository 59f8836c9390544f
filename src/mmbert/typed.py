"""Plain values (dicts, lists, numbers, strings) -> frozen dataclasses, strictly.

A field of type `Annotated[int, parse]` has its written value given to `parse` before the type of that is checked.
"""
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from functools import cache, partial
from math import isfinite
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

hints_of: Callable[[type], dict[str, Any]] = cache(partial(get_type_hints, include_extras=True))
"""The types of a class' fields, found out once: a manifest builds a hundred thousand of one class."""


def whole_number(value: Any, units: Mapping[str, int]) -> int | None:
    """A whole number, not negative: 4096, 1e9, or with a unit, which stands for a power of ten; None if it is none."""
    text = str(value).strip().upper()
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        number = Decimal(text.removesuffix(unit)).scaleb(units.get(unit, 0))
    except InvalidOperation:
        return None
    is_whole = number.is_finite() and number >= 0 and number == number.to_integral_value()
    return int(number) if is_whole and not isinstance(value, bool) else None


def build(cls: type[T], value: Any, path: str = "", others: Sequence[str] = ()) -> T:
    """Build the dataclass `cls` from a mapping.

    Args:
        others: keys that were taken out of the mapping before, and may be what an unknown one means.

    Raises:
        ValueError: a key is unknown (the nearest right name is given, or all of them), missing, or of the wrong type;
            the message begins with the key's full path.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{path} = {value!r} must be a mapping with the keys {', '.join(f.name for f in fields(cls))}")  # type: ignore[arg-type]
    hints = hints_of(cls)
    for key in value:
        if key not in hints:
            near = get_close_matches(str(key), [*hints, *others], n=1) or nested(hints, key, path)
            told = f"did you mean {' or '.join(near)}?" if near else f"the keys here are {', '.join(hints)}"
            raise ValueError(f"unknown key {join(path, key)}; {told}")
    for spec in fields(cls):  # type: ignore[arg-type]
        if spec.name not in value and spec.default is MISSING and spec.default_factory is MISSING:
            raise ValueError(f"missing key {join(path, spec.name)}")
    members = {key: member(hints[key], item, join(path, key)) for key, item in value.items()}
    try:
        return cls(**members)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path else str(error)) from None


def nested(hints: Mapping[str, Any], key: Any, path: str) -> list[str]:
    """Full paths of the sections that have `key`: what is indented too little stands a level too high."""
    sections = {name: kind for name, hint in hints.items() for kind in (hint, *get_args(hint)) if is_dataclass(kind)}
    return [join(path, f"{name}.{key}") for name, kind in sections.items() if key in get_type_hints(kind)]


def join(path: str, key: Any) -> str:
    """`model` and `vocab_size` -> `model.vocab_size`."""
    return f"{path}.{key}" if path else str(key)


def member(hint: Any, value: Any, path: str) -> Any:
    """Check and build one value against its type; see `build`."""
    if hint is type(value) and hint in (int, str):  # nearly all of a manifest's values, of which there are millions
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, parse = arguments
        try:
            parsed = parse(value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return member(kind, parsed, path)
    if origin in (Union, types.UnionType):
        return one_of(arguments, value, path)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{path} = {value!r} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (list, tuple, dict):
        return container(hint, value, path)
    if is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    return scalar(hint, value, path)


def container(hint: Any, value: Any, path: str) -> Any:
    """A list or dict of one type, or a tuple with a type for each place."""
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is list and isinstance(value, list):
        return [member(kinds[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(kinds):
        pairs = zip(kinds, value, strict=True)
        return tuple(member(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(pairs))
    if origin is dict and isinstance(value, dict):
        keys = [member(kinds[0], key, f"a key of {path}") for key in value]  # YAML reads 1, true and null as no text
        return {key: member(kinds[1], item, join(path, key)) for key, item in zip(keys, value.values(), strict=True)}
    wanted = {list: "a list, as in [a, b]", tuple: f"a list of {len(kinds)}", dict: "a mapping of names"}[origin]
    raise ValueError(f"{path} = {value!r} must be {wanted}")


def one_of(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """A union: None, a list, or the one kind that is left."""
    if value is None and type(None) in kinds:
        return None
    containers = [kind for kind in kinds if get_origin(kind) is list]
    if containers and isinstance(value, list):
        return member(containers[0], value, path)
    rest = [kind for kind in kinds if kind is not type(None) and kind not in containers]
    return member(rest[0], value, path)


def scalar(hint: Any, value: Any, path: str) -> Any:
    """A bool, int, finite float or str; an int is a float, nothing else changes its type."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        name = getattr(hint, "__name__", str(hint))
        raise ValueError(f"{path} = {value!r} must be of type {name}{remedy(hint, value)}")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{path} = {value!r} must be a finite number")
    return value


def remedy(hint: Any, value: Any) -> str:
    """What to write where YAML, or the user, means another type than the key's; empty where there is no telling."""
    if hint is str and isinstance(value, bool):
        return "; YAML takes no, off, yes, on, true and false for that: put a name in quotes"
    if hint is str and isinstance(value, int | float):
        return "; put it in quotes"
    if hint in (int, float) and isinstance(value, str):
        return "; write a number without quotes or unit" + (", 0.05 for 5%" if hint is float else "")
    return ""
