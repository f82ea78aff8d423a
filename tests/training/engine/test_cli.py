"""The help of commands."""

import inspect
import io
import sys
from dataclasses import dataclass, field

import docstring_parser
import pytest

from training import finetune, finetune_segmentation
from training.engine.cli import cli
from training.pretraining.recipes import parse


@dataclass(frozen=True)
class Inner:
    """Of the objective."""

    deep: int = 3
    """A first line, which ends here
    and a second."""


@dataclass(frozen=True)
class Base:
    """Settings."""

    size: int = 1
    """Rather many words in a line
    that goes on, in two
    more lines."""
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Settings(Base):
    """Settings of a command."""

    name: str | None = None
    """One line."""


def test_a_help_text_is_a_paragraph(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for _ in range(2):  # explained once
        with pytest.raises(SystemExit):
            cli(Settings, args=["--help"])
        out = capsys.readouterr().out
        assert "Rather many words in a line that goes on, in two more lines." in out
        assert "A first line, which ends here and a second." in out
        assert "One line." in out
    assert cli(Settings, args=["--size", "2", "--inner.deep", "4"]) == Settings(2, Inner(4))


def test_commands_explain_so(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parse(["demo", "--help"])
    assert "a data set of the Hugging Face Hub" in capsys.readouterr().out


@pytest.mark.parametrize("script", [finetune, finetune_segmentation])
def test_every_option_of_the_scripts_is_explained(script):
    explained = [param.arg_name for param in docstring_parser.parse_from_object(script.main).params]
    assert explained == list(inspect.signature(script.main).parameters)


def test_names_that_are_not_utf8_can_be_printed(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    cli(Settings, args=[])
    print("caf\udce9", flush=True)
    assert written.getvalue() == b"caf\\udce9\n"
