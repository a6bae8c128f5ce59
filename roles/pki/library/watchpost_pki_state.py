#!/usr/bin/python
"""Say which certificates have to be made or renewed, and why. Changes nothing."""

from __future__ import annotations

import grp
import ipaddress
import pwd
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watchpost_certificates import (
    HAS_CRYPTOGRAPHY,
    expires_within,
    not_after,
    public_bytes,
    read_certificate,
    signed_by,
)

if HAS_CRYPTOGRAPHY:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

DOCUMENTATION = """
module: watchpost_pki_state
short_description: Say which certificates are due, and why
description: Reads the CA, the identities and the gateway's public certificate, so that a run makes only what is due.
options:
  directory: {description: Where the certificates lie., type: path, required: true}
  identities:
    description: Each I(name), I(group) and I(mode) of its key, and the I(names) it answers to.
    type: list
    elements: dict
    required: true
  renew_before_days: {description: An identity that expires sooner is due., type: int, required: true}
  ca_renew_before_days: {description: The same for the CA., type: int, required: true}
  ca: {description: The CA's certificate as text, when the CA lives on another host., type: str, default: ""}
  gateway: {description: Whether the host has a gateway and with it a public certificate., type: bool, required: true}
  gateway_certificate:
    description: The user's own public certificate as text; without it the gateway's identity is wanted in its place.
    type: str
    default: ""
  gateway_key:
    description: The key of I(gateway_certificate) as text.
    type: str
    default: ""
"""


def main() -> None:
    """Read the arguments, look, report."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "identities": {"type": "list", "elements": "dict", "required": True},
            "renew_before_days": {"type": "int", "required": True},
            "ca_renew_before_days": {"type": "int", "required": True},
            "ca": {"type": "str", "default": ""},
            "gateway": {"type": "bool", "required": True},
            "gateway_certificate": {"type": "str", "default": ""},
            # Not within a dictionary: Ansible writes those to the journal whole, whatever no_log says inside.
            "gateway_key": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    base = Path(module.params["directory"])
    wanted = [{**item, "sans": sans(item["names"])} for item in module.params["identities"]]
    if not HAS_CRYPTOGRAPHY:
        if not module.check_mode:
            module.fail_json(msg="the host lacks python3-cryptography, which the role `host` installs: run it first")
        for item in wanted:
            item["reasons"] = ["the host has nothing yet"]
        module.exit_json(changed=True, ca_due=["the host has nothing yet"], due=wanted, public_due=[], ca="")

    if module.params["ca"]:
        ca, renewed = x509.load_pem_x509_certificate(module.params["ca"].encode()), False
        copy = base / "ca.crt"
        ca_due = [] if copy.exists() and copy.read_text() == module.params["ca"] else ["it is another one"]
    else:
        ca, ca_due, renewed = look_at_ca(base, module.params["ca_renew_before_days"])
    due = []
    for item in wanted:
        reasons = ["its CA is made anew"] if renewed or ca is None else look_at_identity(base, item, ca, module.params)
        if reasons:
            due.append({**item, "reasons": reasons})
    own = module.params["gateway_certificate"], module.params["gateway_key"]
    # A run cannot renew the user's own: its end is told apart.
    public = read_certificate(base / "gateway/public.crt") if own[0] else None
    try:
        public_due = look_at_public(base / "gateway", *own) if module.params["gateway"] else []
    except ValueError as error:
        problem = {"check": "certificates", "problem": str(error), "component": "gateway"}
        module.fail_json(msg=str(error), problems=[problem], ca_due=ca_due, due=due)  # `watchpost doctor` looks on
    module.exit_json(
        changed=module.check_mode and bool(ca_due or due or public_due),  # in a real run the tasks that follow say so
        ca_due=ca_due,
        due=due,
        public_due=public_due,
        public_ends=end_of(public, module.params["renew_before_days"]) if public else "",
        ca="" if ca is None or renewed else module.params["ca"] or (base / "ca.crt").read_text(),
    )


def sans(names: list[str]) -> list[str]:
    """Write names and addresses the way the certificate modules want them; doubles and empty ones are dropped."""
    out = []
    for name in names:
        try:
            out.append(f"IP:{ipaddress.ip_address(name)}")
        except ValueError:
            out.append(f"DNS:{name}")
    return sorted(set(out) - {"DNS:"})


def look_at_ca(base: Path, days: int) -> tuple[x509.Certificate | None, list[str], bool]:
    """Return the CA's certificate, why the CA is due, and whether that makes its certificate another one."""
    key_file = base / "private/ca.key"
    ca = read_certificate(base / "ca.crt")
    if ca is None:
        return None, ["it has no certificate"], True
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError):
        return ca, ["it has no key"], True
    if public_bytes(key.public_key()) != public_bytes(ca.public_key()):
        return ca, ["its certificate belongs to another key"], True
    if ending := end_of(ca, days):
        return ca, [ending], True
    return ca, wrong_access(key_file, "root", 0o600) + wrong_access(base / "private", "root", 0o700), False


