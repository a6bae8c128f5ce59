#!/usr/bin/python
"""Write when certificates end, for node_exporter's textfile collector. Time passes by itself: an alert does the sum."""

from __future__ import annotations

import datetime
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

try:
    from cryptography import x509

    HAS_CRYPTOGRAPHY = True
except ImportError:  # a fresh host in check mode
    HAS_CRYPTOGRAPHY = False

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

METRIC = "watchpost_certificate_not_after_timestamp_seconds"


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
    base = Path(module.params["directory"])
    certificates = {name: base / name / "tls.crt" for name in module.params["identities"]} | {"ca": base / "ca.crt"}
    if module.params["gateway"]:
        certificates["gateway_public"] = base / "gateway/public.crt"
    lines = [f"# HELP {METRIC} When a certificate ends.\n", f"# TYPE {METRIC} gauge\n"]
    for identity, path in sorted(certificates.items()):
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except FileNotFoundError:
            if module.check_mode:
                continue  # it would have been made
            raise
        end = f"{not_after(certificate).timestamp():.0f}"
        lines.append(f'{METRIC}{{host="{module.params["host"]}",identity="{identity}"}} {end}\n')
    text, changed = "".join(lines), False
    if module.params["path"]:
        target = Path(module.params["path"])
        changed = not target.exists() or target.read_text() != text
        if changed and not module.check_mode:
            write(target, text)
    module.exit_json(changed=changed, text=text)


def not_after(certificate: x509.Certificate) -> datetime.datetime:
    """Return when a certificate ends; Debian 12's cryptography has only the name without a time zone."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc
    return certificate.not_valid_after.replace(tzinfo=datetime.timezone.utc)  # noqa: UP017


def write(path: Path, text: str) -> None:
    """Write a file in one step: node_exporter must never read half of it."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        os.fchmod(handle, 0o644)
    Path(name).rename(path)


if __name__ == "__main__":
    main()
