"""An embedded AIStore-protocol target, and a driver that sends objects to an ETL server the way a target does."""

from __future__ import annotations

from .driver import Driver, DriverSocket, Message, Reply, pipeline
from .echo import Echo, EchoStream
from .target import RequestRecord, Target

__all__ = [
    "Driver",
    "DriverSocket",
    "Echo",
    "EchoStream",
    "Message",
    "Reply",
    "RequestRecord",
    "Target",
    "pipeline",
]
