"""What boto3 and aiobotocore raise, as errors of object stores."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import botocore.exceptions
import botocore.parsers

from ..errors import ObjectStoreError, ObjectStoreTransientError

_DENIED = frozenset(
    ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AccountProblem")
)
_TRANSIENT = frozenset(
    (
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "LimitExceededException",
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    )
)
_CUT_OFF = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ConnectionError,  # what aiobotocore makes of a reset, too
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.ChecksumError,
    botocore.parsers.ResponseParserError,  # the answer is not S3's, but of something that is in the way for a while
    OSError,  # of a socket, while a body is read
)


class RangeNotThereError(ObjectStoreError):
    """The object ends before the range begins."""


class UploadNotThereError(ObjectStoreError):
    """The multipart upload was completed or aborted, or never was."""


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """What goes wrong with the object of this URI as the errors of `ObjectStore`."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise _answered(uri, error) from error
    except botocore.exceptions.NoCredentialsError as error:
        raise PermissionError(f"{uri}: {error}") from None
    except botocore.exceptions.SSLError as error:
        raise ObjectStoreError(f"{uri}: {error}") from None
    except _cut_off() as error:
        raise ObjectStoreTransientError(f"{uri}: {type(error).__name__}: {error}") from None
    except botocore.exceptions.BotoCoreError as error:
        raise ObjectStoreError(f"{uri}: {error}") from None


def was_retried(answer: Mapping[str, Any]) -> bool:
    """Whether the client made more than one request for this answer, so that one before it may have been obeyed."""
    return bool(answer.get("ResponseMetadata", {}).get("RetryAttempts"))


def was_refused(error: BaseException) -> bool:
    """Whether an error of `translated` says that the request was not obeyed: the only one was answered with a no."""
    answered = error.__cause__
    return (
        isinstance(answered, botocore.exceptions.ClientError)
        and not isinstance(error, ObjectStoreTransientError)
        and not was_retried(answered.response)
    )


def _cut_off() -> tuple[type[Exception], ...]:
    # Under aiobotocore, while a body is read. For boto3 it is not to be loaded: it takes 11 MiB.
    aiohttp = sys.modules.get("aiohttp")
    return _CUT_OFF if aiohttp is None else (*_CUT_OFF, aiohttp.ClientError)


def _answered(uri: str, error: botocore.exceptions.ClientError) -> Exception:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    text = f"{uri}: {error}"
    if code == "NoSuchBucket":
        return FileNotFoundError(2, "no such bucket", "/".join(uri.split("/")[:3]))
    if code == "NoSuchUpload":
        return UploadNotThereError(text)
    if status == 416:
        return RangeNotThereError(text)
    if status == 404:
        return FileNotFoundError(2, "no such object", uri)
    if status in (401, 403) or code in _DENIED:
        return PermissionError(text)
    if status == 429 or (status >= 500 and status != 501) or code in _TRANSIENT:
        return ObjectStoreTransientError(text)
    return ObjectStoreError(text)
