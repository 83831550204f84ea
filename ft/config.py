"""The options of a recipe: a frozen dataclass, a YAML file over it, the command line over both."""

import dataclasses
import inspect
import json
import math
import os
import re
import reprlib
import shutil
import sys
import textwrap
import tokenize
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ft.errors import UserError, exit_cleanly, nearest
from ft.files import check_regular

ALIASES = {  # each counts where the class has that field and none of the alias's own name
    "model": "model_name_or_path",
    "resume": "resume_from_checkpoint",
    "max_seq_length": "max_length",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
}
# of a field with less than which there is nothing to do
Count = Annotated[int, "above 0"]
Amount = Annotated[float, "above 0"]
_MOST = 2**31 - 1  # of a whole number; seeds have the range of NumPy's
_ADVICE = {int: " (digits only, as in 1000)", float: " (finite)", str: " (put it in quotes)"}
_C = TypeVar("_C")
_Words = Sequence[str] | None
_Options = dict[str, tuple[str, Any]]  # each name that counts -> its field and type
_Presets = Mapping[str, Mapping[str, Any]]
_Given = tuple[str, str, Any, bool]  # "run.yaml:3", "lora_r", value, from the command line?


def parse(cls: type[_C], argv: _Words = None, *, doc: str | None = None) -> _C:
    """Build ``cls`` from ``argv`` (default: the command line) and the YAML files of ``--config``.

    Fields are int, float, str, bool, Path, Literal, tuple[str, ...] or a union, with a default; in
    an optional one the words none and null mean None. A ``Count`` or ``Amount`` must be above 0. A later flag or file wins over an earlier.
    A method ``check`` of the class may return or yield what is wrong with well-typed values.
    ``--help`` prints ``doc`` and the options and exits. Raises one UserError with every mistake.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-h" in words or "--help" in words:
        print(_help(cls, doc))
        raise SystemExit(0)
    options, counts, values, mistakes = _options(cls), above_zero(cls), {}, []
    presets = getattr(cls, "PRESETS", {})
    for where, label, value, is_flag in _read_flags(words, options, presets, mistakes):
        dashes = "--" if is_flag else ""
        key = label[len(dashes) :].replace("-", "_")
        if key not in options:
            special = ["config", "preset"][: bool(presets) + 1] if is_flag else []
            hint = nearest(dashes + key, [dashes + name for name in (*options, *special)])
            mistakes.append(f"{where}: unknown option {label!r}.{hint or ' See --help for all.'}")
            continue
        name, kind = options[key]
        try:
            values[name] = _convert(value, kind, is_flag)
        except ValueError:
            got = reprlib.repr(value) + ("" if is_flag else f" ({type(value).__name__})")
            advice = next((_ADVICE[k] for k in _alternatives(kind) if k in _ADVICE), "")
            mistakes.append(f"{where}: {label}: got {got}, expected {_describe(kind)}{advice}")
            continue
        if name in counts and values[name] is not None and values[name] <= 0:
            unset = " or none" * (types.NoneType in _alternatives(kind))
            mistakes.append(f"{where}: {label}: got {values[name]}, must be above 0{unset}")
        low, high = (0, 2**32 - 1) if name == "seed" else (-_MOST, _MOST)
        if isinstance(values[name], int) and not low <= values[name] <= high:
            mistakes.append(f"{where}: {label}: got {values[name]}, must be {low} to {high}")
    if not mistakes:
        config = cls(**values)
        mistakes += getattr(config, "check", list)()
        if not mistakes:
            return config
    many = [f"{len(mistakes)} mistakes in the options:"] if len(mistakes) > 1 else []
    raise UserError("\n  ".join(many + mistakes))


def run(main: Callable, cls: type[_C], doc: str | None = None, argv: _Words = None) -> None:
    """The last line of a recipe: ``main`` on the parsed options, mistakes without a traceback."""
    with exit_cleanly():
        main(parse(cls, argv, doc=doc))


def to_dict(config: Any) -> dict[str, Any]:
    """The options as plain JSON values: a Path becomes its string, a tuple a list."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def to_yaml(config: Any) -> str:
    """The options as YAML that ``parse`` reads back equal, with the comments of the class."""
    from yaml import safe_dump

    comments, lines = _comments(type(config)), []
    for name, value in to_dict(config).items():
        heading, comment = comments.get(name, ("", ""))
        lines += ["", f"# {heading}"] if heading else []
        clean = json.dumps(value, ensure_ascii=False).isprintable()  # else PyYAML loses \x85
        shown = safe_dump([value], default_flow_style=True, allow_unicode=clean, width=math.inf)
        lines.append(f"{name}: {shown[1:-2]}" + (f"  # {comment}" if comment else ""))
    return "\n".join(lines).lstrip("\n") + "\n"


