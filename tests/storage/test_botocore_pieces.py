"""The pieces of botocore and aiobotocore that redirects rest on are those that were read and tested.

Of the newest ones, which are installed here, and of the oldest, in an environment of their own. To run all tests with
those: `pip install -e '.[dev]'` and `OLDEST` in another environment, then `pytest tests/storage`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from ..environments import needs_installation, python_with
from ..helpers import ROOT

OLDEST = {"aiobotocore": "3.9.2", "boto3": "1.43.101", "botocore": "1.43.101"}

KNOWN: dict[str, set[str]] = {
    "botocore.endpoint:Endpoint._send_request": {"af914535237d"},
    "botocore.endpoint:Endpoint._needs_retry": {"9621767a04c7"},
    "botocore.endpoint:Endpoint.create_request": {"3896032f73c0"},
    "botocore.awsrequest:AWSPreparedRequest.reset_stream": {"dbe5daa7fa20"},
    "botocore.utils:S3RegionRedirectorv2.redirect_from_error": {"8cb08e690741"},
    "botocore.client:ClientCreator._create_client_class": {"3d1b7c1cafde"},
    "botocore.session:Session._register_builtin_handlers": {"0a4060d2bd37"},
    "aiobotocore.client:AioClientCreator._create_client_class": {"de098b5896a3"},
    "aiobotocore.endpoint:AioEndpoint._send_request": {"45299be64199"},
    "aiobotocore.endpoint:AioEndpoint._needs_retry": {"e0e1e14d904d"},
    "aiobotocore.httpsession:AIOHTTPSession._get_session": {"9050ac5aa443"},
    "aiobotocore.httpsession:AIOHTTPSession.send": {"9633db7fc585"},
}
"""The start of each one's SHA-256, in `OLDEST`, and in botocore 1.43.117 with aiobotocore 3.10.0.

Where one is not known, read what has changed, run the tests of redirects with it, and add it here.
"""

HASHES = """
import hashlib, importlib.metadata, inspect, json, pkgutil, sys
import aiobotocore.session  # before its other modules, which import each other
sources = {piece: inspect.getsource(pkgutil.resolve_name(piece)) for piece in sys.argv[1:]}
found = {piece: hashlib.sha256(source.encode()).hexdigest()[:12] for piece, source in sources.items()}
print(json.dumps([found, importlib.metadata.requires("aiobotocore")]))
"""


def look(python: str) -> tuple[dict[str, str], list[str]]:
    """The hashes of the pieces that an interpreter finds, and what its aiobotocore requires."""
    found, requires = json.loads(subprocess.check_output([python, "-c", HASHES, *KNOWN]))
    return found, requires


def unknown(found: dict[str, str]) -> dict[str, str]:
    return {piece: digest for piece, digest in found.items() if digest not in KNOWN[piece]}


def test_those_that_are_installed_are_known() -> None:
    found, _ = look(sys.executable)
    assert found.keys() == KNOWN.keys()
    assert unknown(found) == {}


@needs_installation
def test_the_oldest_ones_are_known() -> None:
    found, requires = look(str(python_with("oldest-s3", *(f"{name}=={version}" for name, version in OLDEST.items()))))
    assert unknown(found) == {}
    (botocore,) = (requirement for requirement in requires if re.match(r"botocore\b", requirement))
    assert f">={OLDEST['botocore']}" in botocore, "an older botocore would do"


@pytest.mark.parametrize("name", ["aiobotocore", "boto3"])
def test_no_older_ones_are_installed(name: str) -> None:
    extras = (ROOT / "pyproject.toml").read_text()
    assert re.findall(rf'"{name}>=([\d.]+)', extras) == [OLDEST[name]]
