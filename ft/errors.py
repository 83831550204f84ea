"""One clear error for a user's mistake: what came, what is allowed, what to do."""

import contextlib
import difflib
import errno
import signal
import sys
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` with the closest of ``allowed``, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: the disk is full{where}. Nothing half-written was kept; free some space or "
            "choose another --output-dir, then run again.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
