"""Take over objectives written in OpenSLO v1, https://github.com/OpenSLO/OpenSLO.

What would be lost is refused by name: an objective that only looks like the one that was meant is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from watchpost.slo.spec import TYPES, SpecError, outside_strings, without_strings

API = "openslo/v1"
#: Kinds that say nothing which an objective needs.
DESCRIBES = ("Service", "DataSource")


class _Part(BaseModel):
    """The fields that are taken over; those whose value says nothing that an objective needs are of any type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Query(_Part):
    query: str


class _Source(_Part):
    type: str = "Prometheus"
    metricSourceRef: Any = None
    spec: _Query

    @field_validator("type", mode="before")
    @classmethod
    def _prometheus(cls, value: object) -> object:
        if str(value).lower() != "prometheus":
            raise ValueError(f"{value} is not Prometheus")
        return value


class _Metric(_Part):
    metricSource: _Source


class _RatioMetric(_Part):
    counter: bool = False
    good: _Metric | None = None
    bad: _Metric | None = None
    total: _Metric | None = None


class _IndicatorSpec(_Part):
    description: Any = None
    ratioMetric: _RatioMetric


class _Indicator(_Part):
    metadata: Any = None
    spec: _IndicatorSpec


class _Window(_Part):
    duration: str
    isRolling: bool = False


class _Target(_Part):
    displayName: Any = None
    target: float | None = None
    targetPercent: float | None = None


class _Spec(_Part):
    description: str | None = None
    service: str
    indicator: _Indicator | None = None
    indicatorRef: str | None = None
    budgetingMethod: str
    timeWindow: tuple[_Window, ...] = (_Window(duration="30d", isRolling=True),)
    objectives: tuple[_Target, ...]
    alertPolicies: Any = None


class _Metadata(_Part):
    name: str
    displayName: Any = None
    labels: Any = None
    annotations: Any = None


class _Object(_Part):
    apiVersion: str
    kind: str
    metadata: _Metadata


class _SLO(_Object):
    spec: _Spec


class _SLI(_Object):
    spec: _IndicatorSpec


_NAME = r"[a-zA-Z_:][\w:]*"
_SELECTOR = rf'(?:{_NAME}(?:\{{(?:[^"}}]|"(?:[^"\\]|\\.)*")*\}})?|\{{(?:[^"}}]|"(?:[^"\\]|\\.)*")*\}})'
_COUNTER = re.compile(rf"(?:sum\s*\(\s*(?P<summed>{_SELECTOR})\s*\)|(?P<plain>{_SELECTOR}))")
_RANGE = re.compile(r"\[\s*(?:\d[\dsmhdwy]*|\{\{\s*\.window\s*\}\})\s*\]")


def convert(text: str) -> list[dict[str, Any]]:
    """Return the objectives of a file of OpenSLO v1 as `watchpost_slos` has them. Raises SpecError."""
    objects = [each for document in yaml.safe_load_all(text) for each in _listed(document)]
    problems: list[str] = []
    slos: list[_SLO] = []
    indicators: dict[str, _IndicatorSpec] = {}
    for number, each in enumerate(objects):
        if not isinstance(each, Mapping) or each.get("apiVersion") != API:
            problems.append(f"object {number + 1} of the file is not of {API}")
            continue
        try:
            if each.get("kind") == "SLO":
                slos.append(_SLO.model_validate(each))
            elif each.get("kind") == "SLI":
                sli = _SLI.model_validate(each)
                indicators[sli.metadata.name] = sli.spec
            elif each.get("kind") not in DESCRIBES:
                what = "is not taken over; alerts and their ways are Watchpost's own (docs/slo.md)"
                problems.append(f"{_called(each)}: {what}")
        except ValidationError as error:
            problems += [f"{_called(each)}{_sentence(problem)}" for problem in error.errors()]
    if not problems and not slos:
        problems.append("the file holds no SLO")
    if problems:
        raise SpecError(problems)
    found = []
    for slo in slos:
        try:
            found.append(_objective(slo, indicators))
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return found


def _listed(document: object) -> list[Any]:
    return document if isinstance(document, list) else [] if document is None else [document]


