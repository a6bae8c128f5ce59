"""A service of the user's own, connected word for word as docs/guide.md says: what it sends is found."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

from conftest import PROJECT, wait_until
from test_browser import grafana, target  # noqa: F401 - fixtures

GUIDE = (PROJECT / "docs/guide.md").read_text()


def block(begins):
    """Return the block of the guide that begins with these words."""
    (found,) = [
        each for each in re.findall(r"(?:^(?:    .*|)\n)+", GUIDE, re.MULTILINE) if each.strip().startswith(begins)
    ]
    return dedent(found)


def test_service_that_is_connected_as_the_guide_says_is_found(grafana, target, tmp_path):  # noqa: F811 - fixtures
    (tmp_path / "hello.py").write_text(block("import logging"))
    (tmp_path / "ca.crt").write_bytes(Path(target.ca).read_bytes())
    (tmp_path / "env").symlink_to(sys.prefix)  # it has what the guide has pip install
    commands = (
        block("export OTEL_SERVICE_NAME").replace("https://HOST:4318", target.ingest).replace("TOKEN", target.token)
    )
    began = time.time() - 5
    spoils = ("OTEL_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # for other authorities, where a machine has them set
    clean = {name: value for name, value in os.environ.items() if not name.startswith(spoils)}
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "error" not in done.stderr.lower(), done.stderr
    lines = wait_until(lambda: grafana.logs('{service_name="hello"}', began, time.time() + 5), 60)
    assert lines[0].body == "hello from my own service"
    (span,) = wait_until(lambda: grafana.trace(lines[0].labels["trace_id"], began, time.time() + 5), 60)
    assert (span.service, span.name) == ("hello", "hello")
    wait_until(lambda: grafana.instant("hello_greetings_total", time.time()), 60)
