"""The benchmark: how fast the whole pipeline is on this machine, and compared with others."""
