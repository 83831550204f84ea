"""The comments of a dataclass's fields, which its help and its YAML show, read from the source."""

import inspect
import textwrap
import tokenize
from contextlib import suppress


def of_fields(cls: type) -> dict[str, tuple[str, str]]:
    """Field -> the comment above it, a heading, and the comment beside it, read from the source."""
    found, name, heading = {"": ("", "")}, "", ""
    with suppress(OSError):  # a class made without a file has no comments
        source = textwrap.dedent(inspect.getsource(cls)).splitlines(keepends=True)
        for token in tokenize.generate_tokens(iter(source).__next__):
            text, column = token.string.lstrip("# "), token.start[1]
            if token.type == tokenize.NAME and column == 4:  # a field; or def, which is no field
                name, heading, found[text] = text, "", (heading, "")
            elif token.type == tokenize.COMMENT and column == 4:
                heading = f"{heading} {text}".strip()
            elif token.type == tokenize.COMMENT:
                found[name] = (found[name][0], f"{found[name][1]} {text}".strip())
    return found
