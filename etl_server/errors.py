"""Every error of the project, and the HTTP status that it maps to.

ETLError                        500
├── BadRequestError             400  the request is malformed
├── FileForbiddenError          403  `etl_fqn` names what may not be read, or the object store does not allow it
├── ObjectMissingError          404  the file that `etl_fqn` names, or the object in the store, is not there
├── MethodNotAllowedError       405
├── BodyTooLargeError           413  the object is larger than `ETL_MAX_BODY`
├── RangeError                  416  the range that is asked for begins behind the end of the result
├── TransformError              500  the user's transform raised, or returned something that is no object
├── UpstreamStatusError         that of the other side: the target or the next stage answered ≥ 400
├── UpstreamUnreachableError    502  the target or the next stage cannot be talked to
│   ├── UpstreamRefusedError    502  … it refused the connection: trying again is pointless
│   └── DeliveryFailedError     502  … retries are exhausted
├── DeliveryInterruptedError    503  a one-shot stream broke off: the target is to repeat the whole PUT
├── TargetNotConfiguredError    503  `AIS_TARGET_URL` is needed and not set
├── ObjectStoreError            502  an object store refused what was asked of it, or gave what cannot be right
│   ├── ObjectStoreTransientError 503  … it may well succeed when tried again: throttled, 5xx, reset, timeout
│   └── RedirectError         502  … an S3 request was redirected to where it must not, or cannot, go
├── ClientDisconnectedError     499  nobody is there to read it: the status is for the log
├── ServerEndedError            503  the server ended before the object was finished
├── ClusterError                no answer: an AIStore cluster refused something; `status` is that of its answer
│   ├── ClusterUnreachableError … or cannot be talked to
│   ├── ETLNotRunningError      … an ETL was to be started and does not run
│   └── JobFailedError          … a job was aborted, or some of its objects failed
├── ConfigError                 no answer: the server does not start
├── StartError                  no answer: the server does not start, or cannot go on
├── ClassLoadError              no answer: the user's class cannot be found
├── JobError                    no answer: a job cannot start
├── PayloadError                no answer: a serialized class cannot be loaded
└── InstallError                no answer: what the class needs cannot be installed
"""

from __future__ import annotations

import json
import signal

INTERNAL = "Internal server error"
RETRY_REASON_HEADER = "ais-etl-retry-reason"
RETRY_REASON_DIRECT_PUT = "direct-put-transient"


class ETLError(Exception):
    """Base of every error here. `detail` is the text of the error body; it never holds a secret."""

    status = 500

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def body(self) -> bytes:
        """The JSON error body: `{"detail": …}`, as UTF-8."""
        return error_body(self.detail)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Extra response headers, as (name, value)."""
        return ()

    @property
    def content_type(self) -> str:
        """The MIME type of `body()`."""
        return "application/json"


class BadRequestError(ETLError):
    """The request is malformed. `status` says how, where that is known."""

    status = 400

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = status


class FileForbiddenError(ETLError):
    """`etl_fqn` names something that this server may not read, or the object store does not allow it."""

    status = 403


class ObjectMissingError(ETLError):
    """The file that `etl_fqn` names, or the object in the store, is not there."""

    status = 404


class MethodNotAllowedError(ETLError):
    """The route knows no such method. `allow` lists those that it does know."""

    status = 405

    def __init__(self, detail: str, allow: str) -> None:
        super().__init__(detail)
        self.allow = allow

    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("allow", self.allow),)


class BodyTooLargeError(ETLError):
    """The object is larger than `ETL_MAX_BODY`."""

    status = 413

    @classmethod
    def beyond(cls, limit: int | None) -> BodyTooLargeError:
        return cls(f"The object is larger than ETL_MAX_BODY={limit} bytes")


class RangeError(ETLError):
    """The range that is asked for begins behind the end of the result, which has `size` bytes."""

    status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"The range holds none of the {size} bytes of the result")
        self.size = size

    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("content-range", f"bytes */{self.size}"),)


class TransformError(ETLError):
    """The user's transform raised, took too long, or returned something that is no object."""

    def __init__(self, message: str) -> None:
        super().__init__(f"Processing error: {message}")


