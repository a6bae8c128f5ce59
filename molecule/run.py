"""Run Molecule scenarios, several at a time; one line each, its log in a file, and the log's end when it fails."""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

MOLECULE = Path(__file__).resolve().parent
LOGS = MOLECULE.parent / ".watchpost" / "molecule"
TAIL = 60  # lines shown of a failed scenario
#: Started first, so that the longest does not run alone at the end.
LONGEST = (
    "appliance",
    "doctor",
    "pipeline",
    "backup",
    "grafana",
    "service",
    "taskboard",
    "prometheus",
    "pki",
    "otel_collector",
    "agent",
    "alertmanager",
)


def scenarios() -> list[str]:
    """Return the names of all scenarios, the longest ones first."""
    names = {file.parent.name for file in MOLECULE.glob("*/molecule.yml")}
    return [name for name in LONGEST if name in names] + sorted(names - set(LONGEST))


def run(scenario: str) -> tuple[bool, float]:
    """Run one scenario; return whether it passed, and in how many seconds."""
    started = time.monotonic()
    environment = {
        **os.environ,
        "ANSIBLE_FORCE_COLOR": "0",
        "NO_COLOR": "1",
        "MOLECULE_COMMAND_BORDERS": "0",
        # Molecule's own choice has only the last part of the checkout's path in it: two checkouts could share it.
        "MOLECULE_EPHEMERAL_DIRECTORY": str(LOGS / scenario),
    }
    with (LOGS / f"{scenario}.log").open("wb") as log:
        command = ["molecule", "test", "--scenario-name", scenario]
        done = subprocess.run(command, cwd=MOLECULE.parent, env=environment, stdout=log, stderr=log, check=False)
    return done.returncode == 0, time.monotonic() - started


def main() -> int:
    """Run the scenarios that the command line names, or all."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, required=True, help="how many at a time; the Makefile has the default")
    arguments.add_argument("--failed", action="append", default=[], help="count this as failed too: it ran before")
    arguments.add_argument("scenario", nargs="*", help="default: all")
    options = arguments.parse_args()
    wanted = options.scenario or scenarios()
    unknown = set(wanted) - set(scenarios())
    if unknown:
        arguments.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(scenarios())}")
    LOGS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    failed: list[str] = options.failed
    print(f"▸ {len(wanted)} Molecule scenarios, {options.jobs} at a time; logs in {LOGS}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(run, scenario): scenario for scenario in wanted}
        for done in as_completed(running):
            scenario, (passed, seconds) = running[done], done.result()
            print(f"  {'passed' if passed else 'FAILED'}  {scenario} ({seconds:.0f} s)", flush=True)
            if not passed:
                failed.append(scenario)
                lines = (LOGS / f"{scenario}.log").read_text(errors="replace").splitlines()
                print(*(f"    {line}" for line in lines[-TAIL:]), sep="\n", flush=True)
    print(f"  done in {time.monotonic() - started:.0f} s")
    if failed:
        print(f"Failed: {', '.join(failed)}")
    print(f"{len(set(wanted) - set(failed))} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
