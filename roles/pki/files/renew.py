#!/usr/bin/python3
"""Renew what of the host's certificates comes to its end, and have the services show it: `renew.py SETTINGS`.

A run of site.yml does so too, and finds nothing to do afterwards: a renewed certificate is the old one with another
serial number and later dates, of the same key; and a restarted service that is ready again is recorded as good.

The settings are JSON: `pki` (directory), `identities` (names), `validity_days` and `renew_before_days`; `units` (by
identity) and `config` (where services keep what runs); `metrics` (file), `host` and `gateway`, as `ends` has them.
Whatever else is wrong with a certificate is left for a run. The CA is not renewed here: whoever trusts it must be told.

Exit code: 1 when a service was not ready again within READY_SECONDS. The others then go on showing the old certificate,
which is still valid, until the next time.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

# Beside this file on the host.
from watchpost_certificates import ends, expires_within, not_after, read_certificate, signed_by
from watchpost_generation import ask, write

READY_SECONDS = 120
#: A caller's clock may be a little behind.
EARLIER = datetime.timedelta(minutes=5)


def renewed(old: x509.Certificate, ca: x509.Certificate, ca_key: Any, days: int) -> bytes:  # noqa: ANN401 - of any kind
    """Return the same certificate for so many days from now on, at most as long as the CA lasts, in PEM."""
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - as the role's modules write it
    builder = x509.CertificateBuilder(ca.subject, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - EARLIER)
    builder = builder.not_valid_after(min(now + datetime.timedelta(days=days), not_after(ca)))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def renew(settings: dict[str, Any]) -> None:
    """Put a new certificate in the place of each that is near its end."""
    pki = Path(settings["pki"])
    ca = x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
    ca_key = serialization.load_pem_private_key((pki / "private/ca.key").read_bytes(), password=None)
    for name in settings["identities"]:
        path = pki / name / "tls.crt"
        old = read_certificate(path)
        longer = old and not_after(old) < not_after(ca)  # else every night would make another that lasts no longer
        if old and longer and signed_by(old, ca) and expires_within(old, settings["renew_before_days"]):
            write(path, renewed(old, ca, ca_key, settings["validity_days"]).decode(), 0o644)
            print(f"{name}: its certificate ended on {not_after(old):%Y-%m-%d} and was renewed")


def show(settings: dict[str, Any], name: str, unit: str) -> bool:
    """Have a service that runs show its certificate, if it does not yet; return whether it is ready."""
    pki, home = Path(settings["pki"]), Path(settings["config"]) / name
    try:
        good = json.loads((home / "good.json").read_text())
    except FileNotFoundError:  # it was never deployed
        return True
    digest = hashlib.sha256((pki / name / "tls.crt").read_bytes()).hexdigest()
    at_work = (home / "current").resolve().name != good["generation"]  # a run of site.yml
    if digest == good["certificate"] or at_work or not active(unit):
        return True  # whoever starts it has it show the new one
    subprocess.run(["systemctl", "restart", unit], check=True)
    ready = json.loads((home / "current/ready.json").read_text())
    deadline = time.monotonic() + READY_SECONDS
    while why := ask(ready, f"{pki}/ca.crt", f"{pki}/operator/tls.crt", f"{pki}/operator/tls.key"):
        if time.monotonic() > deadline:
            print(f"{name}: restarted for its certificate, and not ready again: {why}")
            return False
        time.sleep(0.5)  # between two questions
    write(home / "good.json", json.dumps(good | {"certificate": digest}) + "\n", 0o644)
    print(f"{name}: shows its new certificate")
    return True


def active(unit: str) -> bool:
    """Tell whether a unit runs; one that somebody has stopped, or the disk guard, stays stopped."""
    return subprocess.run(["systemctl", "is-active", "--quiet", unit]).returncode == 0


def main(settings: dict[str, Any]) -> int:
    """Renew, tell Prometheus, and restart one service after the other."""
    renew(settings)
    told = ends(Path(settings["pki"]), settings["identities"], settings["gateway"], settings["host"], partly=True)
    write(Path(settings["metrics"]), told, 0o644)
    return int(not all(show(settings, name, unit) for name, unit in settings["units"].items()))


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
