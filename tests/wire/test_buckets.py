"""Buckets and objects by their URIs."""

from __future__ import annotations

import pytest

from etl_server.wire.buckets import Bucket, object_url_path, parse_bucket, parse_object


@pytest.mark.parametrize(
    ("uri", "bucket"),
    [
        ("ais://photos", Bucket("photos")),
        ("ais://photos/", Bucket("photos")),
        ("s3://photos", Bucket("photos", "aws")),
        ("aws://photos", Bucket("photos", "aws")),
        ("gs://my.photos_1-2", Bucket("my.photos_1-2", "gcp")),
        ("az://photos", Bucket("photos", "azure")),
        ("oc://photos", Bucket("photos", "oci")),
        ("ht://photos", Bucket("photos", "ht")),
        ("ais://@uuid#ns/photos", Bucket("photos", "ais", "@uuid#ns")),
        ("ais://@#ns/photos", Bucket("photos", "ais", "@#ns")),
    ],
)
def test_buckets(uri: str, bucket: Bucket) -> None:
    assert parse_bucket(uri) == bucket


@pytest.mark.parametrize("uri", ["", "photos", "ais:/photos", "ais://", "ftp://photos", "ais://a/b", "ais://a b"])
def test_what_is_no_bucket_is_named(uri: str) -> None:
    with pytest.raises(ValueError, match=f"^{uri!r}: expected a bucket, such as ais://bucket$"):
        parse_bucket(uri)


def test_an_object_has_the_name_that_stands_there() -> None:
    assert parse_object("ais://photos/a b/c%20?#d\n") == (Bucket("photos"), "a b/c%20?#d\n")
    assert parse_object("ais://@u#n/photos/a") == (Bucket("photos", "ais", "@u#n"), "a")


@pytest.mark.parametrize("uri", ["ais://photos", "ais://photos/", "photos/a", "ais:///a"])
def test_what_is_no_object_is_named(uri: str) -> None:
    with pytest.raises(ValueError, match=f"^{uri!r}: expected an object, such as ais://bucket/name$"):
        parse_object(uri)


@pytest.mark.parametrize("name", ["..", "a/../b", "./a", "a/."])
def test_a_name_that_a_url_would_lose_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name without"):
        parse_object(f"ais://photos/{name}")


def test_as_the_api_has_them() -> None:
    assert Bucket("photos").query() == {"provider": "ais"}
    assert Bucket("photos", "aws", "@u#n").query() == {"provider": "aws", "namespace": "@u#n"}
    assert Bucket("photos").uname() == "ais/@#/photos/"
    assert Bucket("photos", "ais", "@u#n").uname() == "ais/@u#n/photos/"
    assert object_url_path(Bucket("photos"), "a b/ü?.jpg") == "objects/photos/a%20b/%C3%BC%3F.jpg"


@pytest.mark.parametrize("uri", ["ais://photos", "aws://photos", "ais://@u#n/photos"])
def test_a_bucket_shows_as_its_uri(uri: str) -> None:
    assert str(parse_bucket(uri)) == uri