def to_repeat(config: Any) -> str:
    """The options as YAML by which another run starts as this one did: from its first step, over no other's folder."""
    fresh = {"overwrite_output_dir": False, "resume_from_checkpoint": None}
    return to_yaml(
        dataclasses.replace(config, **{k: v for k, v in fresh.items() if hasattr(config, k)})
    )


def pick(config: Any, function: Callable) -> dict[str, Any]:
    """The options that are parameters of ``function``, by name, to call it with."""
    wanted = inspect.signature(function).parameters
    names = [field.name for field in dataclasses.fields(config) if field.name in wanted]
    return {name: getattr(config, name) for name in names}


def above_zero(cls: Any) -> set[str]:
    """The fields that are a ``Count`` or an ``Amount``, or none."""
    hints = get_type_hints(cls, include_extras=True)
    return {n for n, kind in hints.items() if {Count, Amount} & set(_alternatives(kind))}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """One line for each key whose values differ: ``learning_rate: 0.0002 -> 0.0005``."""
    left, right = ({key: repr(value) for key, value in side.items()} for side in (a, b))
    rows = ((key, left.get(key, "(absent)"), right.get(key, "(absent)")) for key in left | right)
    return [f"{key}: {old} -> {new}" for key, old, new in rows if old != new]


def _options(cls: Any) -> _Options:
    hints = get_type_hints(cls)
    fields = {f.name: (f.name, hints[f.name]) for f in dataclasses.fields(cls)}
    return {alias: fields[name] for alias, name in ALIASES.items() if name in fields} | fields


def _comments(cls: type) -> dict[str, tuple[str, str]]:
    """Field -> its heading and what is said of it, read from the source.

    A heading is a comment that follows an empty line, or begins the class; any other is the field's, above it or beside.
    """
    found, name, heading, above, apart = {"": ("", "")}, "", "", "", True
    with suppress(OSError):  # a class made without a file has no comments
        source = textwrap.dedent(inspect.getsource(cls)).splitlines(keepends=True)
        for token in tokenize.generate_tokens(iter(source).__next__):
            text, column = token.string.lstrip("# "), token.start[1]
            if token.type == tokenize.NAME and column == 4:  # a field; or def, which is no field
                name, heading, above, apart, found[text] = text, "", "", False, (heading, above)
            elif token.type == tokenize.COMMENT and column == 4 and apart:
                heading = f"{heading} {text}".strip()
            elif token.type == tokenize.COMMENT and column == 4:
                above = f"{above} {text}".strip()
            elif token.type == tokenize.NL and not token.line.strip():
                apart = True
            elif token.type == tokenize.COMMENT:
                found[name] = (found[name][0], f"{found[name][1]} {text}".strip())
    return found


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)


def _read_flags(
    words: list[str], options: _Options, presets: _Presets, mistakes: list[str]
) -> list[_Given]:
    """The options of a preset, of the files that ``--config`` names, and of the command line."""
    special, preset, files, flags = ["config", "preset"][: bool(presets) + 1], [], [], []
    while words:
        label, equals, value = (word := words.pop(0)).partition("=")
        if not label.startswith("--"):
            mistakes.append(f"command line: unexpected {word!r}; write --name value")
            continue
        key = label[2:].replace("-", "_")
        positive = key if key in options else key.removeprefix("no_")
        switch = positive in options and bool in _alternatives(options[positive][1])
        if switch and positive != key and not equals:
            label, value = f"--{positive}", "false"
        elif not equals:  # a word that starts with one dash is a value: -1
            bare = not words or words[0].startswith("--")
            value = ("true" if switch else None) if bare else words.pop(0)
        if value is None and (key in options or key in special):
            mistakes.append(f"command line: {label} needs a value ({label}=… if it starts with --)")
        elif key == "config":
            files += _read_yaml(str(value), options, mistakes)
        elif key in special and value not in presets:
            known = f"{label}: got {value!r}, expected one of {', '.join(presets)}."
            mistakes.append(f"command line: {known}{nearest(str(value), presets)}")
        elif key in special:
            preset = [(f"preset {value}", k, v, False) for k, v in presets[str(value)].items()]
        else:
            flags.append(("command line", label, value, True))
    return preset + files + flags


