"""What is deployed: the Dockerfile, Kubernetes' manifests as kustomize renders them, AIStore's specs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from etl_server.shipping import USER

from ..helpers import ROOT, ServerProcess, known_variables

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
PAGE = (DEPLOY / "README.md").read_text()
SPECS = sorted((DEPLOY / "aistore").glob("*.yaml"))
MANIFESTS = sorted(file for file in KUBERNETES.rglob("*.yaml") if file.name != "kustomization.yaml")
RENDERED = ["base", "overlays/s3", "overlays/dev", "job"]
TOOLS = Path(sys.executable).parent
"""Where the extra `dev` has put kubectl, hadolint and docker-compose."""
IMAGE = f"registry.example.com/etl-server:{version('etl-server')}"
VERSION = "1.31"
NOT_OURS = {"AWS_REGION"}
"""Variables that are read by the libraries underneath."""
CUSTOM = {"ServiceMonitor"}
"""Kinds that Kubernetes' own schemas do not have."""


def containers(documents: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container, with the specification of the pod that it belongs to."""
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            pod = document["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield pod, container


def read(*files: Path) -> list[dict[str, Any]]:
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def validate(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, VERSION, strict=True)


def check_pods(documents: list[dict[str, Any]]) -> None:
    for pod, container in containers(documents):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        secure = container["securityContext"]
        assert secure["readOnlyRootFilesystem"] is True
        assert secure["allowPrivilegeEscalation"] is False
        assert secure["capabilities"] == {"drop": ["ALL"]}
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert {"requests", "limits"} <= set(container["resources"])
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert {variable["name"] for variable in container["env"]} <= known_variables() | NOT_OURS


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: str(file.relative_to(KUBERNETES)))
def test_a_manifest_is_valid_as_it_is_written(file: Path) -> None:
    documents = read(file)
    validate(documents)
    check_pods(documents)


def rendered(folder: str | Path) -> list[dict[str, Any]]:
    command = [str(TOOLS / "kubectl"), "kustomize", str(KUBERNETES / folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("folder", RENDERED)
def test_what_kustomize_renders_is_valid(folder: str) -> None:
    documents = rendered(folder)
    validate(documents)
    check_pods(documents)
    assert list(containers(documents))
    names = {document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"}
    for pod, container in containers(documents):
        assert {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} <= names
        assert container["image"] == ("etl-server:dev" if folder == "overlays/dev" else IMAGE)


@pytest.mark.parametrize("folder", ["base", "overlays/s3", "overlays/dev"])
def test_removing_the_job_takes_nothing_of_the_server(folder: str) -> None:
    server, job = (
        {(document["kind"], document["metadata"]["name"]) for document in rendered(name)} for name in (folder, "job")
    )
    assert not server & job


def test_the_overlay_on_the_page_is_one(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes/overlays/mine"
    mine.mkdir()
    (overlay,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (mine / "kustomization.yaml").write_text(overlay)
    (mine / "transform.py").write_text("my class")
    documents = rendered(mine)
    validate(documents)
    check_pods(documents)
    ((pod, container),) = containers(documents)
    assert container["image"] == "registry.example.org/mine:1"
    assert container["args"] == ["serve", "/app/transform.py", "--source", "s3://my-bucket"]
    assert {"name": "AWS_REGION", "value": "eu-central-1"} in container["env"]
    (config,) = (document for document in documents if document["kind"] == "ConfigMap")
    assert config["data"] == {"transform.py": "my class"}
    assert config["metadata"]["name"] in [volume.get("configMap", {}).get("name") for volume in pod["volumes"]]


def test_the_secret_on_the_page_is_the_one_that_pods_take() -> None:
    (command,) = re.findall(r"^kubectl (create secret .*)$", PAGE, re.MULTILINE)
    text = subprocess.check_output([TOOLS / "kubectl", *shlex.split(command), "--dry-run=client", "-o", "yaml"])
    secret = yaml.safe_load(text)
    assert set(secret["data"]) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    for folder in ("overlays/s3", "job"):
        ((_, container),) = containers(rendered(folder))
        assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]


def test_the_client_on_the_page_is_let_in() -> None:
    (options,) = re.findall(r"^kubectl run (.*) --command", PAGE, re.MULTILINE)
    (policy,) = read(KUBERNETES / "base/network.yaml")
    ((label, value),) = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items()
    assert f"--labels {label}={value} " in options


def test_a_job_without_a_ledger_that_lasts_is_not_done_twice() -> None:
    (job,) = read(KUBERNETES / "job/job.yaml")
    ((_, container),) = containers([job])
    assert "--ledger" in container["args"] or job["spec"]["backoffLimit"] == 0


def test_a_field_that_kubernetes_does_not_know_is_refused() -> None:
    document = read(KUBERNETES / "base/service.yaml")[0]
    document["spec"]["prots"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        validate([document])


def test_a_pod_is_given_the_time_to_drain() -> None:
    ((pod, container),) = containers(read(KUBERNETES / "base/deployment.yaml"))
    seconds = {variable["name"]: variable["value"] for variable in container["env"]}["ETL_DRAIN_TIMEOUT"]
    pause = container["lifecycle"]["preStop"]["exec"]["command"][1]
    assert pod["terminationGracePeriodSeconds"] > float(seconds) + float(pause)


def test_a_pod_is_probed_where_it_listens() -> None:
    ((_, container),) = containers(read(KUBERNETES / "base/deployment.yaml"))
    assert container["ports"] == [{"name": "default", "containerPort": 8000}]
    for probe in ("readinessProbe", "startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "default"}


def test_everything_selects_the_pods_of_the_deployment() -> None:
    kinds = {document["kind"]: document for document in read(*(KUBERNETES / "base").glob("[!k]*.yaml"))}
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [kinds[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")]
    assert [*selectors, kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]] == [labels] * 3
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
    (endpoint,) = kinds["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint == {"port": kinds["Service"]["spec"]["ports"][0]["name"], "path": "/metrics", "interval": "30s"}


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_a_spec_for_aistore_is_one_that_it_takes(file: Path) -> None:
    (spec,) = read(file)
    assert set(spec) <= {
        *("name", "communication", "argument", "init_timeout", "obj_timeout", "support_direct_put"),
        *("runtime", "resources"),
    }
    assert set(spec["runtime"]) <= {"image", "command", "env"}
    assert spec["runtime"]["image"] == IMAGE
    assert 6 <= len(spec["name"]) <= 32
    assert re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])", spec["name"])
    assert spec["communication"] in ("hpush://", "hpull://", "ws://")
    assert re.fullmatch(r"\d+[sm]", spec["init_timeout"])
    assert {variable["name"] for variable in spec["runtime"]["env"]} <= known_variables()
    pod = {"containers": [{"name": "etl", **spec["runtime"], "resources": spec["resources"]}]}
    validate([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": spec["name"]}, "spec": pod}])


def test_there_is_a_spec_for_each_way_of_aistore() -> None:
    assert {file.stem: read(file)[0]["communication"] for file in SPECS} == {
        "push": "hpush://",
        "pull": "hpull://",
        "websocket": "ws://",
        "path": "hpush://",
    }


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run([TOOLS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def instruction(name: str) -> str:
    """The last instruction of that name in the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")][-1]


def test_the_image_is_healthy_exactly_while_its_server_takes_objects(tmp_path: Path) -> None:
    """By the image's own HEALTHCHECK, and its own command, which no shell keeps signals from."""
    (tmp_path / "transform.py").write_bytes((KUBERNETES / "base/transform.py").read_bytes())
    command = [*json.loads(instruction("ENTRYPOINT")), *json.loads(instruction("CMD"))]
    assert command[:2] == ["etl-server", "serve"]
    served = tmp_path / Path(command[2]).relative_to("/app")
    _, *check = json.loads(instruction("HEALTHCHECK").partition("CMD")[2])

    def healthy() -> bool:
        variables = {**os.environ, "ETL_PORT": str(server.port)}
        return subprocess.run([sys.executable, *check], env=variables, capture_output=True).returncode == 0

    with ServerProcess.serve(str(served), environment={"ETL_DRAIN_DELAY": "50"}) as server:
        server.wait_until_listening()
        assert healthy()
        server.signal(signal.SIGTERM)
        server.wait_for_line("stopping")
        assert not healthy()
        server.signal(signal.SIGINT)
        server.signal(signal.SIGINT)
        server.wait()
        assert not healthy()


def test_the_image_serves_as_a_user_that_is_not_root() -> None:
    user, _, group = instruction("USER").partition(":")
    assert (int(user), int(group)) == (USER, USER)


def test_the_class_that_is_served_by_default_is_the_one_of_the_job() -> None:
    assert (KUBERNETES / "base/transform.py").read_bytes() == (KUBERNETES / "job/transform.py").read_bytes()
