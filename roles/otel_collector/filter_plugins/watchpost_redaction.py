"""Turn the rules of group_vars/all/redaction.yml into processors of the Collector.

Two kinds of processor share the work. `redaction` looks into every attribute and log body, nested ones too, and is
fast; it can only put **** for what it finds. `transform` reaches the fields that the other does not (names, messages,
links), and keeps a part where that is harmless: an address's network, a URL's parameters by name, a statement's form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MASK = "****"
#: Characters of patterns that are joined into one: beyond about 500 instructions Go searches in a slower way.
JOINED = 600

Settings = Mapping[str, Any]

# What a text may look like and yet need no further look: most do. Go matches such a pattern in one pass, because it is
# anchored and the next character always says how to go on; that is what makes redaction affordable.
_BETWEEN = r"[ \-.(/)]*"
_FRACTION = r"(?:\.(?:[0-9]{1,3}(?:\.(?:[0-9]{1,3}(?:\.0?)?)?)?)?)?"
#: Up to five digits, or a version.
_NUMBER = rf"[0-9]{{1,5}}{_FRACTION}"
#: Behind a number: the rest of a time, or a port. Between colons two digits, no more and no fewer, or an IPv6 address
#: in which digits happen to stand around each colon would pass.
_COLON = r"(?::[0-9]{2}(?:[0-9]{1,3}|(?::[0-9]{2})*))?"
#: A number, and behind a blank another of three digits at most, as in `HTTP/1.1" 200 512`: no rule takes two groups of
#: which the second is as short. A third one may make them a telephone number.
_SECOND = rf" (?:[0-9]{{1,3}}(?:[ \-(/)]{_BETWEEN})?|[ \-.(/)]{_BETWEEN})?"
_NUMBERS = rf"(?:{_NUMBER}(?:{_SECOND}|[\-(/)]{_BETWEEN})?)?"
#: In SQL, "=" and a placeholder: "id = ?", or "id = $1" that became "id = $?".
_PLACEHOLDER = r"= ?\$?\?"
#: ":" only in times, ports behind a number, and "://": anywhere else a secret may follow, as in password:123.
_DIGITS = rf"(?:[0-9]+{_COLON})?"
_NO_SIGN = rf"{_DIGITS}(?:[^0-9@=:%](?:://)?{_DIGITS})*"
_WORDS = "[^0-9@=:%+]*"
#: The characters from ":" to "@" are neighbours, so a look at few ranges decides.
_NEITHER = "[^%:-@]*"
HARMLESS = {
    # Part of what "numbers" and "signs" let pass, and found out in half the time.
    "words": rf"^{_WORDS}(?:{_PLACEHOLDER}(?:[ ),;]{_WORDS})?)*$",
    "no sign": rf"^{_NEITHER}(?:{_PLACEHOLDER}(?:[ ),]{_NEITHER})?)*$",
    "numbers": rf"^{_BETWEEN}{_NUMBERS}(?:[^0-9+ \-.(/)]{_BETWEEN}{_NUMBERS})*$",
    "signs": rf"^{_NO_SIGN}(?:{_PLACEHOLDER}(?:[ ),;]{_NO_SIGN})?)*$",
    # Names and messages that pass this are not looked at any further, not even for what is looked for in all values.
    "plain": r"^[^0-9@=:%+-]*$",
}

_IPV4 = r"((?:[1-9]?\d|1[013-9]\d|12[0-689]|2[0-4]\d|25[0-5])\.\d{1,3}\.\d{1,3}\.)\d{1,3}\b"
_GROUP = "[0-9a-fA-F]{1,4}"
_IPV6 = (
    rf"((?:[23][0-9a-fA-F]{{3}}|[fF][c-eC-E][0-9a-fA-F]{{2}})(?::{_GROUP}){{0,2}})"
    rf"(?:(?::{_GROUP}){{0,5}}::(?:{_GROUP}(?::{_GROUP}){{0,5}})?|(?::{_GROUP}){{5}})"
)
#: What is replaced within a field, and by what: a part of it stays.
CUT_ADDRESS = ((rf"\b{_IPV4}", "${1}0"), (rf"\b{_IPV6}", "${1}::"))
CUT_URL = ((r"://[^\s/@]+@", f"://{MASK}@"), (r"(^|[?&;#])([^=&;?#\s]+)=[^&;#\s]*", f"${{1}}${{2}}={MASK}"))
CUT_SQL = (
    (r"'(?:[^']|'')*(?:'|$)", "?"),
    (r'"[^"]*[^\w."][^"]*"', "?"),  # not a name, so a text, as MySQL takes it
    (r"\$([A-Za-z_]*)\$(?s:.*?)\$[A-Za-z_]*\$", "?"),
    (r"\b(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|0x[0-9a-fA-F]+)\b", "?"),
)
#: Statements in which nothing is to be replaced: all their values are placeholders.
UNCUT_SQL = r"""^[^0-9'"$]*$"""
#: What is cut in log bodies, and what these must hold for it: that a text has a fixed character is found out at once.
CUT_BODY = (
    ([r"[.]\d{1,3}[.]"], CUT_ADDRESS[0]),
    (["[:][0-9a-fA-F]{0,4}[:]"], CUT_ADDRESS[1]),
    (["://"], CUT_URL[0]),
    (["[?]", "[&]"], (r"([?&][\w.%\[\]-]+=)[^\s&#\"'<>]+", f"${{1}}{MASK}")),
)


def processors(settings: Settings) -> dict[str, list[str]]:
    """Return the names of the processors of each signal, in their order; none when redaction is off."""
    if not settings["watchpost_redaction_enabled"]:
        return {"traces": [], "logs": [], "metrics": []}
    extra = ["redaction/extra"] if settings["watchpost_redaction_extra_rules"] else []
    return {
        signal: [f"transform/redact_{signal}", "redaction/names", *extra, "redaction/signs", "redaction/numbers"]
        for signal in ("traces", "logs", "metrics")
    }


def configuration(settings: Settings) -> dict[str, Any]:
    """Return the Collector's configuration of these processors."""
    used = {name for names in processors(settings).values() for name in names}
    transform = {"traces": "trace_statements", "logs": "log_statements", "metrics": "metric_statements"}
    groups = _Groups(settings)
    every = {
        "redaction/names": _redactor(
            settings,
            ignored_keys=settings["known_keys"],
            blocked_key_patterns=settings["watchpost_redaction_blocked_keys"],
            blocked_values=_patterns(settings, "always"),
        ),
        "redaction/extra": _redactor(settings, blocked_values=_spelled(settings["watchpost_redaction_extra_rules"])),
        # Each by itself: most texts with signs have harmless numbers, and the search for all numbers takes longest.
        "redaction/signs": _redactor(
            settings,
            allowed_values=[HARMLESS["no sign"], HARMLESS["signs"], *settings["ids"]],
            blocked_values=_joined(_patterns(settings, "signs")),
        ),
        "redaction/numbers": _redactor(
            settings,
            allowed_values=[HARMLESS["words"], HARMLESS["numbers"], *settings["ids"]],
            blocked_values=_joined(_patterns(settings, "numbers")),
        ),
        **{
            f"transform/redact_{signal}": {"error_mode": "silent", key: list(getattr(groups, signal)())}
            for signal, key in transform.items()
        },
    }
    return {"processors": {name: config for name, config in every.items() if name in used}}


def rules_one_by_one(settings: Settings) -> dict[str, Any]:
    """Return a configuration in which every pattern stands alone, in a processor that has its name.

    Nothing runs with it: the Collector's check tells with it whose pattern it does not take.
    """
    alone: dict[str, dict[str, Any]] = {}
    for rule in [*settings["watchpost_redaction_rules"], *settings["watchpost_redaction_extra_rules"]]:
        alone[f"redaction/{rule['name']}"] = {"blocked_values": _spelled([rule])}
    alone["redaction/watchpost_redaction_blocked_keys"] = {
        "blocked_key_patterns": settings["watchpost_redaction_blocked_keys"]
    }
    alone["redaction/watchpost_redaction_allowed_values"] = {"allowed_values": _allowed(settings)}
    return {
        "receivers": {"otlp": {"protocols": {"http": None}}},
        "processors": _dollars(alone),
        "exporters": {"debug": None},
        "service": {
            "pipelines": {"traces": {"receivers": ["otlp"], "processors": list(alone), "exporters": ["debug"]}}
        },
    }


class _Groups:
    """The groups of OTTL statements of each signal."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.untouched = {*settings["watchpost_redaction_allowed_keys"], *settings["watchpost_redaction_hashed_keys"]}
        self.extra = _spelled(settings["watchpost_redaction_extra_rules"])

    def traces(self) -> Iterator[dict[str, Any]]:
        yield from self._scope_and_resource()
        yield from self._hashed("spanevent", "span")
        for keys, cuts, uncut in (
            ("address_keys", CUT_ADDRESS, ""),
            ("url_keys", CUT_URL, ""),
            ("sql_keys", CUT_SQL, UNCUT_SQL),
        ):
            yield from self._cut([f"span.attributes[{json.dumps(key)}]" for key in self._kept(keys)], cuts, uncut)
        yield from self._text("span", "span.name")
        yield from self._text("span", "span.status.message", "span.trace_state")
        yield from self._text("spanevent", "spanevent.name")
        # OTTL cannot look into a link. Assigned to themselves the links are gone; their number is kept.
        services = self.settings["watchpost_redaction_keep_links_of"]
        kept = "".join(f' and resource.attributes["service.name"] != {json.dumps(service)}' for service in services)
        yield _group(
            "span",
            [f"Len(span.links) > 0{kept}"],
            ["set(span.dropped_links_count, Len(span.links))", "set(span.links, span.links)"],
        )

    def logs(self) -> Iterator[dict[str, Any]]:
        yield from self._scope_and_resource()
        yield from self._hashed("log")
        allowed = "".join(f" and not IsMatch(log.body, {json.dumps(pattern)})" for pattern in _allowed(self.settings))
        yield _group(
            "log",
            ["IsString(log.body)"],
            [
                f"{statement} where ({holds}){allowed}"
                for signs, cut in CUT_BODY
                for holds in [" or ".join(f"IsMatch(log.body, {json.dumps(sign)})" for sign in signs)]
                for statement in _replace("log.body", [cut])
            ],
        )
        yield from self._text("log", "log.severity_text", "log.event_name")

    def metrics(self) -> Iterator[dict[str, Any]]:
        yield from self._scope_and_resource()
        yield from self._hashed("datapoint")
        yield from self._text("metric", "metric.name", "metric.description", "metric.unit")
        yield _group("metric", ["Len(metric.metadata) > 0"], ['delete_matching_keys(metric.metadata, "")'])

    def _kept(self, which: str) -> list[str]:
        return [key for key in self.settings[which] if key not in self.untouched]

    def _scope_and_resource(self) -> Iterator[dict[str, Any]]:
        yield from self._hashed("resource", "scope")
        yield from self._text("resource", "resource.schema_url")
        yield from self._text("scope", "scope.name", "scope.version", "scope.schema_url")

    def _hashed(self, *contexts: str) -> Iterator[dict[str, Any]]:
        key = "${file:${env:CREDENTIALS_DIRECTORY}/redaction_key}"
        for context in contexts:
            for name in self.settings["watchpost_redaction_hashed_keys"]:
                value = f"{context}.attributes[{json.dumps(name)}]"
                inner = f'SHA256(Concat(["{key}", String({value})], ""))'
                yield _group(
                    context,
                    [f"{value} != nil"],
                    [
                        # The key within and without: as in an HMAC, nobody can go on from a known hash.
                        f'set({value}, SHA256(Concat(["{key}", {inner}], "")))',
                        f'set({value}, "{MASK}") where not IsMatch({value}, "^[0-9a-f]{{64}}$$")',
                    ],
                    escape=False,
                )

    def _cut(self, fields: list[str], cuts: Iterable[tuple[str, str]], uncut: str) -> Iterator[dict[str, Any]]:
        """Cut each field; when all that are there match `uncut`, there is nothing to cut."""
        if fields:
            statements = [statement for field in fields for statement in _replace(field, cuts)]
            more = f" and not IsMatch({{0}}, {json.dumps(uncut)})" if uncut else ""
            conditions = [f"{field} != nil{more.format(field)}" for field in fields]
            yield _group(fields[0].partition(".")[0], conditions, statements)

    def _text(self, context: str, *fields: str) -> Iterator[dict[str, Any]]:
        """Apply every rule to fields that no redaction processor looks at; most of them are empty or plain words."""
        plain = json.dumps(HARMLESS["plain"])
        yield _group(
            context,
            [f"not IsMatch({field}, {plain})" for field in fields],
            [
                statement
                for field in fields
                for search in ("always", "signs", "numbers")
                for statement in self._masked(field, _patterns(self.settings, search), search)
            ],
        )
        if self.extra:
            statements = [statement for field in fields for statement in self._masked(field, self.extra, "always")]
            yield _group(context, [f'{field} != ""' for field in fields], statements)

    def _masked(self, field: str, patterns: list[str], search: str) -> list[str]:
        where = self._suspicious(field, search)
        statements = _replace(field, ((pattern, MASK) for pattern in _joined(patterns)))
        return [f"{statement} where {where}" if where else statement for statement in statements]

    def _suspicious(self, field: str, search: str) -> str:
        harmless = [HARMLESS[search]] if search != "always" else []
        return " and ".join(f"not IsMatch({field}, {json.dumps(p)})" for p in [*harmless, *_allowed(self.settings)])


def _patterns(settings: Settings, search: str) -> list[str]:
    return _spelled(rule for rule in settings["watchpost_redaction_rules"] if rule["search"] == search)


def _spelled(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the patterns of rules: of those with words one for each letter that these begin with, small and large.

    Of a pattern that begins with one of two characters, as in [?&], one for each: Go looks for a single one first.
    """
    patterns = []
    for rule in rules:
        rests: dict[str, list[str]] = {}
        for word in rule.get("words") or []:
            for letter in dict.fromkeys((word[0].lower(), word[0].upper())):
                rests.setdefault(letter, []).append(word[1:])
        patterns += [f"{letter}(?i:{'|'.join(rest)}){rule['pattern']}" for letter, rest in rests.items()]
        if not rests:
            two = re.match(r"\[([?&=@/]{2})\](.*)", rule["pattern"])
            patterns += [f"[{sign}]{two[2]}" for sign in two[1]] if two else [rule["pattern"]]
    return patterns


def _allowed(settings: Settings) -> list[str]:
    return [f"^(?:{pattern})$" for pattern in settings["watchpost_redaction_allowed_values"]]


def _joined(patterns: Iterable[str]) -> list[str]:
    r"""Join patterns to alternatives of one, so that all of them are found from left to right.

    Those that begin with \b make a group of their own: away from words' edges, where most characters stand, one look
    does for all of them. Those that begin with a fixed character stay alone: Go looks for that character first.
    """
    alone: list[str] = []
    groups: dict[str, list[str]] = {r"\b": [], "": []}
    for pattern in patterns:
        start = r"\b" if pattern.startswith(r"\b") else ""
        group = groups[start]
        alternative = f"(?:{pattern.removeprefix(start)})"
        if re.match(r"\\[+(]|://|[A-Za-z]|\[.\]", pattern):
            alone.append(pattern)
        elif group and len(group[-1]) + len(alternative) < JOINED:
            group[-1] += f"|{alternative}"
        else:
            group.append(alternative)
    return [*alone, *(f"{start}(?:{joined})" for start, group in groups.items() for joined in group)]


def _redactor(settings: Settings, *, ignored_keys: Iterable[str] = (), **lists: list[str]) -> dict[str, Any]:
    untouched = [
        *ignored_keys,
        *settings["watchpost_redaction_allowed_keys"],
        *settings["watchpost_redaction_hashed_keys"],
    ]
    lists["allowed_values"] = [*lists.get("allowed_values", []), *_allowed(settings)]
    config = {
        "allow_all_keys": True,
        "redact_all_types": True,  # lists and maps too; those in which something is found become text
        "summary": "silent",
        "ignored_keys": list(dict.fromkeys(untouched)),
        **lists,
    }
    escaped: dict[str, Any] = _dollars(config)
    return escaped


def _replace(field: str, replacements: Iterable[tuple[str, str]]) -> list[str]:
    return [f"replace_pattern({field}, {json.dumps(p)}, {json.dumps(r)})" for p, r in replacements]


def _group(context: str, conditions: list[str], statements: list[str], *, escape: bool = True) -> dict[str, Any]:
    group = {"context": context, "error_mode": "silent", "conditions": conditions, "statements": statements}
    return _dollars(group) if escape else group


def _dollars(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
    """Write each dollar sign as the Collector takes it: twice."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {key: _dollars(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_dollars(item) for item in value]
    return value


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "watchpost_redaction": configuration,
            "watchpost_redaction_processors": processors,
            "watchpost_redaction_one_by_one": rules_one_by_one,
        }
