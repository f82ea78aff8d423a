"""What the Hub's client says when it fails, in words for people."""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.constants
from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

__all__ = ["check_repo_id", "explain_errors", "failure_reason"]

_HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3")  # of the client, by version
_STATUS = {
    401: "the Hub does not accept the token: log in again with `hf auth login`, or set another HF_TOKEN",
    403: "the token does not allow this: use one that may write there",
    412: "it was changed by somebody else meanwhile: run the command again",
    429: "the Hub takes no more requests for now (429): try again later",
}


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot name a repository.

    Raises:
        ValueError: it is not ``<organisation>/<name>``.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = "/" in repo_id
    if not valid:
        raise ValueError(f"{repo_id!r} is no repository of the Hub: use <organisation>/<name>, as in its address")


@contextmanager
def explain_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises in this block into one sentence, without the token.

    Args:
        doing: what failed then, such as "x was not published".

    Raises:
        RuntimeError: anything was raised; the client lets its HTTP library's errors through too.
    """
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{doing}: {failure_reason(error)}") from None


def failure_reason(error: BaseException) -> str:
    """Why a call of the client failed, in one clause, without the token."""
    cause, status = error.__cause__, getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, GatedRepoError):  # it is a RepositoryNotFoundError too
        return "access is granted on its page, to those logged in"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if cause and isinstance(error, RuntimeError):  # of an upload's threads
        return failure_reason(cause)
    if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, HfHubHTTPError):
        return failure_reason(cause)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it was not downloaded before"
    if isinstance(error, LocalEntryNotFoundError):
        return "there is no connection, and it was not downloaded before"
    if status >= 500:
        return f"the Hub fails, with {status}: try again later"
    if status in _STATUS:
        return _STATUS[status]
    if type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES:
        return f"the connection to the Hub broke ({type(error).__name__}): run it again"
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    token = get_token()
    return text.replace(token, "...") if token else text
