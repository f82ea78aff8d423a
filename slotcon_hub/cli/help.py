"""Layout of ``--help``: wrapped to the terminal, with lists and commands kept, and no single word on a line."""

import argparse
import re
import textwrap

__all__ = ["Help"]

_ITEM = re.compile(r" +\S+ {2,}")  # of a list: a term, at least two spaces, its meaning


class Help(argparse.HelpFormatter):
    """Fills paragraphs and indents list items; other lines that begin with a space, such as commands, are kept."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(line for part in _parts(text) for line in _wrap(part, width))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(" ".join(text.split()), width)


def _parts(text: str) -> list[str]:
    """Paragraphs as one line each, items as one line each, empty lines."""
    parts: list[str] = []
    for line in text.splitlines():
        previous = parts[-1] if parts else ""
        item = _ITEM.match(previous)
        goes_on = item and len(line) - len(line.lstrip()) == item.end()
        plain = previous and previous[0] != " " and line and line[0] != " " and not previous.endswith(":")
        if goes_on or plain:
            parts[-1] = f"{previous} {line.strip()}"
        else:
            parts.append(line)
    return parts


def _wrap(part: str, width: int) -> list[str]:
    """Wrap to a width, so that the last line is not a single word."""
    item = _ITEM.match(part)
    if not item and (not part or part.startswith((" ", "example: "))):  # commands are kept as they are
        return [part]
    hanging = " " * (item.end() if item else 0)
    for narrower in range(width, width // 2, -1):
        lines = textwrap.wrap(
            part, narrower, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
        )
        if len(lines) < 2 or " " in lines[-1].strip():
            break
    return lines
