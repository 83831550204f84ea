"""Options: every rule of the dataclass, the YAML file and the command line, and every mistake."""

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft.config import (
    ALIASES,
    Amount,
    Count,
    differences,
    parse,
    pick,
    to_dict,
    to_repeat,
    to_yaml,
)
from ft.errors import UserError


@dataclass(frozen=True)
class Config:
    """Options of every type."""

    # Base model
    model_name_or_path: str = "embedded"  # Hub id, local folder, or `embedded`
    precision: Literal["auto", "nf4"] = "auto"  # dtype of the base's weights
    bits: Literal[4, 8] = 8

    # Adapter
    lora_r: int = 16  # rank of the update
    lora_target_modules: tuple[str, ...] = (  # layers that get an adapter
        "q_proj",
        "v_proj",
    )

    # Training,
    # in optimizer steps
    learning_rate: Amount = 2e-4
    max_steps: Count | None = None  # overrides num_train_epochs
    dropout: float | None = None
    packing: bool = True  # several examples in a row
    tf32: bool | None = None
    # added to each position, which
    # may be below 0
    offset: int = 0
    seed: int = 42
    output_dir: Path = Path("runs/toy")
    resume_from_checkpoint: str | None = None

    def check(self):
        # not a heading
        if (self.dropout or 0) > 1:  # not a help text
            yield f"dropout: got {self.dropout}, must be 1 at most"
        if self.lora_r <= 0:
            yield f"lora_r: got {self.lora_r}, must be above 0"


def from_flags(flags: str) -> Config:
    return parse(Config, flags.split())


@pytest.fixture
def from_yaml(tmp_path: Path):
    def read(text: str | bytes, flags: str = "") -> Config:
        file = tmp_path / "run.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return parse(Config, ["--config", str(file), *flags.split()])

    return read


def mistakes(error: pytest.ExceptionInfo[UserError]) -> list[str]:
    """The lines of a refusal, less the line that counts them."""
    first, *rest = str(error.value).split("\n  ")
    assert not rest or first == f"{len(rest)} mistakes in the options:"
    return rest or [first]


# Values


def test_no_flags_give_the_defaults() -> None:
    assert parse(Config, []) == Config()


