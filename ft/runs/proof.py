"""What `ft check --weights` saw, kept in the user's cache until the very run that it is of starts and takes it along."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft import __version__, machine
from ft.errors import UserError
from ft.files import cache_dir, finite, read_json, write_json

Check = dict[str, str]  # as in a run's record: {"status", "name", "text"}
WEIGHTS = "weights"  # the name of the check whose place in a record a proof takes
COMMAND = "ft check RECIPE SETTINGS --weights"
NONE = Check(status="--", name=WEIGHTS, text=f"not looked at: {COMMAND}")


def of(made_with: Mapping[str, Any], settings: Mapping[str, Any], attention: str) -> dict[str, Any]:
    """What a proof holds for: a run's fingerprint, and all else by which its numbers may be others.

    As JSON gives it back, so that what was kept can be compared.
    """
    on, here = machine.here(), machine.hardware()
    made = {f"version.{name}": version for name, version in machine.versions().items()}
    made |= {"version.ft": __version__, "sharded": machine.launched()["sharded"]}
    made["device"] = on.name if on.device != "cpu" else f"{here['cpu']}, {on.name}"
    made |= {"accept_loss": settings.get("accept_loss", False), "model.attention": attention}
    return json.loads(json.dumps(finite({**made_with, **made})))


def keep(holds_for: Mapping[str, Any], seen: Sequence[Check]) -> str:
    """Keep what was seen, in place of what was before; returns what is to be said of it, also if it cannot be."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        file = _file(holds_for)
    except UserError as error:
        return f"no run will carry this: {error}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"measured": now, "seen": list(seen), "of": holds_for})
    except OSError as error:
        return (
            f"no run will carry this: {file} cannot be written ({error.strerror}); name another "
            "cache with FT_CACHE"
        )
    return "the next run of these settings here carries these lines in its record and card"


def taken(checks: Sequence[Check], holds_for: Mapping[str, Any]) -> tuple[list[Check], str]:
    """The checks of a run with its proof, each line with when and where it was measured, in the place of ``NONE``.

    Also what is to be said: where there is no proof how to get one, and what a failed one found.
    """
    try:
        proof = _read(_file(holds_for), holds_for)
    except UserError as error:
        return list(checks), f"{error}: as if there were no proof; {COMMAND} makes it anew"
    if not proof:
        return list(checks), f"weights not looked at before this run: {COMMAND}"
    names = ", ".join(line["name"] for line in proof)
    said = [f"proof of ft check --weights, {moment(proof[0])}, taken into the record: {names}"]
    said += [f"ERROR {c['name']}: {c['text']}" for c in proof if c["status"] == "ERROR"]
    return [line for c in checks for line in (proof if c["name"] == WEIGHTS else [c])], "\n".join(
        said
    )


def moment(check: Mapping[str, str]) -> str:
    """When a check was measured, as people read it."""
    return f"{check['measured'][:16].replace('T', ' ')} UTC"


def _file(holds_for: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(holds_for, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "checks" / f"{name[:32]}.json"


def _read(file: Path, holds_for: Mapping[str, Any]) -> list[Check]:
    """The lines of a proof; none where there is no file. Raises ``UserError`` for one that is no proof of this."""
    try:
        kept = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    try:
        if kept["of"] != holds_for:
            raise UserError(f"{file} is the proof of another run")
        when = {"measured": kept["measured"], "device": holds_for["device"]}
        datetime.datetime.fromisoformat(kept["measured"])
        return [{key: str(line[key]) for key in NONE} | when for line in kept["seen"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} does not say what was seen") from None
