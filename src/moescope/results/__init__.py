"""The folder a run leaves behind: written, read, and the one form that every run has (`Outcome`)."""

from moescope.results.manifest import MANIFEST, DomainSample, Manifest
from moescope.results.outcome import Made, Outcome, Part
from moescope.results.reading import Results
from moescope.results.writing import ResultsFolder

__all__ = ["MANIFEST", "DomainSample", "Made", "Manifest", "Outcome", "Part", "Results", "ResultsFolder"]
