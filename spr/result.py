"""What a run found, and whether to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from ase import Atoms
from torch import Tensor

from common.atoms.analysis import AnalysisSettings, Findings, analyse_if_enough
from common.atoms.geometry import nearest_neighbour_distances
from common.atoms.model import AtomicModel
from common.atoms.symmetry_breaking import Broken
from common.atoms.tracing import TraceResult
from common.atoms.verification import MultisliceCheck
from common.data import Poses, Volume
from common.report import ImageExamples, ImageScores, Starts
from common.resolution import FSC
from spr.consensus import Consensus
from spr.examples import example_images
from spr.final_maps import Maps, map_transfer, resolution, weighted_map
from spr.refinement import RefinedMap
from spr.seen import Seen

_UNEXPLAINED = 0.25  # of the median gain in likelihood; below, no pose explains an image
_HELD_OUT = 0.8  # least gain of left-out images relative to fitted ones
_CLOSEST = 0.75  # two atoms closer than this times the median bond are one too many


@dataclass(frozen=True)
class Stages:
    """What every stage returned, as far as the run came."""

    seen: Seen
    starts: Consensus | None = None
    refined: RefinedMap | None = None
    traced: TraceResult | None = None
    model: AtomicModel | None = None
    left_out: AtomicModel | None = None
    maps: Maps | None = None
    checked: MultisliceCheck | None = None
    broken: Broken | None = None


@dataclass(frozen=True)
class Reconstruction:
    """The result of a run; anything that it did not come to is None or empty.

    determined : whether the run stands by its atoms. verdict : the result in one sentence.
    warnings : sentences; why, when the structure is not determined. metrics : name (with its unit) -> number.
    volume, half1, half2, mask, fsc : maps and the agreement of independent halves.
    atoms : arrays "peak_height", "b_factor" (angstrom^2), "position_sigma" (angstrom).
    poses : of all images in the order of the input. image_columns : RELION column -> (n,) numbers.
    model : everything that was refined. findings : what the atoms are arranged in.
    multislice : the final atoms through multislice. starts, examples, scores : for the report.
    """

    determined: bool
    verdict: str
    warnings: tuple[str, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    volume: Volume | None = None
    half1: Volume | None = None
    half2: Volume | None = None
    mask: Volume | None = None
    fsc: FSC | None = None
    atoms: Atoms | None = None
    poses: Poses | None = None
    image_columns: Mapping[str, Tensor] = field(default_factory=dict)
    model: AtomicModel | None = None
    starts: Starts | None = None
    examples: ImageExamples | None = None
    scores: ImageScores | None = None
    multislice: MultisliceCheck | None = None
    findings: Findings | None = None


def conclude(stages: Stages, *, poses: Poses | None = None, analysis: AnalysisSettings | None = None) -> Reconstruction:
    """Say what was found, how sure that is, and what speaks against it.

    poses : of all images, where no model of atoms holds them; a map is made from them unless there is one.
    analysis : how the structure of the atoms is measured.
    """
    warnings, metrics = list(stages.seen.warnings), {"images": float(len(stages.seen.stack))}
    starts = stages.starts
    determined = True
    if starts is not None:
        made = starts.before + len(starts.starts)
        metrics |= {"starts": float(made), "starts_that_agree": float(starts.agrees.sum())}
        metrics["search_nats_per_image"] = starts.starts[starts.best].log_likelihood
        if not starts.reached:
            determined = False
            count, of = int(starts.agrees.sum()), len(starts.starts)
            who = f"of {of} starts no other" if count == 1 else f"only {count} of {of} starts"
            earlier = f", nor {starts.before} starts that looked at the strongest rings alone" if starts.before else ""
            warnings.append(
                f"Not determined: {who} found the same structure as the likeliest{earlier}. "
                "The images may be too noisy or too few, the pixel size or defocus wrong, or the particles not alike."
            )
    if stages.model is not None:
        found, against = judge_model(stages.traced, stages.model, stages.left_out)
        metrics |= found
        warnings += against
        determined = determined and not against
    if stages.broken is not None:
        found, doubts = judge_symmetry(stages.broken)
        metrics |= found
        warnings += doubts
    if stages.checked is not None:
        found, against = stages.checked.metrics(), stages.checked.doubts()
        metrics |= found
        warnings += against
    result = Reconstruction(determined, "", (), metrics, starts=starts_section(starts), multislice=stages.checked)
    if stages.maps is not None:
        maps = stages.maps
        metrics["resolution_fsc_0.143_angstrom"] = resolution(maps)
        result = replace(
            result, volume=maps.volume, half1=maps.halves[0], half2=maps.halves[1], mask=maps.mask, fsc=maps.fsc
        )
    if stages.model is not None:
        result = with_images(result, stages.seen, stages.model, stages.left_out)
        atoms, findings = analyse_if_enough(stages.model.to_ase(), analysis)
        metrics |= {} if findings is None else findings.metrics()
        result = replace(result, atoms=atoms, findings=findings)
    if poses is not None:
        result = replace(result, poses=poses)
    shown = result.poses
    if result.volume is None and shown is not None and determined:
        transfer = map_transfer(stages.seen, torch.arange(len(shown)), None)
        held = Poses(shown.rotations.float(), shown.shifts.float())
        result = replace(result, volume=weighted_map(stages.seen.white, held, transfer, transfer.new_ones(len(shown))))
    return replace(result, verdict=verdict(stages, determined), warnings=tuple(warnings), metrics=metrics)


def judge_model(
    traced: TraceResult | None, model: AtomicModel, left_out: AtomicModel | None
) -> tuple[dict[str, float], list[str]]:
    """Numbers about the atoms, and sentences about what speaks against them."""
    gain = model.log_likelihood
    unexplained = unexplained_images(gain, model.weights)
    numbers = {
        "atoms": float(len(model.positions)),
        "nats_per_image": float(gain.mean()),
        "correlation": float(model.correlation.mean()),
        "images_unexplained": float(unexplained.sum()),
        "focal_spread_angstrom": float(model.parameters.focal_spread),
        "defocus_shift_angstrom": float(model.parameters.defocus_shift),
    }
    against = []
    if model.position_sigma is not None and model.cramer_rao_pm is not None:
        numbers["position_sigma_median_pm"] = 100 * float(model.position_sigma.median())
        numbers["cramer_rao_bound_pm"] = model.cramer_rao_pm
    if traced is not None and not traced.determined:
        against.append(f"The number of atoms is not sure: {traced.reason}.")
    if left_out is not None:
        held = left_out.log_likelihood
        numbers["held_out_nats_per_image"] = float(held.mean())
        numbers["held_out_over_fitted"] = float(held.median() / gain.median())
        numbers["held_out_correlation"] = float(left_out.correlation.mean())
    if numbers.get("held_out_over_fitted", 1.0) < _HELD_OUT:
        against.append(
            f"Images left out gain {numbers['held_out_over_fitted']:.2f} of what fitted ones gain, expected at least "
            f"{_HELD_OUT}: the model is fitted to noise."
        )
    if len(model.positions) > 2:
        bonds = nearest_neighbour_distances(model.to_ase())
        if float(bonds.min()) < _CLOSEST * float(sorted(bonds)[len(bonds) // 2]):
            against.append(f"Two atoms are only {float(bonds.min()):.2f} A apart: one of them is likely false.")
    if int(unexplained.sum()) > 0.2 * len(gain):
        against.append(
            f"{int(unexplained.sum())} of {len(gain)} images are explained by no pose: the particles may differ."
        )
    return numbers, against


def judge_symmetry(broken: Broken) -> tuple[dict[str, float], list[str]]:
    """Numbers about a near symmetry of the atoms, and a sentence where the images don't tell what breaks it."""
    numbers = {
        "near_symmetries": float(broken.operations),
        "asymmetry_nats": broken.proof,
        "asymmetry_pm": 100 * broken.spread,
        "asymmetry_operations_certainty": broken.certainty,
    }
    if broken.believed:
        return numbers, []
    return numbers, [
        f"The atoms map onto themselves in {broken.operations - 1} other ways, and the images don't tell whether the "
        f"particle departs from that: the positions are averages over them, and displacements below about "
        f"{100 * broken.limit:.0f} pm (rms, per axis) would not be seen. "
        "The sigmas are those of atoms taken one by one."
    ]


