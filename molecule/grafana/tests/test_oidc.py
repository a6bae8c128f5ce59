"""Single sign-on with a real OpenID Connect provider, followed from redirect to redirect as a browser follows it."""

import datetime
import ipaddress
import json
import re
import ssl
import threading
from urllib.parse import parse_qsl, urlsplit

import httpx
import oidc_provider_mock
import pytest
from conftest import play
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from werkzeug.serving import make_server

CA = "/etc/ssl/certs/oidc-provider-of-the-test.crt"
#: Who there is at the provider, and of which group.
PEOPLE = {"olga": ["ops"], "vera": ["sales"]}
SECRET = "oidc-secret-of-the-test"


def certificate(address, directory):
    """A certificate of an address, signed by itself, with its key; return the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=8))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = directory / "provider.pem"
    file.write_bytes(key.private_bytes(*kinds) + made.public_bytes(serialization.Encoding.PEM))
    return file, made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="module")
def provider(host, tmp_path_factory):
    """A provider on this machine, over HTTPS, at the address that the host reaches it by."""
    address = re.search(r"default via (\S+)", host.check_output("ip route show default"))[1]
    file, authority = certificate(address, tmp_path_factory.mktemp("provider"))
    users = [
        oidc_provider_mock.User(
            sub=name, claims={"email": f"{name}@example.org", "name": name.title(), "groups": groups}
        )
        for name, groups in PEOPLE.items()
    ]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    app = oidc_provider_mock.app(user_claims=users)
    server = make_server(address, 0, app, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host.check_output("printf %s %s > %s && chmod 644 %s", "%s", authority, CA, CA)
    trust = ssl.create_default_context(cadata=authority)
    with httpx.Client(base_url=f"https://{address}:{server.server_port}", verify=trust, trust_env=False) as client:
        yield client
    server.shutdown()
    thread.join()
    host.check_output("rm %s", CA)


def cookies(answer):
    """The Cookie header that a browser would send back."""
    found = re.findall(r"(?:^|, )(\w+)=([^;,]*)", answer.headers.get("set-cookie", ""))
    return "; ".join(f"{name}={value}" for name, value in found if value and name not in ("Max", "Expires"))


@pytest.fixture
def log_in(ask, provider):
    """Log in as one of the provider's people; return the answer to a question that is asked with the session."""

    def log_in(name):
        begun = ask("grafana", "https", "/grafana/login/generic_oauth", identity=None)
        assert begun.status == 302, begun
        assert "SameSite=Lax" in begun.headers["set-cookie"] and "Secure" in begun.headers["set-cookie"]
        address = begun.headers["location"]
        assert address.partition("?")[0] == str(provider.base_url.join("oauth2/authorize"))
        asked = dict(parse_qsl(urlsplit(address).query))
        assert (asked["client_id"], asked["scope"]) == ("watchpost", "openid profile email")
        assert asked["code_challenge_method"] == "S256" and asked["state"]
        assert asked["redirect_uri"].endswith("/grafana/login/generic_oauth")
        agreed = provider.post(address, data={"sub": name})
        assert agreed.status_code == 302, agreed.text
        back = urlsplit(agreed.headers["location"])
        assert back.path == "/grafana/login/generic_oauth"
        done = ask("grafana", "https", f"{back.path}?{back.query}", identity=None, headers={"Cookie": cookies(begun)})
        session = {"Cookie": cookies(done), "Content-Type": "application/json"}
        return lambda path, **more: ask("grafana", "https", f"/grafana{path}", identity=None, headers=session, **more)

    return log_in


def test_people_of_the_provider_log_in_with_the_role_of_their_group(host, provider, log_in):
    url = str(provider.base_url).rstrip("/")
    settings = {
        "client_id": "watchpost", "issuer_name": "Example", "ca": CA,
        "auth_url": f"{url}/oauth2/authorize", "token_url": f"{url}/oauth2/token", "api_url": f"{url}/userinfo",
        "role_attribute_path": "contains(groups[*], 'ops') && 'Editor' || contains(groups[*], 'sales') && 'Viewer'",
    }  # fmt: skip
    run = play("grafana", grafana_oidc=settings, grafana_oidc_client_secret=SECRET)
    assert run.code == 0 and SECRET not in run.output, run.output
    assert SECRET not in host.check_output("cat /etc/watchpost/grafana/current/grafana.ini")
    for name, role in (("olga", "Editor"), ("vera", "Viewer")):
        asked = log_in(name)
        user = asked("/api/user").json
        assert (user["email"], user["isGrafanaAdmin"]) == (f"{name}@example.org", False)
        assert asked("/api/user/orgs").json[0]["role"] == role
        body = json.dumps({"dashboard": {"title": f"Of {name}"}})
        saved = asked("/api/dashboards/db", method="POST", body=body)
        assert saved.status in ((200,) if role == "Editor" else (403,)), saved
    stranger = log_in("zoe")  # whom the provider knows, and who is of no group
    assert stranger("/api/user").status == 401
    again = play("grafana", grafana_oidc=settings, grafana_oidc_client_secret=SECRET)
    assert again.code == 0 and not again.changed, "who came by the provider is no account to be disabled"
    assert play("grafana").code == 0
