"""Every role says what its variables are, and says the same in its specification and in its defaults."""

import re
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent
ROLES = sorted(path.name for path in (PROJECT / "roles").iterdir() if path.is_dir())
FIELDS = {"description", "type", "default", "required", "choices", "elements", "options", "no_log"}
TYPES = {"str", "int", "float", "bool", "list", "dict", "path", "raw"}
MISSING = object()


def load(path):
    return yaml.safe_load(path.read_text()) if path.exists() else None


def specification(role, entry="main"):
    return load(PROJECT / "roles" / role / "meta/argument_specs.yml")["argument_specs"][entry]


def defaults(role):
    return load(PROJECT / "roles" / role / "defaults/main.yml") or {}


def all_options(options, path=""):
    """Each option with its dotted name, nested ones too."""
    for name, option in options.items():
        yield f"{path}{name}", option
        yield from all_options(option.get("options", {}), f"{path}{name}.")


@pytest.mark.parametrize("role", ROLES)
def test_role_is_described(role):
    spec = specification(role)
    assert spec["short_description"] and spec["description"]


@pytest.mark.parametrize("role", ROLES)
def test_specification_and_defaults_name_the_same_variables_with_the_same_values(role):
    options = specification(role).get("options") or {}
    specified = {name: option["default"] for name, option in options.items() if "default" in option}
    assert specified == defaults(role)


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_fully_described(role):
    for name, option in all_options(specification(role).get("options") or {}):
        assert option.get("description"), f"{name} has no description"
        assert option.get("type") in TYPES, f"{name} has no type"
        assert set(option) <= FIELDS, f"{name} has {set(option) - FIELDS}, which Ansible ignores"
        assert option["type"] != "list" or option.get("elements"), f"{name} does not say what it is a list of"
        assert not (option.get("required") and "default" in option), f"{name} is required and has a default"
        if "choices" in option and "default" in option:
            assert option["default"] in option["choices"], f"{name}: its default is not among its choices"


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_carry_the_roles_name_and_internal_ones_are_marked(role):
    for name in [*(specification(role).get("options") or {}), *defaults(role)]:
        assert name.startswith(f"{role}_"), name
    internal = load(PROJECT / "roles" / role / "vars/main.yml") or {}
    for name in internal:
        # The role `service` lends the templates of its callers a few, as docs/architecture.md says.
        assert name.startswith(f"__{role}_") or (role == "service" and name.startswith("service_")), name


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_explained_beside_it(role):
    path = PROJECT / "roles" / role / "defaults/main.yml"
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines):
        if re.match(r"[a-z]\w*:", line):
            # Its own comment, or that of the group of variables it stands in.
            above = number - 1
            while above >= 0 and lines[above].strip() and not lines[above].startswith("#"):
                above -= 1
            assert lines[above].startswith("#") or "#" in line, f"{path}:{number + 1} {line}"


def test_shared_settings_are_all_specified():
    shared = specification("preflight", "shared")["options"]
    settings = {}
    for file in (PROJECT / "group_vars/all").glob("*.yml"):
        settings |= load(file) or {}
    watchpost = {name for name in settings if name.startswith("watchpost_")}
    assert set(shared) == watchpost
    for name, option in all_options(shared):
        assert option["description"] and option["type"] in TYPES, name
