"""One clear error for a user's mistake, the Hub's included: what came, what is allowed, what to do."""

import contextlib
import difflib
import errno
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

LOG_IN = "`hf auth login`, or HF_TOKEN"
SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|Bearer [^\s'\"]+")


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` with the closest of ``allowed``, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """UserError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        choice = ", ".join(map(repr, allowed))
        raise UserError(
            f"{name} is {value!r}; it must be one of {choice}.{nearest(value, allowed)}"
        )


@contextlib.contextmanager
def exit_cleanly() -> Iterator[None]:
    """Turn a user's mistake into one message and exit status 2, and Ctrl-C into 130.

    Anything else is our own fault and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output has seen enough
        raise SystemExit(0) from None
    except Exception as error:
        if _is_of_a_path(error):
            name, why = getattr(error, "filename", None), getattr(error, "strerror", None)
            print(f"error: {f'{name}: {why}' if name else error}"[:500], file=sys.stderr)
            raise SystemExit(2) from None
        if said := lack_of_memory(error):
            print(
                f"error: the memory is full: {said}. A training takes less with gradient checkpointing, with fewer "
                "examples at once and more accumulation, or with a smaller --max-length: `ft plan RECIPE --fit "
                "24GB` finds what fits; on a GPU with --gradient-checkpointing offload, and with fewer holes where "
                "PYTORCH_ALLOC_CONF=expandable_segments:True is set. What lies on the disk is untouched.",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
        if not _is_full(error):
            raise
        name = getattr(error, "filename", None)
        where = f" ({name})" if name else ""
        print(
            f"error: the disk is full{where}, or takes no file so large (FAT, `ulimit -f`). Nothing half-written "
            "was kept; free some space or choose another --output-dir, then run again.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


# of a path that the user named; what is not there is asked for where its meaning is known
_OF_A_PATH = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EROFS, errno.ENOTDIR}


def _is_of_a_path(error: Exception) -> bool:
    """Whether a path cannot be opened, as it is written or as it lies."""
    loop = isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from")
    return loop or (isinstance(error, OSError) and error.errno in _OF_A_PATH)


# what PyTorch's allocators say, and CUDA's libraries; without the advice that comes after it
_NO_MEMORY = re.compile(
    r".*(?:out of memory|can't allocate memory|not enough memory|ALLOC_FAILED).*"
)
_UNTIL = re.compile(r"(?<= is free)\..*| when calling .*", re.DOTALL)


def lack_of_memory(error: Exception) -> str:
    """What an allocator says, of a GPU or of this machine; nothing for another error."""
    if isinstance(error, MemoryError):
        return str(error) or "Python could allocate no more"
    found = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))  # as torch's own is
    return _UNTIL.sub("", found[0]).strip() if found else ""


# what torch.save and safetensors say, which raise errors of their own
_FULL = re.compile(
    r"PytorchStreamWriter failed|inline_container|No space left|Disk quota exceeded|File too large"
)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _is_full(error: Exception) -> bool:
    """Whether a write failed as the disk is full, or takes no file as large."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in _NO_ROOM
    return bool(_FULL.search(str(error)))


@contextlib.contextmanager
def hub_errors(
    repo: str, *, committing: bool = False, otherwise: str = "", missing: str = ""
) -> Iterator[None]:
    """Turn what the Hub's client raises about ``repo`` into a ``UserError``, without the token.

    ``committing`` adds what became of the commit; ``otherwise`` is what can be done without the
    Hub, said where it cannot be reached; ``missing`` is what is not here either, said first. A full
    disk passes through, for ``exit_cleanly``.
    """
    from huggingface_hub import errors

    http_error: Any = errors.HfHubHTTPError.__mro__[1]  # of httpx, or of httpx2 in later versions
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, http_error) as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise
        cause: BaseException = error
        while cause.__cause__ and isinstance(cause, RuntimeError | errors.LocalEntryNotFoundError):
            cause = cause.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        page = f"https://huggingface.co/{repo}"
        if isinstance(cause, errors.OfflineModeIsEnabled):
            what = f"the Hub may not be asked for {repo!r} while HF_HUB_OFFLINE is set: unset it"
        elif isinstance(cause, errors.GatedRepoError):
            what = f"{repo!r} is gated: accept its licence at {page}, then log in ({LOG_IN})"
        elif isinstance(cause, errors.RevisionNotFoundError):
            what = f"{repo!r} has no such branch, tag or commit"
        elif isinstance(cause, errors.RepositoryNotFoundError):
            what = (
                f"the Hub has no model {repo!r}, or it is private: check the spelling; for a "
                f"private or gated one log in ({LOG_IN})"
            )
        elif status == 401:
            what = f"the Hub refuses your token (401) for {repo!r}: log in again ({LOG_IN})"
        elif status == 403:
            what = f"this token may not do that with {repo!r} (403): use one with write permission"
        elif status:
            what = f"the Hub answered {status} for {repo!r}"
        elif isinstance(cause, http_error):
            what = f"no connection to the Hub ({type(cause).__name__}): check the network"
        else:
            what = f"{repo!r}: {' '.join(str(cause).split()) or type(cause).__name__}"
        if committing:
            unknown = isinstance(cause, http_error) and not status  # the answer may have got lost
            state = "all was committed or nothing" if unknown else "nothing was committed"
            what += f"; {state}, run the same command again"
        if otherwise and (not status or status >= 500):
            what += f". {otherwise}"
        if missing:
            what = f"{missing}, and as a name on the Hub: {what}"
        raise UserError(SECRET.sub("***", what)) from None
