"""Addresses, secrets and where they may come from: nothing secret is ever shown."""

import base64
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

import vllm_capacity as vc
from tests.live.certificates import self_signed
from tests.live.serving import serving
from vllm_capacity.cli import main
from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.live.access import (
    checked_url,
    client,
    is_server,
    metrics_url,
    secret,
    trusting,
)
from vllm_capacity.live.pull import prometheus_client
from vllm_capacity.sources.http import without_credentials

SECRET = "s3cr3t"
LOGIN = {"PARSEABLE_USER": "u", "PARSEABLE_PASSWORD": "p"}
ROOT = {"PARSEABLE_ROOT_USER": "u", "PARSEABLE_ROOT_PASSWORD": "p"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        pytest.param("http://h:1/x?y=1", "http://h:1/x?y=1", id="nothing to hide"),
        pytest.param("http://u:p@h/x", "http://h/x", id="user and password"),
        pytest.param("http://token@h", "http://h", id="a token for a user"),
        pytest.param("u:p@h:9", "h:9", id="no scheme"),
        pytest.param("http://u:a/b@h", "http://h", id="a slash in the password"),
        pytest.param("http://u:a@b@[::1", "http://[::1", id="no URL, and an @ in the password"),
        pytest.param("u:a://b@h", "h", id="what looks like a scheme in the password"),
        pytest.param("http://u:a\nb@h", "http://h", id="a line break in the password"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url, shown):
    assert without_credentials(url) == shown


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param("", "not http", id="empty"),
        pytest.param("http://", "not http", id="no host"),
        pytest.param("ftp://h", "not http", id="another scheme"),
        pytest.param("http://[::1", "as a URL", id="half an address"),
        pytest.param("http://h:99999", "no port 99999", id="no port"),
        pytest.param("http://h:0", "no port 0", id="port 0"),
        pytest.param("http://a..b", "as a URL", id="an empty label"),
        pytest.param("http://" + "a" * 300, "as a URL", id="a label too long"),
        pytest.param("http://xn--/", "as a URL", id="no punycode"),
        pytest.param("http://u:p@h", "set V_USER and V_PASSWORD instead", id="a password"),
    ],
)
def test_what_is_no_url_is_refused(url, says):
    with pytest.raises(InputError, match=says):
        checked_url(url, variables="V")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        pytest.param("h:8000", "http://h:8000/metrics", id="host and port"),
        pytest.param("http://h:8000/", "http://h:8000/metrics", id="no path"),
        pytest.param("https://h/x/metrics", "https://h/x/metrics", id="a path"),
        pytest.param("[::1]:8000", "http://[::1]:8000/metrics", id="IPv6"),
    ],
)
def test_a_host_and_port_mean_its_metrics_url(text, url):
    assert metrics_url(text) == url


@pytest.mark.parametrize(
    ("origin", "is_one"),
    [
        ("http://h", True),
        ("HTTPS://h", True),
        ("s3://b/x", False),
        ("/data/a@b", False),
        ("store", False),
    ],
)
def test_telemetry_comes_from_a_server_or_from_files(origin, is_one):
    assert is_server(origin) is is_one


@pytest.mark.parametrize("origin", [f"ftp://u:{SECRET}@h", f"s3://u:{SECRET}@b", f"u:{SECRET}@h:1"])
def test_an_invalid_origin_is_refused_without_showing_its_password(origin):
    with pytest.raises(InputError) as refused:
        is_server(origin)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        pytest.param("P_PASSWORD", "a b\n", "a b", id="a line break at the end"),
        pytest.param("P_API_KEY", " k\r\n", "k", id="a carriage return"),
        pytest.param("P_TOKEN", "\ufefft", "t", id="a byte order mark"),
        pytest.param("P_PASSWORD", "pässwort", "pässwort", id="letters in a password"),
        pytest.param("P_PASSWORD", "a\nb", None, id="a line break inside"),
        pytest.param("P_PASSWORD", "a\0", None, id="a NUL"),
        pytest.param("P_PASSWORD", "a\udcff", None, id="a byte that is no text"),
        pytest.param("P_TOKEN", "tökén", None, id="letters in a header"),
        pytest.param("P_API_KEY", "a\rb", None, id="a carriage return inside"),
    ],
)
def test_a_secret_is_made_sendable_or_refused_by_its_name(name, value, kept):
    if kept is not None:
        assert secret(name, value) == kept
        return
    with pytest.raises(InputError) as refused:
        secret(name, value)
    assert name in str(refused.value)
    assert value not in str(refused.value)


