"""What an objective is, and what may be written in `group_vars/all/slo.yml`.

An objective says which share of a service's events must be good over a rolling window. What an event is, and when it is
good, says its indicator (SLI): `availability`, `latency` or `ratio`. docs/slo.md explains each with examples.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

#: The variables that hold the objectives and the drills' clock.
VARIABLES = {"slos": "watchpost_slos", "time_scale": "watchpost_slo_time_scale"}

DAY = 86_400
#: Bounds of a window: well longer than the longest alert looks back (3 days), and at most a year.
SHORTEST_DAYS, LONGEST_DAYS = 7, 366

#: Upper bounds in seconds of the buckets in which OpenTelemetry's SDKs measure requests, and the Collector spans.
#: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#metric-httpserverrequestduration
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

#: What the events of `of` are: the histogram that counts them, and which of them have failed.
EVENTS = {
    "requests": ("http_server_request_duration_seconds", 'http_response_status_code=~"5.."'),
    "spans": ("traces_spanmetrics_latency", 'status_code="STATUS_CODE_ERROR"'),
}

_MATCHER = r'[a-zA-Z_]\w*\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"'
_MATCHERS = re.compile(rf"\s*{_MATCHER}(?:\s*,\s*{_MATCHER})*\s*,?\s*")
#: https://prometheus.io/docs/prometheus/latest/querying/basics/#string-literals
_STRING = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)""")
#: Pydantic's name of a wrong type -> what it should be.
TYPES = {
    "model_type": "a mapping of fields",
    "tuple_type": "a list",
    "string_type": "text",
    "string_too_short": "a name",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
}
_LENGTHS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": float(DAY), "w": 7.0 * DAY}


