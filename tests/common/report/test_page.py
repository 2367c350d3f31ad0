import errno
import json
import os
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest
import torch

from common.data import InputError
from common.report import (
    AtomSites,
    FourierShellCorrelation,
    ImageExamples,
    ImageScores,
    InputFile,
    Inputs,
    Map,
    Metric,
    ReportData,
    Starts,
    render_report,
    write_report,
)

HOSTILE = "</script></title><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&$x_^{"
OPTIONAL = ("inputs", "fsc", "rotations", "starts", "volume", "examples", "scores", "atoms", "multislice", "classes")


class Page(HTMLParser):
    """Tags, addresses, ids and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.styles: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "style":
            self.styles.append(data)
        elif self._inside == "":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def count(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.tags)


pytestmark = pytest.mark.filterwarnings("error")


def test_page_says_what_the_run_found(full_page):
    words = Page(full_page).words
    assert "$" not in words  # no TeX
    for said in (
        "gold.star", "Determined", "38 atoms found; 2 of 3 starts agree", "1 of 3 starts ended elsewhere",
        "the hand is not determined", "ab" * 32, "1,234", "0.7000 Å", "300 kV", "−80 Å", "−13.0 µm",
        "search.starts", "2.13.0", "12.5 s", "1.98 Å", "2 of 3", "38 atoms (38 Au)",
        "6 of 120 images (5.0 %)", "1–2, 41–42, 81–82",
    ):  # fmt: skip
        assert said in words, said


def test_warnings_stand_before_every_section(full_page):
    assert full_page.index("1 of 3 starts ended elsewhere") < full_page.index("<section")


def test_page_loads_nothing(full_page):
    page = Page(full_page)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:")), (tag, name, address)
        assert not re.search(r"url\((?!#)", attributes.get("style") or "")
    assert not re.search(r"@import|url\(", "".join(page.styles))
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_page_is_small(full_page):
    assert len(full_page.encode()) < 3_000_000


def test_ids_are_unique_and_every_reference_is_met(full_page):
    page = Page(full_page)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = [v for _, a in page.tags for k, v in a.items() if k in ("href", "xlink:href") and v.startswith("#")]
    used += [m for _, a in page.tags for v in a.values() for m in re.findall(r"url\((#[^)]*)\)", v or "")]
    assert used
    assert {u[1:] for u in used} <= set(ids)


def test_same_data_gives_the_same_page(full_report, full_page):
    assert render_report(full_report) == full_page


def test_user_strings_are_text_and_never_markup(full_report, full_page):
    clean = Page(full_page)
    hostile = replace(
        full_report,
        title=HOSTILE,
        verdict=HOSTILE,
        warnings=(HOSTILE,),
        notes=(HOSTILE,),
        command=HOSTILE,
        date=HOSTILE,
        inputs=replace(full_report.inputs, files=(InputFile(HOSTILE, HOSTILE, 1),)),
        settings={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        seconds={HOSTILE: 1.0},
        fsc=replace(full_report.fsc, curves={HOSTILE: next(iter(full_report.fsc.curves.values()))}),
        starts=replace(full_report.starts, score_name=HOSTILE, agreement_name=HOSTILE, names=(HOSTILE,) * 3),
        metrics=tuple(replace(m, name=m.name + HOSTILE, unit="<i>", run=m.run + HOSTILE) for m in full_report.metrics),
        examples=replace(full_report.examples, score_name=HOSTILE, groups=(HOSTILE,) * 6),
        scores=replace(full_report.scores, name=HOSTILE, unit=HOSTILE),
        atoms=replace(full_report.atoms, symbols=(HOSTILE,) * 38, sigma_definition=HOSTILE),
    )
    page = Page(render_report(hostile))
    for tag in ("script", "img", "title", "section", "table"):
        assert page.count(tag) == clean.count(tag), tag
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.words.count("alert(1)") > 20


def test_atoms_survive_the_way_into_the_page(full_report, full_page):
    found = re.search(r'<script id="atom-data" type="application/json">(.*?)</script>', full_page, re.DOTALL)
    data = json.loads(found[1])
    columns, atoms = data["columns"], full_report.atoms
    placed = torch.tensor([columns["x"], columns["y"], columns["z"]], dtype=torch.float64).T
    assert torch.allclose(placed, atoms.positions, atol=0.00051)
    assert torch.allclose(torch.tensor(columns["sigma"]).double(), 100 * atoms.sigmas, atol=0.0051)  # angstrom to pm
    assert columns["symbol"] == list(atoms.symbols)


@pytest.mark.parametrize("only", OPTIONAL)
def test_any_section_can_stand_alone(full_report, only):
    page = Page(render_report(ReportData("gold.star", "v", "doubtful", **{only: getattr(full_report, only)})))
    assert page.count("section") == (3 if only == "atoms" else 1)


def test_failed_run_has_a_page():
    page = Page(render_report(ReportData("gold.star", "Not determined: the starts disagree", "not determined")))
    assert "Not determined: the starts disagree" in page.words
    assert page.count("section") == 0
    assert page.count("script") == 0


NAN = float("nan")
BROKEN = {
    "no atoms": {"atoms": AtomSites(torch.zeros(0, 3), ())},
    "one atom": {"atoms": AtomSites(torch.zeros(1, 3), ("X",), sigmas=torch.zeros(1), bounds=torch.zeros(1))},
    "two atoms in one place": {"atoms": AtomSites(torch.zeros(2, 3), ("X", "X"), b_factors=torch.zeros(2))},
    "nothing known of the atoms": {
        "atoms": AtomSites(torch.full((3, 3), NAN), ("X",) * 3, *(torch.full((3,), NAN),) * 4)
    },
    "no FSC": {"fsc": FourierShellCorrelation(torch.zeros(0), {})},
    "FSC is NaN": {"fsc": FourierShellCorrelation(torch.ones(3), {"halves": torch.full((3,), NAN)}, NAN)},
    "no poses": {"rotations": torch.zeros(0, 3, 3)},
    "one pose": {"rotations": torch.eye(3)[None]},
    "one start": {"starts": Starts(torch.ones(1), agreement=torch.ones(1, 1))},
    "starts are NaN": {"starts": Starts(torch.full((2,), NAN), agreement=torch.full((2, 2), NAN))},
    "metrics": {
        "metrics": (Metric("empty", torch.zeros(0), torch.zeros(0)), Metric("a", torch.ones(1), torch.full((1,), NAN)))
    },
    "volume": {"volume": Map(torch.full((3, 3, 3), NAN), NAN)},
    "images": {
        "examples": ImageExamples(
            torch.ones(1), ("best",), torch.ones(1), torch.full((1, 5, 5), NAN), torch.ones(1, 5, 5), 0.0
        )
    },
    "scores": {"scores": ImageScores(torch.full((2,), NAN), torch.ones(2), torch.zeros(2))},
    "inputs": {"inputs": Inputs((), 0, 0, NAN)},
}


@pytest.mark.parametrize("what", BROKEN)
def test_poor_results_still_have_a_page(what):
    page = Page(render_report(ReportData("gold.star", "Not determined", "not determined", **BROKEN[what])))
    assert "Not determined" in page.words
    assert not re.search(r"\bnan\b|\binf\b", page.words)


def test_results_in_half_precision_and_with_gradients():
    halves = ImageScores(torch.randn(9).bfloat16().requires_grad_())
    volume = Map(torch.rand(4, 4, 4, requires_grad=True), 1.0)
    page = Page(render_report(ReportData("a", "b", "doubtful", scores=halves, volume=volume)))
    assert page.count("section") == 2


def test_shapes_are_checked_at_birth():
    with pytest.raises(ValueError, match=r"atoms: sigmas has shape \(2,\), expected \(3\)"):
        AtomSites(torch.zeros(3, 3), ("X",) * 3, sigmas=torch.zeros(2))
    with pytest.raises(ValueError, match="2 symbols for 3 atoms"):
        AtomSites(torch.zeros(3, 3), ("X",) * 2)
    with pytest.raises(ValueError, match="outcome is 'good'"):
        ReportData("a", "b", "good")


def test_every_field_of_the_report_is_exercised(full_report):
    empty = ReportData("a", "b", "determined")
    same = [f.name for f in fields(ReportData) if getattr(full_report, f.name) is getattr(empty, f.name)]
    assert same == ["outcome"] or same == []


def test_what_differs_between_structures_is_said_atom_by_atom(full_report):
    words = Page(render_report(full_report)).words
    assert "Class 2 laid on class 1: 37 atoms within 0.5 Å of each other, 1 of them moved" in words
    assert "1 only in class 1, 0 only in class 2" in words
    assert "mirror image" in words
    assert "31.0 pm" in words


def test_written_whole(tmp_path):
    data = ReportData("Å", "not found", "not determined")
    write_report(tmp_path / "report.html", data)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(data)
    assert os.listdir(tmp_path) == ["report.html"]


def test_full_disk_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_report(path, ReportData("a", "b", "determined"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_classes_are_shown_with_what_is_known_of_them(full_page: str) -> None:
    section = full_page.partition('<section id="classes">')[2].partition("</section>")[0]
    assert section.count("<img") == 3
    assert "70 images (76.9 %)" in section
    assert "ring correlation 0.90, to 1.10 Å" in section
    assert section.count("<b>rejected</b>") == 1
    assert "1 image (1.1 %)" in section
    assert "nan" not in section
