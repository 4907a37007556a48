"""`--help` of every command."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from etl_server.cli import app

from ..helpers import ROOT

CLI = typer.main.get_command(app)


def commands(group: object = CLI, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The words that call each command which is no group of them."""
    if isinstance(group, TyperGroup):
        for name, command in group.commands.items():
            yield from commands(command, (*words, name))
    else:
        yield " ".join(words)


@pytest.mark.parametrize("words", [*commands()])
def test_it_has_an_example_that_the_command_takes(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *groups, name = words.split()
    command = CLI
    for each in (*groups, name):
        assert isinstance(command, TyperGroup)
        command = command.commands[each]
    example = (inspect.getdoc(command.callback) or "").partition("Example: ")[2]
    shown = CliRunner().invoke(app, [*groups, name, "--help"])
    assert shown.exit_code == 0
    assert re.sub(r"\s+", " ", f"Example: {example}") in re.sub(r"\s+", " ", shown.output)
    called, arguments = f"etl-server {words} ", f"{re.split('[>|;]', example)[0]} "
    assert arguments.startswith(called)
    monkeypatch.chdir(ROOT)
    command.make_context(name, shlex.split(arguments.removeprefix(called)))  # raises what the user would be told
