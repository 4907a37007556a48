"""The client of a cluster, over real sockets."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from etl_server import Settings
from etl_server.control import AIStoreClient, Bucket, Job, ObjectError, build_etl_spec
from etl_server.control.models import JobProgress
from etl_server.errors import (
    ClusterError,
    ClusterUnreachableError,
    ConfigError,
    ETLNotRunningError,
    JobFailedError,
    UpstreamUnreachableError,
)

from .fake_cluster import FakeCluster, Hook, cut, problem

NAME = "thumbnails"
SPEC = build_etl_spec(NAME, "image:1", {"SECRET": "hunter2"})
SRC, DST = Bucket("src"), Bucket("dst")


def first(count: int, answer: Callable[[web.Request], web.StreamResponse], method: str = "") -> Hook:
    """A hook that answers the first so many requests of a method."""
    left = [count]

    async def hook(request: web.Request) -> web.StreamResponse | None:
        if left[0] and method in ("", request.method):
            left[0] -= 1
            return answer(request)
        return None

    return hook


def always(answer: Callable[[web.Request], web.StreamResponse], method: str = "") -> Hook:
    return first(-1, answer, method)


# ETLs


def test_an_etl_lives_and_dies(client: AIStoreClient, cluster: FakeCluster) -> None:
    assert client.etls() == []
    started = client.init(SPEC)
    assert (started.name, started.stage, started.job) == (NAME, "Running", "etl-thumbnails")
    assert client.etls() == [started] == [client.info(NAME)]
    details = client.details(NAME)
    assert (details.name, details.communication, details.image, details.variables, details.errors) == (
        NAME,
        "hpush",
        "image:1",
        ("SECRET",),
        (),
    )
    assert [each.text for each in client.logs(NAME)] == ["listening\nthumbnails: ready\n"]
    assert [(each.target, each.status) for each in client.health(NAME)] == [("t1", "Running")]
    assert [(each.cpu, each.memory) for each in client.metrics(NAME)] == [(0.25, 50 * 1024 * 1024)]
    client.stop(NAME)
    assert client.info(NAME).stage == "Aborted"
    assert client.start(NAME).stage == "Running"
    client.remove(NAME)
    assert client.etls() == []


def test_the_stage_is_told_while_an_etl_starts(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.init_polls = 3
    stages: list[str] = []
    client.init(SPEC, stages.append)
    assert stages == ["Initializing", "Running"]


def test_an_etl_that_the_cluster_has_only_accepted_is_waited_for(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.init_polls, cluster.answers_before_running = 3, True
    assert client.init(SPEC).stage == "Running"


@pytest.mark.parametrize("answers_before_running", [False, True])
def test_an_etl_that_does_not_get_to_run_is_an_error(
    client: AIStoreClient, cluster: FakeCluster, answers_before_running: bool
) -> None:
    cluster.init_error, cluster.answers_before_running = "pod thumbnails-t1: ImagePullBackOff", answers_before_running
    with pytest.raises(ETLNotRunningError, match=r"^thumbnails does not run: ") as caught:
        client.init(SPEC)
    assert answers_before_running or "ImagePullBackOff" in caught.value.detail
    assert client.info(NAME).stage == "Aborted"


def test_waiting_for_an_etl_has_an_end(
    client: AIStoreClient, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_server.control.client._GRACE", 0.0)
    cluster.init_polls, cluster.answers_before_running = 1_000_000, True
    with pytest.raises(ETLNotRunningError, match=r"does not run after 0.05 s; stage: Initializing"):
        client.init(SPEC | {"init_timeout": "50ms"})


def test_waiting_for_an_etl_ends_when_the_cluster_refuses_to_tell(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.answers_before_running = True
    cluster.on_request = always(lambda request: problem(403, "no access"), "GET")
    with pytest.raises(ClusterError, match=r"^no access"):
        client.init(SPEC)


def test_what_the_cluster_refuses_has_its_words_and_status(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.running(NAME)
    with pytest.raises(ClusterError, match="etl job thumbnails already exists") as caught:
        client.init(SPEC)
    assert (caught.value.status, type(caught.value)) == (409, ClusterError)
    for ask in (client.stop, client.start, client.remove, client.details, client.logs, client.info):
        with pytest.raises(ClusterError, match="missing-etl") as caught:
            ask("missing-etl")
        assert caught.value.status == 404
    with pytest.raises(ClusterError, match='unknown target "t9"'):
        client.logs(NAME, "t9")


def test_a_name_that_no_etl_can_have_is_not_sent(client: AIStoreClient, cluster: FakeCluster) -> None:
    for ask in (client.stop, client.start, client.remove, client.details, client.logs, client.health, client.info):
        with pytest.raises(ValueError, match="ETL name"):
            ask("../buckets/src")
    with pytest.raises(ValueError, match="ETL name"):
        client.get_object("no", SRC, "a")
    with pytest.raises(ValueError, match="ETL name"):
        client.transform_bucket("no", SRC, DST)
    assert cluster.seen == []


# Errors and what is tried again


def test_a_question_is_asked_again_when_the_connection_breaks(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.running(NAME)
    cluster.on_request = first(2, cut)
    assert client.info(NAME).stage == "Running"
    assert len(cluster.seen) == 3
    cluster.on_request = first(2, lambda request: problem(503, "cluster is starting"))
    assert client.info(NAME).stage == "Running"


def test_a_question_is_not_asked_forever(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.on_request = always(cut)
    with pytest.raises(ClusterUnreachableError, match=r"^http://127\.0\.0\.1:\d+ cannot be talked to: "):
        client.etls()
    assert len(cluster.seen) == 4


def test_a_refusal_is_not_asked_again(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.on_request = always(lambda request: problem(500, "broken"))
    with pytest.raises(ClusterError, match=r"^broken$"):
        client.etls()
    assert len(cluster.seen) == 1


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("PUT", lambda client: client.init(SPEC)),
        ("POST", lambda client: client.start(NAME)),
        ("POST", lambda client: client.stop(NAME)),
        ("DELETE", lambda client: client.remove(NAME)),
        ("POST", lambda client: client.transform_bucket(NAME, SRC, DST)),
        ("PUT", lambda client: client.stop_job(Job("job-1", NAME))),
    ],
)
@pytest.mark.parametrize("kept_alive", [False, True])
def test_what_changes_something_is_sent_once(
    client: AIStoreClient,
    cluster: FakeCluster,
    method: str,
    call: Callable[[AIStoreClient], object],
    kept_alive: bool,
) -> None:
    if kept_alive:
        client.etls()
    cluster.on_request = always(cut, method)
    with pytest.raises(ClusterUnreachableError):
        call(client)
    assert len(cluster.requests(method)) == 1


def test_nobody_there_is_an_error_that_says_where() -> None:
    with (
        AIStoreClient("http://127.0.0.1:9", backoff=0) as client,
        pytest.raises(ClusterUnreachableError, match=r"^http://127.0.0.1:9 cannot be talked to: .*refused"),
    ):
        client.etls()


@pytest.mark.parametrize("text", ["<html>", "[1]", '{"a": 1}', '[{"stage": "Running"}]'])
def test_an_answer_that_is_not_aistores_is_an_error(client: AIStoreClient, cluster: FakeCluster, text: str) -> None:
    cluster.on_request = always(lambda request: web.Response(text=text))
    with pytest.raises(ClusterError, match=r"no JSON|not as expected"):
        client.etls()


def test_an_error_that_is_not_json_has_its_text(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.on_request = always(lambda request: web.Response(status=500, text="it is\n broken"))
    with pytest.raises(ClusterError, match=r"^it is broken$"):
        client.etls()
    cluster.on_request = always(lambda request: web.Response(status=500))
    with pytest.raises(ClusterError, match=r"^status 500 Internal Server Error$"):
        client.etls()


def test_a_url_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^AIStore's URL 'proxy': expected the URL of the cluster's proxy"):
        AIStoreClient("proxy")


def test_the_url_is_that_of_the_settings(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIS_ENDPOINT", cluster.url)
    with AIStoreClient() as client:
        assert client.etls() == []


# The token


def test_the_token_goes_to_the_proxy_and_not_to_where_that_redirects(cluster: FakeCluster) -> None:
    cluster.token = "s3cr3t-t0ken"
    cluster.buckets = {"src": {"a": b"hi"}}
    cluster.running(NAME)
    with AIStoreClient(cluster.url, Settings.load(authn_token=cluster.token), backoff=0) as client:
        assert client.get_object(NAME, SRC, "a").readall() == b"HI"
    assert [(seen.node, seen.authorization) for seen in cluster.seen] == [
        ("proxy", "Bearer s3cr3t-t0ken"),
        ("target", None),
    ]


@pytest.mark.parametrize(("token", "why"), [("", "is not set"), ("wr0ng-t0ken", "is not valid for this")])
def test_a_refused_token_is_told_and_not_shown(cluster: FakeCluster, token: str, why: str) -> None:
    cluster.token = "s3cr3t-t0ken"
    with (
        AIStoreClient(cluster.url, Settings.load(authn_token=token)) as client,
        pytest.raises(ClusterError, match=rf"^token required \(AIS_AUTHN_TOKEN {why}\)$") as caught,
    ):
        client.etls()
    assert caught.value.status == 401


def test_a_token_in_the_clusters_own_words_is_not_shown(cluster: FakeCluster) -> None:
    cluster.on_request = always(lambda request: problem(403, f"no: {request.headers['authorization']}"))
    with (
        AIStoreClient(cluster.url, Settings.load(authn_token="s3cr3t-t0ken")) as client,
        pytest.raises(ClusterError, match=r"^no: Bearer \*\*\*"),
    ):
        client.etls()


# Objects


def test_an_object_is_read_through_an_etl(client: AIStoreClient, cluster: FakeCluster) -> None:
    name = "d/ü b?#%41&.txt"
    cluster.buckets = {"src": {name: b"hello", "empty": b""}}
    cluster.running(NAME)
    with client.get_object(NAME, SRC, name, '{"a": "b&c"}') as reader:
        assert reader.readall() == b'HELLO{"a": "b&c"}'
    assert client.get_object(NAME, SRC, "empty").readall() == b""


def test_an_object_that_is_not_there_or_fails_is_an_error(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets, cluster.bad_objects = {"src": {"bad": b"x"}}, {"bad"}
    cluster.running(NAME)
    with pytest.raises(ClusterError, match='"ais://src/none" does not exist') as caught:
        client.get_object(NAME, SRC, "none")
    assert caught.value.status == 404
    with pytest.raises(ClusterError, match="Processing error: this one is bad"):
        client.get_object(NAME, SRC, "bad")


@pytest.mark.parametrize("chunked", [False, True])
def test_an_object_that_breaks_off_is_an_error(client: AIStoreClient, cluster: FakeCluster, chunked: bool) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if not chunked:
            response.content_length = 1000
        await response.prepare(request)
        await response.write(b"part")
        assert request.transport is not None
        request.transport.close()
        return response

    cluster.on_request = break_off
    with client.get_object(NAME, SRC, "a") as reader, pytest.raises(UpstreamUnreachableError):
        reader.readall()


def test_an_object_whose_end_cannot_be_known_is_an_error(client: AIStoreClient, cluster: FakeCluster) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart")
        request.transport.close()
        return web.Response()

    cluster.on_request = endless
    with pytest.raises(ClusterError, match="neither a length nor chunks"):
        client.get_object(NAME, SRC, "a")


def redirect_to(location: str | Callable[[web.Request], str], status: int = 307) -> Hook:
    async def hook(request: web.Request) -> web.StreamResponse:
        where = location if isinstance(location, str) else location(request)
        return web.Response(status=status, headers={"location": where})

    return hook


def test_redirects_that_do_not_end_are_an_error_with_the_hops(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.on_request = redirect_to(lambda request: f"{cluster.target_url}/v1/loop?signature=s3cr3t")
    with pytest.raises(ClusterError, match="redirected more than 3 times: ") as caught:
        client.get_object(NAME, SRC, "a")
    assert caught.value.detail.count(" → ") == 4
    assert "s3cr3t" not in caught.value.detail
    assert len(cluster.seen) == 4


def test_only_a_get_follows_a_redirect(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.on_request = redirect_to("http://127.0.0.1:9/")
    with pytest.raises(ClusterError, match=r"PUT is answered with a redirect, .* → http://127.0.0.1:9"):
        client.init(SPEC)
    assert len(cluster.requests("PUT")) == 1


@pytest.mark.parametrize("target_is_safe", [True, False])
def test_no_redirect_is_followed_from_https_to_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target_is_safe: bool
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")  # AIS_CLIENT_CA counts
    authority = trustme.CA()
    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(certificate)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = Settings.load(client_ca=tmp_path / "ca.pem")
    with FakeCluster(tls=certificate, target_tls=certificate if target_is_safe else None) as cluster:
        cluster.buckets = {"src": {"a": b"hi"}}
        cluster.running(NAME)
        with AIStoreClient(cluster.url, settings, backoff=0) as client:
            if target_is_safe:
                assert client.get_object(NAME, SRC, "a").readall() == b"HI"
                return
            with pytest.raises(ClusterError, match=r"a redirect leads from https to what is not: https:.* → http:"):
                client.get_object(NAME, SRC, "a")
        assert [seen.node for seen in cluster.seen] == ["proxy"]


# Buckets


def test_a_bucket_is_transformed(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets = {"src": {"a/1.txt": b"one", "a/2.txt": b"two", "b": b"three"}}
    cluster.running(NAME)
    job = client.transform_bucket(NAME, SRC, DST, prefix="a/", prepend="out/", extensions={"txt": "md"})
    shown: list[JobProgress] = []
    assert client.wait_for_job(job, shown.append) == JobProgress(2, 6)
    assert cluster.buckets["dst"] == {"out/a/1.md": b"ONE", "out/a/2.md": b"TWO"}
    assert shown[0] == JobProgress(1, 3)
    assert shown[-1] == JobProgress(2, 6)


def test_a_dry_run_stores_nothing(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets = {"src": {"a": b"one"}}
    cluster.running(NAME)
    client.wait_for_job(client.transform_bucket(NAME, SRC, DST, dry_run=True))
    assert "dst" not in cluster.buckets


def test_a_job_with_failed_objects_has_failed(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets, cluster.bad_objects = {"src": {"bad": b"x", "good": b"y"}}, {"bad"}
    cluster.running(NAME)
    job = client.transform_bucket(NAME, SRC, DST, continue_on_error=True)
    with pytest.raises(JobFailedError, match=r"^job job-1 ended, and 1 of its objects failed$"):
        client.wait_for_job(job)
    assert client.details(NAME, job.id).errors == (
        ObjectError("ais://src/bad", 500, "Processing error: this one is bad"),
    )
    assert cluster.buckets["dst"] == {"good": b"Y"}


def test_a_job_that_ends_with_an_error_has_failed(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets, cluster.job_error = {"src": {"a": b"x"}}, "t1: disk full"
    cluster.running(NAME)
    with pytest.raises(JobFailedError, match=r"^job job-1 ended with an error: t1: disk full$"):
        client.wait_for_job(client.transform_bucket(NAME, SRC, DST))


def test_an_aborted_job_has_failed(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets = {"src": {"a": b"x"}}
    cluster.running(NAME)
    job = client.transform_bucket(NAME, SRC, DST)
    client.stop_job(job)
    with pytest.raises(JobFailedError, match=r"^job job-1 was aborted$"):
        client.wait_for_job(job)


def test_a_job_whose_objects_errors_cannot_be_asked_for_is_not_taken_for_done(
    client: AIStoreClient, cluster: FakeCluster
) -> None:
    cluster.buckets = {"src": {"a": b"x"}}
    cluster.running(NAME)
    job = client.transform_bucket(NAME, SRC, DST)
    client.remove(NAME)
    with pytest.raises(ClusterError, match="does not exist"):
        client.wait_for_job(job)


def test_waiting_for_a_job_survives_a_proxy_that_drops_connections(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets = {"src": {str(number): b"x" for number in range(5)}}
    cluster.running(NAME)
    job = client.transform_bucket(NAME, SRC, DST)
    asked = [0]

    async def drop_every_third(request: web.Request) -> web.StreamResponse | None:
        asked[0] += 1
        return cut(request) if asked[0] % 3 == 0 else None

    cluster.on_request = drop_every_third
    assert client.wait_for_job(job).objects == 5


def test_waiting_for_a_job_may_have_an_end(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.buckets, cluster.objects_per_poll = {"src": {"a": b"x"}}, 0
    cluster.running(NAME)
    with pytest.raises(TimeoutError, match=r"^job job-1 goes on after 0\.05 s$"):
        client.wait_for_job(client.transform_bucket(NAME, SRC, DST), timeout=0.05)


def test_a_job_without_an_id_is_an_error(client: AIStoreClient, cluster: FakeCluster) -> None:
    cluster.on_request = always(lambda request: web.Response())
    with pytest.raises(ClusterError, match="gives the job no id"):
        client.transform_bucket(NAME, SRC, DST)
