"""Many frames: which files there are, and results in order while the next frames are decoded."""

import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from steelsight.defects import Inspection
from steelsight.engine.cascade import Inspector
from steelsight.errors import InputError
from steelsight.imaging import IMAGE_SUFFIXES, Frame


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that must get a result line."""

    name: str
    """Path relative to the inspected folder, with ``/``; see ``shown_name``."""
    path: Path


class Inspected(NamedTuple):
    """A result, and the decoded frame it belongs to (``None`` where decoding was refused)."""

    inspection: Inspection
    frame: Frame | None


def find_sources(inputs: Sequence[Path], *, leave_out: Path | None = None) -> list[Source]:
    """Every file under the given paths, sorted by name, so that nothing is lost unseen.

    Folders are walked to their ends. Names that begin with a dot are left out. Also listed, and
    later UNKNOWN: folders named like an image, links to folders, folders that cannot be read.

    Args:
        inputs: files and folders.
        leave_out: a folder not to walk into (the run's own output).

    Raises:
        InputError: a path does not exist, or there is no file at all.
    """
    for given in inputs:
        # Path.exists raises where the name is too long.
        if not os.path.exists(given):  # noqa: PTH110
            raise InputError(f"expected an image or a folder, {given} does not exist")
    # Without "..", which no table of results accepts in a name.
    paths = [p.resolve() if p.is_dir() else p.parent.resolve() / p.name for p in inputs]
    base = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
    found: dict[str, Source] = {}
    for given in paths:
        for path in _walk(given, leave_out) if given.is_dir() else [given]:
            name = shown_name(path.relative_to(base))
            found[name] = Source(name, path)
    if not found:
        raise InputError(
            f"expected images in {', '.join(map(str, inputs))}, found no file; check the path"
        )
    return sorted(found.values(), key=lambda source: source.name)


def count_hidden(inputs: Sequence[Path]) -> int:
    """Files that ``find_sources`` leaves out, because a name on their way begins with a dot."""
    return sum(
        len(files)
        if any(part.startswith(".") for part in Path(here).relative_to(given).parts)
        else sum(name.startswith(".") for name in files)
        for given in inputs
        if given.is_dir()
        for here, _, files in os.walk(given)
    )


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    unreadable: list[Path] = []

    def note(error: OSError) -> None:
        unreadable.append(Path(error.filename))

    for here, folders, files in os.walk(folder, onerror=note):
        parent = Path(here)
        for name in list(folders):
            path = parent / name
            if name.startswith(".") or (leave_out and path.resolve() == leave_out.resolve()):
                folders.remove(name)
            elif path.is_symlink() or path.suffix.lower() in IMAGE_SUFFIXES:
                yield path
        yield from (parent / name for name in files if not name.startswith("."))
    yield from unreadable


def shown_name(path: Path) -> str:
    """A relative path as results carry it: with ``/``, on one line, valid in every output.

    Names with control characters, backslashes, a drive-like start, or bytes that are no UTF-8 are
    percent-encoded as a whole; all others stay as they are.
    """
    name = path.as_posix()
    # Also encoded: a plain name that could be the encoded form of another one.
    strange = re.search("^[A-Za-z]:|%[0-9A-Fa-f]{2}|\\\\", name)
    plain = name.isprintable() and not strange
    return name if plain else quote(os.fsencode(name))


def inspect_sources(inspector: Inspector, sources: Sequence[Source]) -> Generator[Inspected]:
    """One result per source, in order."""
    pairs = ((source.path, source.name) for source in sources)
    # Closed with this generator, whatever happens: its threads end.
    with closing(inspector.inspect_ahead(pairs)) as results:
        for taken, inspection in results:
            yield Inspected(inspection, taken.frame)
