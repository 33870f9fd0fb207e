"""The URL of a store: what may be used, and that no password of it is ever shown."""

from __future__ import annotations

import traceback

import pytest

import qnb
from qnb.storage.blobs import blobs_of
from qnb.storage.connection import check_url, masked

SECRET = "s3cr"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr/et@localhost:6379",
        "redis://me:s3cr#et@localhost:6379",
        "redis://me:s3cr?et@localhost:6379",
        "redis://me:s3cr[et@localhost:6379",
        "redis://s3cr/et@localhost:6379",
        "redis://me:12#s3cr@localhost",
        "redis://me:s3cret@localhost:port",
        "redis://me:s3cret@localhost:99999",
        "redis://me:s3cret@far.example",
        "redis://far.example/?password=s3cret",
        "http://me:s3cret@host",
        "me:s3cret@host",
        "unix://?password=s3cret",
        "redis://h?PASSWORD=s3cr#et",
        "redis://me:s3cr\net@localhost:x",
    ],
)
def test_a_url_that_is_refused_is_shown_without_its_password(url: str) -> None:
    with pytest.raises(qnb.InvalidOption, match="redis_url=") as refusal:
        qnb.App(url)
    assert SECRET not in "".join(traceback.format_exception(refusal.value))


@pytest.mark.parametrize(
    "url, shown",
    [
        ("redis://me:s3cret@localhost:6379/0", "redis://me:***@localhost:6379/0"),
        ("redis://:s3cr%2Fet@localhost", "redis://:***@localhost"),
        ("unix:///s?password=s3cret", "unix:///s?password=***"),
        ("unix:///s?db=1&password=s3cret&x=2", "unix:///s?db=1&password=***&x=2"),
        ("redis://localhost?password=s3cret", "redis://localhost?password=***"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://me:s3cr@et@localhost", "redis://me:***@localhost"),
        ("rediss://me:s3cr@et@far.example", "rediss://me:***@far.example"),
    ],
)
def test_the_url_of_an_app_is_shown_without_its_password(url: str, shown: str) -> None:
    assert check_url(url) == url
    assert masked(url) == shown
    assert qnb.App(url).redis_url == shown


def test_something_else_than_text_is_named_by_its_type() -> None:
    with pytest.raises(qnb.InvalidOption, match="redis_url is a bytes"):
        qnb.App(b"redis://:s3cret@localhost")  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "[::1]"])
def test_what_is_local_without_tls_is_local_for_blobs_too(host: str) -> None:
    url = f"redis://{host}:6379"
    assert check_url(url) == url
    assert blobs_of("q", None, url) is not None
