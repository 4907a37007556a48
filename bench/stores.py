"""`python -m bench.stores [DIRECTORY]`: object stores beside boto3's own transfers, and how much memory they take.

rclone serves a directory (on the disk that is to be measured; best one in memory) as S3 on the loopback address. Every
measurement has a process of its own, ours and boto3's in turns; what is shown is the median of the rounds.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import boto3

from etl_server.storage import S3ObjectStore

from .cases import GIB, MIB

ROUNDS = 5
OBJECTS = 100_000
BUCKET = "bench"
LISTED = "listed"


def upload(url: str, file: Path) -> float:
    with S3ObjectStore(BUCKET, endpoint_url=url) as store:
        return _seconds(lambda: store.upload_object("up", file))


def upload_by_boto3(url: str, file: Path) -> float:
    client = boto3.client("s3", endpoint_url=url)
    return _seconds(lambda: client.upload_file(str(file), BUCKET, "up"))


def download(url: str, file: Path) -> float:
    with S3ObjectStore(BUCKET, endpoint_url=url) as store:
        return _seconds(lambda: store.download_object("big", file, overwrite=True))


def download_by_boto3(url: str, file: Path) -> float:
    client = boto3.client("s3", endpoint_url=url)
    return _seconds(lambda: client.download_file(BUCKET, "big", str(file)))


def read(url: str, file: Path) -> float:
    """MiB of memory at the peak of reading 1 GiB, in all."""
    size = 0
    with S3ObjectStore(BUCKET, endpoint_url=url) as store, store.open_object("big") as stream:
        while piece := stream.read(MIB):
            size += len(piece)
    assert size == GIB
    return _peak()


def importing(url: str, file: Path) -> float:
    """MiB of memory with everything loaded and nothing read."""
    S3ObjectStore(BUCKET, endpoint_url=url).close()
    return _peak()


def list_page(url: str, file: Path) -> float:
    """MiB of memory at the peak of listing one page."""
    with S3ObjectStore(LISTED, endpoint_url=url) as store:
        next(store.list_objects())
    return _peak()


def list_all(url: str, file: Path) -> float:
    """The same, of all pages."""
    with S3ObjectStore(LISTED, endpoint_url=url) as store:
        count = sum(1 for _ in store.list_objects())
    assert count == OBJECTS, count
    return _peak()


def main() -> None:
    from tests.storage.s3_servers import ACCESS_KEY, SECRET_KEY, RcloneServer  # what they load is no memory of a store

    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        big = folder / "s3" / BUCKET / "big"
        big.parent.mkdir(parents=True)
        with big.open("wb") as file:
            for _ in range(GIB // MIB):
                file.write(os.urandom(MIB))
        (folder / "s3" / LISTED).mkdir()
        for number in range(OBJECTS):
            (folder / "s3" / LISTED / f"object-{number:06}").touch()
        with RcloneServer(folder / "s3") as server:
            url = server.wait_until_listening().url
            _compare("upload of 1 GiB", upload, upload_by_boto3, url, big)
            _compare("download of 1 GiB", download, download_by_boto3, url, folder / "down")
            for text, measure in (
                ("memory, nothing read", importing),
                ("memory, open_object of 1 GiB", read),
                ("memory, first page of 100,000 objects", list_page),
                ("memory, all of 100,000 objects", list_all),
            ):
                print(f"{text:40} {_apart(measure, url, big):8.1f} MiB", flush=True)


def _compare(
    text: str, ours: Callable[[str, Path], float], theirs: Callable[[str, Path], float], url: str, file: Path
) -> None:
    rounds: list[tuple[float, float]] = []
    for number in range(ROUNDS):
        if number % 2:
            taken = _apart(theirs, url, file)
            rounds.append((_apart(ours, url, file), taken))
        else:
            rounds.append((_apart(ours, url, file), _apart(theirs, url, file)))
    us, them = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(mine / its for mine, its in rounds)
    print(f"{text:40} ours {us:6.2f} s, boto3 {them:6.2f} s, ours / boto3 {ratio:.2f} (to reach: 1.10)", flush=True)


def _apart(measure: Callable[[str, Path], float], url: str, file: Path) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, url, file).result()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / MIB


if __name__ == "__main__":
    main()
