"""Rewards by name, those of the user's own among them: `FILE.py:function`, with the signature of TRL's reward functions."""

import contextlib
import importlib
import importlib.util
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.data.doubles import asked
from ft.errors import UserError, nearest
from ft.files import sha256
from ft.score.rewards import Reward, of_reference

RECORD = "reward.json"  # in the folder of a reward model
HOW = "write it as `def NAME(prompts, completions, **columns): return [one number for each completion]`"


@dataclass(frozen=True)
class Own(Reward):
    """A function of lists: ``prompts``, ``completions`` and, by name, the columns of the rows.

    As TRL has it (``reward_funcs``); a function without ``**`` is given the columns that it names alone.
    A prompt is as the data has it: a text, or the messages of a conversation; a completion is a text.
    """

    many: Callable[..., Any] = lambda **_: []
    file: Path | None = None  # that it stands in

    def __call__(self, text: str, row: Mapping[str, Any]) -> float:
        return self.values([text], [row])[0]

    def values(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The function's values. Raises ``UserError`` that names it, and the row, for all but finite numbers."""
        try:
            found = self._call(texts, rows)
        except UserError:
            raise
        except Exception as error:
            raise self._raised(error, texts, rows) from error
        name = type(found).__name__
        found = found.tolist() if hasattr(found, "tolist") else found  # a tensor, an array
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise UserError(
                f"reward {self.name!r} returned {name}, wanted is a list of numbers; {HOW}"
            )
        if len(found) != len(texts):
            raise UserError(
                f"reward {self.name!r} returned {len(found)} values for {len(texts)} answers; {HOW}"
            )
        for value, text, row in zip(found, texts, rows, strict=True):
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise UserError(
                    f"reward {self.name!r} is {value!r} for the answer {text[:60]!r} to {_prompt(row)!r}; "
                    "it must be a finite number"
                )
        return [float(value) for value in found]

    def _call(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Any:
        names = dict.fromkeys(name for row in rows for name in row)
        given: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
        given |= {"prompts": [_asked(row) for row in rows], "completions": list(texts)}
        parameters = inspect.signature(self.many).parameters.values()
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            given = {p.name: given[p.name] for p in parameters if p.name in given}
        needed = [
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        if missing := [name for name in needed if name not in given]:
            raise UserError(
                f"reward {self.name!r} asks for {missing[0]!r}; there are prompts, completions and the "
                f"columns {', '.join(sorted(names))}.{nearest(missing[0], ['prompts', 'completions', *names])}"
            )
        return self.many(**given)

    def _raised(
        self, error: Exception, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> UserError:
        """The error with the first row for which the function raises by itself."""
        where = f"a batch of {len(texts)} answers"
        for text, row in zip(texts, rows, strict=True):
            try:
                self._call([text], [row])
            except Exception:
                where = f"the answer {text[:60]!r} to {_prompt(row)!r}"
                break
        return UserError(
            f"reward {self.name!r} raised {type(error).__name__}: {error}; it was asked of {where}"
        )


def without_model(name: str) -> Reward | None:
    """``chrf`` against the row's reference, ``number`` (the same final number), or a function of the user's own,
    ``module:function``; none for the folder of a reward model. Raises ``UserError`` for any other name.
    """
    if name in ("chrf", "number"):
        return of_reference(name)
    if (Path(name) / RECORD).is_file():
        return None
    if ":" in name:
        return load(name)
    raise UserError(
        f"reward {name!r} is neither `chrf` nor a reward model's folder; `ft reward` makes one. "
        "Other rewards are `number`, and a function of your own: FILE.py:function"
    )


def load(name: str) -> Own:
    """The function that ``module:function`` or ``FILE.py:function`` names; its file is executed.

    Modules are found as Python finds them, and in the working directory. Raises ``UserError`` where
    there is none, where its file raises, and for what is no function.
    """
    place, _, function = name.rpartition(":")
    try:
        module = _of_file(Path(place).expanduser()) if place.endswith(".py") else _of_module(place)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"reward {name!r}: {place} raised {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [k for k, v in vars(module).items() if inspect.isfunction(v)]
        raise UserError(
            f"reward {name!r}: {place} has no function {function!r}; it has {', '.join(known) or 'none'}."
            f"{nearest(function, known)}"
        )
    if inspect.iscoroutinefunction(found):
        raise UserError(f"reward {name!r} is an async function, which is not awaited here; {HOW}")
    source = inspect.getsourcefile(module)
    file = Path(source) if source else None
    return Own(name, lambda _text, _row: 0.0, many=found, file=file)


def described(reward: Reward) -> dict[str, Any]:
    """What a run's record says of its reward: its name, and of the user's own the file's hash."""
    file = reward.file if isinstance(reward, Own) else None
    return {"name": reward.name} | ({"file": str(file), "sha256": sha256(file)} if file else {})


def _of_file(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"reward: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"ft_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _importing_from(file.resolve().parent):
        spec.loader.exec_module(module)
    return module


def _of_module(name: str) -> Any:
    with _importing_from(Path(os.getcwd())):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not error.name or name.partition(".")[0] != error.name.partition(".")[0]:
                raise
            raise UserError(
                f"reward: there is no module {name!r} ({error}); or FILE.py:function"
            ) from None


@contextlib.contextmanager
def _importing_from(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _asked(row: Mapping[str, Any]) -> Any:
    """The prompt as the data has it."""
    if "messages" in row:
        return row["messages"]
    return row["source"] if "source" in row else asked(dict(row)).strip()


def _prompt(row: Mapping[str, Any]) -> str:
    text = row["messages"][-1]["content"] if "messages" in row else _asked(row)
    return text[:60]
