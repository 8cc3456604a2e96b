"""Results that stay: every inspection of every run in one SQLite file."""
