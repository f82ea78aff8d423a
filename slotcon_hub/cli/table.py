"""Tables as text."""

from collections.abc import Sequence

__all__ = ["print_table", "shorten"]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shorten(text: str, longest: int = 64) -> str:
    """Cut out the middle of a path that is longer than this many characters; other texts are unchanged."""
    if len(text) <= longest or "/" not in text:
        return text
    end = (longest - 1) * 2 // 3
    return f"{text[: longest - 1 - end]}…{text[-end:]}"
