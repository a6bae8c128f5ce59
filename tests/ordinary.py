# ruff: noqa: E501 - a message stays on one line
"""Ordinary text of a running system: several thousand log lines, span names and attribute values, nothing personal."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

WORDS = (
    "queue",
    "task",
    "worker",
    "cache",
    "index",
    "batch",
    "session",
    "request",
    "tenant",
    "ring",
    "block",
    "segment",
)
PATHS = ("/api/tasks", "/api/tasks/{id}", "/loki/api/v1/push", "/api/v1/query_range", "/otlp/v1/traces", "/healthz")
TABLES = ("tasks", "orders", "invoice_lines", "public.users", "audit_log")
MODULES = (
    "taskboard.api",
    "sqlalchemy.engine.base",
    "github.com/grafana/loki/v3/pkg/ingester",
    "tempo/modules/distributor",
)


def messages(seed: int = 1, count: int = 6000) -> Iterator[str]:
    """Yield that many messages, the same for the same seed."""
    r = random.Random(seed)
    kinds = (engine, journal, access, statement, identifier, version, moment, trace, words, setting, route, measure)
    for number in range(count):
        yield kinds[number % len(kinds)](r)


def stamp(r: random.Random) -> str:
    return (
        f"2026-{r.randint(1, 12):02}-{r.randint(1, 28):02}T{r.randint(0, 23):02}:{r.randint(0, 59):02}:"
        f"{r.randint(0, 59):02}.{r.randint(0, 999999999):09}Z"
    )


def hexed(r: random.Random, bits: int) -> str:
    return f"{r.getrandbits(bits):0{bits // 4}x}"


def engine(r: random.Random) -> str:
    word, other = r.sample(WORDS, 2)
    return r.choice(
        (
            f'level=info ts={stamp(r)} caller=main.go:{r.randint(10, 999)} msg="starting {word}" component={other}',
            f'level=warn ts={stamp(r)} caller=flush.go:{r.randint(10, 999)} msg="failed to flush {word}" err="context deadline exceeded" retries={r.randint(1, 9)}',
            f'ts={stamp(r)} level=info msg="WAL segment loaded" segment={r.randint(0, 99999)} maxSegment={r.randint(0, 99999)} duration={r.random() * 100:.6f}ms',
            f'{{"level":"info","ts":"{stamp(r)}","msg":"Exporting failed. Will retry the request after interval.","otelcol.component.id":"otlp_http/tempo","interval":"{r.random() * 9:.9f}s"}}',
            f'caller=compactor.go:{r.randint(10, 999)} msg="compacted blocks" blocks={r.randint(1, 90)} bytes={r.randint(1000, 999_999_999)} took={r.random() * 60:.3f}s',
            f'logger={word}.store t={stamp(r)} level=info msg="Database locked, sleeping then retrying" retry={r.randint(0, 5)} code="database is locked"',
        )
    )


def journal(r: random.Random) -> str:
    word = r.choice(WORDS)
    return r.choice(
        (
            f"Started watchpost-{word}.service - The {word}.",
            f"systemd[1]: watchpost-{word}.service: Main process exited, code=exited, status={r.randint(1, 255)}/n/a",
            f"user@{r.randint(0, 65000)}.service: Consumed {r.randint(1, 900)}ms CPU time, {r.random() * 90:.1f}M memory peak.",
            f"Listening on {word}.socket - /run/{word}.sock",
            f"kernel: [{r.random() * 90000:12.6f}] eth0: renamed from veth{hexed(r, 32)}",
            f"pam_unix(sshd:session): session opened for user root(uid={r.randint(0, 9)}) by (uid=0)",
        )
    )


def access(r: random.Random) -> str:
    return (
        f"127.0.0.1 - - [{r.randint(1, 28):02}/Nov/2026:{r.randint(0, 23):02}:{r.randint(0, 59):02}:00 +0000] "
        f'"{r.choice(("GET", "POST", "PATCH"))} {r.choice(PATHS)} HTTP/1.1" {r.choice((200, 201, 404, 500))} {r.randint(1, 99999)}'
    )


def statement(r: random.Random) -> str:
    table = r.choice(TABLES)
    return r.choice(
        (
            f"SELECT {table}.id, {table}.title FROM {table} WHERE {table}.id = ? ORDER BY {table}.id DESC LIMIT ? OFFSET ?",
            f"INSERT INTO {table} (title, done, created_at) VALUES (?, ?, ?) RETURNING id",
            f"UPDATE {table} SET done=?, updated_at=CURRENT_TIMESTAMP WHERE {table}.id = $1",
            f"DELETE FROM {table} WHERE {table}.id IN (%(id_1)s, %(id_2)s)",
        )
    )


def identifier(r: random.Random) -> str:
    return r.choice(
        (
            f"trace_id={hexed(r, 128)} span_id={hexed(r, 64)}",
            f"traceparent: 00-{hexed(r, 128)}-{hexed(r, 64)}-01",
            str(uuid.UUID(int=r.getrandbits(128), version=4)),
            f"commit {hexed(r, 160)}",
            f"sha256:{hexed(r, 256)}",
            f"request {uuid.UUID(int=r.getrandbits(128), version=4)} took {r.randint(1, 9999)} ms",
            hexed(r, 128),
        )
    )


def version(r: random.Random) -> str:
    a, b, c = (r.randint(0, 40) for _ in range(3))
    return r.choice(
        (
            f"otelcol 0.{a}.{b}", f"Python {a}.{b}.{c} (main, Nov 25 2026, 10:11:12) [GCC 14.{c}.0]", f"v{a}.{b}.{c}-rc.1+build.{a}",
            f"Mozilla/5.0 (X11; Linux x86_64; rv:{a + 90}.0) Gecko/20100101 Firefox/{a + 90}.0",
            f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{a + 90}.0.0.0 Safari/537.36",
            f"python-httpx/0.{a}.{b}", f"linux-image-6.{a}.{b}-amd64", f"Debian GNU/Linux 13 (trixie) 6.12.{a}", "HTTP/1.1", f"{a}.{b}.{c}",
        )
    )  # fmt: skip


def moment(r: random.Random) -> str:
    seconds = r.randint(1_700_000_000, 1_800_000_000)
    return r.choice(
        (
            stamp(r), f"at {seconds}", f"timeUnixNano {seconds}{r.randint(0, 999_999_999):09}", f"{seconds}{r.randint(0, 999):03}",
            f"deadline {seconds}.{r.randint(0, 999999):06}", f"{stamp(r)[:10]} {stamp(r)[11:19]}", f"elapsed 0:0{r.randint(0, 9)}:{r.randint(10, 59)}",
        )
    )  # fmt: skip


def trace(r: random.Random) -> str:
    module = r.choice(MODULES)
    return r.choice(
        (
            f'Traceback (most recent call last):\n  File "/opt/watchpost/taskboard/current/lib/python3.13/site-packages/{module.replace(".", "/")}.py", line {r.randint(1, 3000)}, in wrapper\n    return self._call(cursor, statement)\nsqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked',
            f"goroutine {r.randint(1, 9999)} [running]:\n{module}.(*Ingester).Push(0xc{hexed(r, 36)}, {{0x{hexed(r, 28)}, 0xc{hexed(r, 36)}}})\n\t/src/{module}/ingester.go:{r.randint(1, 999)} +0x{hexed(r, 12)}",
            f"java.lang.IllegalStateException: Queue full\n\tat org.example.{r.choice(WORDS)}.Worker.run(Worker.java:{r.randint(1, 999)})",
            f"panic: runtime error: index out of range [{r.randint(1, 99)}] with length {r.randint(1, 99)}",
        )
    )


def words(r: random.Random) -> str:
    return r.choice(
        (
            f"{r.choice(WORDS)} {r.randint(1, 9999)} finished after {r.randint(1, 9999)} ms with {r.randint(0, 90)} retries",
            f"Received {r.randint(1, 99999)} items ({r.randint(1, 999)} kB) from {r.choice(WORDS)}-{r.randint(0, 30)}",
            "Connection reset by peer", "password must not be empty", "no cookie was sent; a new session begins",
            "invalid token", "authorization failed: permission denied", "task 42 completed", "context canceled",
            f"Ring is healthy: {r.randint(1, 9)} of {r.randint(1, 9)} instances, tokens={r.randint(1, 512)}",
            f"retrying in {r.random() * 30:.2f}s (attempt {r.randint(1, 9)}/10)",
        )
    )  # fmt: skip


def setting(r: random.Random) -> str:
    word = r.choice(WORDS)
    return r.choice(
        (
            f"{word}.max_size={r.randint(1, 10**9)}", f"--{word}-timeout={r.randint(1, 90)}s", f"{word.upper()}_COUNT={r.randint(1, 999)}",
            f"/var/lib/watchpost/{word}/wal/{r.randint(0, 99999999):08}", f"/etc/watchpost/{word}/current/{word}.yml",
            f"https://{word}.watchpost.internal:{r.randint(1024, 65535)}/api/v1/push", f"unix:/run/{word}.sock",
            f"sqlite:////var/lib/watchpost/taskboard/{word}.db", f"0.0.0.0:{r.randint(1024, 65535)}", f"[::1]:{r.randint(1024, 65535)}",
            f"mode 0{r.choice((600, 640, 755))} {r.randint(1, 99999)} bytes",
        )
    )  # fmt: skip


def route(r: random.Random) -> str:
    return r.choice(
        (
            f"{r.choice(('GET', 'POST', 'DELETE'))} {r.choice(PATHS)}", r.choice(PATHS), f"/api/tasks/{r.randint(1, 999999)}/complete",
            f"/api/tasks/{uuid.UUID(int=r.getrandbits(128), version=4)}", f"SELECT {r.choice(TABLES)}", f"{r.choice(WORDS)}.process",
            "connect", "tls handshake", f"HTTP {r.choice(('GET', 'POST'))}",
        )
    )  # fmt: skip


def measure(r: random.Random) -> str:
    return r.choice(
        (
            f"{r.random() * 1000:.15g}", f"p95={r.random():.6f}s p99={r.random():.6f}s", f"{r.randint(0, 10**12)} bytes",
            f"cpu {r.random() * 100:.1f}% mem {r.randint(1, 4096)} MiB", f"[{r.randint(0, 9)}, {r.randint(0, 99)}, {r.randint(0, 999)}]",
            f"{r.randint(0, 999)}/{r.randint(0, 999)} blocks, {r.random() * 100:.2f} % free", f"offset {r.randint(0, 10**9)}",
        )
    )  # fmt: skip
