"""Stand-ins for Slack, PagerDuty, a mail server, a webhook and a heartbeat, as strict as the real ones are said to be.

They run beside the tests, on the machine's own address towards the test host, so that what reaches them has left the
host as it would on its way to the internet. Each takes only what its vendor documents, over TLS, and keeps that.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import email
import email.policy
import http.server
import ipaddress
import json
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Message:
    """What a stand-in took: when (Unix seconds), its body, and for HTTP the headers."""

    at: float
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


class Authority:
    """A certificate authority of the tests' own, with its files in a directory."""

    def __init__(self, directory: Path, name: str = "receivers") -> None:
        """Make its key and certificate; `certificate` is the PEM file that others trust."""
        self.directory, self._key = directory, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} test CA")])
        certificate = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.certificate = directory / f"{name}-ca.crt"
        self.certificate.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))

    def server(self, address: str) -> ssl.SSLContext:
        """Return the TLS settings of a server at an address, with a certificate for it."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = self._builder(x509.Name([]), key).add_extension(alternatives, True)
        file = self.directory / f"{self.certificate.stem}-{address}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + _pem(builder.sign(self._key, hashes.SHA256()))
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def slack_faults(payload: dict[str, Any]) -> list[str]:
    """Say what Slack has against the body of an incoming webhook.

    https://api.slack.com/docs/message-attachments, https://docs.slack.dev/messaging/formatting-message-text
    """
    faults = []
    attachments = payload.get("attachments") or []
    if not payload.get("text") and not any(a.get("text") or a.get("fallback") for a in attachments):
        faults.append("no_text")
    if len(attachments) > 100:
        faults.append("too_many_attachments")
    for attachment in attachments:
        if not attachment.get("fallback"):
            faults.append("an attachment has no fallback")
        if not re.fullmatch(r"good|warning|danger|#[0-9a-fA-F]{6}", attachment.get("color", "")):
            faults.append(f"color {attachment.get('color')!r}")
        if link := attachment.get("title_link"):
            faults += [] if urlsplit(link).scheme == "https" else [f"title_link {link!r}"]
        if len(attachment.get("footer", "")) > 300:
            faults.append("footer over 300 characters")
        # Whatever is no link must have the three control characters as entities.
        plain = re.sub(r"<https://[^|<>]+\|[^|<>]+>", "", attachment.get("text", "")) + attachment.get("title", "")
        if re.search(r"[<>]|&(?!amp;|lt;|gt;)", plain):
            faults.append(f"unescaped: {plain!r}")
    if len(json.dumps(payload)) > 40_000:
        faults.append("msg_too_long")
    return faults


def pagerduty_faults(event: dict[str, Any]) -> list[str]:
    """Say what PagerDuty has against an event.

    https://developer.pagerduty.com/docs/send-alert-event: required fields, their lengths and choices.
    """
    faults = []
    if len(event.get("routing_key", "")) != 32:
        faults.append("Length of 'routing_key' is incorrect (should be 32 characters)")
    if event.get("event_action") not in ("trigger", "acknowledge", "resolve"):
        faults.append("'event_action' is invalid")
    if not 0 < len(event.get("dedup_key", "")) <= 255:
        faults.append("'dedup_key' is missing or too long")
    payload = event.get("payload") or {}
    for name in ("summary", "source", "severity"):
        if not isinstance(payload.get(name), str) or not payload[name]:
            faults.append(f"'payload.{name}' is missing or blank")
    if len(payload.get("summary", "")) > 1024:
        faults.append("'payload.summary' is too long")
    if payload.get("severity") not in ("critical", "error", "warning", "info"):
        faults.append("'payload.severity' is invalid")
    for name in ("component", "group", "class"):
        if not isinstance(payload.get(name, ""), str):
            faults.append(f"'payload.{name}' is no text")
    if not isinstance(payload.get("custom_details", {}), dict):
        faults.append("'payload.custom_details' is no object")
    for link in event.get("links", []):
        if urlsplit(link.get("href", "")).scheme not in ("https", "http") or not isinstance(link.get("text", ""), str):
            faults.append(f"'links' holds {link}")
    if len(json.dumps(event)) > 512_000:
        faults.append("the event is over 512 KB")
    return faults


def webhook_faults(payload: dict[str, Any]) -> list[str]:
    """Say what is missing in Alertmanager's own JSON: https://prometheus.io/docs/alerting/latest/configuration/."""
    wanted = {"version", "groupKey", "status", "receiver", "groupLabels", "commonLabels", "commonAnnotations", "alerts"}
    return [f"no {name}" for name in wanted - set(payload)] + ([] if payload.get("version") == "4" else ["version"])


