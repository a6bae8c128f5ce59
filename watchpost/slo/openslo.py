"""Take over objectives written in OpenSLO v1, https://github.com/OpenSLO/OpenSLO.

What would be lost is refused by name: an objective that only looks like the one that was meant is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from watchpost.slo.spec import SpecError, outside_strings, without_strings

API = "openslo/v1"
#: Kinds that say nothing which an objective needs.
DESCRIBES = ("Service", "DataSource")
#: Fields -> what they may hold: a mapping of such fields, or anything.
_METADATA = {"name": None, "displayName": None, "labels": None, "annotations": None}
_METRIC = {"metricSource": {"type": None, "metricSourceRef": None, "spec": {"query": None}}}
_INDICATOR = {"ratioMetric": {"counter": None, "good": _METRIC, "bad": _METRIC, "total": _METRIC}}
_FIELDS: dict[str, dict[str, Any]] = {
    "SLO": {
        "description": None,
        "service": None,
        "indicator": {"metadata": None, "spec": {"description": None, **_INDICATOR}},
        "indicatorRef": None,
        "budgetingMethod": None,
        "timeWindow": None,
        "objectives": None,
        "alertPolicies": None,
    },
    "SLI": {"description": None, **_INDICATOR},
}

_NAME = r"[a-zA-Z_:][\w:]*"
_SELECTOR = rf'(?:{_NAME}(?:\{{(?:[^"}}]|"(?:[^"\\]|\\.)*")*\}})?|\{{(?:[^"}}]|"(?:[^"\\]|\\.)*")*\}})'
_COUNTER = re.compile(rf"(?:sum\s*\(\s*(?P<summed>{_SELECTOR})\s*\)|(?P<plain>{_SELECTOR}))")
_RANGE = re.compile(r"\[\s*(?:\d[\dsmhdwy]*|\{\{\s*\.window\s*\}\})\s*\]")


def convert(text: str) -> list[dict[str, Any]]:
    """Return the objectives of a file of OpenSLO v1 as `watchpost_slos` has them. Raises SpecError."""
    objects = [each for document in yaml.safe_load_all(text) for each in _listed(document)]
    problems: list[str] = []
    for number, each in enumerate(objects):
        if not isinstance(each, Mapping) or each.get("apiVersion") != API:
            problems.append(f"object {number + 1} of the file is not of {API}")
        elif each.get("kind") not in (*_FIELDS, *DESCRIBES):
            problems.append(
                f"{_called(each)}: is not taken over; alerts and their ways are Watchpost's own (docs/slo.md)"
            )
        elif each["kind"] in _FIELDS:
            problems += _unknown(each.get("spec"), _FIELDS[each["kind"]], f"{_called(each)}.spec")
    if not problems and not any(each["kind"] == "SLO" for each in objects):
        problems.append("the file holds no SLO")
    if problems:
        raise SpecError(problems)
    indicators = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "SLI"}
    found = []
    for each in objects:
        if each["kind"] == "SLO":
            try:
                found.append(_objective(each, indicators))
            except SpecError as error:
                problems += error.problems
    if problems:
        raise SpecError(problems)
    return found


def _listed(document: object) -> list[Any]:
    return document if isinstance(document, list) else [] if document is None else [document]


def _called(each: Mapping[str, Any]) -> str:
    return f"{each.get('kind')} {(each.get('metadata') or {}).get('name', 'without a name')}"


def _unknown(given: object, known: Mapping[str, Any], path: str) -> Iterator[str]:
    """Name the fields that would be lost."""
    if not isinstance(given, Mapping):
        yield f"{path}: is not a mapping of fields"
        return
    for field, value in given.items():
        if field not in known:
            yield f"{path}.{field}: cannot be taken over"
        elif known[field] is not None:
            yield from _unknown(value, known[field], f"{path}.{field}")


def _objective(each: Mapping[str, Any], indicators: Mapping[str, Any]) -> dict[str, Any]:
    spec, path = each["spec"], f"{_called(each)}.spec"
    problems = []
    if spec.get("budgetingMethod") != "Occurrences":
        problems.append(f"{path}.budgetingMethod: {spec.get('budgetingMethod')} is not taken over, only Occurrences")
    if spec.get("alertPolicies"):
        problems.append(f"{path}.alertPolicies: cannot be taken over; alerts are Watchpost's own (docs/slo.md)")
    windows = spec.get("timeWindow") or [{"duration": "30d", "isRolling": True}]
    if len(windows) != 1 or windows[0].get("isRolling") is not True or "calendar" in windows[0]:
        problems.append(f"{path}.timeWindow: only one window with isRolling: true is taken over")
    elif not re.fullmatch(r"\d+[dw]", str(windows[0].get("duration"))):
        problems.append(f"{path}.timeWindow[0].duration: {windows[0].get('duration')} is not in days or weeks")
    objectives = spec.get("objectives") or []
    target: float | None = None
    if len(objectives) != 1:
        problems.append(f"{path}.objectives: {len(objectives)} of them; exactly one is taken over")
    else:
        if lost := sorted(set(objectives[0]) - {"displayName", "target", "targetPercent"}):
            problems += [f"{path}.objectives[0].{field}: cannot be taken over" for field in lost]
        target = objectives[0].get("target")
        if target is None and isinstance(percent := objectives[0].get("targetPercent"), int | float):
            target = round(percent / 100, 12)
        if target is None:
            problems.append(f"{path}.objectives[0].target: is missing")
    if "indicatorRef" in spec:
        indicator = indicators.get(spec["indicatorRef"])
        where = f"SLI {spec['indicatorRef']}.spec"
        if indicator is None:
            problems.append(f"{path}.indicatorRef: the file holds no SLI {spec['indicatorRef']}")
    else:
        indicator, where = (spec.get("indicator") or {}).get("spec"), f"{path}.indicator.spec"
        if indicator is None:
            problems.append(f"{path}.indicator: is missing")
    ratio = {}
    if indicator is not None:
        try:
            ratio = _ratio(indicator.get("ratioMetric") or {}, f"{where}.ratioMetric")
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return {
        "name": each["metadata"]["name"],
        "service": spec.get("service"),
        "objective": target,
        "window": windows[0]["duration"],
        **({"impact": spec["description"]} if spec.get("description") else {}),
        "ratio": ratio,
    }


def _ratio(metric: Mapping[str, Any], path: str) -> dict[str, str]:
    problems, queries = [], {}
    for side in ("good", "bad", "total"):
        if side in metric:
            try:
                queries[side] = _query(metric[side]["metricSource"], metric.get("counter") is True, f"{path}.{side}")
            except SpecError as error:
                problems += error.problems
    if "total" not in metric or ("good" in metric) == ("bad" in metric):
        problems.append(f"{path}: must have total, and either good or bad")
    if problems:
        raise SpecError(problems)
    return queries


def _query(source: Mapping[str, Any], counter: bool, path: str) -> str:
    """Turn a query into one over [$window] that counts by the second."""
    path += ".metricSource"
    if source.get("type", "Prometheus").lower() != "prometheus":
        raise SpecError([f"{path}.type: {source['type']} is not Prometheus"])
    query = str(source["spec"].get("query", "")).strip()
    if (found := _COUNTER.fullmatch(query)) and counter:
        return f"sum(rate({found['summed'] or found['plain']}[$window]))"
    ranged = outside_strings(query, lambda code: _RANGE.sub("[$window]", code))
    if set(re.findall(r"\[[^\]]*\]?", without_strings(ranged))) != {"[$window]"}:
        raise SpecError(
            [f"{path}.spec.query: {query} is neither a counter (with counter: true) nor a rate over one range"]
        )
    return outside_strings(ranged, lambda code: re.sub(r"\bincrease(?=\s*\()", "rate", code))
