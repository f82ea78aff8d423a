"""Error messages for failures of the Hub's client."""

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

__all__ = ["check_repo_id", "explain_download", "explain_errors", "failure_reason"]

_HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3")  # that versions of the client use
_STATUS = {
    401: "the Hub does not accept the token: log in again with `hf auth login`, or set another HF_TOKEN",
    403: "the token does not allow this: use one that may write there",
    412: "somebody else changed it meanwhile: run the command again",
    429: "the Hub's rate limit is reached (429): try again later",
}


def check_repo_id(repo_id: str) -> None:
    """Check the id of a repository.

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
    """Convert any error of the client in this block to one sentence, without the token.

    Args:
        doing: start of the sentence, such as "x was not published".

    Raises:
        RuntimeError: instead of any exception, since the client also raises errors of its HTTP library.
    """
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{doing}: {failure_reason(error)}") from None


@contextmanager
def explain_download(weights: str) -> Iterator[None]:
    """Convert errors of the client in this block to one sentence that names the weights.

    Raises:
        RuntimeError: instead of an exception of the client or its HTTP library; others pass.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("huggingface_hub", *_HTTP_LIBRARIES):
            raise
        raise RuntimeError(f"{weights} could not be downloaded: {failure_reason(error)}") from None


def failure_reason(error: BaseException) -> str:
    """Describe in one clause why a call of the client failed, without the token."""
    cause, status = error.__cause__, getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, GatedRepoError):  # also a RepositoryNotFoundError
        return "access is granted on its page, to those logged in"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if cause and isinstance(error, RuntimeError):  # from an upload's threads
        return failure_reason(cause)
    if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, HfHubHTTPError):
        return failure_reason(cause)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    if isinstance(error, LocalEntryNotFoundError):
        return "there is no connection, and it is not in the cache"
    if status >= 500:
        return f"the Hub fails, with {status}: try again later"
    if status in _STATUS:
        return _STATUS[status]
    if type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES:
        return f"the connection to the Hub broke ({type(error).__name__}): run it again"
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    token = get_token()
    return text.replace(token, "...") if token else text
