"""The engine: bundle in, verdicts out. Never imports torch."""

from steelsight.engine.cascade import Inspector

__all__ = ["Inspector"]
