"""Who may import whom: the rules of the house, checked in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import etl_server
from etl_server.runtime import clients

PACKAGE = Path(etl_server.__file__).parent


def modules(part: str) -> list[Path]:
    """The modules of a part of the package: a folder, or one file."""
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(file: Path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it, those for type checkers only left out."""
    module = ".".join(["etl_server", *file.relative_to(PACKAGE).with_suffix("").parts])
    package = module.removesuffix(".__init__") if file.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in _runtime_nodes(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def _runtime_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes += [node, *_runtime_nodes(node)]
    return nodes


def of_ours(names: set[str]) -> set[str]:
    """The parts of the package among the names."""
    return {name.split(".")[1] for name in names if name.startswith("etl_server.")}


def files_of(*parts: str) -> list[object]:
    return [pytest.param(file, id=str(file.relative_to(PACKAGE))) for part in parts for file in modules(part)]


@pytest.mark.parametrize("file", files_of("wire"))
def test_wire_imports_nothing_of_ours_but_itself(file: Path) -> None:
    assert of_ours(imports(file)) <= {"wire"}


def test_wire_does_no_input_or_output() -> None:
    used = {name.split(".")[0] for file in modules("wire") for name in imports(file)}
    assert used.isdisjoint({"os", "io", "socket", "asyncio", "threading", "requests", "aiohttp", "httpx", "pathlib"})


def test_errors_imports_nothing_of_ours() -> None:
    assert of_ours(imports(PACKAGE / "errors.py")) == set()


@pytest.mark.parametrize("file", files_of("runtime"))
def test_runtime_imports_no_jobs_control_or_cli(file: Path) -> None:
    assert of_ours(imports(file)).isdisjoint({"jobs", "control", "cli", "testing"})


@pytest.mark.parametrize("part", ["config", "server", "loading", "payload"])
def test_what_everything_rests_on_does_not_reach_up(part: str) -> None:
    names = {name for file in modules(part) for name in of_ours(imports(file))}
    assert names.isdisjoint({"jobs", "control", "cli", "testing", "storage"})
    assert part == "server" or "runtime" not in names


@pytest.mark.parametrize("file", files_of("control"))
def test_control_shares_the_clients_of_targets_and_nothing_else_of_the_runtime(file: Path) -> None:
    names = imports(file)
    assert of_ours(names) <= {"config", "control", "errors", "runtime", "wire"}
    assert {name for name in names if name.startswith("etl_server.runtime.")} <= {
        "etl_server.runtime.clients",
        *(f"etl_server.runtime.clients.{each}" for each in vars(clients)),
    }


@pytest.mark.parametrize("file", files_of("storage"))
def test_storage_knows_no_http_server_and_nothing_above_it(file: Path) -> None:
    names = imports(file)
    assert of_ours(names).isdisjoint({"jobs", "control", "cli", "testing", "server"})
    assert {name.split(".")[0] for name in names}.isdisjoint({"fastapi", "starlette", "uvicorn", "picows"})


def test_only_the_command_line_imports_the_command_line() -> None:
    for file in PACKAGE.rglob("*.py"):
        if PACKAGE / "cli" not in file.parents and file.name != "__main__.py":
            assert "cli" not in of_ours(imports(file)), file


STAGES = ["source", "execute", "deliver"]


@pytest.mark.parametrize(("stage", "later"), [("source", {"execute", "deliver"}), ("execute", {"deliver"})])
def test_no_stage_knows_those_behind_it(stage: str, later: set[str]) -> None:
    names = imports(PACKAGE / "runtime" / f"{stage}.py")
    assert {name.split(".")[2] for name in names if name.startswith("etl_server.runtime.")}.isdisjoint(later)


@pytest.mark.parametrize(
    "stage",
    [
        *STAGES,
        "worker",
        "counts",
        "flow",
        "outbound",
        "exchange",
        "admission",
        "threads",
        "files",
        "ranges",
        "s3_source",
        "store_errors",
        "stores",
    ],
)
def test_the_data_path_knows_no_http_server(stage: str) -> None:
    names = imports(PACKAGE / "runtime" / f"{stage}.py")
    assert {name.split(".")[0] for name in names}.isdisjoint({"fastapi", "starlette", "uvicorn", "picows"})
    transports = {"app", "asgi", "http", "serve", "websocket", "ws"}
    assert {name.split(".")[2] for name in names if name.startswith("etl_server.runtime.")}.isdisjoint(transports)


def test_the_imports_of_a_file_are_found_wherever_they_are() -> None:
    names = imports(PACKAGE / "server.py")
    assert {"etl_server.config", "etl_server.runtime.clients", "etl_server.runtime.serve"} <= names
    assert "fastapi" not in names  # for type checkers only


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    heavy = {"fastapi", "uvicorn", "requests", "pydantic", "aiohttp", "httpx", "cloudpickle", "asyncio", "typer"}
    assert loaded_by("import etl_server").isdisjoint(heavy)


@pytest.mark.parametrize(
    "statement", ["import etl_server.wire.pipeline, etl_server.wire.names", "import etl_server.errors"]
)
def test_wire_and_errors_load_next_to_nothing(statement: str) -> None:
    assert loaded_by(statement).isdisjoint({"fastapi", "uvicorn", "requests", "pydantic", "aiohttp", "httpx"})


def test_a_store_loads_the_libraries_of_no_other() -> None:
    others = {"boto3", "botocore", "aiobotocore", "requests", "pydantic", "fastapi"}
    assert loaded_by("from etl_server.storage import open_store; open_store('/tmp')").isdisjoint(others)


def test_the_blocking_client_of_s3_loads_none_of_an_event_loop() -> None:
    assert loaded_by("import etl_server.storage.s3").isdisjoint({"aiohttp", "aiobotocore", "anyio", "requests"})


def test_what_reads_s3_on_an_event_loop_loads_no_blocking_client() -> None:
    assert loaded_by("import etl_server.storage.s3_async").isdisjoint({"boto3", "s3transfer", "requests", "fastapi"})


def test_the_data_path_loads_no_client_of_a_store_before_there_is_one() -> None:
    assert loaded_by("import etl_server.runtime.worker").isdisjoint({"boto3", "botocore", "aiobotocore"})


def test_writing_a_class_loads_no_server() -> None:
    assert loaded_by("from etl_server import ETLServer").isdisjoint({"fastapi", "uvicorn", "requests", "aiohttp"})


def test_a_worker_of_a_job_loads_no_server() -> None:
    assert loaded_by("import etl_server.jobs.worker").isdisjoint({"fastapi", "starlette", "uvicorn", "picows"})


def test_the_command_line_loads_what_a_command_needs_when_it_runs() -> None:
    heavy = {"fastapi", "uvicorn", "requests", "pydantic", "aiohttp", "httpx", "cloudpickle", "tenacity"}
    assert loaded_by("import etl_server.cli").isdisjoint(heavy)


def test_every_public_name_is_there() -> None:
    for name in etl_server.__all__:
        assert getattr(etl_server, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = etl_server.nothing
