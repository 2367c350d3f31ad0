"""From a tilt series to atoms with species and sigmas: the whole road, a page of assignments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms

from aet_tilt.alignment import AlignmentState, align, start_poses
from aet_tilt.film import about_one_axis, film_held_out_r1, map_film, trace_film
from aet_tilt.focus import FoundFocus, find_focus
from aet_tilt.found_mask import particle_radius
from aet_tilt.maps import Maps, check_method, first_volume, make_maps
from aet_tilt.preprocessing import Preprocessed, for_reconstruction, preprocess
from aet_tilt.reconstruction.few_images import fill_crystal
from aet_tilt.reconstruction.lattice_search import crystal_of
from aet_tilt.reconstruction.methods import MethodOrAuto
from aet_tilt.result import Fitted, Reconstruction, with_atoms, with_structure
from aet_tilt.settings import Settings
from aet_tilt.verification import VerificationSettings, check_can_verify, compare_images, difference, simulated_series
from common.atoms.peaks import find_peaks
from common.atoms.species import assign_species
from common.atoms.spot_count import settle_count
from common.atoms.spot_model import predict_images, refined_atoms, spot_model
from common.atoms.spots import SpotState, refine_spots
from common.data import ImageStack, InputError, Poses
from common.iteration import Observer, Under, run_stage

_MATCHING = 0.6  # correlation of images with atoms of the right lattice, at least


def reconstruct(
    stack: ImageStack,
    poses: Poses,
    settings: Settings,
    *,
    observers: Sequence[Observer] = (),
) -> Reconstruction:
    """Find the atoms of a specimen from a tilt series.

    Parameters
    ----------
    stack : m raw images, brighter where there is more matter; poses : nominal.
    observers : see every state of every loop; they may resume a run.

    Raises
    ------
    InputError : the images cannot be used; one line.
    """
    check_can_verify(settings.elements, settings.verification)
    if settings.method == "discrete":
        return fill_lattice_sites(stack, poses, settings, observers)
    check_method(stack, settings.method)
    clean = preprocess(stack, poses, settings.preprocessing)
    if not clean.isolated:
        return reconstruct_film(about_one_axis(clean), settings.method, settings, observers)
    aligned = align_images(clean, settings, observers)
    clean = with_focus(clean, aligned.poses, settings, observers)
    maps = make_maps(clean, aligned.poses, settings.method, settings.reconstruction, observers)
    traced = find_peaks(maps.volume, settings.elements, settings.tracing)
    fitted = fit_atoms(clean.stack, aligned.poses, traced, settings, observers)
    result = conclude(clean, aligned, settings, maps=maps, fitted=fitted)
    return verify(result, clean.poses, settings, observers)


def reconstruct_film(
    clean: Preprocessed, method: MethodOrAuto, settings: Settings, observers: Sequence[Observer]
) -> Reconstruction:
    """The atoms of a film, from its volume."""
    if settings.verification.asked:
        raise InputError(
            "verification needs atoms refined against the images, and those of a film are not: leave it out"
        )
    made = map_film(clean, method, settings.film, settings.reconstruction, observers)
    atoms = trace_film(made, settings.elements, settings.tracing, settings.film)
    errors = run_stage("held-out", lambda: film_held_out_r1(made, settings.held_out_every), observers)
    sigma = 100 * math.sqrt(3) * float(atoms.arrays["position_sigma"].mean())
    numbers = {"position_sigma_pm": sigma, **errors}
    result = conclude(clean, clean, settings, maps=made.maps)
    return with_structure(result, atoms, settings.elements, settings.analysis, numbers)


def fill_lattice_sites(
    stack: ImageStack, poses: Poses, settings: Settings, observers: Sequence[Observer]
) -> Reconstruction:
    """The atoms of a crystal from a few images, on the sites of its lattice."""
    if settings.verification.asked:
        raise InputError("verification needs refined atoms, and these lie on a lattice: aet-tilt refine-atoms first")
    crystal = crystal_of(settings.elements, settings.lattice)
    clean = preprocess(stack, poses, settings.preprocessing)
    if not clean.isolated:
        raise InputError("discrete tomography needs an isolated particle, and this is a film; use another method")
    start = start_poses(clean.stack, clean.poses) if settings.align else clean.poses
    filled = fill_crystal(
        for_reconstruction(clean),
        start,
        crystal,
        settings.lattice.radius or particle_radius(clean.stack),
        settings.discrete,
        observers=observers,
    )
    constant = crystal.constant * filled.lying.scale
    note = f"lattice: {crystal.structure} of {constant:.3f} angstrom, {filled.sites} sites looked at"
    doubt = f"the lattice explains little of the images (correlation {filled.correlation:.2f}): is it the right one?"
    warnings = (doubt,) if filled.correlation < _MATCHING else ()
    result = Reconstruction(clean.stack, filled.poses, (*clean.notes, note), warnings, {"images": float(len(stack))})
    numbers = {"lattice_constant_angstrom": constant, "correlation": filled.correlation}
    atoms = Atoms(list(settings.elements) * len(filled.positions), positions=filled.positions.cpu().numpy())
    atoms.set_array("peak_height", np.ones(len(atoms)))
    return with_structure(result, atoms, settings.elements, settings.analysis, numbers)


def align_series(
    stack: ImageStack,
    poses: Poses,
    settings: Settings,
    *,
    observers: Sequence[Observer] = (),
) -> Reconstruction:
    """The alignment alone: poses with shifts and refined angles. Parameters and errors as for `reconstruct`."""
    clean = preprocess(stack, poses, settings.preprocessing)
    return conclude(clean, align_images(clean, settings, observers), settings)


def reconstruct_volume(
    stack: ImageStack,
    poses: Poses,
    settings: Settings,
    *,
    observers: Sequence[Observer] = (),
) -> Reconstruction:
    """Alignment and volume, without atoms. Parameters and errors as for `reconstruct`."""
    if settings.method == "discrete":
        raise InputError("discrete tomography makes atoms, not a volume: use aet-tilt reconstruct, or another method")
    check_method(stack, settings.method)
    clean = preprocess(stack, poses, settings.preprocessing)
    if not clean.isolated:
        clean = about_one_axis(clean)
        made = map_film(clean, settings.method, settings.film, settings.reconstruction, observers)
        return conclude(clean, clean, settings, maps=made.maps)
    aligned = align_images(clean, settings, observers)
    clean = with_focus(clean, aligned.poses, settings, observers)
    maps = make_maps(clean, aligned.poses, settings.method, settings.reconstruction, observers)
    return conclude(clean, aligned, settings, maps=maps)


def refine_atoms(
    stack: ImageStack,
    poses: Poses,
    atoms: Atoms,
    settings: Settings,
    *,
    observers: Sequence[Observer] = (),
) -> Reconstruction:
    """Atoms and poses against the images alone; other parameters and errors as for `reconstruct`.

    atoms : in the frame of the poses, right to half the distance of neighbours; false ones go, missing ones come.
    poses : right to a pixel and a few degrees; they are not aligned before.
    """
    check_can_verify(settings.elements, settings.verification)
    clean = preprocess(stack, poses, settings.preprocessing)
    clean = with_focus(clean, clean.poses, settings, observers, atoms=atoms)
    result = conclude(clean, clean, settings, fitted=fit_atoms(clean.stack, clean.poses, atoms, settings, observers))
    return verify(result, clean.poses, settings, observers)


def align_images(
    clean: Preprocessed, settings: Settings, observers: Sequence[Observer]
) -> AlignmentState | Preprocessed:
    """Poses with shifts, or as they are where alignment is off or the specimen is a film: what enters and leaves the
    images with tilt would pull them along; its small shifts are left to the refinement of atoms."""
    if not (settings.align and clean.isolated):
        return clean
    return align(clean.stack, clean.poses, settings.alignment, observers=observers)


def with_focus(
    clean: Preprocessed, poses: Poses, settings: Settings, observers: Sequence[Observer], *, atoms: Atoms | None = None
) -> Preprocessed:
    """A through-focal series with its foci in the specimen's frame, found with atoms from a first volume or as given;
    any other series as it is."""
    if clean.stack.focus is None:
        return clean

    def find() -> FoundFocus:
        known = atoms
        if known is None:
            known = find_peaks(first_volume(clean, poses, settings.reconstruction), settings.elements, settings.tracing)
        return find_focus(clean.stack, poses, known, settings.focus, settings.atoms)

    found = run_stage("focus", find, observers)
    return replace(clean, stack=replace(clean.stack, focus=found.focus), notes=(*clean.notes, found.note))


def fit_atoms(
    stack: ImageStack, poses: Poses, traced: Atoms, settings: Settings, observers: Sequence[Observer]
) -> Fitted:
    """Atoms settled and refined without some images, judged on those, then refined against all."""
    rows = torch.arange(len(stack), device=stack.images.device)
    out = rows % settings.held_out_every == settings.held_out_every // 2
    part, fit = stack[rows[~out]], settings.atoms
    atoms, state = settle_count(
        part, poses[rows[~out]], traced, settings.elements, settings.count, fit, observers=observers, name="atoms/count"
    )
    atoms = with_species(atoms, state, settings.elements)
    first = refine_spots(
        part, poses[rows[~out]], atoms, fit, first=state.parameters, begun=state, observers=observers, name="atoms/part"
    )
    atoms = refined_atoms(first, atoms)
    left_out = predict_images(stack[rows[out]], poses[rows[out]], atoms, fit)
    last = refine_spots(stack, poses, atoms, fit, observers=observers, name="atoms/all")
    atoms = with_species(atoms, last, settings.elements)
    return Fitted(spot_model(stack, last, atoms, fit), left_out)


def with_species(atoms: Atoms, state: SpotState, elements: tuple[str, ...]) -> Atoms:
    """The atoms with the symbols that their heights have."""
    if not elements:
        return atoms
    here = state.parameters
    named = atoms.copy()
    named.symbols = list(assign_species(here.heights, elements, positions=here.positions).symbols)
    return named


def verify(result: Reconstruction, nominal: Poses, settings: Settings, observers: Sequence[Observer]) -> Reconstruction:
    """Multislice images of the final atoms against the measured ones, and the whole chain on such images, if asked for.

    nominal : poses from which the chain begins again.
    """
    asked, model, atoms, stack = settings.verification, result.model, result.atoms, result.stack
    if model is None or atoms is None:
        return result
    if asked.images:
        checked = run_stage("verification/images", lambda: compare_images(stack, model.state, atoms, asked), observers)
        warnings = (*result.warnings, *checked.doubts())
        result = replace(result, multislice=checked, metrics={**result.metrics, **checked.metrics()}, warnings=warnings)
    if asked.whole_chain:
        made = run_stage(
            "verification/series", lambda: simulated_series(stack, model.state, atoms, asked).images, observers
        )
        once = replace(settings, verification=VerificationSettings())
        below = [Under("again", observer) for observer in observers]
        again = reconstruct(replace(stack, images=made), nominal, once, observers=below).atoms
        result = replace(result, again=again, metrics={**result.metrics, **difference(again, atoms)})
    return result


def conclude(
    clean: Preprocessed,
    aligned: AlignmentState | Preprocessed,
    settings: Settings,
    *,
    maps: Maps | None = None,
    fitted: Fitted | None = None,
) -> Reconstruction:
    """Numbers and sentences about what was found, as far as the run came."""
    metrics, warnings, notes = {"images": float(len(clean.stack))}, [], clean.notes
    if settings.align and not clean.isolated:
        notes = (*notes, "a film, which goes on past the images' borders: they are taken as they are aligned")
    if isinstance(aligned, AlignmentState):
        metrics["alignment_residual"] = float(aligned.residuals.median())
        bad = [str(i + 1) for i in torch.nonzero(aligned.misfit)[:, 0].tolist()]
        if bad:
            warnings.append(f"images that do not fit the others: {', '.join(bad)}")
    if maps is not None:
        metrics["resolution_fsc_0.143_angstrom"] = float(maps.fsc.resolution() or 0.0)
        notes = (*notes, f"reconstruction: {maps.reason}")
    result = Reconstruction(clean.stack, aligned.poses, notes, tuple(warnings), metrics, maps)
    return result if fitted is None else with_atoms(result, fitted, settings.elements, settings.analysis)