class UpstreamStatusError(ETLError):
    """The target or the next stage answered with an error, which is passed on: its status, its body.

    `retry_reason` is the `ais-etl-retry-reason` that came with it, or empty.
    """

    def __init__(self, status: int, content: bytes, content_type: str, retry_reason: str = "") -> None:
        # Not cut here: half a secret would not be recognised as one.
        super().__init__(f"status {status}: {content.decode('utf-8', 'replace')}")
        self.status = status
        self.content = content
        self.retry_reason = retry_reason
        self._content_type = content_type

    def body(self) -> bytes:
        return self.content

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ((RETRY_REASON_HEADER, self.retry_reason),) if self.retry_reason else ()

    @property
    def content_type(self) -> str:
        return self._content_type


class UpstreamUnreachableError(ETLError):
    """The connection to the target or the next stage was lost, reset, timed out, or its framing broke."""

    status = 502


class UpstreamRefusedError(UpstreamUnreachableError):
    """The target or the next stage refused the connection."""


class DeliveryFailedError(UpstreamUnreachableError):
    """Direct put failed, and its retries are exhausted."""


class DeliveryInterruptedError(ETLError):
    """Direct put of a one-shot stream broke off: only the target has the object, so it is to repeat the whole PUT."""

    status = 503

    def headers(self) -> tuple[tuple[str, str], ...]:
        return ((RETRY_REASON_HEADER, RETRY_REASON_DIRECT_PUT),)


class TargetNotConfiguredError(ETLError):
    """`AIS_TARGET_URL` is needed for this request and not set."""

    status = 503


class ObjectStoreError(ETLError):
    """An object store refused what was asked of it, or gave what cannot be right. Trying again is pointless.

    What has a name in Python is raised as such: `FileNotFoundError`, `FileExistsError`, `PermissionError`.
    """

    status = 502


class ObjectStoreTransientError(ObjectStoreError):
    """What was asked of an object store may well succeed when tried again: throttled, 5xx, reset, timed out, cut off.

    The store has tried again already, as often as its `RetryPolicy` says.
    """

    status = 503


class RedirectError(ObjectStoreError):
    """An S3 request was redirected to where it must not, or cannot, go. `hops` are the URLs so far, without queries."""

    def __init__(self, detail: str, hops: list[str]) -> None:
        super().__init__(f"{detail}; hops: {' -> '.join(hops)}")
        self.hops = hops


class ClientDisconnectedError(ETLError):
    """The client went away before its request was whole or answered."""

    status = 499


class ServerEndedError(ETLError):
    """The server ended, or the connection with all objects on it, before the object was finished."""

    status = 503

    def __init__(self, detail: str = "the server ended before the object was finished") -> None:
        super().__init__(detail)


class ClusterError(ETLError):
    """An AIStore cluster refused what it was asked for. `detail` has its own words, `status` its answer's status."""

    def __init__(self, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.status = status


class ClusterUnreachableError(ClusterError):
    """The cluster cannot be connected to, or its answer broke off: whether it did what it was asked for is unknown."""


class ETLNotRunningError(ClusterError):
    """An ETL was to be started and does not run. The text has what the cluster says of it."""


class JobFailedError(ClusterError):
    """A job was aborted, or ended with an error, or some of its objects failed."""


class ConfigError(ETLError):
    """A setting has a bad value. The text is one line: variable, value, what was expected."""


class StartError(ETLError):
    """A server cannot start."""


class ClassLoadError(ETLError):
    """The user's class cannot be found or loaded."""


class JobError(ETLError):
    """A job cannot start, or cannot go on. The text is one line."""


class PayloadError(ETLError):
    """A class cannot be serialized, or a serialized one cannot be loaded. The text says what failed, and where."""


class InstallError(ETLError):
    """What `PACKAGES` or `OS_PACKAGES` names cannot be installed. The text names the setting and the reason."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def signal_name(number: int) -> str:
    """A signal's name, as `SIGKILL`; of one that has none, `signal` and its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def error_body(detail: str) -> bytes:
    """`{"detail": detail}` as UTF-8 JSON."""
    return json.dumps({"detail": detail}).encode()
