"""Stores by their URI."""

from __future__ import annotations

import sys

import pytest

import etl_server
from etl_server.errors import ConfigError
from etl_server.storage import open_store


@pytest.fixture(autouse=True)
def _no_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "etl_server.storage.s3", raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)


def test_a_missing_extra_is_told_with_how_to_install_it() -> None:
    with pytest.raises(
        ConfigError, match=r"^s3://photos: expected boto3 to be installed: pip install .etl-server\[s3\]"
    ):
        open_store("s3://photos")


def test_a_public_name_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(etl_server), "S3ObjectStore", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"^S3ObjectStore needs boto3: pip install .etl-server\[s3\]"):
        _ = etl_server.S3ObjectStore
