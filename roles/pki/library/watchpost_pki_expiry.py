#!/usr/bin/python
"""Write when certificates end, for node_exporter's textfile collector. Time passes by itself: an alert does the sum."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watchpost_certificates import HAS_CRYPTOGRAPHY, ends
from ansible.module_utils.watchpost_generation import write

DOCUMENTATION = """
module: watchpost_pki_expiry
short_description: Write when certificates end, as metrics
options:
  directory: {description: Where the certificates lie., type: path, required: true}
  identities: {description: Whose certificates are watched besides the CA's., type: list, elements: str, required: true}
  gateway: {description: Whether the host has a gateway and with it a public certificate., type: bool, required: true}
  path: {description: The file of metrics that is written; none when only the answer is wanted., type: path}
  host: {description: A label that says whose certificates they are., type: str, required: true}
"""


def main() -> None:
    """Read the certificates, write the file when it says something else."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "identities": {"type": "list", "elements": "str", "required": True},
            "gateway": {"type": "bool", "required": True},
            "path": {"type": "path"},
            "host": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode and not HAS_CRYPTOGRAPHY:
        module.exit_json(changed=True)
    p, check = module.params, module.check_mode
    # In check mode one may be missing that a run would have made.
    text = ends(Path(p["directory"]), p["identities"], p["gateway"], p["host"], partly=check)
    changed = False
    if module.params["path"]:
        target = Path(module.params["path"])
        changed = not target.exists() or target.read_text() != text
        if changed and not module.check_mode:
            write(target, text, 0o644)
    module.exit_json(changed=changed, text=text)


if __name__ == "__main__":
    main()
