"""Where this checkout lies, and how its own programs are called."""

from __future__ import annotations

import sys
from pathlib import Path

#: The checkout: site.yml, group_vars/ and the roles lie here.
PROJECT = Path(__file__).resolve().parent.parent


def ansible(program: str, *words: str) -> list[str]:
    """Return the command line of a program of Ansible, from the Python environment that runs this one."""
    return [str(Path(sys.executable).with_name(program)), *words]
