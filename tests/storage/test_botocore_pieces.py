"""The pieces of botocore and aiobotocore that redirects rest on are those that were read and tested.

For the oldest ones: in an environment of its own, `pip install -e '.[dev]' boto3==1.43.101 aiobotocore==3.9.2`, then
`pytest tests/storage`.
"""

from __future__ import annotations

import hashlib
import inspect
import pkgutil

import aiobotocore.session  # noqa: F401 - before its other modules, which import each other
import pytest

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
"""The start of each one's SHA-256, in botocore 1.43.106 with aiobotocore 3.9.2, and in 1.43.117 with 3.10.0.

Where one is not known, read what has changed, run the tests of redirects with it, and add it here.
"""


def source_hash(piece: str) -> str:
    return hashlib.sha256(inspect.getsource(pkgutil.resolve_name(piece)).encode()).hexdigest()[:12]


@pytest.mark.parametrize("piece", KNOWN)
def test_the_piece_is_known(piece: str) -> None:
    assert source_hash(piece) in KNOWN[piece]