def test_argv_defaults_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--lora_r", "4"])
    assert parse(Config) == Config(lora_r=4)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--lora_r 8", "lora_r", 8),
        ("--lora_r=8", "lora_r", 8),
        ("--lora-r 8", "lora_r", 8),
        ("--lora-r=8", "lora_r", 8),
        ("--lora_r 1_000", "lora_r", 1000),
        ("--lora_r 4 --lora_r 8", "lora_r", 8),
        ("--learning_rate 1e-4", "learning_rate", 1e-4),
        ("--learning_rate 1", "learning_rate", 1.0),
        ("--offset -1", "offset", -1),
        ("--offset=-1", "offset", -1),
        ("--max_steps none", "max_steps", None),
        ("--max_steps NULL", "max_steps", None),
        ("--dropout -1e-3", "dropout", -1e-3),
        ("--dropout none", "dropout", None),
        ("--model_name_or_path google/gemma-2b-it", "model_name_or_path", "google/gemma-2b-it"),
        ("--model_name_or_path none", "model_name_or_path", "none"),
        ("--model_name_or_path=a=b", "model_name_or_path", "a=b"),
        ("--model_name_or_path=--odd", "model_name_or_path", "--odd"),
        ("--model_name_or_path=", "model_name_or_path", ""),
        ("--model_name_or_path 12", "model_name_or_path", "12"),
        ("--precision nf4", "precision", "nf4"),
        ("--bits 4", "bits", 4),
        ("--packing", "packing", True),
        ("--packing --lora_r 16", "packing", True),
        ("--no-packing", "packing", False),
        ("--no_packing", "packing", False),
        ("--packing false", "packing", False),
        ("--packing=False", "packing", False),
        ("--packing true", "packing", True),
        ("--tf32", "tf32", True),
        ("--no-tf32", "tf32", False),
        ("--tf32 none", "tf32", None),
        ("--output_dir a/b", "output_dir", Path("a/b")),
        ("--output_dir=~/runs", "output_dir", Path.home() / "runs"),
        ("--lora_target_modules k_proj,o_proj", "lora_target_modules", ("k_proj", "o_proj")),
        ("--lora_target_modules k_proj", "lora_target_modules", ("k_proj",)),
        ("--lora_target_modules=", "lora_target_modules", ()),
        ("--resume_from_checkpoint last", "resume_from_checkpoint", "last"),
    ],
)
def test_flags(flags: str, field: str, value: object) -> None:
    config = from_flags(flags)
    assert getattr(config, field) == value
    assert type(getattr(config, field)) is type(value)
    assert replace(config, **{field: getattr(Config(), field)}) == Config()


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("lora_r: 8", "lora_r", 8),
        ("lora-r: 8", "lora_r", 8),
        ("lora_rank: 1_000", "lora_r", 1000),
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning_rate: 1.0e-5", "learning_rate", 1e-5),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("max_steps: null", "max_steps", None),
        ("max_steps: none", "max_steps", None),
        ("max_steps:", "max_steps", None),
        ("resume_from_checkpoint: none", "resume_from_checkpoint", None),
        ("packing: false", "packing", False),
        ("tf32: yes", "tf32", True),
        ("bits: 4", "bits", 4),
        ("precision: nf4", "precision", "nf4"),
        ("output_dir: a/b", "output_dir", Path("a/b")),
        ("lora_target_modules: [a, 'b,c']", "lora_target_modules", ("a", "b,c")),
        ("lora_target_modules: a, b", "lora_target_modules", ("a", "b")),
        ("lora_target_modules: []", "lora_target_modules", ()),
        ("lora_target_modules:\n- a", "lora_target_modules", ("a",)),
        ("model_name_or_path: '12'", "model_name_or_path", "12"),
        ("model_name_or_path: modèle", "model_name_or_path", "modèle"),
        ("\ufefflora_r: 8", "lora_r", 8),
    ],
)
def test_yaml(from_yaml, line: str, field: str, value: object) -> None:
    config = from_yaml(line)
    assert getattr(config, field) == value
    assert type(getattr(config, field)) is type(value)
    assert replace(config, **{field: getattr(Config(), field)}) == Config()


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}"])
def test_an_empty_file_changes_nothing(from_yaml, text: str) -> None:
    assert from_yaml(text) == Config()


@pytest.mark.parametrize("order", ["--lora_r 2 --config {}", "--config={} --lora_r 2"])
def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path, order: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora_r: 4\nmax_steps: 7\n")
    assert from_flags(order.format(file)) == Config(lora_r=2, max_steps=7)


def test_a_later_file_wins_over_an_earlier_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("lora_r: 4\nmax_steps: 7\n")
    second.write_text("lora_r: 5\n")
    assert from_flags(f"--config {first} --config {second}") == Config(lora_r=5, max_steps=7)


def test_an_alias_counts_only_for_a_field_of_the_class_without_a_field_of_its_name() -> None:
    @dataclass(frozen=True)
    class Own:
        model: str = "a"
        model_name_or_path: str = "b"

    assert parse(Own, ["--model", "x"]) == Own(model="x", model_name_or_path="b")
    assert from_flags("--model x") == Config(model_name_or_path="x")
    with pytest.raises(UserError, match="unknown option '--epochs'"):
        from_flags("--epochs 3")  # Config has no num_train_epochs


def test_aliases_name_hugging_face_fields() -> None:
    assert ALIASES["resume"] == "resume_from_checkpoint"
    assert ALIASES["max_seq_length"] == "max_length"
    assert not set(ALIASES) & set(ALIASES.values())


# Mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lora_r 1e3", "command line: --lora_r: got '1e3', expected int (digits only"),
        ("--lora-r 2.5", "command line: --lora-r: got '2.5', expected int (digits only"),
        ("--lora_rank abc", "command line: --lora_rank: got 'abc', expected int"),
        ("--lora_r=", "command line: --lora_r: got '', expected int"),
        ("--lora_r none", "command line: --lora_r: got 'none', expected int"),
        ("--max_steps x", "command line: --max_steps: got 'x', expected int or none"),
        ("--learning_rate nan", "--learning_rate: got 'nan', expected float (finite)"),
        ("--learning_rate -inf", "--learning_rate: got '-inf', expected float (finite)"),
        ("--learning_rate 1e999", "--learning_rate: got '1e999', expected float (finite)"),
        ("--dropout inf", "--dropout: got 'inf', expected float or none (finite)"),
        ("--precision 8bit", "--precision: got '8bit', expected one of auto, nf4"),
        ("--bits 5", "--bits: got '5', expected one of 4, 8"),
        ("--packing maybe", "--packing: got 'maybe', expected true or false"),
        ("--output_dir=", "--output_dir: got '', expected path"),
        (
            "--lora_target_modules a,,b",
            "--lora_target_modules: got 'a,,b', expected list as in a,b",
        ),
        ("--lora_r", "command line: --lora_r needs a value"),
        ("--lora_r --packing", "command line: --lora_r needs a value"),
        ("--model", "command line: --model needs a value (--model=… if it starts with --)"),
        ("--config", "command line: --config needs a value"),
        (
            "--no-packing=true",
            "command line: unknown option '--no-packing'. Did you mean '--packing'?",
        ),
        ("--no-packing true", "command line: unexpected 'true'; write --name value"),
        ("--no-lora_r", "command line: unknown option '--no-lora_r'. Did you mean '--lora_r'?"),
        ("run.yaml", "command line: unexpected 'run.yaml'"),
        ("-r 8", "command line: unexpected '-r'"),
        ("--lora_rr 8", "command line: unknown option '--lora_rr'. Did you mean '--lora_r'?"),
        ("--lerning-rate=1", "option '--lerning-rate'. Did you mean '--learning_rate'?"),
        ("--confg x", "unknown option '--confg'. Did you mean '--config'?"),
        ("--zzzzzz", "command line: unknown option '--zzzzzz'. See --help for all."),
        ("--learning_rate 0", "command line: --learning_rate: got 0.0, must be above 0"),
        ("--lr -1", "command line: --lr: got -1.0, must be above 0"),
        ("--max_steps 0", "command line: --max_steps: got 0, must be above 0 or none"),
    ],
)
def test_mistakes_on_the_command_line(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        from_flags(flags)
    assert message in mistakes(error)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nlora_r: abc", "run.yaml:2: lora_r: got 'abc' (str), expected int"),
        ("lora_r: '16'", "run.yaml:1: lora_r: got '16' (str), expected int"),
        ("lora_r: 2.0", "run.yaml:1: lora_r: got 2.0 (float), expected int"),
        ("lora_r: 010", "run.yaml:1: lora_r: got '010' (str), expected int"),  # not octal
        ("lora_r: 1:30", "run.yaml:1: lora_r: got '1:30' (str), expected int"),  # nor of base 60
        ("lora_r: true", "run.yaml:1: lora_r: got True (bool), expected int"),
        ("lora_r:", "run.yaml:1: lora_r: got None (NoneType), expected int"),
        ("lora_r: [1]", "run.yaml:1: lora_r: got [1] (list), expected int"),
        ("learning_rate: fast", "got 'fast' (str), expected float (finite)"),
        ("learning_rate: .nan", "got nan (float), expected float (finite)"),
        ("learning_rate: .inf", "got inf (float), expected float (finite)"),
        ("learning_rate: 1e999", "got '1e999' (str), expected float (finite)"),
        (f"learning_rate: 1{'0' * 400}", "(int), expected float (finite)"),
        ("learning_rate: true", "got True (bool), expected float (finite)"),
        ("packing: 1", "got 1 (int), expected true or false"),
        ("packing: 'true'", "got 'true' (str), expected true or false"),
        ("precision: 8bit", "got '8bit' (str), expected one of auto, nf4"),
        ("bits: '4'", "got '4' (str), expected one of 4, 8"),
        ("model: 12", "model: got 12 (int), expected str (put it in quotes)"),
        ("model: no", "model: got False (bool), expected str (put it in quotes)"),
        ("model: 2025-01-01", "(date), expected str (put it in quotes)"),
        ("model: 2025-13-01", "run.yaml:1: cannot read this YAML: month must be in 1..12"),
        ("output_dir: ''", "got '' (str), expected path"),
        ("lora_target_modules: [a, 1]", "got ['a', 1] (list), expected list as in a,b"),
        ("lora_rr: 1", "run.yaml:1: unknown option 'lora_rr'. Did you mean 'lora_r'?"),
        ("--lora_r: 1", "run.yaml:1: unknown option '--lora_r'"),
        ("config: x", "run.yaml:1: unknown option 'config'. See --help for all."),
        ("1: x", "run.yaml:1: unknown option '1'"),
        ("[a, b]: x", "run.yaml:1: unknown option"),
        ("lora_r: 1\nlora_r: 1", "run.yaml:2: lora_r is given twice, first at "),
        ("lora_r: 1\nlora_rank: 2", "run.yaml:2: lora_rank is given twice, first at "),
        ("lora:\n  r: 1", "run.yaml:1: lora: nested; every option is a key at the top"),
        ("- lora_r", "run.yaml: cannot read this YAML: expected a line `name: value`"),
        ("lora_r", "run.yaml: cannot read this YAML: expected a line `name: value`"),
        ("a: 1\n---\nb: 2", "run.yaml:2:1: cannot read this YAML: but found another document"),
        ("a: b: c", "run.yaml:1:5: cannot read this YAML: mapping values are not allowed here"),
        ("\nx: [1,", "run.yaml:2:7: cannot read this YAML: expected the node content"),
        ("lora_r: \t- 1", "run.yaml:1:"),
        (b"model: \xff", "run.yaml: cannot read this YAML: unacceptable character #x00ff"),
        (b"model: a\x00b", "run.yaml: cannot read this YAML: unacceptable character #x0000"),
        ("lora_r: " + "[" * 1000, "run.yaml: cannot read this YAML: maximum recursion depth"),
    ],
)
def test_mistakes_in_the_file(from_yaml, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        from_yaml(text)
    assert len(mistakes(error)) == 1
    assert "\n" not in str(error.value)


def test_yaml_makes_no_python_objects(from_yaml, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(UserError, match=r"run.yaml:1:8: .*could not determine a constructor"):
        from_yaml(f"model: !!python/object/apply:os.mkdir ['{mark}']")
    assert not mark.exists()


def test_a_file_that_unfolds_without_end_is_refused_shortly(from_yaml) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(UserError, match="lora_r: got") as error:
        from_yaml("\n".join([*lines, "lora_r: *a59", "max_steps: *a59"]))
    assert len(str(error.value)) < 20_000


@pytest.mark.parametrize(
    ("name", "reason"), [("none.yaml", "No such file"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match=re.escape(f"{path}: cannot read this YAML: {reason}")):
        parse(Config, ["--config", str(path)])


def test_all_mistakes_come_at_once(from_yaml) -> None:
    with pytest.raises(UserError) as error:
        from_yaml("lora_rr: 1\nlora_r: abc\nmax_steps: 1", "--precision x --lerning_rate 1 stray")
    found = mistakes(error)
    assert len(found) == 5
    for part in ("'lora_rr'", "'abc' (str)", "--precision", "'--lerning_rate'", "'stray'"):
        assert sum(part in line for line in found) == 1


def test_check_runs_once_all_fields_are_read_and_gives_all_its_messages() -> None:
    with pytest.raises(UserError) as error:
        from_flags("--dropout 2 --lora_r 0")
    assert mistakes(error) == [
        "dropout: got 2.0, must be 1 at most",
        "lora_r: got 0, must be above 0",
    ]
    with pytest.raises(UserError) as error:
        from_flags("--dropout 2 --lora_r x")
    assert len(mistakes(error)) == 1


def test_check_may_return_a_list() -> None:
    @dataclass(frozen=True)
    class Listed:
        lora_r: int = 16

        def check(self) -> list[str]:
            return ["too big"] if self.lora_r > 99 else []

    assert parse(Listed, []) == Listed()
    with pytest.raises(UserError, match="^too big$"):
        parse(Listed, ["--lora_r", "100"])


# Out again

words = st.text(
    st.characters(exclude_characters="\0"), max_size=12
)  # NUL is in no path and no argument
floats = st.floats(allow_nan=False, allow_infinity=False)
configs = st.builds(
    Config,
    model_name_or_path=words,
    precision=st.sampled_from(["auto", "nf4"]),
    bits=st.sampled_from([4, 8]),
    lora_r=st.integers(1, 2**31 - 1),
    lora_target_modules=st.lists(words).map(tuple),
    learning_rate=floats.filter(lambda x: x > 0),
    max_steps=st.none() | st.integers(1, 2**31 - 1),
    offset=st.integers(-(2**31) + 1, 2**31 - 1),
    seed=st.integers(0, 2**32 - 1),
    dropout=st.none() | floats.filter(lambda x: x <= 1),
    packing=st.booleans(),
    tf32=st.none() | st.booleans(),
    output_dir=words.map(Path).filter(lambda path: not str(path).startswith("~")),
    resume_from_checkpoint=st.none() | words.filter(lambda x: x.lower() not in ("none", "null")),
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    database=None,
    max_examples=30,
)
@given(config=configs)
def test_yaml_and_json_round_trips(tmp_path: Path, config: Config) -> None:
    plain, text = to_dict(config), to_yaml(config)
    file = tmp_path / "config.yaml"
    file.write_bytes(text.encode())
    assert parse(Config, ["--config", str(file)]) == config
    assert list(plain) == list(Config.__dataclass_fields__)
    assert yaml.safe_load(text) == plain == json.loads(json.dumps(plain))


@pytest.mark.parametrize(
    "text", ["", " a ", "a\nb", "\n", "\x85", "\u2028", "é😀", "# a", "a: b", "no"]
)
def test_yaml_of_odd_text_comes_back(from_yaml, text: str) -> None:
    config = Config(model_name_or_path=text, lora_target_modules=(text, "x"))
    assert from_yaml(to_yaml(config)) == config


def test_what_repeats_a_run_neither_resumes_nor_replaces_one(from_yaml) -> None:
    given = replace(Config(lora_r=4), resume_from_checkpoint="last")
    assert from_yaml(to_repeat(given)) == Config(lora_r=4)


def test_yaml_keeps_letters_readable() -> None:
    assert "model_name_or_path: modèle  #" in to_yaml(Config(model_name_or_path="modèle"))


def test_to_dict() -> None:
    values = to_dict(Config(max_steps=3))
    assert values["lora_target_modules"] == ["q_proj", "v_proj"]
    assert values["output_dir"] == "runs/toy"
    assert (values["max_steps"], values["dropout"], values["packing"]) == (3, None, True)


def test_yaml_keeps_headings_and_comments() -> None:
    lines = to_yaml(Config()).splitlines()
    assert lines[:3] == [
        "# Base model",
        "model_name_or_path: embedded  # Hub id, local folder, or `embedded`",
        "precision: auto  # dtype of the base's weights",
    ]
    assert "# Training, in optimizer steps" in lines
    assert "lora_target_modules: [q_proj, v_proj]  # layers that get an adapter" in lines
    assert lines[lines.index("# Adapter") - 1] == ""
    assert not any("not a" in line for line in lines)


def test_differences() -> None:
    a = {"learning_rate": 0.0002, "seed": 1, "old": None, "same": [1]}
    b = {"learning_rate": 0.0005, "seed": 1, "same": [1], "new": "x"}
    assert differences(a, b) == [
        "learning_rate: 0.0002 -> 0.0005",
        "old: None -> (absent)",
        "new: (absent) -> 'x'",
    ]
    assert differences(a, dict(a)) == []


def test_picked_are_the_options_that_a_function_takes() -> None:
    def train(model, *, learning_rate, max_steps=None, autocast=False): ...

    config = Config(learning_rate=1e-3, max_steps=7)
    assert pick(config, train) == {"learning_rate": 1e-3, "max_steps": 7}
    assert pick(config, lambda: None) == {}
    assert Config(**pick(config, Config)) == config


# Presets


@dataclass(frozen=True)
class Tutorial(Config):
    PRESETS: ClassVar = {
        "sgd": {"learning_rate": 1e-3, "max_steps": 300, "lora_target_modules": ["o_proj"]},
        "adamw": {"max_steps": 100, "output_dir": "runs/adamw"},
        "wrong": {"max_stps": 1, "lora_r": "many"},
    }


@pytest.mark.parametrize("flags", ["--preset sgd", "--preset=sgd", "--preset adamw --preset sgd"])
def test_a_preset_changes_the_defaults_that_it_names(flags: str) -> None:
    config = parse(Tutorial, flags.split())
    expected = replace(
        Tutorial(), learning_rate=1e-3, max_steps=300, lora_target_modules=("o_proj",)
    )
    assert config == expected
    assert parse(Tutorial, ["--preset", "adamw"]).output_dir == Path("runs/adamw")


def test_files_win_over_a_preset_and_flags_over_both_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("max_steps: 7\nlora_r: 3\n")
    words = ["--lora_r", "4", "--config", str(file), "--preset", "sgd"]
    for argv in (words, words[4:] + words[:4]):
        config = parse(Tutorial, argv)
        assert (config.learning_rate, config.max_steps, config.lora_r) == (1e-3, 7, 4)
    kept = tmp_path / "config.yaml"
    kept.write_text(to_yaml(config))
    assert parse(Tutorial, ["--config", str(kept)]) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset sdg", "--preset: got 'sdg', expected one of sgd, adamw, wrong. Did you mean"),
        ("--preset", "--preset needs a value"),
        ("--preste sgd", "unknown option '--preste'. Did you mean '--preset'?"),
        ("--preset wrong", "preset wrong: unknown option 'max_stps'. Did you mean 'max_steps'?"),
        ("--preset wrong", "preset wrong: lora_r: got 'many' (str), expected int"),
    ],
)
def test_mistakes_in_a_preset(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(Tutorial, flags.split())


def test_without_presets_there_is_no_such_option() -> None:
    with pytest.raises(UserError, match="unknown option '--preset'"):
        from_flags("--preset x")


def test_presets_stand_in_the_help(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse(Tutorial, ["--help"])
    text = capsys.readouterr().out
    assert "usage: " in text
    assert "[--preset NAME] [--config FILE.yaml]" in text
    assert re.search("^  --preset adamw +max_steps 100, output_dir runs/adamw$", text, re.M)


# Help and the whole program


def help_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse(Config, argv, doc="What it does.\n\n    the command")
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["--lora_r", "x", "--help"]])
def test_help_teaches(capsys, monkeypatch, argv: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of(capsys, *argv)
    assert text.startswith("What it does.\n\n    the command\n\nusage: ")
    headings = ["\nBase model\n", "\nAdapter\n", "\nTraining, in optimizer steps\n"]
    assert [text.index(heading) for heading in headings] == sorted(map(text.index, headings))
    rows = dict(re.findall(r"^  --(\S+) +(.*)$", text, re.M))
    assert [row.removeprefix("[no-]") for row in rows] == list(Config.__dataclass_fields__)
    assert rows["model_name_or_path"] == (
        "Hub id, local folder, or `embedded` (str; default embedded; or --model)"
    )
    assert rows["precision"] == "dtype of the base's weights (one of auto, nf4; default auto)"
    assert rows["lora_r"] == "rank of the update (int; default 16; or --lora_rank)"
    assert rows["lora_target_modules"].startswith("layers that get an adapter (list as in a,b; ")
    assert "default q_proj,v_proj" in rows["lora_target_modules"]
    assert rows["max_steps"] == "overrides num_train_epochs (int or none; default none)"
    assert rows["[no-]packing"] == "several examples in a row (default true)"
    assert rows["learning_rate"] == "(float; default 0.0002; or --lr)"
    assert rows["offset"] == "added to each position, which may be below 0 (int; default 0)"
    assert "not a" not in text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_is_aligned_and_as_wide_as_the_terminal(capsys, monkeypatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [line for line in help_of(capsys, "-h").splitlines() if line.startswith("  --")]
    assert len({re.match(r"  --\S+ +", row).end() for row in rows}) == 1  # pyright: ignore
    lines = help_of(capsys, "-h").split("Base model")[1].splitlines()
    assert max(map(len, lines)) <= columns


RECIPE = '''
    """A toy recipe."""

    from dataclasses import dataclass

    from ft import config


    @dataclass(frozen=True)
    class Config:
        # Training
        max_steps: int = 3  # optimizer steps


    def main(options: Config) -> None:
        print("steps", options.max_steps)
        if options.max_steps == 13:
            raise RuntimeError("our own fault")


    if __name__ == "__main__":
        config.run(main, Config, __doc__)
'''


@pytest.fixture
def toy(tmp_path: Path):
    (tmp_path / "toy.py").write_text(textwrap.dedent(RECIPE))
    root = str(Path(__file__).parents[1])

    def start(*flags: str, python: tuple[str, ...] = ("toy.py",)):
        command = [sys.executable, *python, *flags]
        environment = os.environ | {"PYTHONPATH": root, "COLUMNS": "80"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )

    return start


def test_a_recipe_runs(toy) -> None:
    done = toy("--max_steps", "5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "steps 5\n", "")


def test_a_mistake_ends_a_recipe_with_status_2_and_no_traceback(toy) -> None:
    done = toy("--max_stps", "5", "--max_steps=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: 2 mistakes in the options:",
        "  command line: unknown option '--max_stps'. Did you mean '--max_steps'?",
        "  command line: --max_steps: got 'x', expected int (digits only, as in 1000)",
    ]


def test_our_own_fault_keeps_its_traceback(toy) -> None:
    done = toy("--max_steps", "13")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_of_a_recipe_is_quick(toy) -> None:
    done = toy("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("A toy recipe.\n\nusage: toy.py ")
    assert "\nTraining\n  --max_steps  optimizer steps (int; default 3)\n" in done.stdout
    script = """
        import atexit, runpy, sys, time
        heavy = "torch", "transformers", "numpy", "yaml"
        show = lambda: [m for m in heavy if m in sys.modules]
        atexit.register(lambda: print(time.process_time(), show(), file=sys.stderr))
        runpy.run_path("toy.py", run_name="__main__")
    """
    done = toy("--help", python=("-c", textwrap.dedent(script)))
    seconds, loaded = done.stderr.split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 0.3


@pytest.mark.parametrize("value", ["-1", "4294967296"])
def test_a_seed_that_numpy_would_refuse(value):
    with pytest.raises(UserError, match=f"--seed: got {value}, must be 0 to 4294967295"):
        parse(Config, ["--seed", value])


def test_a_number_that_nothing_has_as_many_of():
    with pytest.raises(UserError, match="--lora-r: got 1000000000000, must be -2147483647 to"):
        parse(Config, ["--lora-r", str(10**12)])
