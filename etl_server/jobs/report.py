"""The report of a job: a row an object."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError
from .ledger import Row

FORMATS = (".jsonl", ".csv")


def check_report(path: Path) -> None:
    """Raise ConfigError where no report can be written."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--report {path}: expected a name that ends in {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--report {path}: expected a directory that is there")


def write_report(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows to a file, which is whole whenever it is there."""
    incoming = path.with_name(f".{path.name}.incoming")
    with incoming.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        if path.suffix == ".csv":
            table = csv.writer(file)
            table.writerow(Row._fields)
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
    incoming.replace(path)
