"""Sessions of `requests`, as the settings set them up."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import trustme

from etl_server import Settings
from etl_server.runtime.clients import plain_session, target_session


@pytest.fixture(autouse=True)
def _no_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def url(authority: trustme.CA) -> Iterator[str]:
    """A server with a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Path:
    """A bundle by which the server is verified."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture
def strange(tmp_path: Path) -> str:
    """A bundle by which it is not."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "strange.pem")
    return str(tmp_path / "strange.pem")


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("make", [plain_session, target_session])
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_settings_of_certificates_come_before_variables_of_others(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    trusted: Path,
    strange: str,
    make: Callable[[Settings], requests.Session],
    variable: str,
) -> None:
    monkeypatch.setenv(variable, strange)
    for settings in (Settings.load(client_ca=trusted), Settings.load(skip_verify=True)):
        with make(settings) as session:
            assert session.get(url).content == b"hello"
            assert session.request("GET", url, verify=str(trusted)).ok
    with make(Settings.load()) as session, pytest.raises(requests.exceptions.SSLError):
        session.get(url)
    with make(Settings.load(client_ca=strange)) as session, pytest.raises(requests.exceptions.SSLError):
        session.get(url)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_without_such_a_setting_variables_of_others_count(
    monkeypatch: pytest.MonkeyPatch, url: str, trusted: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(trusted))
    with plain_session(Settings.load()) as session:
        assert session.get(url).content == b"hello"
