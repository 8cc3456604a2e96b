"""The exception tree.

Every message says three things in one line: what was expected, what was received, and what to do.
The command line prints that line and exits; nothing below ``SteelsightError`` reaches a user as a
traceback.
"""

from steelsight.defects import Reason


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