def look_at_identity(base: Path, item: dict[str, Any], ca: x509.Certificate, params: dict[str, Any]) -> list[str]:
    """Return why an identity is due; nothing when it is as it should be."""
    directory = base / item["name"]
    certificate = read_certificate(directory / "tls.crt")
    if certificate is None:
        return ["it has no certificate"]
    key_file = directory / "tls.key"
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError):
        return ["it has no key"]
    reasons = wrong_access(key_file, item["group"], int(item["mode"], 8)) + wrong_access(
        directory / "tls.crt", "root", 0o644
    )
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        reasons.append("its certificate belongs to another key")
    if ending := end_of(certificate, params["renew_before_days"]):
        reasons.append(ending)
    if not signed_by(certificate, ca):
        reasons.append("another CA signed it")
    if common_name(certificate) != item["name"]:
        reasons.append(f"its name is {common_name(certificate)}")
    present = certificate_sans(certificate)
    if present != item["sans"]:
        reasons.append(f"it is for {', '.join(present)} instead of {', '.join(item['sans'])}")
    return reasons


def look_at_public(directory: Path, own_certificate: str, own_key: str) -> list[str]:
    """Return which of the gateway's public files are due; ValueError when the user's own cannot be used."""
    if not own_certificate:
        links = {"public.crt": "tls.crt", "public.key": "tls.key"}
        return [name for name, target in links.items() if not is_link_to(directory / name, target)]
    try:
        certificate = x509.load_pem_x509_certificate(own_certificate.encode())
        key = serialization.load_pem_private_key(own_key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "pki_gateway_certificate and pki_gateway_key must be PEM files, the key without a passphrase"
        ) from error
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        raise ValueError("pki_gateway_key does not belong to the first certificate in pki_gateway_certificate")
    if expires_within(certificate, 0):
        raise ValueError(f"the certificate in pki_gateway_certificate expired on {not_after(certificate):%Y-%m-%d}")
    wanted = {
        "public.crt": (own_certificate, "root", 0o644),
        "public.key": (own_key, "watchpost-gateway", 0o640),
    }
    return [
        name
        for name, (text, group, mode) in wanted.items()
        if (directory / name).is_symlink()
        or not (directory / name).exists()
        or (directory / name).read_text() != text
        or wrong_access(directory / name, group, mode)
    ]


def is_link_to(path: Path, target: str) -> bool:
    """Tell whether a path is a link with just this content."""
    return path.is_symlink() and str(path.readlink()) == target


def wrong_access(path: Path, group: str, mode: int) -> list[str]:
    """Return what is wrong with a path's owner and mode; it should be root's and this group's."""
    status = path.stat()
    found = f"{user_name(status.st_uid)}:{group_name(status.st_gid)} {status.st_mode & 0o7777:04o}"
    expected = f"root:{group} {mode:04o}"
    return [] if found == expected else [f"{path.name} is {found} instead of {expected}"]


def user_name(number: int) -> str:
    """Return a user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_name(number: int) -> str:
    """Return a group's name, or the number of one that has none."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def end_of(certificate: x509.Certificate, days: int) -> str:
    """Say that a certificate has expired, or will within so many days; nothing for one that lasts longer."""
    if expires_within(certificate, 0):
        return f"it expired on {not_after(certificate):%Y-%m-%d}"
    return f"it expires within {days} days" if expires_within(certificate, days) else ""


def common_name(certificate: x509.Certificate) -> str:
    """Return a certificate's common name."""
    names = certificate.subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def certificate_sans(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses a certificate is for, as sans() writes them."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = [f"DNS:{name}" for name in extension.value.get_values_for_type(x509.DNSName)]
    return sorted(names + [f"IP:{address}" for address in extension.value.get_values_for_type(x509.IPAddress)])


if __name__ == "__main__":
    main()