def result(monkeypatch, capsys, line, environment):
    for name in list(os.environ):
        if name.startswith(("PARSEABLE", "PROMETHEUS", "VLLM_METRICS")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["vllm-capacity", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


URL = f"http://u:{SECRET}@127.0.0.1:9"
NOWHERE = "--vllm none --collector none --parseable none --wait 0"


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        pytest.param(f"scrape {URL} --for 1s --to FOLDER/w", {}, id="scrape"),
        pytest.param(f"pull --from {URL} --last 1h --to FOLDER/w", LOGIN, id="pull: Prometheus"),
        pytest.param(f"pull --from {URL} --stream s --last 1h --to FOLDER/w", LOGIN, id="pull"),
        pytest.param(
            "pull --stream s --last 1h --to FOLDER/w",
            LOGIN | {"PARSEABLE_URL": URL},
            id="by variable",
        ),
        pytest.param(f"traces --from {URL} --last 1h", LOGIN, id="traces"),
        pytest.param(f"proxy --upstream {URL} --listen 127.0.0.1:0", {}, id="proxy"),
        pytest.param(f"doctor {NOWHERE} --vllm {URL}", {}, id="doctor: vLLM"),
        pytest.param(f"doctor {NOWHERE} --proxy {URL}", {}, id="doctor: proxy"),
        pytest.param(f"doctor {NOWHERE} --collector u:{SECRET}@h", {}, id="doctor: Collector"),
        pytest.param(f"doctor {NOWHERE} --parseable {URL}", {}, id="doctor: Parseable"),
        pytest.param(f"stack healthy {URL}", {}, id="stack healthy"),
        pytest.param(f"stack init --parseable {URL}", ROOT, id="stack init"),
        pytest.param(f"stack provision --parseable {URL}", ROOT, id="stack provision"),
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(
    monkeypatch, capsys, tmp_path, line, environment
):
    line = line.replace("FOLDER", str(tmp_path))
    code, out, err = result(monkeypatch, capsys, line, environment)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert SECRET not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "variable"),
    [
        pytest.param("pull --from URL --stream s --last 1h", "PARSEABLE_API_KEY", id="pull: key"),
        pytest.param("pull --from URL --last 1h", "PROMETHEUS_TOKEN", id="pull: token"),
        pytest.param("scrape URL --for 1s", "VLLM_METRICS_TOKEN", id="scrape"),
    ],
)
@pytest.mark.parametrize("stray", ["a\nb", "a\rb", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_secret_that_cannot_be_sent_is_refused_by_name(
    monkeypatch, capsys, tmp_path, line, variable, stray
):
    line = line.replace("URL", "http://127.0.0.1:9") + f" --to {tmp_path / 'w'}"
    code, _, err = result(monkeypatch, capsys, line, {variable: SECRET + stray})
    assert (code, variable in err, SECRET in err) == (2, True, False)


def test_a_profile_with_invalid_values_is_refused_without_showing_them(
    monkeypatch, capsys, tmp_path
):
    profile = tmp_path / "p.toml"
    profile.write_text(f'api_key = "{SECRET}\\u0000"\n')
    profile.chmod(0o600)
    line = f"pull --from http://127.0.0.1:9 --stream s --last 1h --profile {profile} --to x"
    code, _, err = result(monkeypatch, capsys, line, {})
    assert (code, SECRET in err, f"{profile}: api_key" in err) == (2, False, True)


@pytest.mark.parametrize("proxy", ["ftp://x", f"ftp://u:{SECRET}@h", "http://[::1"])
def test_an_invalid_proxy_is_bad_input(monkeypatch, capsys, proxy):
    code, _, err = result(monkeypatch, capsys, "stack healthy http://h", {"ALL_PROXY": proxy})
    assert (code, "ALL_PROXY" in err, SECRET in err) == (2, True, False)


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        pytest.param({"token": "t"}, ("Authorization", "Bearer t"), id="a token"),
        pytest.param({"api_key": "k", "user": "u", "password": "p"}, ("X-API-KEY", "k"), id="key"),
        pytest.param(
            {"user": "u", "password": "p"},
            ("Authorization", "Basic " + base64.b64encode(b"u:p").decode()),
            id="user and password",
        ),
        pytest.param({"user": "u"}, ("Authorization", None), id="half of it"),
    ],
)
def test_credentials_go_into_the_request(settings, header):
    seen = []

    def answer(request):
        seen.append(request.headers.get(header[0]))
        return httpx.Response(200)

    with client(settings, transport=httpx.MockTransport(answer)) as asking:
        asking.get("http://h")
    assert seen == [header[1]]


