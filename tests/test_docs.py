"""What the documents name is there: files, headings, commands with their options, targets of make, settings."""

import re
import subprocess

import pytest
from command_lines import TARGETS, command_of

from watchpost.project import PROJECT

DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
NAMES = [str(file.relative_to(PROJECT)) for file in DOCUMENTS]
#: Prefixes of settings, as roles have them.
PREFIXES = sorted({file.parent.parent.name for file in PROJECT.glob("roles/*/defaults/main.yml")} | {"watchpost"})


def prose(text):
    """Return a document without its blocks of code, in which a # begins no heading."""
    return re.sub(r"^(    |```).*$", "", text, flags=re.MULTILINE)


def anchors(file):
    """Return the names that the headings of a document can be linked by, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", prose(file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    file = PROJECT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(file.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def commands():
    """Return each command of the documents that runs `python -m watchpost`, with the document's name."""
    found = []
    for name in NAMES:
        text = (PROJECT / name).read_text()
        for line in re.findall(r"(?:python -m watchpost|`watchpost) ([^`\n]+)", text):
            found.append((name, re.split(r" [#|>&…]|[;:|]", line)[0].strip()))
    return found


@pytest.mark.parametrize(("name", "line"), commands())
def test_commands_exist_with_their_options(name, line):
    command_of(line)


def test_targets_of_make_exist():
    for name in NAMES:
        for target in re.findall(r"(?:`|^    )make ([a-z]+)", (PROJECT / name).read_text(), re.MULTILINE):
            assert target in TARGETS, f"{name}: make {target}"


@pytest.fixture(scope="session")
def code():
    """All words of what the names are of: settings, metrics, labels."""
    files = [file for place in ("roles", "group_vars", "watchpost") for file in (PROJECT / place).rglob("*.*")]
    return {word for file in files if file.is_file() for word in re.findall(r"\w+", file.read_text(errors="ignore"))}


@pytest.mark.parametrize("name", NAMES)
def test_settings_exist(name, code):
    for word in re.findall(rf"`((?:{'|'.join(PREFIXES)})_[a-z_]+)[:`]", (PROJECT / name).read_text()):
        assert word in code, word


def test_files_of_the_project_that_are_named_exist():
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, text=True, capture_output=True, check=True).stdout
    known = set(listed.split())
    roots = {path.split("/")[0] for path in known if "/" in path} - {"inventory", "app"}
    for name in NAMES:
        for path in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|yml|md|j2|toml))`", (PROJECT / name).read_text()):
            if path.split("/")[0] in roots and not re.match("group_vars/[a-z]+.yml", path):  # those are a reader's own
                assert path in known, f"{name}: {path}"
