"""The objectives of group_vars/all/slo.yml as rules of Prometheus; watchpost/slo does the work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project is not installed where Ansible runs


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a variable holds
    """Ansible works out what is inside of a value only when it is asked for, by its items; others look past that."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, str) else value


def watchpost_slo_groups(slos: object, time_scale: object, public_url: str) -> list[dict[str, Any]]:
    """Return the groups of rules of the objectives. Raises SpecError."""
    from watchpost.slo import rules, spec  # with pydantic, which few tasks need, and each loads its filters

    return rules.rule_groups(spec.read(_plain(slos), time_scale), public_url)


def watchpost_slo_problems(slos: object, time_scale: object, retention_days: object) -> list[str]:
    """Return what is wrong with the objectives, by themselves and together with how long metrics are kept."""
    from watchpost.slo import rules, spec

    try:
        objectives = spec.read(_plain(slos), time_scale)
    except spec.SpecError as error:
        return error.problems
    return rules.problems(objectives, float(str(retention_days)))


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"watchpost_slo_groups": watchpost_slo_groups, "watchpost_slo_problems": watchpost_slo_problems}
