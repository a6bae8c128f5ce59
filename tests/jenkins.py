"""What the Jenkinsfile holds, as Groovy reads it: for tests that check it, and the drill that executes it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def evaluate(file=PROJECT / "Jenkinsfile", **parameters):
    """Return each word of a Jenkinsfile in order, as {path, word, arguments}; parameters have its defaults."""
    assert shutil.which("groovy"), 'Groovy is missing: python -m watchpost packages "unit tests"'
    command = ["groovy", str(PROJECT / "tests/jenkinsfile.groovy"), str(file), json.dumps(parameters)]
    environment = os.environ | {"WORKSPACE": str(PROJECT)}
    answer = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def shell_commands(found):
    """Return all commands in order."""
    return [each["arguments"][0] for each in found if each["word"] == "sh"]


def steps(found):
    """Return all commands in order, each with its stage; `always` and `cleanup` stand for those after the stages."""
    places = [[word for word in each["path"] if word not in ("stages", "steps", "post")] for each in found]
    return [(place[0], each["arguments"][0]) for place, each in zip(places, found, strict=True) if each["word"] == "sh"]


def environment(found):
    """Return the variables that the Jenkinsfile sets; without credentials, which only a Jenkins has."""
    settings = {each["word"]: each["arguments"][0] for each in found if each["path"] == ["environment"]}
    return {name: value for name, value in settings.items() if "credentials" not in (name, value)}


def artifacts(found):
    """Return the patterns of the files that Jenkins would keep or read."""
    given = [each["arguments"][0] for each in found if each["word"] in ("junit", "archiveArtifacts")]
    return [each.get("artifacts") or each["testResults"] for each in given]
