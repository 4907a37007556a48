"""Finding the user's class by what a command line says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl_server import ETLServer
from etl_server.errors import ClassLoadError
from etl_server.loading import load_class
from etl_server.testing import Echo

ONE = """
from etl_server import ETLServer

class Upper(ETLServer):
    def transform(self, data, path, etl_args):
        return data.upper()
"""
TWO = ONE + "\nclass Lower(ETLServer):\n    def transform(self, data, path, etl_args):\n        return data.lower()\n"


@pytest.fixture(autouse=True)
def _leave_no_modules() -> Iterator[None]:
    modules, path = set(sys.modules), sys.path[:]
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def write(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def test_the_only_class_of_a_file_needs_no_name(tmp_path: Path) -> None:
    cls = load_class(write(tmp_path, ONE))
    assert issubclass(cls, ETLServer)
    assert cls.__name__ == "Upper"


def test_one_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    file = write(tmp_path, TWO)
    assert [load_class(f"{file}:{name}").__name__ for name in ("Upper", "Lower")] == ["Upper", "Lower"]


def test_a_class_of_a_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_class("etl_server.testing.echo:Echo") is Echo
    write(tmp_path, "", "package/__init__.py")
    write(tmp_path, ONE, "package/module.py")
    monkeypatch.chdir(tmp_path)
    assert load_class("package.module").__name__ == "Upper"


def test_a_file_may_be_relative_and_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ONE, "no identifier-1.py")
    write(tmp_path, ONE, "without_suffix")
    monkeypatch.chdir(tmp_path)
    assert load_class("no identifier-1.py").__name__ == "Upper"
    assert load_class("./no identifier-1.py:Upper").__name__ == "Upper"


@pytest.mark.parametrize("name", ["json.py", "requests.py", "pytest.py", "etl_server.py", "__main__.py"])
def test_a_file_that_is_named_like_another_module_takes_the_place_of_none(tmp_path: Path, name: str) -> None:
    before = sys.modules.get(name.removesuffix(".py"))
    assert load_class(write(tmp_path, ONE, name)).__name__ == "Upper"
    assert sys.modules.get(name.removesuffix(".py")) is before


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    first = load_class(write(tmp_path, ONE, "a/mine.py"))
    second = load_class(write(tmp_path, ONE, "b/mine.py"))
    third = load_class(write(tmp_path, ONE, "c/mine.py"))
    assert len({first, second, third}) == 3


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    file = write(tmp_path, ONE)
    assert load_class(file) is load_class(file)


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "SIZE = 7", "neighbour_of_mine.py")
    cls = load_class(write(tmp_path, "import neighbour_of_mine\n" + ONE))
    assert sys.modules[cls.__module__].neighbour_of_mine.SIZE == 7


def test_a_class_that_others_build_on_is_not_meant_unless_it_is_named(tmp_path: Path) -> None:
    text = ONE + "\nclass Shout(Upper):\n    pass\n"
    file = write(tmp_path, text)
    assert load_class(file).__name__ == "Shout"
    assert load_class(f"{file}:Upper").__name__ == "Upper"


def test_a_class_that_was_imported_is_not_meant_unless_it_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "from etl_server.testing import Echo\n" + ONE)
    assert load_class(file).__name__ == "Upper"
    assert load_class(f"{file}:Echo") is Echo


def test_a_class_with_two_names_is_one_class(tmp_path: Path) -> None:
    assert load_class(write(tmp_path, ONE + "\nDefault = Upper\n")).__name__ == "Upper"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (None, "", ["no such file"]),
        ("", "", ["no subclass of ETLServer"]),
        (TWO, "", ["several classes", "Upper", "Lower", ":Class"]),
        (TWO, ":Title", ["no class Title", "Upper", "Lower"]),
        ("class Upper: pass", ":Upper", ["not a subclass of ETLServer"]),
        ("Upper = 7", ":Upper", ["not a subclass of ETLServer"]),
        ("from etl_server import ETLServer", "", ["no subclass of ETLServer"]),
        ("def broken(:", "", ["cannot be imported", "SyntaxError"]),
        ("raise RuntimeError('at once')", "", ["cannot be imported", "RuntimeError", "at once"]),
        ("import nothing_of_the_kind", "", ["cannot be imported", "nothing_of_the_kind"]),
        ("import sys; sys.exit(7)", "", ["cannot be imported", "SystemExit"]),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(
    tmp_path: Path, text: str | None, name: str, words: list[str]
) -> None:
    file = write(tmp_path, text) if text is not None else str(tmp_path / "mine.py")
    with pytest.raises(ClassLoadError) as raised:
        load_class(file + name)
    assert "\n" not in str(raised.value)
    assert file in str(raised.value)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    "spec", ["no.such.module", "no.such.module:Upper", "", ":Upper", ".relative", "a b", "json:Upper"]
)
def test_a_module_that_cannot_be_loaded_is_told_in_one_line(spec: str) -> None:
    with pytest.raises(ClassLoadError) as raised:
        load_class(spec)
    assert "\n" not in str(raised.value)


def test_a_file_that_failed_may_be_loaded_once_it_is_mended(tmp_path: Path) -> None:
    with pytest.raises(ClassLoadError):
        load_class(write(tmp_path, "raise RuntimeError"))
    assert load_class(write(tmp_path, ONE)).__name__ == "Upper"