#: First part of the path -> what the vendor has against a body, and what it answers: status, type and text.
VENDORS: dict[str, tuple[Callable[[dict[str, Any]], list[str]], tuple[int, str, str]]] = {
    "slack": (slack_faults, (200, "text/plain", "ok")),
    "pagerduty": (pagerduty_faults, (202, "application/json", '{"status":"success","message":"Event processed"}')),
    "webhook": (webhook_faults, (200, "text/plain", "")),
    "heartbeat": (lambda _: [], (200, "text/plain", "OK")),
}


@dataclass
class Web:
    """An HTTPS server for all vendors that are told by HTTP; what it took is kept by path."""

    url: str
    taken: dict[str, list[Message]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def at(self, path: str) -> list[Message]:
        """Return what was taken at a path, the first first."""
        return list(self.taken.get(path, ()))


@contextlib.contextmanager
def web(address: str, authority: Authority) -> Iterator[Web]:
    """Run the HTTPS server until the block ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge, (status, kind, text) = VENDORS[self.path.split("/")[1]]
            if faults := judge(body):
                server.refused.append(f"{self.path}: {faults}")
                status, kind, text = 400, "application/json", json.dumps({"status": "invalid event", "errors": faults})
            else:
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.taken.setdefault(self.path, []).append(Message(time.time(), body, headers))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that does not trust the certificate breaks off

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, peer = super().get_request()
            connection.settimeout(30)
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    context = authority.server(address)
    with Server((address, 0), Handler) as listener:
        server = Web(f"https://{address}:{listener.server_address[1]}")
        with _serving(listener):
            yield server


@dataclass
class Mail:
    """An SMTP server; what it took, and what was wrong with those who came."""

    address: str  # HOST:PORT
    taken: list[Message] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@contextlib.contextmanager
def mail(address: str, authority: Authority, username: str, password: str, starttls: bool = True) -> Iterator[Mail]:
    """Run an SMTP server that takes mail after STARTTLS and a login (RFC 3207, RFC 4954), until the block ends.

    Without `starttls` it does not offer TLS, and takes whatever comes.
    """

    class Session(socketserver.StreamRequestHandler):
        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def handle(self) -> None:
            self.connection.settimeout(30)
            secure, known, sender, recipients = False, not starttls, "", list[str]()
            self.say("220 double ESMTP")
            while line := self.rfile.readline().decode().rstrip("\r\n"):
                verb = line.split(" ")[0].upper()
                if verb in ("EHLO", "HELO"):
                    self.say("250-double")
                    if starttls:
                        self.say("250-AUTH PLAIN" if secure else "250-STARTTLS")
                    self.say("250 8BITMIME")
                elif verb == "STARTTLS" and starttls:
                    self.say("220 go ahead")
                    self.connection = context.wrap_socket(self.connection, server_side=True)
                    self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
                    secure = True
                elif verb == "AUTH" and secure:
                    known = base64.b64decode(line.split(" ")[2]).decode() == f"\0{username}\0{password}"
                    self.say("235 welcome" if known else "535 no")
                elif verb == "MAIL" and known:
                    sender = line.partition(":")[2].split(" ")[0]
                    self.say("250 ok")
                elif verb == "RCPT" and known:
                    recipients.append(line.partition(":")[2])
                    self.say("250 ok")
                elif verb == "DATA" and recipients:
                    self.say("354 go on")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    text = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                    envelope = {"from": sender, "to": " ".join(recipients), "tls": str(secure)}
                    server.taken.append(Message(time.time(), text, envelope))
                    self.say("250 taken")
                elif verb == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    server.refused.append(line)
                    self.say("530 not so")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that does not trust the certificate breaks off

    context = authority.server(address)
    with Server((address, 0), Session) as listener:
        server = Mail(f"{address}:{listener.server_address[1]}")
        with _serving(listener):
            yield server


@contextlib.contextmanager
def _serving(listener: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    try:
        yield
    finally:
        listener.shutdown()
        thread.join()


def plain_text(message: EmailMessage) -> str:
    """Return the text of a mail; one that has none fails the test."""
    part = message.get_body(("plain",))
    assert part is not None, message
    return str(part.get_content()).replace("\r\n", "\n")


def explored(link: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Take a link to Grafana's Explore apart: data source, query, range. What Explore would not read fails the test."""
    question = parse_qs(urlsplit(link).query, strict_parsing=True)
    assert question["schemaVersion"] == ["1"], link
    [pane] = json.loads(question["panes"][0]).values()
    [query] = pane["queries"]
    assert query["datasource"]["uid"] == pane["datasource"]
    return pane["datasource"], query, pane["range"]
