"""Atoms: tracing them in a volume, refining them against images, comparing them."""
