"""`watchpost load`: send telemetry that can be found again, and count what was acknowledged and cannot be found."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from watchpost import verify_target
from watchpost.load_read import Count, Reader
from watchpost.load_send import Load, Sender, Signal, Telemetry
from watchpost.options import Inventory, Json
from watchpost.verify_grafana import AskError
from watchpost.verify_target import Target, TargetError


def ingest_client(target: Target, certificate: Path | None = None, source: str | None = None) -> httpx.Client:
    """Return a client of the OTLP/HTTP endpoint: it shows the token, or the certificate in a directory.

    `source` is the address of this machine from which it connects; the kernel's choice by default.
    """
    trust = target.trust()
    headers = {}
    if certificate:
        trust.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    else:
        headers["Authorization"] = f"Bearer {target.token}"
    any_number = httpx.Limits(max_connections=None)
    transport = httpx.HTTPTransport(verify=trust, limits=any_number, trust_env=False, local_address=source)
    return httpx.Client(base_url=target.ingest, transport=transport, headers=headers, timeout=30, trust_env=False)


def load(
    inventory: Inventory = "",
    ingest: Annotated[
        str, typer.Option(help="OTLP/HTTP endpoint, like https://HOST:4318; default: from the inventory.")
    ] = "",
    certificate: Annotated[
        Path | None,
        typer.Option(help="Directory with tls.crt and tls.key, for an endpoint that asks for a client certificate."),
    ] = None,
    signal: Annotated[list[Signal] | None, typer.Option(help="Send only this one; repeat. Default: all three.")] = None,
    rate: Annotated[float, typer.Option(min=1, max=20000, help="Items a second, of each signal.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long to send.")] = 20,
    size: Annotated[int, typer.Option(min=1, max=1000, help="Spans or log records in one request.")] = 50,
    retry_for: Annotated[float, typer.Option(min=0, help="Seconds after which a request is given up.")] = 120,
    shift: Annotated[float, typer.Option(help="Seconds added to every timestamp; negative is the past.")] = 0,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds in which everything must become visible.")] = 60,
    as_json: Json = False,
) -> None:
    """Prove that nothing acknowledged is lost: send spans, log records and counts, read every one back, and compare.

    Sends OTLP over HTTP as a well-behaved client does: what is refused for now (429, 502, 503, 504, a broken
    connection) is sent again after the time that the server asks for, until --retry-for is over. An item counts as
    acknowledged only when the whole request was taken. Then each span is looked for in Tempo, each line in Loki and
    each point in Prometheus, through Grafana. To see it at work, end a service on the host meanwhile, say by
    `systemctl kill -s KILL watchpost-loki`.

    What it sends stays, under the service name load-<run>, until it is as old as the retention. Tail sampling, if it is
    on, drops traces on purpose: they are counted as lost. Exit code: 0 nothing lost, 1 something acknowledged was not
    found, 2 wrong usage, or the appliance cannot be reached.
    """
    console = Console(stderr=True, highlight=False)
    telemetry, began = Telemetry(shift=shift), time.time()
    try:
        target = verify_target.find(inventory)
        if ingest:
            target = target.reached_at(ingest)
        with target.grafana():
            pass  # before anything is sent: a wrong password must not be found out afterwards
        with ingest_client(target, certificate) as client:
            sender = Sender(client, retry_for)
            console.print(f"Sending as service {telemetry.service} to {target.ingest} for {seconds:g} s", markup=False)
            Load(sender, telemetry, tuple(signal or Signal), rate, seconds, size).run()
            console.print("Reading back", markup=False)
            ledgers = {each: ledger for each, ledger in sender.ledgers.items() if ledger.sent}
        with target.grafana() as grafana:  # again: a session must be renewed after ten minutes
            counts = Reader(grafana, telemetry, began).wait(ledgers, timeout)
    except (TargetError, AskError, httpx.TransportError, OSError) as error:
        console.print(f"watchpost load: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    lost = any(count.lost for count in counts)
    if as_json:
        report = {"service": telemetry.service, "ok": not lost, "counts": [asdict(count) for count in counts]}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        show(counts, telemetry.service)
    if lost:
        raise typer.Exit(1)


def show(counts: Sequence[Count], title: str) -> None:
    """Print the counts for a person, and below them what was refused or lost."""
    console = Console(highlight=False)
    made = Table("Signal", title=title)
    for heading in ("Sent", "Acknowledged", "Refused", "Found", "Lost", "Duplicates"):
        made.add_column(heading, justify="right")
    for count in counts:
        numbers = (count.sent, count.acknowledged, count.refused, count.found, count.lost, count.duplicates)
        made.add_row(count.signal, *map(str, numbers))
    console.print(made)
    for count in counts:
        for remark in remarks(count):
            console.print(f"{count.signal}: {remark}", markup=False, soft_wrap=True)


def remarks(count: Count) -> list[str]:
    """Say what was refused and why, what is lost, and why a store did not answer."""
    said = [f"{items} refused: {why}" for why, items in count.why.items()]
    said += [f"{count.lost} lost, first {', '.join(count.first_lost)}"] if count.lost else []
    return said + ([count.error] if count.error else [])