def unexplained_images(gain: Tensor, weights: Tensor) -> Tensor:
    """(n,) booleans: images that no pose explains, by their gain in likelihood or their weight in the refinement."""
    return (gain < _UNEXPLAINED * gain.median()) | (weights < 0.5)


def verdict(stages: Stages, determined: bool) -> str:
    """The result in one sentence."""
    starts, model = stages.starts, stages.model
    agree = "" if starts is None else f"{int(starts.agrees.sum())} of {len(starts.starts)} starts agree; "
    if not determined and (model is None or starts is None):
        return f"Not determined: {agree}the images do not settle a structure."
    if model is None:
        return f"A map and poses; {agree}no atoms were sought; the hand is not determined by projection images."
    count = len(model.positions)
    precise = "" if model.cramer_rao_pm is None else f"positions to {model.cramer_rao_pm:.1f} pm at best (Cramér-Rao); "
    doubt = "" if determined else "with doubts, see the warnings; "
    return f"{count} atoms found; {agree}{precise}{doubt}the hand is not determined by projection images."


def with_images(result: Reconstruction, seen: Seen, model: AtomicModel, left_out: AtomicModel | None) -> Reconstruction:
    """Add atoms, and what belongs to the images, in the order of the input."""
    n = len(seen.stack)
    other = model if left_out is None else left_out

    def placed(fitted: Tensor, others: Tensor) -> Tensor:
        whole = fitted.new_zeros(n, *fitted.shape[1:]).index_copy(0, seen.fitted, fitted)
        return whole if left_out is None else whole.index_copy(0, seen.left_out, others.to(fitted))

    poses = Poses(placed(model.poses.rotations, other.poses.rotations), placed(model.poses.shifts, other.poses.shifts))
    gain = placed(model.log_likelihood, other.log_likelihood)
    held = torch.zeros(n, dtype=torch.bool).index_fill(0, seen.left_out.cpu(), True)
    columns = {"rlnLogLikeliContribution": gain}
    if seen.stack.optics is not None:
        offset = placed(model.defocus_offsets, other.defocus_offsets)
        columns["rlnDefocusU"] = seen.stack.optics.defocus[:, 0] + offset
        columns["rlnDefocusV"] = seen.stack.optics.defocus[:, 1] + offset
    correlation = placed(model.correlation, other.correlation).cpu()
    unexplained = unexplained_images(gain, placed(model.weights, other.weights)).cpu()
    return replace(
        result,
        poses=poses,
        image_columns=columns,
        model=model,
        examples=example_images(seen.stack[seen.fitted], seen.noise[seen.fitted], model, seen.fitted),
        scores=ImageScores(correlation, held_out=held, unexplained=unexplained),
    )


def starts_section(starts: Consensus | None) -> Starts | None:
    if starts is None:
        return None
    return Starts(
        torch.tensor([start.log_likelihood for start in starts.starts]),
        agreement=starts.agreement,
        agreement_name=starts.shared,
        agrees=starts.agrees,
    )
