"""The engine: bundle in, verdicts out. Never imports torch."""
