"""Python files of roles and playbooks, which are in no package."""

import importlib.util

from watchpost.project import PROJECT


def load(file, name):
    """Load a file, by its path from the top of the project, as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
