"""What can be read of certificates; for the role's modules, and for the renewal on the host."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    HAS_CRYPTOGRAPHY = True
except ImportError:  # a fresh host in check mode
    HAS_CRYPTOGRAPHY = False

METRIC = "watchpost_certificate_not_after_timestamp_seconds"


def read_certificate(path: Path) -> x509.Certificate | None:
    """Read a certificate; one that is missing or cut short counts as none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def public_bytes(key: Any) -> bytes:  # noqa: ANN401 - a public key of any kind
    """Return a public key in a form that can be compared."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def not_after(certificate: x509.Certificate) -> datetime.datetime:
    """Return when a certificate ends; Debian 12's cryptography has only the name without a time zone."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc
    return certificate.not_valid_after.replace(tzinfo=datetime.timezone.utc)  # noqa: UP017


def expires_within(certificate: x509.Certificate, days: int) -> bool:
    """Tell whether a certificate ends within so many days."""
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017
    return not_after(certificate) <= now + datetime.timedelta(days=days)


def signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Tell whether a CA signed a certificate."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    except AttributeError:  # Debian 12 has cryptography 38; the method came with 40
        return signed_by_key(certificate, ca)
    return True


def signed_by_key(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """The same for an older cryptography, by hand: issuer and signature."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key, algorithm = ca.public_key(), certificate.signature_hash_algorithm
    if certificate.issuer != ca.subject or not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
        return False
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def ends(directory: Path, identities: Iterable[str], gateway: bool, host: str, partly: bool = False) -> str:
    """Return when each certificate ends, as node_exporter's textfile collector reads it.

    Besides those of the identities that of the CA and, with `gateway`, the one that browsers see. Raises ValueError for
    one that is missing or cannot be read, unless such are to be left out (`partly`).
    """
    certificates = {name: directory / name / "tls.crt" for name in identities} | {"ca": directory / "ca.crt"}
    if gateway:
        certificates["gateway_public"] = directory / "gateway/public.crt"
    lines = [f"# HELP {METRIC} When a certificate ends.\n", f"# TYPE {METRIC} gauge\n"]
    for identity, path in sorted(certificates.items()):
        if certificate := read_certificate(path):
            end = not_after(certificate).timestamp()
            lines.append(f'{METRIC}{{host="{host}",identity="{identity}"}} {end:.0f}\n')
        elif not partly:
            raise ValueError(f"{path} is no certificate")
    return "".join(lines)
