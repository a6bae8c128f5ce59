"""What Prometheus's own checker says against the queries of objectives, where the artifact store has it."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

from watchpost.artifacts.catalogue import load
from watchpost.artifacts.ensure import Ensurer
from watchpost.artifacts.errors import ArtifactError
from watchpost.artifacts.gobuild import host_os_arch
from watchpost.artifacts.store import cache_dir, extract
from watchpost.slo import rules, spec

PROGRAM = "bin/promtool"
_PYTHON = "3.13"  # of no matter: Prometheus is no Python
_REFUSED = re.compile(r'group "([^"]+)", rule \d+, "[^"]+": (?:could not parse expression: )?(.+)')
_PLACE = re.compile(r"^\d+:\d+: parse error: ")


class PromtoolMissing(Exception):
    """The artifact store has no Prometheus for this machine."""


def problems(objectives: spec.Objectives) -> list[str]:
    """Name each field whose query Prometheus refuses, and why.

    Raises PromtoolMissing, and ArtifactError when the archive is damaged or promtool says something else.
    """
    queries = list(rules.queries(objectives))
    entry = Ensurer(load(), cache_dir(), host_os_arch(), _PYTHON).find("prometheus")
    if entry is None:
        raise PromtoolMissing
    with tempfile.TemporaryDirectory() as scratch:
        extract(entry.path, Path(scratch), PROGRAM)
        groups = [{"name": field, "rules": [{"record": "checked", "expr": expr}]} for field, expr in queries]
        file = Path(scratch) / "rules.yml"
        file.write_text(json.dumps({"groups": groups}))  # JSON is YAML
        command = [str(Path(scratch) / PROGRAM), "check", "rules", "--lint=none", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [f"{field}: Prometheus says: {_PLACE.sub('', why)}" for field, why in _REFUSED.findall(done.stderr)]
    if done.returncode and not found:
        raise ArtifactError(f"promtool check rules: {done.stderr.strip()}")
    return found
