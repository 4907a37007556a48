"""Importing this lets every S3 client of the process follow redirects: botocore's, boto3's, aiobotocore's and s3fs's.

It concerns the clients of sessions that are made after it, and of boto3's default session. For one client alone, or for
one that may go from https to http: `etl_server.follow_redirects(client)`.
"""

from __future__ import annotations

import sys
from typing import Any

from botocore import handlers

from .storage.redirects import follow_redirects

_EVENT = "creating-client-class.s3"


class _Following:
    """An S3 client that follows redirects as soon as it is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        follow_redirects(self)


def _add_base(base_classes: list[type], **kwargs: Any) -> None:
    base_classes.insert(0, _Following)


# Every session registers the built-in handlers when it is made, aiobotocore's too.
_builtin: list[Any] = handlers.BUILTIN_HANDLERS
_builtin.append((_EVENT, _add_base))
_boto3: Any = sys.modules.get("boto3")
if _boto3 is not None and _boto3.DEFAULT_SESSION is not None:
    _boto3.DEFAULT_SESSION.events.register(_EVENT, _add_base)