@pytest.fixture
def guarded():
    """A /metrics that requires a token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            is_known = self.headers.get("Authorization") == f"Bearer {SECRET}"
            body = b'# TYPE vllm:x gauge\nvllm:x{engine="0"} 1\n' if is_known else b""
            self.send_response(200 if is_known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize("way", ["variable", "profile", "none"])
def test_scrape_takes_its_credentials_from_the_environment_or_a_profile(tmp_path, guarded, way):
    import subprocess

    profile = tmp_path / "metrics.toml"
    profile.write_text(f'token = "{SECRET}"\n')
    profile.chmod(0o600)
    words = ["scrape", guarded, "--every", "50ms", "--for", "100ms", "--to", tmp_path / "w"]
    environment = {"VLLM_METRICS_TOKEN": SECRET} if way == "variable" else {}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vllm_capacity",
            *words,
            *(["--profile", profile] * (way == "profile")),
        ],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (3 if way == "none" else 0), done.stderr
    assert ("HTTP 401" in done.stderr) is (way == "none")
    assert SECRET not in done.stderr
    kept = b"".join(f.read_bytes() for f in (tmp_path / "w").rglob("*") if f.is_file())
    assert SECRET.encode() not in kept


@pytest.fixture
def behind_tls(tmp_path):
    """Its address, the certificate to trust, and the tenants that asked."""
    tenants = []

    class Mimir(BaseHTTPRequestHandler):
        def do_GET(self):
            tenants.append(self.headers["X-Scope-OrgID"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mimir)
    trusted = tmp_path / "ca.pem"
    server.socket = self_signed(trusted).wrap_socket(server.socket, server_side=True)
    with serving(server) as url:
        yield url.replace("http:", "https:"), trusted, tenants


def test_a_custom_certificate_and_tenant(behind_tls):
    url, trusted, tenants = behind_tls
    with prometheus_client(url, {}, tenant="team-a", ca=trusted) as asking:
        assert asking.get("/").status_code == 200
    with prometheus_client(url, {}) as asking, pytest.raises(httpx.ConnectError, match="verif"):
        asking.get("/")
    assert tenants == ["team-a"]


def test_the_python_api_takes_them_too(behind_tls, tmp_path):
    url, trusted, tenants = behind_tls
    with pytest.raises(SourceError):  # it answers with nothing
        vc.pull(url, to=tmp_path / "w", last="1h", match='{team="a"}', tenant="team-a", ca=trusted)
    assert set(tenants) == {"team-a"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "Cannot read .*: No such file", id="no file"),
        pytest.param("hello", "has no certificates to trust: expected PEM", id="no PEM"),
    ],
)
def test_untrustworthy_figures_are_reported(tmp_path, content, says):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=says):
        trusting(path)
