"""AIStore's control plane as a client: start ETLs, look at them, stop them, run buckets and objects through them.

client = AIStoreClient("http://proxy:51080")
client.init(build_etl_spec("thumbnails", "etl-server", class_environment(serialize_class(Thumbnail))))
client.wait_for_job(client.transform_bucket("thumbnails", Bucket("photos"), Bucket("thumbnails")))
"""

from __future__ import annotations

from ..wire.buckets import Bucket, parse_bucket, parse_object
from ..wire.etl_spec import build_etl_spec, class_environment
from .client import AIStoreClient
from .models import ETLDetails, ETLInfo, Job, JobProgress, JobStatus, NodeHealth, NodeLogs, NodeMetrics, ObjectError

__all__ = [
    "AIStoreClient",
    "Bucket",
    "ETLDetails",
    "ETLInfo",
    "Job",
    "JobProgress",
    "JobStatus",
    "NodeHealth",
    "NodeLogs",
    "NodeMetrics",
    "ObjectError",
    "build_etl_spec",
    "class_environment",
    "parse_bucket",
    "parse_object",
]
