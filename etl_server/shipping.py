"""A class on its way: its environment, and what runs it elsewhere, ready to be applied."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from .wire.etl_spec import BOOTSTRAP_COMMAND, CLASS_META, CLASS_PAYLOAD, check_environment
from .wire.names import check_etl_name

CONFIGMAP_LIMIT = 1024 * 1024
"""Bytes that Kubernetes takes as the content of a ConfigMap."""
PORT = 8000
MOUNT = "/etc/etl-server"
"""Where a ConfigMap's files are in its container."""
PAYLOAD_FILE = "payload"
META_FILE = "meta.json"
USER = 10001
"""The user that the image runs as."""


def env_file(environment: Mapping[str, str]) -> str:
    """Lines `NAME=VALUE` for a shell.

    Raises:
        ValueError: a variable is too large.
    """
    check_environment(environment)
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in environment.items())


def kubernetes(name: str, image: str, environment: Mapping[str, str], signed: bool = False) -> dict[str, Any]:
    """A Deployment and a Service that serve a class, whose payload is in the environment.

    Args:
        name: of both; as AIStore takes it for an ETL, and beginning with a letter.
        image: the container image.
        environment: the container's variables.
        signed: take `ETL_PAYLOAD_KEY` from the Secret `etl-payload-key`, where it is under `key`.

    Raises:
        ValueError: the name is refused, or a variable is too large.
    """
    check_environment(environment)
    return _list(_deployment(name, image, environment, signed), _service(name))


def configmap(name: str, image: str, environment: Mapping[str, str], signed: bool = False) -> dict[str, Any]:
    """As `kubernetes`, with the payload in a ConfigMap that is mounted as files.

    Raises:
        ValueError: the name is refused, or the payload is too large.
    """
    files = {PAYLOAD_FILE: environment[CLASS_PAYLOAD], META_FILE: environment[CLASS_META]}
    size = sum(map(len, files.values()))
    if size > CONFIGMAP_LIMIT:
        raise ValueError(
            f"the payload takes {size:,} bytes, expected at most {CONFIGMAP_LIMIT:,}, which is what a ConfigMap takes: "
            "put the class into an image and run python -m etl_server.bootstrap FILE there"
        )
    others = {key: value for key, value in environment.items() if key not in (CLASS_PAYLOAD, CLASS_META)}
    places = {f"{CLASS_PAYLOAD}_FILE": f"{MOUNT}/{PAYLOAD_FILE}", f"{CLASS_META}_FILE": f"{MOUNT}/{META_FILE}"}
    check_environment(others)
    deployment = _deployment(name, image, places | others, signed)
    # A new payload makes new pods.
    template = deployment["spec"]["template"]
    template["metadata"]["annotations"] = {"etl-server/meta": files[META_FILE]}
    template["spec"]["volumes"].append({"name": "payload", "configMap": {"name": name}})
    mount = {"name": "payload", "mountPath": MOUNT, "readOnly": True}
    template["spec"]["containers"][0]["volumeMounts"].append(mount)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(name), "data": files}
    return _list(config, deployment, _service(name))


def _deployment(name: str, image: str, environment: Mapping[str, str], signed: bool) -> dict[str, Any]:
    variables: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in environment.items()]
    if signed:
        secret = {"secretKeyRef": {"name": "etl-payload-key", "key": "key"}}
        variables.append({"name": "ETL_PAYLOAD_KEY", "valueFrom": secret})
    # apt-get and apk work for root only, and change what the image has.
    as_root = "OS_PACKAGES" in environment
    pod_security = {"seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": not as_root}
    security: dict[str, Any] = {"allowPrivilegeEscalation": False}
    if as_root:
        pod_security |= {"runAsUser": 0, "runAsGroup": 0}
    else:
        pod_security |= {"runAsUser": USER, "runAsGroup": USER}
        security |= {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    probe = {"httpGet": {"path": "/health", "port": "default"}, "timeoutSeconds": 5}
    container = {
        "name": "etl-server",
        "image": image,
        "command": list(BOOTSTRAP_COMMAND),
        "env": variables,
        "ports": [{"name": "default", "containerPort": PORT}],
        "startupProbe": probe | {"periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": probe | {"periodSeconds": 5},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "10"]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": security,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a volume of its own
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 90,  # more than preStop and ETL_DRAIN_TIMEOUT together
        "securityContext": pod_security,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    spec = {
        "selector": {"matchLabels": _labels(name)},
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(name), "spec": spec}


def _service(name: str) -> dict[str, Any]:
    ports = [{"name": "default", "port": PORT, "targetPort": "default"}]
    spec = {"selector": _labels(name), "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name), "spec": spec}


def _metadata(name: str) -> dict[str, Any]:
    check_etl_name(name)
    if not name[0].isalpha():
        raise ValueError(f"name {name!r}: expected one that begins with a letter, as Kubernetes wants it of a Service")
    return {"name": name, "labels": _labels(name)}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "etl-server", "app.kubernetes.io/instance": name}


def _list(*items: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}
