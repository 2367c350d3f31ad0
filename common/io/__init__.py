"""Reading and writing; the only place where foreign conventions are translated."""

from common.io.files import atomic_write, sha256
from common.io.mrc import read_volume, write_images, write_volume
from common.io.particle_file import ParticleFile
from common.io.particles import read_particles

__all__ = [
    "ParticleFile",
    "atomic_write",
    "read_particles",
    "read_volume",
    "sha256",
    "write_images",
    "write_volume",
]
