"""Reading and writing; the only place where foreign conventions are translated."""

from common.io.atoms import read_atoms, read_cif, read_xyz, write_cif, write_xyz
from common.io.files import atomic_write, sha256
from common.io.inspection import peek
from common.io.mrc import read_volume, write_images, write_volume
from common.io.particle_file import ParticleFile
from common.io.particles import read_particles
from common.io.particles_star import write_particles_star
from common.io.stack_checks import check_stack

__all__ = [
    "ParticleFile",
    "atomic_write",
    "check_stack",
    "peek",
    "read_atoms",
    "read_cif",
    "read_particles",
    "read_volume",
    "read_xyz",
    "sha256",
    "write_cif",
    "write_images",
    "write_particles_star",
    "write_volume",
    "write_xyz",
]
