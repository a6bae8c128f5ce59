#!/usr/bin/python
"""Make an identity's key, unless it has a sound one, and have the CA on the same host sign a certificate for it."""

from __future__ import annotations

import contextlib
import datetime
import grp
import ipaddress
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# A fresh host has it before this module runs: the role `host` installs python3-cryptography.
with contextlib.suppress(ImportError):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

DOCUMENTATION = """
module: watchpost_pki_identity
short_description: Make an identity's key and certificate
description:
  - Makes I(directory)/I(name)/tls.key, on the curve P-256, unless a sound key of that kind is there, and a new tls.crt
    that the CA in I(directory) signs. Call it for what C(watchpost_pki_state) says is due.
options:
  directory: {description: Where the certificates and the CA lie., type: path, required: true}
  name: {description: The identity's name; the certificate's common name and the directory., type: str, required: true}
  group: {description: The group that may read the key., type: str, required: true}
  mode: {description: The key's mode., type: str, required: true}
  sans: {description: "Whom it is for: DNS:name or IP:address.", type: list, elements: str, required: true}
  days: {description: How long it is valid., type: int, required: true}
"""

BEFORE = datetime.timedelta(minutes=5)  # a caller's clock may be a little behind


def main() -> None:
    """Read the arguments, make both."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "mode": {"type": "str", "required": True},
            "sans": {"type": "list", "elements": "str", "required": True},
            "days": {"type": "int", "required": True},
        }
    )
    p = module.params
    base = Path(p["directory"])
    home = base / p["name"]
    home.mkdir(exist_ok=True)
    os.chown(home, 0, 0)
    home.chmod(0o755)
    key = sound_key(home / "tls.key") or ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    ca = x509.load_pem_x509_certificate((base / "ca.crt").read_bytes())
    ca_key = serialization.load_pem_private_key((base / "private/ca.key").read_bytes(), password=None)
    certificate = request(p["name"], p["sans"], p["days"], key, ca).sign(ca_key, hashes.SHA256())
    # The certificate last: without one that belongs to its key, an identity is due again.
    write(home / "tls.key", pem, grp.getgrnam(p["group"]).gr_gid, int(p["mode"], 8))
    write(home / "tls.crt", certificate.public_bytes(serialization.Encoding.PEM), 0, 0o644)
    module.exit_json(changed=True)


def sound_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """Read a key; one that does not open, or is of another kind, counts as none."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1) else None


def request(
    name: str, sans: list[str], days: int, key: ec.EllipticCurvePrivateKey, ca: x509.Certificate
) -> x509.CertificateBuilder:
    """Write down what the certificate says: a server's and client's, for these names, and no authority's."""
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - Debian 12's Python knows no datetime.UTC
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    server_and_client = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([general_name(san) for san in sans]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(server_and_client), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()), critical=False)
    )


def general_name(san: str) -> x509.GeneralName:
    """Return a name or address as certificates have it."""
    kind, _, value = san.partition(":")
    return x509.IPAddress(ipaddress.ip_address(value)) if kind == "IP" else x509.DNSName(value)


def write(path: Path, content: bytes, gid: int, mode: int) -> None:
    """Replace a file in one step; nobody reads its content before its mode is set (mkstemp makes it 0600)."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(handle, 0, gid)
            os.fchmod(handle, mode)
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    main()