class SpecError(ValueError):
    """The objectives cannot be meant; `problems` holds one sentence for each field that is wrong."""

    def __init__(self, problems: Iterable[str]) -> None:
        """Keep the sentences."""
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def seconds(text: object) -> float:
    """Return the length of a time such as 500ms, 2.5s or 30d, in seconds. Raises ValueError."""
    if isinstance(text, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", text.strip())):
        return float(found[1]) * _LENGTHS[found[2]]
    raise ValueError("is no length of time, such as 500ms, 2.5s or 30d")


def show(length: float) -> str:
    """Write a length of time below a minute, given in seconds, as one reads it: 500ms, 2.5s."""
    return f"{length * 1000:g}ms" if length < 1 else f"{length:g}s"


def _days(value: object) -> int:
    length = seconds(value)
    if length % DAY:
        raise ValueError("is not a number of whole days or weeks")
    if not SHORTEST_DAYS <= length / DAY <= LONGEST_DAYS:
        raise ValueError(f"is not between {SHORTEST_DAYS}d and {LONGEST_DAYS}d")
    return int(length // DAY)


def _matchers(text: str) -> str:
    if text and not _MATCHERS.fullmatch(text):
        raise ValueError(
            'is not a list of matchers of labels, such as http_route!="/healthz", span_kind="SPAN_KIND_SERVER"'
        )
    return text.strip().rstrip(",")


def outside_strings(query: str, change: Callable[[str], str]) -> str:
    """Change what of a query in PromQL does not stand in quotes."""
    return "".join(part if number % 2 else change(part) for number, part in enumerate(_STRING.split(query)))


def without_strings(query: str) -> str:
    """Empty what stands in quotes, so that a range or a function is one."""
    return _STRING.sub('""', query)


def _query(text: str) -> str:
    code = without_strings(text)
    ranges = re.findall(r"\[([^\]]*)\]", code)
    if "$window" not in ranges:
        raise ValueError("has no [$window], the range over which it counts, as in sum(rate(jobs_total[$window]))")
    if others := [each for each in ranges if each != "$window"]:
        raise ValueError(f"has the range [{others[0]}], where only [$window] may stand")
    if found := re.search(r"\b(increase|irate|delta|idelta)\s*\(", code):
        raise ValueError(f"uses {found[1]}(), where rate() must stand: events are counted by the second")
    return text.strip()


Days = Annotated[int, BeforeValidator(_days)]
Seconds = Annotated[float, BeforeValidator(seconds)]
Matchers = Annotated[str, AfterValidator(_matchers)]
Query = Annotated[str, AfterValidator(_query)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Availability(_Strict):
    """Good are the events that have not failed."""

    #: requests: `http.server.request.duration` of the service itself; spans: what the Collector counts of its spans.
    of: Literal["requests", "spans"] = "requests"
    #: Which of the service's events count at all, as matchers of labels. Default: all.
    where: Matchers = ""
    #: Which of them are bad. Default: requests answered with 5xx; spans with the status Error.
    bad: Matchers = ""


class Latency(_Strict):
    """Good are the events that took no longer than the threshold, whether or not they failed."""

    of: Literal["requests", "spans"] = "requests"
    where: Matchers = ""
    #: For example 500ms. It must be the upper bound of a bucket: between two bounds a histogram can only guess.
    threshold: Seconds
    #: The upper bounds of the histogram's buckets, in seconds, where they are not OpenTelemetry's own.
    buckets: tuple[float, ...] = BUCKETS

    @model_validator(mode="after")
    def _on_a_boundary(self) -> Latency:
        bounds = sorted(self.buckets)
        if self.threshold not in bounds:
            near = [b for b in bounds if b < self.threshold][-1:] + [b for b in bounds if b > self.threshold][:1]
            raise ValueError(
                f"threshold: {show(self.threshold)} is not the upper bound of a bucket; "
                f"nearest {'is' if len(near) == 1 else 'are'} {' and '.join(show(bound) for bound in near)}"
            )
        return self


class Ratio(_Strict):
    """Good events and all events by two queries of the user's own, in PromQL, each per second over `[$window]`.

    Either `good` or `bad` is given, with `total`. A query without result means that there was no such event.
    """

    good: Query | None = None
    bad: Query | None = None
    total: Query

    @model_validator(mode="after")
    def _one_side(self) -> Ratio:
        if (self.good is None) == (self.bad is None):
            raise ValueError("has either good or bad, beside total")
        return self


class Objective(_Strict):
    """One objective: `objective` of the events of `service` must be good over the last `window`."""

    #: Unique; becomes the label `slo`.
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    #: `service.name` of the telemetry; becomes the label `service`.
    service: Annotated[str, Field(min_length=1)]
    #: What people notice when it is missed, as a sentence: stands in the alerts.
    impact: str = ""
    #: The share of good events, such as 0.99 for 99 %.
    objective: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    #: The rolling window over which the share is counted, in whole days or weeks. Default: 30d.
    window: Days = Field(default=30, validate_default=False)
    #: How many bad events an alert's longer window must hold: with little traffic a single one is a large share.
    min_bad_events: Annotated[int, Field(ge=1)] = 5
    availability: Availability | None = None
    latency: Latency | None = None
    ratio: Ratio | None = None

    @property
    def kind(self) -> str:
        """The indicator's field: availability, latency or ratio."""
        return "availability" if self.availability else "latency" if self.latency else "ratio"

    @property
    def sli(self) -> Availability | Latency | Ratio:
        """The indicator."""
        sli = self.availability or self.latency or self.ratio
        assert sli is not None  # noqa: S101 - of the three there is one, says _one_indicator
        return sli

    @property
    def budget(self) -> float:
        """The error budget: the share of events that may be bad."""
        return round(1 - self.objective, 12)

    @field_validator("availability", "latency", "ratio", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        return {} if value is None else value  # `availability:` alone is one with its defaults

    @model_validator(mode="after")
    def _one_indicator(self) -> Objective:
        given = [kind for kind in ("availability", "latency", "ratio") if getattr(self, kind) is not None]
        if len(given) != 1:
            has = " and ".join(given) or "no indicator"
            raise ValueError(f"has {has}; it must have exactly one of availability, latency, ratio")
        return self


class Objectives(_Strict):
    """All objectives, and how much faster than in life their time runs."""

    slos: tuple[Objective, ...] = ()
    #: For drills: every window and delay is divided by this.
    time_scale: Annotated[float, Field(ge=1, le=60)] = 1

    @model_validator(mode="after")
    def _names_differ(self) -> Objectives:
        names = [slo.name for slo in self.slos]
        for number, name in enumerate(names):
            if (first := names.index(name)) < number:
                raise ValueError(f"slos[{number}].name: {name} is the name of slos[{first}] too")
        return self


def read(slos: object, time_scale: object = 1) -> Objectives:
    """Read the values of `watchpost_slos` and `watchpost_slo_time_scale`. Raises SpecError."""
    try:
        return Objectives.model_validate({"slos": slos, "time_scale": time_scale})
    except ValidationError as error:
        raise SpecError(_sentence(problem) for problem in error.errors()) from None


def _sentence(problem: Mapping[str, Any]) -> str:
    """Say in words what Pydantic found, beginning with the field."""
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    value, context, kind = problem["input"], problem.get("ctx", {}), problem["type"]
    if kind == "missing":
        says = "is missing"
    elif kind == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _fields(problem["loc"][:-1]), 1, 0.6)
        says = "is not a field here" + (f"; did you mean {near[0]}?" if near else "")
    elif kind == "less_than":
        says = f"{value} is not below {context['lt']:g}"
    elif kind == "greater_than":
        says = f"{value} is not above {context['gt']:g}"
    elif kind == "less_than_equal":
        says = f"{value} is above {context['le']:g}"
    elif kind == "greater_than_equal":
        says = f"{value} is below {context['ge']:g}"
    elif kind == "string_pattern_mismatch":
        says = f"{value} is not a name of small letters, digits and dashes that begins with a letter"
    elif kind in TYPES:
        says = f"{value!r} is not {TYPES[kind]}"
    elif kind == "literal_error":
        says = f"{value} is not {context['expected']}"
    elif kind == "value_error":
        words = str(context["error"])
        if isinstance(value, Mapping | Objectives | _Strict):  # of a whole: the words say which part
            inner = re.match(r"[a-z_]+(?:\[\d+\]\.[a-z_]+)?: ", words)
            joint = "." if inner and path else ": " if path else ""
            return _named(f"{path}{joint}{words}")
        says = f"{value} {words}"
    else:
        says = f"{value!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    return _named(f"{path}: {says}")


def _named(sentence: str) -> str:
    """Name the variable as the user has written it."""
    return re.sub(r"\b(slos|time_scale)(?=[\[:])", lambda found: VARIABLES[found[0]], sentence)


def _fields(path: tuple[str | int, ...]) -> Iterable[str]:
    """The fields that may stand at a place."""
    last = next((part for part in reversed(path) if isinstance(part, str)), "slos")
    models: dict[str, type[BaseModel]] = {"availability": Availability, "latency": Latency, "ratio": Ratio}
    return models.get(last, Objective).model_fields
