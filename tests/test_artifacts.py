"""The artifact store against a local HTTPS server that serves upstream's real paths."""

import hashlib
import io
import json
import os
import random
import re
import ssl
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from watchpost.artifacts import download, release, wheelhouse
from watchpost.artifacts.catalogue import CATALOGUE, load
from watchpost.artifacts.ensure import Ensurer, Source
from watchpost.artifacts.errors import ArtifactError
from watchpost.artifacts.store import Key, Record, cache_dir, extract
from watchpost.cli import command_line

PLATFORM = "linux-amd64"
USERS_CACHE = cache_dir()


# --- upstream, as it is on the internet -------------------------------------------------------------------------------


def tar_gz(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            mode = 0o755 if content.startswith("#!") else 0o644
            info.size, info.mode, info.uid, info.uname = len(content), mode, 1001, "builder"
            tar.addfile(info, io.BytesIO(content.encode()))
    return out.getvalue()


def zip_of(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return out.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Reply:
    body: bytes
    sends: list[int] = field(default_factory=list)  # bytes sent before the connection is cut, one for each request
    ranges: bool = True


class Upstream:
    """An HTTPS server whose CA the tests trust."""

    def __init__(self, directory: Path) -> None:
        self.files: dict[str, Reply] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.ca, certificate = self._certificates(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                upstream.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.origin = f"https://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        if to := self.redirects.get(request.path):
            request.send_response(302)
            request.send_header("Location", to)
            request.end_headers()
            return
        reply = self.files.get(request.path)
        if reply is None:
            request.send_error(404)
            return
        body, start = reply.body, 0
        wanted = request.headers.get("Range")
        if wanted:
            self.ranges.append(wanted)
        if wanted and reply.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        request.wfile.write(body[start : start + reply.sends.pop(0)] if reply.sends else body[start:])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @staticmethod
    def _certificates(directory: Path) -> tuple[Path, Path]:
        now = datetime.now(UTC)

        def certificate(
            name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, issuer: str, *, ca: bool
        ) -> bytes:
            alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
            return (
                x509.CertificateBuilder()
                .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
                .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - timedelta(minutes=5))
                .not_valid_after(now + timedelta(hours=1))
                .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
                .add_extension(alternative, critical=False)
                .sign(by, hashes.SHA256())
                .public_bytes(serialization.Encoding.PEM)
            )

        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca, server = directory / "ca.pem", directory / "server.pem"
        ca.write_bytes(certificate("test CA", ca_key, ca_key, "test CA", ca=True))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        server.write_bytes(certificate("upstream", key, ca_key, "test CA", ca=False) + private)
        return ca, server


# --- what a test works with -------------------------------------------------------------------------------------------


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    server = Upstream(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca))
    monkeypatch.setenv(release.ORIGIN_VARIABLE, server.origin)
    monkeypatch.setattr(download, "_PAUSE", 0.01)
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WATCHPOST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def catalogue(tmp_path: Path, cache: Path) -> "CatalogueFile":
    return CatalogueFile(tmp_path / "catalogue.yml")


class CatalogueFile:
    """The real catalogue, less the pins of real files and less the application; a test may change it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = yaml.safe_load(CATALOGUE.read_text())
        del self.content["components"]["taskboard"]
        for component in self.content["components"].values():
            component["release"].pop("sha256", None)
        self.write()

    def __getitem__(self, name: str) -> dict:
        return self.content["components"][name]

    def write(self) -> None:
        self.path.write_text(yaml.safe_dump(self.content))

    def run(self, command: str, *arguments: str) -> Result:
        return CliRunner().invoke(
            command_line("artifacts"), ["artifacts", command, *arguments, "--catalogue", str(self.path)]
        )

    def ensure(self, *arguments: str) -> Result:
        return self.run("ensure", *arguments, "--os-arch", PLATFORM, "--json")


RELEASES = "/releases/download"
#: component -> path of its release file and of its checksums, as upstream has them
PATHS = {
    "otel_collector": (
        f"/open-telemetry/opentelemetry-collector-releases{RELEASES}/v{{v}}/otelcol-contrib_{{v}}_linux_amd64.tar.gz",
        "opentelemetry-collector-releases_otelcol-contrib_checksums.txt",
    ),
    "tempo": (f"/grafana/tempo{RELEASES}/v{{v}}/tempo_{{v}}_linux_amd64.tar.gz", "SHA256SUMS"),
    "loki": (f"/grafana/loki{RELEASES}/v{{v}}/loki-linux-amd64.zip", "SHA256SUMS"),
    "prometheus": (
        f"/prometheus/prometheus{RELEASES}/v{{v}}/prometheus-{{v}}.linux-amd64.tar.gz",
        "sha256sums.txt",
    ),
    "alertmanager": (
        f"/prometheus/alertmanager{RELEASES}/v{{v}}/alertmanager-{{v}}.linux-amd64.tar.gz",
        "sha256sums.txt",
    ),
    "node_exporter": (
        f"/prometheus/node_exporter{RELEASES}/v{{v}}/node_exporter-{{v}}.linux-amd64.tar.gz",
        "sha256sums.txt",
    ),
    "grafana": (
        "/grafana/release/{v}/grafana_{v}_34846740809_linux_amd64.tar.gz",
        "grafana_{v}_34846740809_linux_amd64.tar.gz.sha256",
    ),
}


def release_file(name: str, version: str, content: str = "#!/bin/sh\n") -> bytes:
    """A release with upstream's layout, and whatever else upstream packs beside the binaries."""
    match name:
        case "otel_collector":
            return tar_gz({"LICENSE": "", "README.md": "", "otelcol-contrib": content})
        case "tempo":
            return tar_gz({"LICENSE": "", "tempo": content, "tempo-cli": "", "tempo-query": ""})
        case "loki":
            return zip_of({"loki-linux-amd64": content})
        case "grafana":
            files = {"bin/grafana": content, "bin/grafana-server": "", "conf/defaults.ini": "[paths]", "LICENSE": ""}
            files |= {"public/views/index.html": "", "plugins-bundled/.keep": ""}
            for plugin in ("elasticsearch", "loki", "prometheus", "tempo", "zipkin"):
                plugin_files = {"plugin.json": f'{{"id": "{plugin}"}}', "MANIFEST.txt": "-----BEGIN", "module.js": ""}
                plugin_files |= {f"gpx_grafana-{plugin}-datasource_linux_amd64": content, "img/logo.svg": ""}
                files |= {f"data/plugins-bundled/{plugin}/{path}": text for path, text in plugin_files.items()}
            return tar_gz({f"grafana-{version}/{path}": text for path, text in files.items()})
        case _:
            top = f"{name}-{version}.{PLATFORM}"
            second = {"prometheus": "promtool", "alertmanager": "amtool"}.get(name, "NOTICE")
            return tar_gz({f"{top}/{path}": content for path in (name, second, "LICENSE")})


def publish(upstream: Upstream, name: str, version: str, body: bytes) -> str:
    """Put a release and its checksums where upstream has them; return the file's path."""
    path, sums = (part.format(v=version) for part in PATHS[name])
    file = path.rsplit("/", 1)[1]
    bare = name == "grafana"  # its .sha256 holds a digest and nothing else
    text = sha256(body) + "\n" if bare else f"{sha256(b'other')}  other-file.tar.gz\n{sha256(body)}  {file}\n"
    upstream.files[path] = Reply(body)
    upstream.files[path.rsplit("/", 1)[0] + "/" + sums] = Reply(text.encode())
    return path


def node_exporter(upstream: Upstream, catalogue: CatalogueFile, content: str = "#!/bin/sh\n") -> str:
    version = catalogue["node_exporter"]["version"]
    return publish(upstream, "node_exporter", version, release_file("node_exporter", version, content))


def incompressible(size: int) -> str:
    return random.Random(1).randbytes(size // 2).hex()


def binary(archive: str, name: str) -> str:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"bin/{name}")
        assert member is not None
        return member.read().decode()


# --- release ----------------------------------------------------------------------------------------------------------


def test_every_upstream_layout_ends_in_the_one_normal_form(upstream: Upstream, catalogue: CatalogueFile) -> None:
    for name in PATHS:
        version = catalogue[name]["version"]
        publish(upstream, name, version, release_file(name, version))
    result = catalogue.ensure("--source", "release")
    assert result.exit_code == 0, result.stderr
    entries = json.loads(result.stdout)
    assert set(entries) == set(PATHS)
    for name, entry in entries.items():
        version = catalogue[name]["version"]
        assert entry["source"] == "release"
        assert entry["sha256"] == sha256(Path(entry["path"]).read_bytes())
        assert entry["path"].endswith(f"/store/{name}/{version}/{PLATFORM}/{name}-{version}-{PLATFORM}.tar.gz")
        with tarfile.open(entry["path"]) as tar:
            members = {m.name: m for m in tar.getmembers()}
        assert {m.uname for m in members.values()} == {"root"}
        executables = {m for m in members if m.startswith("bin/")}
        assert executables == {f"bin/{e}" for e in catalogue[name]["source"]["packages"]}
        assert {members[e].mode for e in executables} == {0o755}
        assert all(m.split("/")[0] in ("bin", "share") for m in members)
    with tarfile.open(entries["grafana"]["path"]) as tar:
        assert {"share/conf/defaults.ini", "share/public/views/index.html"} <= set(tar.getnames())


def test_grafanas_release_brings_the_plugins_of_its_data_sources(upstream: Upstream, catalogue: CatalogueFile) -> None:
    version = catalogue["grafana"]["version"]
    publish(upstream, "grafana", version, release_file("grafana", version))
    result = catalogue.ensure("grafana", "--source", "release")
    assert result.exit_code == 0, result.stderr
    with tarfile.open(json.loads(result.stdout)["grafana"]["path"]) as tar:
        members = {m.name: m for m in tar.getmembers()}
    stores = CATALOGUE.parents[1] / "roles/grafana/templates/provisioning/datasources/stores.yml.j2"
    types = set(re.findall(r"^    type: (\w+)$", stores.read_text(), re.MULTILINE))
    plugins = "share/data/plugins-bundled/"  # where Grafana looks, seen from its home, which is share/
    with_program = types - {"alertmanager"}
    assert {m.split("/")[3] for m in members if m.startswith(plugins)} == with_program
    for name in with_program:
        of = f"{plugins}{name}/"
        program = f"{of}gpx_grafana-{name}-datasource_linux_amd64"
        others = {f"{of}{file}" for file in ("plugin.json", "MANIFEST.txt", "module.js", "img/logo.svg")}
        assert {m for m in members if m.startswith(of) and members[m].isfile()} == others | {program}
        assert members[program].mode == 0o755
        assert {members[file].mode for file in others} == {0o644}


def test_a_release_of_which_something_else_is_to_be_taken_is_taken_anew(
    upstream: Upstream, catalogue: CatalogueFile
) -> None:
    version = catalogue["prometheus"]["version"]
    publish(upstream, "prometheus", version, release_file("prometheus", version))
    catalogue["prometheus"]["release"]["take"] = {"*/prometheus": "bin/prometheus"}
    catalogue.write()
    few = json.loads(catalogue.ensure("prometheus").stdout)["prometheus"]["sha256"]
    catalogue["prometheus"]["release"]["take"]["*/promtool"] = "bin/promtool"
    catalogue.write()
    result = catalogue.ensure("prometheus")
    more = json.loads(result.stdout)["prometheus"]
    assert more["sha256"] != few
    assert binary(more["path"], "promtool")
    assert json.loads(catalogue.ensure("prometheus").stdout)["prometheus"] == more


def test_what_is_in_the_store_is_not_asked_for_again(upstream: Upstream, catalogue: CatalogueFile) -> None:
    node_exporter(upstream, catalogue)
    first = catalogue.ensure("node_exporter", "--source", "release")
    asked = len(upstream.asked)
    assert json.loads(catalogue.ensure("node_exporter").stdout) == json.loads(first.stdout)
    assert len(upstream.asked) == asked


def test_a_tampered_release_is_refused_and_the_old_one_stays(upstream: Upstream, catalogue: CatalogueFile) -> None:
    node_exporter(upstream, catalogue)
    old = json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"]
    before = catalogue["node_exporter"]["version"]
    catalogue["node_exporter"]["version"] = "99.0.0"
    catalogue.write()
    path = node_exporter(upstream, catalogue)
    good = upstream.files[path].body
    upstream.files[path].body = evil = release_file("node_exporter", "99.0.0", "#!/bin/evil\n")
    for source in ("release", "auto"):  # a bad file is no reason to fall back
        result = catalogue.ensure("node_exporter", "--source", source)
        assert result.exit_code == 1
        assert path in result.stderr
        assert sha256(good) in result.stderr
        assert sha256(evil) in result.stderr
        assert "building" not in result.stderr
    assert not list(Path(old["path"]).parents[2].glob("99.0.0"))
    catalogue["node_exporter"]["version"] = before
    catalogue.write()
    assert json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"] == old


def test_a_digest_pinned_in_the_catalogue_outranks_upstreams_checksums(
    upstream: Upstream, catalogue: CatalogueFile
) -> None:
    path = node_exporter(upstream, catalogue)
    catalogue["node_exporter"]["release"]["sha256"] = {PLATFORM: "a" * 64}
    catalogue.write()
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 1
    assert "a" * 64 in result.stderr
    assert sha256(upstream.files[path].body) in result.stderr
    assert "The catalogue pins this file" in result.stderr


def test_a_release_that_changes_after_it_was_first_seen_is_refused(
    upstream: Upstream, catalogue: CatalogueFile, cache: Path
) -> None:
    path = node_exporter(upstream, catalogue)
    first = upstream.files[path].body
    archive = Path(json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"]["path"])
    archive.unlink()
    node_exporter(upstream, catalogue, content="another\n")  # with checksums that agree with it
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 1
    assert sha256(first) in result.stderr
    assert sha256(upstream.files[path].body) in result.stderr
    assert str(cache / "release-checksums.json") in result.stderr
    assert not archive.exists()


def test_a_missing_release_is_an_error_that_names_its_url(upstream: Upstream, catalogue: CatalogueFile) -> None:
    path = node_exporter(upstream, catalogue)
    del upstream.files[path]
    for source in ("release", "auto"):
        result = catalogue.ensure("node_exporter", "--source", source)
        assert result.exit_code == 1
        assert f"{upstream.origin}{path}: HTTP 404" in result.stderr


def test_a_checksum_file_without_the_release_in_it_is_an_error(upstream: Upstream, catalogue: CatalogueFile) -> None:
    path = node_exporter(upstream, catalogue)
    sums = path.rsplit("/", 1)[0] + "/sha256sums.txt"
    upstream.files[sums] = Reply(f"{'b' * 64}  another-file\n".encode())
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 1
    assert "has no SHA-256 of node_exporter-" in result.stderr


def test_a_cut_connection_goes_on_where_it_was_cut(upstream: Upstream, catalogue: CatalogueFile) -> None:
    content = incompressible(200_000)
    path = node_exporter(upstream, catalogue, content)
    upstream.files[path].sends = [100_000, 100_000]
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 0, result.stderr
    assert upstream.ranges == ["bytes=65536-", "bytes=131072-"]  # whole chunks of 64 KiB are kept
    assert "trying again (3 of 4)" in result.stderr
    assert binary(json.loads(result.stdout)["node_exporter"]["path"], "node_exporter") == content


def test_a_cut_connection_begins_anew_where_the_server_cannot_resume(
    upstream: Upstream, catalogue: CatalogueFile
) -> None:
    path = node_exporter(upstream, catalogue, incompressible(200_000))
    upstream.files[path].sends, upstream.files[path].ranges = [100_000], False
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 0, result.stderr
    assert upstream.ranges == ["bytes=65536-"]


def test_a_connection_that_is_always_cut_ends_in_an_error(
    upstream: Upstream, catalogue: CatalogueFile, cache: Path
) -> None:
    path = node_exporter(upstream, catalogue)
    upstream.files[path].sends = [10] * 9
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 1
    assert upstream.asked.count(path) == 4
    assert f"{upstream.origin}{path}: " in result.stderr
    assert not list(cache.rglob("*.tar.gz"))


def test_a_redirect_away_from_https_is_refused(upstream: Upstream, catalogue: CatalogueFile) -> None:
    path = node_exporter(upstream, catalogue)
    plain = ThreadingHTTPServer(("127.0.0.1", 0), type("Plain", (BaseHTTPRequestHandler,), {"do_GET": _empty}))
    threading.Thread(target=plain.serve_forever, args=(0.02,), daemon=True).start()
    upstream.redirects[path] = f"http://127.0.0.1:{plain.server_port}/file"
    result = catalogue.ensure("node_exporter", "--source", "release")
    plain.shutdown()
    plain.server_close()
    assert result.exit_code == 1
    assert "which is not HTTPS" in result.stderr


def _empty(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "0")
    request.end_headers()


def test_an_untrusted_certificate_is_refused(
    upstream: Upstream, catalogue: CatalogueFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_exporter(upstream, catalogue)
    monkeypatch.delenv("SSL_CERT_FILE")
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in result.stderr


def test_an_archive_that_reaches_outside_itself_is_refused(
    upstream: Upstream, catalogue: CatalogueFile, tmp_path: Path
) -> None:
    version = catalogue["node_exporter"]["version"]
    publish(upstream, "node_exporter", version, tar_gz({"../../../escaped": "x", "x/node_exporter": "y"}))
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 1
    assert "cannot be unpacked" in result.stderr
    assert not list(tmp_path.rglob("escaped"))


def test_archives_are_unpacked_without_what_debian_12_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("extract", "extractall"):  # its Python has these, and refuses the filter without which later ones warn
        monkeypatch.delattr(tarfile.TarFile, name)
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_gz({"bin/a": "#!a", "share/deep/b": "b"}))
    extract(archive, tmp_path / "one", "bin/a")
    extract(archive, tmp_path / "all")
    assert (tmp_path / "one/bin/a").read_text() == (tmp_path / "all/bin/a").read_text() == "#!a"
    assert os.access(tmp_path / "one/bin/a", os.X_OK)
    assert (tmp_path / "all/share/deep/b").read_text() == "b" and not (tmp_path / "one/share").exists()
    archive.write_bytes(tar_gz({"all/../../escaped": "x"}))
    with pytest.raises(tarfile.TarError, match="leads outside"):
        extract(archive, tmp_path / "all")


def test_an_archive_without_the_expected_binary_is_refused(upstream: Upstream, catalogue: CatalogueFile) -> None:
    version = catalogue["node_exporter"]["version"]
    publish(upstream, "node_exporter", version, tar_gz({"elsewhere/deep/node_exporter": "y"}))
    result = catalogue.ensure("node_exporter", "--source", "release")
    assert result.exit_code == 1
    assert "0 paths match '*/node_exporter', not one; at its top: elsewhere" in result.stderr


@pytest.mark.parametrize(
    "text", ["{d}  a.zip\n", "{d} *a.zip", "{d}  ./dist/a.zip\n", "{d}\n", "\n{x}  b.zip\n{d}  a.zip\n"]
)
def test_each_form_of_checksum_file_is_understood(text: str) -> None:
    assert release.published(text.format(d="c" * 64, x="d" * 64), "a.zip", "sums") == "c" * 64


@pytest.mark.parametrize("text", ["", "{d}  b.zip\n", "not-a-digest  a.zip\n", "{d}\n{d}\n", "<html>\n"])
def test_what_is_no_checksum_of_the_file_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"sums has no SHA-256 of a\.zip"):
        release.published(text.format(d="c" * 64), "a.zip", "sums")


# --- the store --------------------------------------------------------------------------------------------------------


def test_an_archive_that_changed_on_disk_is_refused_until_it_is_removed(
    upstream: Upstream, catalogue: CatalogueFile
) -> None:
    node_exporter(upstream, catalogue)
    entry = json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"]
    archive = Path(entry["path"])
    changed = archive.read_bytes()[:-1] + b"!"
    archive.write_bytes(changed)
    result = catalogue.ensure("node_exporter")
    assert result.exit_code == 1
    assert all(part in result.stderr for part in (f"rm {archive}", entry["sha256"], sha256(changed)))
    assert archive.read_bytes() == changed  # evidence, left as it was found
    archive.unlink()
    assert json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"] == entry


def test_an_archive_without_its_record_counts_as_unfinished(upstream: Upstream, catalogue: CatalogueFile) -> None:
    node_exporter(upstream, catalogue)
    entry = json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"]
    Path(entry["path"] + ".json").unlink()
    Path(entry["path"]).write_bytes(b"half")
    assert json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"] == entry


def test_a_damaged_record_is_named(upstream: Upstream, catalogue: CatalogueFile) -> None:
    node_exporter(upstream, catalogue)
    archive = json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"]["path"]
    Path(archive + ".json").write_text("{}")
    result = catalogue.ensure("node_exporter")
    assert result.exit_code == 1
    assert f"{archive}.json is not a record" in result.stderr


def test_two_runs_at_once_get_an_artifact_once(upstream: Upstream, catalogue: CatalogueFile, cache: Path) -> None:
    path = node_exporter(upstream, catalogue)
    components = load(catalogue.path)
    runs = [Ensurer(components, cache, PLATFORM, "3.13", Source.release) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda run: run.ensure(["node_exporter"]), runs)
    assert first == second
    assert upstream.asked.count(path) == 1
    assert not list((cache / "unfinished").glob("node_exporter-*"))


def test_an_unknown_component_is_named(catalogue: CatalogueFile) -> None:
    result = catalogue.ensure("lokki")
    assert result.exit_code == 1
    assert "not in the catalogue: lokki" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--os-arch", "linux-mips"), ("--python", "3.13.1")])
def test_a_platform_that_cannot_be_is_refused(option: str, value: str) -> None:
    result = CliRunner().invoke(command_line("artifacts"), ["artifacts", "ensure", option, value])
    assert result.exit_code == 1
    assert f"{option} {value}" in result.stderr


# --- mirror -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(upstream: Upstream, catalogue: CatalogueFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror exported by one controller; the test then is another, with an empty store and no upstream."""
    node_exporter(upstream, catalogue)
    assert catalogue.ensure("node_exporter").exit_code == 0
    result = catalogue.run("export", str(tmp_path / "mirror"), "node_exporter", "--os-arch", PLATFORM)
    assert result.exit_code == 0, result.stderr
    upstream.files.clear()
    monkeypatch.setenv("WATCHPOST_CACHE", str(tmp_path / "cache of an air-gapped site"))
    return tmp_path / "mirror"


def test_a_mirror_in_a_directory_fills_the_store(catalogue: CatalogueFile, mirror: Path) -> None:
    result = catalogue.ensure("node_exporter", "--source", "mirror", "--mirror", str(mirror))
    assert result.exit_code == 0, result.stderr
    entry = json.loads(result.stdout)["node_exporter"]
    assert entry["source"] == "mirror"
    assert "air-gapped" in entry["path"]
    assert binary(entry["path"], "node_exporter") == "#!/bin/sh\n"


def test_a_mirror_behind_https_fills_the_store(upstream: Upstream, catalogue: CatalogueFile, mirror: Path) -> None:
    for file in mirror.rglob("*.tar.gz*"):
        upstream.files[f"/pub/{file.relative_to(mirror)}"] = Reply(file.read_bytes())
    where = f"{upstream.origin}/pub/"
    result = catalogue.ensure("node_exporter", "--source", "mirror", "--mirror", where)
    assert result.exit_code == 0, result.stderr
    asked = len(upstream.asked)
    assert catalogue.ensure("node_exporter", "--source", "mirror", "--mirror", where).exit_code == 0
    assert len(upstream.asked) == asked


def test_a_tampered_mirror_is_refused(catalogue: CatalogueFile, mirror: Path) -> None:
    (archive,) = mirror.rglob("*.tar.gz")
    good = sha256(archive.read_bytes())
    archive.write_bytes(b"evil")
    result = catalogue.ensure("node_exporter", "--source", "mirror", "--mirror", str(mirror))
    assert result.exit_code == 1
    assert all(part in result.stderr for part in (str(archive), good, sha256(b"evil")))


def test_what_a_mirror_lacks_is_named(catalogue: CatalogueFile, mirror: Path) -> None:
    result = catalogue.ensure("tempo", "--source", "mirror", "--mirror", str(mirror))
    assert result.exit_code == 1
    for version in (catalogue["tempo"]["version"], catalogue["tempo"]["source"]["version"]):
        assert f"tempo/{version}/{PLATFORM}/tempo-{version}-{PLATFORM}.tar.gz" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "mirror"], "--source mirror and --mirror WHERE belong together"),
        (["--mirror", "/tmp"], "--source mirror and --mirror WHERE belong together"),
        (["--source", "mirror", "--mirror", "/nowhere"], "mirror /nowhere: there is no such directory"),
        (["--source", "mirror", "--mirror", "http://host/"], "must be a directory or an https:// URL"),
    ],
)
def test_a_mirror_that_cannot_be_is_refused(catalogue: CatalogueFile, arguments: list[str], message: str) -> None:
    result = catalogue.ensure("loki", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_export_names_what_the_store_lacks(catalogue: CatalogueFile, tmp_path: Path) -> None:
    result = catalogue.run("export", str(tmp_path / "mirror"), "loki")
    assert result.exit_code == 1
    assert "first run: watchpost artifacts ensure loki" in result.stderr


def test_a_damaged_archive_is_not_exported(upstream: Upstream, catalogue: CatalogueFile, tmp_path: Path) -> None:
    node_exporter(upstream, catalogue)
    Path(json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"]["path"]).write_bytes(b"evil")
    result = catalogue.run("export", str(tmp_path / "mirror"), "node_exporter", "--os-arch", PLATFORM)
    assert result.exit_code == 1
    assert not list((tmp_path / "mirror").rglob("*.tar.gz"))


def test_list_shows_what_is_stored_and_what_is_not(upstream: Upstream, catalogue: CatalogueFile) -> None:
    node_exporter(upstream, catalogue)
    digest = json.loads(catalogue.ensure("node_exporter").stdout)["node_exporter"]["sha256"]
    lines = catalogue.run("list", "--os-arch", PLATFORM).stdout.splitlines()
    (stored,) = [line for line in lines if "node_exporter" in line]
    (missing,) = [line for line in lines if "loki" in line]
    assert digest[:12] in stored
    assert "release" in stored
    assert catalogue["loki"]["version"] in missing
    assert "release" not in missing


# --- source -----------------------------------------------------------------------------------------------------------

HELLO = {
    "go.mod": "module watchpost.invalid/hello\n\ngo 1.26\n",
    "main.go": 'package main\n\nvar version = "unknown"\n\nfunc main() { println("hello", version) }\n',
}


@pytest.fixture
def hello(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ensurer]:
    """A repository whose one component is a small Go program; its release is on a host that nobody can reach."""
    go_caches = USERS_CACHE / "go"
    wrapper = tmp_path / "artifacts" / "source" / "hello"
    wrapper.mkdir(parents=True)
    for name, content in HELLO.items():
        (wrapper / name).write_text(content)
    catalogue = tmp_path / "hello.yml"
    entry = {
        "summary": "a greeting",
        "version": "1.2.3",
        "release": {"url": "https://a/hello", "checksums": "https://a/sums", "take": {"hello": "bin/hello"}},
        "source": {"packages": {"hello": "."}, "stamp": ["main.version"]},
    }
    catalogue.write_text(yaml.safe_dump({"components": {"hello": entry}}))
    monkeypatch.setenv(release.ORIGIN_VARIABLE, "https://127.0.0.1:1")
    cache.mkdir()
    (cache / "go").symlink_to(go_caches)  # Go's own runtime need not be compiled anew for each test
    go_caches.mkdir(parents=True, exist_ok=True)
    yield Ensurer(load(catalogue), cache, PLATFORM, "3.13", repository=tmp_path)


def test_an_unreachable_release_falls_back_to_source_and_says_so(
    hello: Ensurer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = hello.ensure(["hello"])["hello"]
    said = capsys.readouterr().err
    assert "hello: release not reachable (127.0.0.1:1: " in said
    assert "building from source" in said
    assert entry.record.source == "source"
    extract(entry.path, tmp_path / "out")
    ran = subprocess.run([tmp_path / "out/bin/hello"], capture_output=True, text=True, check=True)
    assert ran.stderr == "hello 1.2.3\n"  # the binary knows its version

    first = entry.path.read_bytes()
    entry.path.unlink()
    assert hello.ensure(["hello"])["hello"].path.read_bytes() == first  # the same sources make the same archive

    main = tmp_path / "artifacts/source/hello/main.go"
    main.write_text(main.read_text().replace('"hello"', '"good day"'))
    assert hello.find("hello") is None  # a changed recipe is built anew
    assert hello.ensure(["hello"])["hello"].record.sha256 != entry.record.sha256

    main.write_text("package main\n\nfunc main() { undefined() }\n")
    with pytest.raises(ArtifactError) as failed:
        hello.ensure(["hello"])
    assert "`go build` failed" in str(failed.value)
    assert "undefined: undefined" in str(failed.value)
    assert str(hello.cache / "log" / "hello-build.log") in str(failed.value)


def test_nothing_takes_the_place_of_a_release_that_this_machine_has_had(hello: Ensurer, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    hello.source, entry = Source.source, hello.catalogue["hello"]
    spec = entry.source.model_copy(update={"version": "1.0.0"})
    hello.catalogue = {"hello": entry.model_copy(update={"source": spec})}
    hello.ensure(["hello"])  # a build of another version is in the store too
    hello.source = Source.auto
    assert hello.find("hello")
    before = Key("hello", "1.2.2", PLATFORM)
    hello.store.pack(before, tree, lambda digest: Record(sha256=digest, source="release", origin="https://a/hello"))
    with pytest.raises(ArtifactError, match=r"127\.0\.0\.1:1(?s:.*)has had releases of hello"):
        hello.ensure(["hello"])
    hello.source = Source.source
    assert hello.ensure(["hello"])["hello"].record.source == "source"


def test_release_alone_does_not_fall_back(hello: Ensurer, capsys: pytest.CaptureFixture[str]) -> None:
    hello.source = Source.release
    with pytest.raises(ArtifactError, match=r"127\.0\.0\.1:1"):
        hello.ensure(["hello"])
    assert "building" not in capsys.readouterr().err


def test_the_collectors_manifest_has_the_catalogues_version() -> None:
    manifest = yaml.safe_load((CATALOGUE.parent / "source/otel_collector/manifest.yaml").read_text())
    assert manifest["dist"]["version"] == load()["otel_collector"].version


# --- wheelhouse -------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> wheelhouse.Project:
    files = {
        "pyproject.toml": '[project]\nname = "tiny"\nversion = "0.1.0"\n[tool.setuptools]\npackages = ["tiny"]\n',
        "requirements.lock": _locked("itsdangerous"),
        "tiny/__init__.py": "",
        "tests/test_tiny.py": "",
    }
    for name, content in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return wheelhouse.Project(tmp_path / "project")


def _locked(package: str) -> str:
    """One package's lines of the application's lock."""
    lines = (CATALOGUE.parents[1] / "app/requirements.lock").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{package}=="))
    end = next(i for i in range(start, len(lines)) if not lines[i].endswith("\\")) + 1
    return "\n".join(lines[start:end]) + "\n"


def test_a_wheelhouse_holds_the_project_and_its_locked_dependencies(
    project: wheelhouse.Project, tmp_path: Path, cache: Path
) -> None:
    catalogue = tmp_path / "project.yml"
    catalogue.write_text(yaml.safe_dump({"components": {"tiny": {"summary": "tiny", "wheelhouse": "project"}}}))
    ensurer = Ensurer(load(catalogue), cache, PLATFORM, "3.12", repository=tmp_path)
    entry = ensurer.ensure(["tiny"])["tiny"]
    assert entry.key.platform == f"{PLATFORM}-cp312"
    assert entry.key.version == project.version()
    with tarfile.open(entry.path) as tar:
        names = set(tar.getnames())
    assert "share/requirements.lock" in names
    assert "share/wheels/tiny-0.1.0-py3-none-any.whl" in names
    assert any(name.startswith("share/wheels/itsdangerous-") for name in names)
    entry.path.unlink()
    assert ensurer.ensure(["tiny"])["tiny"].record == entry.record  # the same sources make the same archive


@pytest.fixture
def frontend(project: wheelhouse.Project) -> Path:
    """A front end that wants no package and bundles itself by a program of its own."""
    package: dict[str, object] = {"name": "tiny", "version": "0.1.0"}
    script = "node build.js"
    write = "require('fs').mkdirSync('../tiny/dist'); require('fs').writeFileSync('../tiny/dist/page.js', 'bundled')"
    directory = project.directory / "frontend"
    directory.mkdir()
    (directory / "package.json").write_text(json.dumps(package | {"scripts": {"build": script}}))
    lock = package | {"lockfileVersion": 3, "packages": {"": package}}
    (directory / "package-lock.json").write_text(json.dumps(lock))
    (directory / "build.js").write_text(write)
    with (project.directory / "pyproject.toml").open("a") as file:
        file.write('[tool.setuptools.package-data]\ntiny = ["dist/*"]\n')
    return directory


@pytest.mark.usefixtures("cache")
def test_a_wheel_holds_what_its_front_end_was_bundled_to(
    project: wheelhouse.Project, frontend: Path, tmp_path: Path
) -> None:
    tree = project.build(PLATFORM, "3.13", tmp_path / "work", tmp_path / "log")
    with zipfile.ZipFile(next(tree.glob("share/wheels/tiny-*.whl"))) as wheel:
        assert wheel.read("tiny/dist/page.js") == b"bundled"
    assert not (project.directory / "tiny/dist").exists(), "nothing is built among the sources"


@pytest.mark.usefixtures("cache")
def test_a_front_end_that_does_not_build_is_an_error(
    project: wheelhouse.Project, frontend: Path, tmp_path: Path
) -> None:
    (frontend / "build.js").write_text("throw new Error('no bundle today')")
    with pytest.raises(ArtifactError, match=r"(?s)`npm run build` failed.*no bundle today"):
        project.build(PLATFORM, "3.13", tmp_path / "work", tmp_path / "log")


def test_what_a_front_end_fetched_and_built_is_no_change_of_code(project: wheelhouse.Project, frontend: Path) -> None:
    before = project.version()
    for made in (frontend / "node_modules/x/index.js", project.directory / "tiny/dist/page.js"):
        made.parent.mkdir(parents=True)
        made.write_text("made")
    assert project.version() == before
    (frontend / "build.js").write_text("// changed")
    assert project.version() != before


def test_a_dependency_that_is_not_the_locked_one_is_refused(project: wheelhouse.Project, tmp_path: Path) -> None:
    lock = project.directory / "requirements.lock"
    lines = [line for line in lock.read_text().splitlines() if "--hash" not in line]
    lock.write_text(f"{lines[0]}\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ArtifactError, match=r"(?s)`pip download` failed.*Expected sha256 0000"):
        project.build(PLATFORM, "3.13", tmp_path / "work", tmp_path / "log")


def test_any_change_of_code_is_a_new_version(project: wheelhouse.Project) -> None:
    before = project.version()
    assert before.startswith("0.1.0-")
    (project.directory / "tests/test_tiny.py").write_text("tests do not run on a host")
    (project.directory / "tiny/__pycache__").mkdir()
    (project.directory / "tiny/__pycache__/x.pyc").write_text("nor does what Python leaves behind")
    assert project.version() == before
    (project.directory / "tiny/__init__.py").write_text("code = 1\n")
    assert project.version() != before


def test_a_project_without_a_lock_is_named(project: wheelhouse.Project) -> None:
    (project.directory / "requirements.lock").unlink()
    with pytest.raises(ArtifactError, match=r"project/requirements\.lock: there is no such file"):
        project.version()


# --- the catalogue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"relese": {}}, "components.loki.relese: Extra inputs"),
        ({"version": 3.7}, "components.loki.version: Input should be a valid string"),
        ({"version": "latest"}, "components.loki.version: String should match pattern"),
        ({"release": None}, "components.loki: Value error, version, release and source are all needed"),
        ({"wheelhouse": "app"}, "components.loki: Value error, wheelhouse: stands alone"),
        ({"release.url": "http://github.com/x"}, "components.loki.release.url: Value error, must be an https:// URL"),
        ({"release.sha256": {PLATFORM: "abc"}}, "components.loki.release.sha256.linux-amd64: String should match"),
        ({"release.sha256": {"linux-mips": "a" * 64}}, "components.loki.release.sha256.linux-mips"),
        ({"release.take": {"x": "../etc/passwd"}}, "components.loki.release.take.x: Value error"),
        ({"release.take": {}}, "components.loki.release.take: Dictionary should have at least 1 item"),
        ({"source.recipe": "make"}, "components.loki.source.recipe: Input should be 'plain'"),
        ({"source.packages": {}}, "components.loki.source.packages: Dictionary should have at least 1 item"),
    ],
)
def test_a_wrong_field_of_the_catalogue_is_named(
    catalogue: CatalogueFile, change: dict[str, object], named: str
) -> None:
    for path, value in change.items():
        *parents, last = path.split(".")
        at = catalogue["loki"]
        for parent in parents:
            at = at[parent]
        at[last] = value
    catalogue.write()
    result = catalogue.ensure("loki")
    assert result.exit_code == 1
    assert str(catalogue.path) in result.stderr
    assert named in result.stderr


def test_a_catalogue_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing"):
        load(tmp_path / "nothing.yml")
