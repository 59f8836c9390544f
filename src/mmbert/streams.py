"""The streams of a phase and their groups, from its configuration alone."""
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmbert.config import RunConfig
from mmbert.file_contents import seen_from
from mmbert.mixture import Group


def source_of(name: str) -> str:
    """Of the stream `source/language`."""
    return name.rpartition("/")[0]


def language_of(name: str) -> str:
    """Of the stream `source/language`; a language may come from several sources."""
    return name.rpartition("/")[2]


def read_languages(entries: Sequence[str], key: str) -> list[str]:
    """Language codes; an entry that ends in `.txt` is a file with one code a line and `#` comments.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no language, or one twice; or a file is not UTF-8.
    """
    codes: list[str] = []
    for entry in entries:
        path = Path(entry)
        if path.suffix != ".txt":
            codes.append(entry)
        elif path.is_file():
            try:
                content = path.read_text(encoding="utf-8-sig")  # Windows begins a file with a byte order mark
            except UnicodeDecodeError:
                raise ValueError(f"{key}: {path} is not UTF-8: convert it, say with iconv") from None
            lines = (line.partition("#")[0].strip() for line in content.splitlines())
            codes += [code for code in lines if code]
        else:
            raise FileNotFoundError(f"{key}: no such file: {path}{seen_from(path)}")
    twice = sorted(code for code, number in Counter(codes).items() if number > 1)
    if twice or not codes:
        fault = f"listed twice: {', '.join(twice)}" if twice else "no language; name one, or leave the section out"
        raise ValueError(f"{key}: {fault}")
    return codes


def mixture_streams(config: RunConfig) -> tuple[tuple[tuple[str, str], ...], tuple[Group, ...]]:
    """Source and language of every stream, and the mixture table over their indices.

    Raises:
        FileNotFoundError, ValueError: see `read_languages`; or a stream stands in two groups.
    """
    streams: dict[tuple[str, str], None] = {}
    groups = []
    for name, group in sorted(config.data.groups().items()):  # sorted, so that their order in files means nothing
        key = f"data.mixture.{name}"
        start, languages = len(streams), sorted(read_languages(group.languages, f"{key}.languages"))
        for language in languages:
            stream = (group.source, language)
            if stream in streams:
                raise ValueError(f"{key}: {'/'.join(stream)} stands in two groups; a stream belongs to one")
            streams[stream] = None
        members = np.arange(start, len(streams))
        groups.append(Group(name, group.share, group.tau, group.max_repeats, members, group.floor, languages))
    return tuple(streams), tuple(groups)
