"""A chat template is a program that came with a model: it is tried in a process that can neither stay nor grow."""

import functools
import json
import subprocess
import sys
from typing import Any

from ft.errors import UserError

SECONDS, BYTES, LETTERS = 5, 2**30, 10**6  # of a conversation of three short turns

# Jinja alone, which starts in a tenth of the time of what would render it otherwise
_TRIAL = r"""
import json, re, sys
paths, template, special, seconds, most, letters = json.load(sys.stdin)
sys.path[:] = paths
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
except (ImportError, ValueError, OSError):
    pass
from jinja2.sandbox import ImmutableSandboxedEnvironment
turns = [{"role": role, "content": "a b"} for role in ("user", "assistant", "user")]
class Refused(Exception): pass
def refuse(text): raise Refused(text)
try:
    env = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True)
    env.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    made = env.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template))
    for messages, ask in ((turns[:2], False), (turns, True)):
        for piece in made.generate(messages=messages, tools=None, documents=None, add_generation_prompt=ask, **special):
            letters -= len(piece)
            if letters < 0: sys.exit(3)
except MemoryError:
    sys.exit(3)
except Exception:
    pass  # whoever renders it says what
"""


def prove(tokenizer: Any) -> None:
    """Raise ``UserError`` where the tokenizer's chat template does not end, or writes without bounds."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
        if fault := _fault(template, json.dumps(special)):
            raise UserError(f"the tokenizer's chat template {fault}; choose another --template")


@functools.lru_cache(64)
def _fault(template: str, special: str) -> str:
    """What a trial shows; nothing where it ends."""
    given = [sys.path, template, json.loads(special), SECONDS, BYTES, LETTERS]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL],
            input=json.dumps(given).encode(),
            capture_output=True,
            timeout=4 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {4 * SECONDS} seconds"
    if done.returncode == 3:
        return f"takes more than {BYTES / 2**30:.0f} GiB, or writes more than {LETTERS:,} letters"
    return f"does not end within {SECONDS} seconds" if done.returncode < 0 else ""
