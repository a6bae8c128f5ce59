"""Verdicts as JUnit XML, which every build server reads."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One thing that was judged. `failure` says what is wrong; empty means that nothing is."""

    name: str
    seconds: float = 0.0
    failure: str = ""
    skipped: str = ""  # why it was not judged
    output: str = ""


def write(file: Path, suite: str, cases: Sequence[Case]) -> None:
    """Write one test suite."""
    counts = {"tests": len(cases), "failures": sum(bool(c.failure) for c in cases), "errors": 0}
    counts["skipped"] = sum(bool(case.skipped) for case in cases)
    seconds = f"{sum(case.seconds for case in cases):.3f}"
    root = ET.Element("testsuite", {"name": suite, "time": seconds} | {key: str(n) for key, n in counts.items()})
    for case in cases:
        element = ET.SubElement(root, "testcase", name=case.name, classname=suite, time=f"{case.seconds:.3f}")
        if case.failure:
            ET.SubElement(element, "failure", message=case.failure.splitlines()[0]).text = case.failure
        if case.skipped:
            ET.SubElement(element, "skipped", message=case.skipped)
        if case.output:
            ET.SubElement(element, "system-out").text = case.output
    ET.indent(root)
    ET.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
