"""A cluster, and a client of it that does not wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etl_server.control import AIStoreClient

from .fake_cluster import FakeCluster


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as running:
        yield running


@pytest.fixture
def client(cluster: FakeCluster) -> Iterator[AIStoreClient]:
    with AIStoreClient(cluster.url, backoff=0, poll=0.01) as made:
        yield made
