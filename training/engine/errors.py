"""What libraries' errors say, in a line for people."""

__all__ = ["first_line"]


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
