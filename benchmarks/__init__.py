"""Measure the system against named peers; each script prints JSON lines."""
