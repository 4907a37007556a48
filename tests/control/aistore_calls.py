"""Makes the calls that the tests compare, with AIStore's own package: `python aistore_calls.py URL CALL`."""

import sys

from aistore.sdk import Client  # type: ignore[import-not-found,unused-ignore]
from aistore.sdk.etl import ETLConfig  # type: ignore[import-not-found,unused-ignore]
from aistore.sdk.etl.webserver.fastapi_server import FastAPIServer  # type: ignore[import-not-found,unused-ignore]

NAME = "thumbnails"
client = Client(sys.argv[1])
etl = client.etl(NAME)
src, dst = client.bucket("src"), client.bucket("dst")
job = client.job("job-1", "etl-bck")


class Upper(FastAPIServer):  # type: ignore[misc,unused-ignore]
    def transform(self, data, path, etl_args):  # type: ignore[no-untyped-def]
        return data.upper()


calls = {
    "init": lambda: etl.init(image="image:1", command=["run", "it"], A="1", B="x y"),
    "init with everything": lambda: etl.init(
        image="image:1",
        command=["run"],
        comm_type="ws",
        init_timeout="1m",
        obj_timeout="30s",
        direct_put=True,
        direct_file_access=True,
    ),
    "init of a class": lambda: etl.init_class(
        dependencies=["numpy", "pillow"], os_packages=["ffmpeg"], direct_put=False, NUM_WORKERS=3
    )(Upper),
    "list": lambda: client.cluster().list_etls(),
    "details": lambda: etl.view(),
    "details of a job": lambda: etl.view(job_id="job-1"),
    "logs": lambda: etl.logs(),
    "logs of a target": lambda: etl.logs("t1"),
    "stop": lambda: etl.stop(),
    "start": lambda: etl.start(),
    "remove": lambda: etl.delete(),
    "transform": lambda: src.transform(NAME, dst),
    "transform with everything": lambda: src.transform(
        NAME,
        dst,
        timeout="10m",
        prefix_filter="a/",
        prepend="out/",
        ext={"jpg": "png"},
        dry_run=True,
        num_workers=4,
        cont_on_err=True,
    ),
    "job status": lambda: job.status(),
    "job progress": lambda: job.get_details(),
    "stop job": lambda: job.abort(),
    "object": lambda: src.object("d/ü b?#%.txt").get_reader(etl=ETLConfig(NAME, args="x=1&y +z")).read_all(),
}
calls[sys.argv[2]]()
