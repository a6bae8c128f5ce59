"""The delivery pipeline stops what must not be delivered, at the right stage and with its cause, and nothing else.

Each run is `watchpost pipeline`, as a person or a build server calls it, against the drills' host.
"""

import contextlib
import glob
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from drills.harness import say, unit_name
from tests import jenkins
from watchpost.project import PROJECT


@pytest.fixture(scope="module")
def release(appliance, tmp_path_factory):
    """Deliver with these settings, from this checkout; return exit code, report and the stages' outcomes."""
    count = 0

    def deliver(*stages, checkout=PROJECT, report=False, **settings):
        nonlocal count
        count += 1
        inventory = tmp_path_factory.mktemp("inventory")
        (inventory / "hosts.yml").symlink_to(appliance.host.inventory)
        (inventory / "group_vars").mkdir()
        (inventory / "group_vars/watchpost.yml").write_text(yaml.safe_dump(settings))
        run = tmp_path_factory.getbasetemp() / "run"
        environment = os.environ | {"WATCHPOST_RUN": str(run), "WATCHPOST_INVENTORY": str(inventory)}
        command = [sys.executable, "-m", "watchpost", "pipeline", *stages]
        done = subprocess.run(command, cwd=checkout, env=environment, text=True, capture_output=True, check=False)
        if report:
            subprocess.run([sys.executable, "-m", "watchpost", "report"], cwd=checkout, env=environment, check=True)
        outcomes = json.loads((run / "stages.json").read_text())
        say(f"  delivery {count}: " + ", ".join(f"{each['stage']} {each['seconds']:.0f} s" for each in outcomes))
        return done, (run / "report.md").read_text() if not stages or report else "", outcomes

    yield deliver
    done, *_ = deliver()
    assert done.returncode == 0, f"the host is not what it was: {done.stdout[-3000:]}"


def failed(outcomes):
    return [each["stage"] for each in outcomes if not each["passed"]]


def test_good_release_is_delivered_time_after_time(release, deliveries, tmp_path, monkeypatch):
    """And no run is found to be worse than those before it."""
    for each in ("BASELINE", "SAVE_BASELINE"):
        monkeypatch.setenv(f"WATCHPOST_GATE_{each}", str(tmp_path / "good.json"))
    for _ in range(deliveries):
        done, report, outcomes = release()
        assert done.returncode == 0, done.stdout[-3000:]
        assert report.startswith("# Delivered") and not failed(outcomes)


def test_jenkinsfile_s_commands_pass_in_order_and_leave_its_artifacts(appliance, left_out):
    found = jenkins.evaluate(INVENTORY=str(appliance.host.inventory))
    environment = os.environ | jenkins.environment(found)
    for stage, command in jenkins.steps(found):
        # What Jenkins does at a build's end removes the test host of `make pipeline`, which this is not.
        if stage in left_out or stage == "cleanup":
            continue
        say(f"  {stage}: {command}")
        done = subprocess.run(["bash", "-c", command], cwd=PROJECT, env=environment, check=False)
        assert done.returncode == 0, f"stage {stage}: {command}"
    for pattern in jenkins.artifacts(found):
        # Not Path.glob, whose ** are directories alone before Python 3.13.
        files = glob.glob(pattern, root_dir=PROJECT, recursive=True)  # noqa: PTH207 - see above
        assert any((PROJECT / file).is_file() for file in files), f"no file is {pattern}"
    assert (PROJECT / environment["WATCHPOST_RUN"] / "report.md").read_text().startswith("# Delivered")


def test_slow_release_is_stopped_at_the_gate_for_its_p95(release):
    done, report, outcomes = release(taskboard_faults={"latency": {"share": 0.2, "milliseconds": 800}})
    assert done.returncode == 1 and failed(outcomes) == ["gate"], done.stdout[-3000:]
    assert "Not delivered: gate failed" in report and "P95 is" in report and "must be at most 500 ms" in report
    assert "availability is" not in report


def test_failing_release_is_stopped_at_the_gate_for_its_availability(release):
    done, report, outcomes = release(taskboard_faults={"error": {"share": 0.1}})
    assert done.returncode == 1 and failed(outcomes) == ["gate"], done.stdout[-3000:]
    assert "Not delivered: gate failed" in report and "availability is" in report and "P95 is" not in report


def test_release_whose_telemetry_does_not_arrive_is_stopped_at_verify(release, appliance, monkeypatch):
    monkeypatch.setenv("WATCHPOST_VERIFY_TIMEOUT", "20")
    assert release("provision", "deploy")[0].returncode == 0
    with appliance.stopped("otel_collector"):
        done, report, outcomes = release("traffic", "verify", "gate", report=True)
    assert done.returncode == 1 and failed(outcomes) == ["verify"], done.stdout[-3000:]
    assert "Not delivered: verify failed" in report
    for signal in ("traces", "logs", "metrics"):
        assert f"{signal} is missing" in report
    assert f"services: {unit_name('otel_collector')} is inactive" in report, "it says what the doctor finds"


def test_broken_release_is_stopped_at_deploy_and_the_old_one_goes_on(release, appliance, tmp_path):
    assert release("provision", "deploy")[0].returncode == 0
    version = appliance.shell("readlink /opt/watchpost/taskboard/current")
    with broken_checkout(tmp_path) as checkout:
        done, report, outcomes = release(checkout=checkout)
    assert done.returncode == 1 and failed(outcomes) == ["deploy"], done.stdout[-3000:]
    assert "Not delivered: deploy failed" in report and "this release is broken" in report
    assert appliance.shell("readlink /opt/watchpost/taskboard/current") == version


@contextlib.contextmanager
def broken_checkout(tmp_path):
    """A checkout whose application cannot start."""
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", ".watchpost", "node_modules", "__pycache__", ".*_cache")
    shutil.copytree(PROJECT, checkout, ignore=ignored, symlinks=True)
    wsgi = checkout / "app/taskboard/wsgi.py"
    wsgi.write_text(wsgi.read_text() + '\nraise RuntimeError("this release is broken")\n')
    yield checkout
