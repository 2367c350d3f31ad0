"""A report of a run that never was: a cut of a gold crystal, with every section filled."""

import pytest
import torch
from ase import Atoms

from common.atoms.analysis import analyse
from common.data import Optics
from common.report import (
    AtomSites,
    ClassAverages,
    Filmed,
    FilmedParticle,
    FourierShellCorrelation,
    ImageExamples,
    ImageScores,
    InputFile,
    Inputs,
    Map,
    Metric,
    MultisliceScores,
    ReportData,
    Starts,
    StructureDifference,
    Structures,
    pick_examples,
    render_report,
)

N_ATOMS, N_IMAGES, BOX, PIXEL = 38, 120, 24, 0.7


def _rotations(n: int, generator: torch.Generator) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.diagonal(r, dim1=1, dim2=2).sign()[:, None, :]
    return q * torch.linalg.det(q)[:, None, None]


@pytest.fixture(scope="session")
def full_report() -> ReportData:
    generator = torch.Generator().manual_seed(7)
    grid = torch.cartesian_prod(*[torch.arange(-3.0, 4.0, dtype=torch.float64)] * 3)
    sites = 2.04 * grid[grid.sum(1) % 2 == 0]
    path = torch.rand(6, 2, generator=torch.Generator().manual_seed(8))
    positions = sites[(sites + 0.3).norm(dim=1).argsort()[:N_ATOMS]]
    positions = positions + 0.03 * torch.randn(N_ATOMS, 3, generator=generator, dtype=torch.float64)
    noise = torch.rand(N_ATOMS, generator=generator, dtype=torch.float64)
    scores = torch.randn(N_IMAGES, generator=generator, dtype=torch.float64)
    index, groups = pick_examples(scores, each=2)
    images = torch.rand(len(index), BOX, BOX, generator=generator)
    frequencies = torch.linspace(0.05, 0.7, 20)
    one = torch.ones(N_IMAGES)
    atoms = AtomSites(
        positions, ("Au",) * N_ATOMS, 1 + noise, 5 + noise, sigmas=0.012 + 0.004 * noise, bounds=0.01 + 0.004 * noise
    )
    return ReportData(
        title="gold.star",
        verdict="38 atoms found; 2 of 3 starts agree",
        outcome="determined",
        warnings=("1 of 3 starts ended elsewhere",),
        notes=("the hand is not determined",),
        command="spr reconstruct gold.star",
        date="2026-01-02",
        inputs=Inputs(
            (InputFile("gold.star", "ab" * 32, 1234),), N_IMAGES, BOX, PIXEL,
            Optics(300 * one, -0.013 * one, 0.1 * one, -80 * torch.ones(N_IMAGES, 3), 50 * one, 0.1 * one),
        ),
        settings={"seed": 1, "search": {"starts": 3}},
        versions={"torch": "2.13.0"},
        seconds={"search": 12.5},
        fsc=FourierShellCorrelation(frequencies, {"half maps": torch.sigmoid((0.45 - frequencies) / 0.03)}, 1.98),
        rotations=_rotations(N_IMAGES, generator),
        starts=Starts(torch.tensor([3.0, 2.9, 1.0]), agreement=torch.eye(3), agrees=torch.tensor([True, True, False])),
        metrics=(
            Metric("temperature", torch.arange(6), 1000.0 ** (1 - torch.arange(6) / 5), run="start 1"),
            Metric("temperature", torch.arange(6), 900.0 ** (1 - torch.arange(6) / 5), run="start 2"),
            Metric("log-likelihood", torch.arange(4), torch.arange(4.0), "nats"),
        ),
        volume=Map(torch.rand(BOX, BOX, BOX, generator=generator), PIXEL),
        examples=ImageExamples(index + 1, groups, scores[index], images, images * 0.5, PIXEL),
        scores=ImageScores(scores, torch.arange(N_IMAGES) % 20 == 0, torch.arange(N_IMAGES) % 40 < 2),
        multislice=MultisliceScores(torch.tensor([3, 9]), *torch.rand(3, 2, generator=generator), b_factor=0.8),
        atoms=atoms,
        findings=analyse(Atoms(f"Au{N_ATOMS}", positions=positions.numpy()))[1],
        classes=ClassAverages(
            images[:3], PIXEL, torch.tensor([70, 20, 1]), torch.tensor([0.9, 0.5, float("nan")]),
            torch.tensor([1.1, float("inf"), float("nan")]), torch.tensor([False, True, False]),
        ),
        movie=Filmed(
            mean=torch.rand(12, 10, generator=torch.Generator().manual_seed(9)) + 5,
            pixel_size=0.36,
            frequencies=torch.linspace(0.1, 1.2, 12),
            before=1 + 20 * torch.rand(12, generator=torch.Generator().manual_seed(9)),
            after=1 + torch.rand(12, generator=torch.Generator().manual_seed(9)),
            particles=(
                FilmedParticle(path, torch.ones(6).bool(), 9.5, "finished", 328, "particle_001/report.html"),
                FilmedParticle(path + 3, torch.arange(6) > 2, 8.0, "not determined", None, "particle_002/report.html"),
            ),
        ),
        structures=Structures(
            ((70, 0.99, 0.97, 38, 0.6, 1.2), (50, 0.98, 0.96, 37, 0.7, 1.3)),
            ((1, 2, (
                StructureDifference(5, 4, 0.31, 44.0, (1.0, 2.0, 3.0), (1.3, 2.0, 3.0), "moved"),
                StructureDifference(7, None, None, None, (0.0, 4.0, 0.0), None, "only in class 1"),
            )),), (True,), (37,),
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def full_page(full_report: ReportData) -> str:
    return render_report(full_report)
