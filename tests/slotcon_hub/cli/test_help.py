"""``--help`` at any width: as wide as the terminal, whole, and no word alone on the last line."""

import re
from itertools import pairwise

import pytest

from slotcon_hub.cli import main

COMMANDS = ["import", "list", "segment", "concepts", "embed", "pca", "export", "publish", "verify"]


@pytest.mark.parametrize("columns", [72, 80, 93, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_it_fits_the_terminal_without_stray_words(monkeypatch, capsys, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    to_copy = [line for line in lines if re.match(r"  (slotcon-hub|torchrun) |example: ", line)]
    assert max(len(line) for line in lines if line not in to_copy) <= columns - 2
    text = lines[lines.index("") :]  # below the usage
    for above, line in pairwise(text):
        goes_on = len(above) > columns // 2 and above.strip() and not re.match(r"  \S+( \S+)?  ", line)
        named = re.match(r" *--?\w|positional|options", line) or re.fullmatch(r" {2}[A-Z_]+", line)
        assert not (goes_on and line.strip() and " " not in line.strip() and not named), (above, line)


def test_lists_and_commands_are_kept(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main(["segment", "--help"])
    out = capsys.readouterr().out
    assert "\n  NAME-overlay.png     the image with the colours" in out
    assert re.search(r"\n {23}\w+ \w", out)  # hangs
    assert out.endswith("\nexample: slotcon-hub segment --model slotcon_r50_proto.coco_800ep street.jpg\n")
