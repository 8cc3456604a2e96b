"""Data sets: formats, catalogues and drawn strips with known truth."""
