"""The report of a run: one offline HTML page."""

from common.report.data import (
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
)
from common.report.page import render_report, write_report
from common.report.pictures import pick_examples

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
