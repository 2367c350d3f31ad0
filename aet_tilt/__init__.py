"""Atomic electron tomography from tilt series."""
