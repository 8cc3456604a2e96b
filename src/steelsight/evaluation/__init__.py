"""How good a network is, and which thresholds follow from it. Never imports torch."""
