"""`python -m taskboard check`: judge the settings in the environment, without touching the database."""

from __future__ import annotations

import os
import sys

from taskboard.settings import Settings, SettingsError


def main(arguments: list[str]) -> int:
    """Return 0 for usable settings; say what is wrong and return 1 otherwise."""
    if arguments != ["check"]:
        print("usage: python -m taskboard check", file=sys.stderr)
        return 2
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"taskboard {settings.version}: the settings are usable")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
