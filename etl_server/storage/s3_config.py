"""How the S3 clients of stores are set up, the blocking one and the asynchronous one alike."""

from __future__ import annotations

from typing import Any, NamedTuple


class S3Options(NamedTuple):
    """Where a bucket is, and as whom it is asked. What is None is what boto3 finds in its environment and files."""

    endpoint_url: str | None = None
    region_name: str | None = None
    profile_name: str | None = None
    addressing_style: str | None = None
    """`path`, `virtual` or `auto`; None: `path` where there is an `endpoint_url`."""

    def config(self, connections: int) -> dict[str, Any]:
        """The arguments of botocore's `Config`, with so many connections at the most that are kept open.

        Retries are left to `RetryPolicy`, and nothing is wanted that only AWS has.
        """
        style = self.addressing_style or ("path" if self.endpoint_url else "auto")
        return {
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": connections,
            "connect_timeout": 10,
            "read_timeout": 60,
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": style},
        }