def _read_yaml(path: str, options: _Options, mistakes: list[str]) -> list[_Given]:
    """The options of a flat YAML file, each with its line, built by PyYAML's safe loader."""
    import yaml

    place, given, first = path, [], {}
    try:
        check_regular(Path(path))
        loader = yaml.SafeLoader(Path(path).read_bytes())
        root = loader.get_single_node() or yaml.MappingNode("", [])  # an empty file is fine
        if not isinstance(root, yaml.MappingNode):
            raise yaml.YAMLError("expected a line `name: value` for each option")
        for key, node in root.value:
            place, label = f"{path}:{key.start_mark.line + 1}", str(key.value)
            value = loader.construct_object(node, deep=True)
            if isinstance(value, int | float) and re.match(r"[-+]?0\d|.*:", str(node.value)):
                value = node.value  # 1:30 and 010, which YAML 1.1 takes for 90 and 8
            before = first.setdefault(options.get(label.replace("-", "_"), [label])[0], place)
            if isinstance(value, dict):
                mistakes.append(f"{place}: {label}: nested; every option is a key at the top")
            elif before is not place:
                mistakes.append(f"{place}: {label} is given twice, first at {before}")
            else:
                given.append((place, label, value, False))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # or no such date
        if mark := getattr(error, "problem_mark", None):
            place = f"{path}:{mark.line + 1}:{mark.column + 1}"
        reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or error
        mistakes.append(f"{place}: cannot read this YAML: {str(reason).splitlines()[0]}")
    return given


def _convert(value: Any, kind: Any, is_flag: bool) -> Any:
    """``value``, a word of the command line or what YAML made of it, as ``kind``. ValueError."""
    origin, kinds = get_origin(kind), _alternatives(kind)
    if len(kinds) > 1:
        word = value.lower() if isinstance(value, str) else value
        if types.NoneType in kinds and word in (None, "none", "null"):
            return None
        for option in kinds:
            with suppress(ValueError):
                return _convert(value, option, is_flag)
    elif origin is Literal:
        write = str if is_flag else repr  # repr tells 1 from True
        for choice in get_args(kind):
            if write(choice) == write(value):
                return choice
    elif origin is tuple:
        if isinstance(value, str):  # a,b also in YAML
            value, is_flag = [item.strip() for item in value.split(",") if value], True
        if isinstance(value, list | tuple) and not (is_flag and "" in value):
            return tuple(_convert(item, get_args(kind)[0], is_flag) for item in value)
    else:
        if kind is bool and is_flag:
            value = {"true": True, "false": False}.get(value.lower())
        elif kind is int and is_flag:
            value = int(value)
        elif kind is float and type(value) in (str, int):
            value = float(str(value))  # YAML 1.1 takes 1e-5 for a string
        elif kind is Path and value and isinstance(value, str):
            value = Path(os.path.expanduser(value))
        if isinstance(value, str | Path) and "\0" in str(value):
            raise ValueError
        finite = not isinstance(value, float) or math.isfinite(value)
        if isinstance(value, kind) and finite and isinstance(value, bool) == (kind is bool):
            return value
    raise ValueError


def _describe(kind: Any) -> str:
    """``kind`` in a user's words: ``int or none``, ``one of auto, nf4``."""
    if len(kinds := _alternatives(kind)) > 1:
        return " or ".join(map(_describe, kinds))
    if (origin := get_origin(kind)) is Literal:
        words = ", ".join(map(str, get_args(kind)))
        return f"one of {words}" if len(get_args(kind)) > 1 else words
    words = {bool: "true or false", types.NoneType: "none", Path: "path", tuple: "list as in a,b"}
    return words.get(origin or kind) or kind.__name__


def _help(cls: Any, doc: str | None) -> str:
    """The recipe's docstring, then its options under the headings of the class."""
    comments, options = _comments(cls), _options(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    flags = {n: f"  --{'[no-]' * (bool in _alternatives(options[n][1]))}{n}  " for n in names}
    column = max(map(len, flags.values()))
    width = max(shutil.get_terminal_size().columns, column + 30)
    text = [doc.strip(), ""] if doc else []
    presets = getattr(cls, "PRESETS", {})
    usage = "[--preset NAME] [--config FILE.yaml]" if presets else "[--config FILE.yaml]"
    text += [f"usage: {Path(sys.argv[0]).name} {usage} [--name value ...]"]
    text += ["A flag wins over the same name in the file, and that over the default below."]
    text += ["", "Presets, over the defaults and under file and flags"] if presets else []
    for name, values in presets.items():
        note = ", ".join(f"{key} {value}" for key, value in values.items())
        start = f"  --preset {name}  ".ljust(column)
        text += textwrap.wrap(note, width, initial_indent=start, subsequent_indent=" " * column)
    for name, flag in flags.items():
        heading, comment = comments.get(name, ("", ""))
        kind, default = options[name][1], getattr(cls, name)
        shown = ",".join(default) if isinstance(default, tuple) else str(default) or "empty"
        notes = [] if kind is bool else [_describe(kind)]
        notes += [f"default {shown.lower() if default in (None, True, False) else shown}"]
        notes += [f"or --{alias}" for alias, (to, _) in options.items() if to == name != alias]
        note, start = f"{comment} ({'; '.join(notes)})".strip(), flag.ljust(column)
        text += ["", heading] if heading else []
        text += textwrap.wrap(note, width, initial_indent=start, subsequent_indent=" " * column)
    return "\n".join(text)
