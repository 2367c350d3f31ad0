"""The report of a run: one offline HTML page."""

from common.report.data import (
    AtomSites,
    ClassAverages,
    FourierShellCorrelation,
    ImageExamples,
    ImageScores,
    InputFile,
    Inputs,
    Map,
    Metric,
    ReportData,
    Starts,
)
from common.report.movie_data import Filmed, FilmedParticle
from common.report.page import render_report, write_report
from common.report.pictures import pick_examples
from common.report.structure_data import MultisliceScores, StructureDifference, Structures

__all__ = [
    "AtomSites",
    "ClassAverages",
    "Filmed",
    "FilmedParticle",
    "FourierShellCorrelation",
    "ImageExamples",
    "ImageScores",
    "InputFile",
    "Inputs",
    "Map",
    "Metric",
    "MultisliceScores",
    "ReportData",
    "Starts",
    "StructureDifference",
    "Structures",
    "pick_examples",
    "render_report",
    "write_report",
]
