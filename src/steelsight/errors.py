"""The exception tree.

Every message says three things in one line: what was expected, what was received, and what to do.
The command line prints that line and exits; nothing below ``SteelsightError`` reaches a user as a
traceback.
"""

from collections.abc import Iterable

from steelsight.defects import Reason

_MAX_NAME_CHARACTERS = 60


class SteelsightError(Exception):
    """Base of every error this package raises on purpose; its text is one line for an operator."""


class InputError(SteelsightError):
    """An argument, path or option is not usable as given."""


class LabelError(InputError):
    """A label file or mask breaks its format; the text names file, row, image and value."""


class BundleError(SteelsightError):
    """A model bundle is incomplete, altered, or does not fit this version."""


class EngineError(SteelsightError):
    """An inference engine is not installed, or failed while running."""


class StoreError(SteelsightError):
    """A file of results cannot be read or written, is damaged, or belongs to another writer."""


class GateError(SteelsightError):
    """A quality gate refused to go on (parity, accuracy); the command line exits with code 4."""


class DecodeError(SteelsightError):
    """One image cannot be trusted; becomes verdict UNKNOWN with ``reason``.

    Attributes:
        reason: the code written to the result line.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def one_line(error: Exception) -> str:
    """The text of somebody else's exception, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def escaped(text: str) -> str:
    r"""Control characters, line ends and undecodable bytes as ``\x1b``, all else as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_names(names: Iterable[str], most: int = 10) -> str:
    """Names for a message, as many as one line can take: ``1, 2, 3 and 40 more``.

    Args:
        names: as others chose them; a long one is cut, control characters are escaped.
        most: how many are told.
    """
    names = tuple(names)
    told = []
    for name in names[:most]:
        line = escaped(name[: _MAX_NAME_CHARACTERS + 1])
        whole = len(line) <= _MAX_NAME_CHARACTERS
        told.append(line if whole else f"{line[: _MAX_NAME_CHARACTERS - 3]}...")
    return ", ".join(told) + (f" and {len(names) - most} more" if len(names) > most else "")
