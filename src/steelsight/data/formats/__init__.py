"""Label formats, one module each."""