def _called(each: Mapping[str, Any]) -> str:
    metadata = each.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"{each.get('kind')} {name or 'without a name'}"


def _sentence(problem: Mapping[str, Any]) -> str:
    """Say in words what Pydantic found, beginning with the field; what would be lost is named too."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    kind, value = problem["type"], problem["input"]
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "extra_forbidden":
        return f"{path}: cannot be taken over"
    if kind == "value_error":
        return f"{path}: {problem['ctx']['error']}"
    shown = "" if isinstance(value, Mapping) else f"{value!r} "
    return f"{path}: {shown}is not {TYPES[kind]}" if kind in TYPES else f"{path}: {shown}{problem['msg']}"


def _objective(slo: _SLO, indicators: Mapping[str, _IndicatorSpec]) -> dict[str, Any]:
    spec, path = slo.spec, f"SLO {slo.metadata.name}.spec"
    problems = []
    if spec.budgetingMethod != "Occurrences":
        problems.append(f"{path}.budgetingMethod: {spec.budgetingMethod} is not taken over, only Occurrences")
    if spec.alertPolicies:
        problems.append(f"{path}.alertPolicies: cannot be taken over; alerts are Watchpost's own (docs/slo.md)")
    if len(spec.timeWindow) != 1 or not spec.timeWindow[0].isRolling:
        problems.append(f"{path}.timeWindow: only one window with isRolling: true is taken over")
    elif not re.fullmatch(r"\d+[dw]", spec.timeWindow[0].duration):
        problems.append(f"{path}.timeWindow[0].duration: {spec.timeWindow[0].duration} is not in days or weeks")
    target: float | None = None
    if len(spec.objectives) != 1:
        problems.append(f"{path}.objectives: {len(spec.objectives)} of them; exactly one is taken over")
    else:
        target, percent = spec.objectives[0].target, spec.objectives[0].targetPercent
        if target is None and percent is not None:
            target = round(percent / 100, 12)
        if target is None:
            problems.append(f"{path}.objectives[0].target: is missing")
    ratio = {}
    if spec.indicatorRef is not None:
        indicator, where = indicators.get(spec.indicatorRef), f"SLI {spec.indicatorRef}.spec"
        missing = f"{path}.indicatorRef: the file holds no SLI {spec.indicatorRef}"
    else:
        indicator, where = spec.indicator.spec if spec.indicator else None, f"{path}.indicator.spec"
        missing = f"{path}.indicator: is missing"
    if indicator is None:
        problems.append(missing)
    else:
        try:
            ratio = _ratio(indicator.ratioMetric, f"{where}.ratioMetric")
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return {
        "name": slo.metadata.name,
        "service": spec.service,
        "objective": target,
        "window": spec.timeWindow[0].duration,
        **({"impact": spec.description} if spec.description else {}),
        "ratio": ratio,
    }


def _ratio(metric: _RatioMetric, path: str) -> dict[str, str]:
    problems, queries = [], {}
    for side, given in (("good", metric.good), ("bad", metric.bad), ("total", metric.total)):
        if given:
            try:
                queries[side] = _query(given.metricSource.spec.query.strip(), metric.counter, f"{path}.{side}")
            except SpecError as error:
                problems += error.problems
    if metric.total is None or (metric.good is None) == (metric.bad is None):
        problems.append(f"{path}: must have total, and either good or bad")
    if problems:
        raise SpecError(problems)
    return queries


def _query(query: str, counter: bool, path: str) -> str:
    """Turn a query into one over [$window] that counts by the second."""
    if (found := _COUNTER.fullmatch(query)) and counter:
        return f"sum(rate({found['summed'] or found['plain']}[$window]))"
    ranged = outside_strings(query, lambda code: _RANGE.sub("[$window]", code))
    if set(re.findall(r"\[[^\]]*\]?", without_strings(ranged))) != {"[$window]"}:
        wrong = f"{query} is neither a counter (with counter: true) nor a rate over one range"
        raise SpecError([f"{path}.metricSource.spec.query: {wrong}"])
    return outside_strings(ranged, lambda code: re.sub(r"\bincrease(?=\s*\()", "rate", code))
