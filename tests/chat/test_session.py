"""A chat over a pipe and on a terminal: answers, history, its commands, Ctrl-C, and mistakes."""

import io
import sys

import pytest
from support import tiny

from ft import __main__ as cli
from ft.chat import partner, session
from ft.chat.conversation import Conversation
from ft.errors import UserError
from ft.generate.draft import Answer
from ft.generate.samplers import Greedy
from ft.text import prompts

TOKENIZER = tiny.tokenizer()
CHAT = prompts.by_name("chat", TOKENIZER)


@pytest.fixture(scope="module")
def model():
    return tiny.build("gemma3_text")


@pytest.fixture
def tiny_partner(model):
    return partner.Partner("tiny", model, TOKENIZER, CHAT)


class Scripted(partner.Partner):
    """A partner that echoes: what it was asked, in which mode, and with what."""

    def __init__(self, template=CHAT, context: int = 512, reason="end", text=None) -> None:
        super().__init__("scripted", None, TOKENIZER, template)
        self.asked: list[tuple[str, object]] = []
        self.room, self.reason, self.text = context, reason, text
        self.interrupt = False

    @property
    def context(self) -> int:
        return self.room

    def answer(self, prompt, sampler, *, max_new_tokens, seed, stop=(), tuned=True):
        self.asked.append((TOKENIZER.decode(prompt), sampler))
        number = len(self.asked)

        def pieces():
            yield "tuned " if tuned else "base "
            if self.interrupt:
                raise KeyboardInterrupt
            yield str(number)
            text = ("tuned " if tuned else "base ") + str(number)
            return Answer(text if self.text is None else self.text, (7, 1), (0.0, 0.0), self.reason)

        return pieces()


def talk(monkeypatch, capsys, who, *lines: str, **options):
    """The chat, and what it wrote to standard output and standard error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    made = session.Chat(who, session.Pipe(), **options)
    made.run()
    out, err = capsys.readouterr()
    return made, out, err


def test_every_line_of_a_pipe_gets_its_answer_and_the_history_grows(monkeypatch, capsys):
    who = Scripted()
    made, out, err = talk(monkeypatch, capsys, who, "one", "", "two  ")
    assert out == "tuned 1\ntuned 2\n"
    assert err == ""
    wanted = Conversation(CHAT).asked("one").answered("tuned 1").asked("two")
    assert who.asked[1][0] == TOKENIZER.decode(wanted.ids(TOKENIZER))
    assert made.talk == wanted.answered("tuned 2")


def test_the_answer_is_the_models_own(monkeypatch, capsys, tiny_partner):
    _, out, err = talk(monkeypatch, capsys, tiny_partner, "hi", max_new_tokens=8)
    ids = Conversation(CHAT).asked("hi").ids(TOKENIZER)
    wanted = "".join(tiny_partner.answer(ids, Greedy(), max_new_tokens=8, seed=0))
    assert out == wanted.strip() + "\n"
    assert "cut after 8 tokens (--max-new-tokens" in err
    assert "\x1b" not in out + err


def test_what_is_drawn_depends_on_the_seed_alone(monkeypatch, capsys, tiny_partner):
    def answer(seed):
        options = {"temperature": 1.0, "max_new_tokens": 8, "seed": seed}
        return talk(monkeypatch, capsys, tiny_partner, "hi", **options)[1]

    assert answer(1) == answer(1) != answer(2)


def test_reset_forgets_the_conversation_but_not_the_system_message(monkeypatch, capsys):
    who = Scripted()
    _, _, err = talk(monkeypatch, capsys, who, "/system Be nice.", "one", "/reset", "two")
    assert "the conversation begins anew" in err
    last = who.asked[-1][0]
    assert "Be nice." in last
    assert "one" not in last


def test_system_sets_and_removes_the_message(monkeypatch, capsys):
    who = Scripted()
    talk(monkeypatch, capsys, who, "one", "/system", "two", system="Be brief.")
    assert ["Be brief." in text for text, _ in who.asked] == [True, False]


def test_temperature_changes_the_sampler(monkeypatch, capsys):
    who = Scripted()
    lines = ("a", "/temperature 0.5", "b", "/temperature", "/temperature 0", "c")
    _, _, err = talk(monkeypatch, capsys, who, *lines, top_p=0.9)
    assert [s for _, s in who.asked] == [
        Greedy(),
        partner.sampler(0.5, 0.9),
        Greedy(),
    ]
    assert err.splitlines() == ["temperature 0.5"] * 2 + ["temperature 0 (greedy)"]


def test_base_asks_both_the_last_question_or_another_and_remembers_neither(monkeypatch, capsys):
    who = Scripted()
    made, out, _ = talk(monkeypatch, capsys, who, "one", "/base", "/base other", "two")
    assert out == "tuned 1\nbase:  base 2\ntuned: tuned 3\nbase:  base 4\ntuned: tuned 5\ntuned 6\n"
    texts = [text for text, _ in who.asked]
    assert texts[0] == texts[1] == texts[2]
    assert texts[3] == texts[4]
    assert "one" in texts[3]
    assert "other" in texts[3]
    assert "other" not in texts[5]
    assert len(made.talk.messages) == 4


def test_help_and_quit(monkeypatch, capsys):
    who = Scripted()
    made, out, err = talk(monkeypatch, capsys, who, "/help", "/quit", "never")
    assert out == ""
    assert not who.asked
    assert all(name in err for name in [*made.commands, "/quit"])


def test_a_space_makes_a_question_of_what_begins_with_a_slash(monkeypatch, capsys):
    who = Scripted()
    talk(monkeypatch, capsys, who, " /reset", "/usr/bin is what?")
    assert "/reset" in who.asked[0][0]
    assert "/usr/bin" in who.asked[1][0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "there is no command /rest; .*Did you mean '/reset'"),
        ("/temperature hot", "/temperature hot: expected a number"),
        ("/temperature -1", "temperature = -1"),
        ("/base", "nothing has been asked yet"),
        ("/reset now", "/reset takes no text"),
        ("a <eos> b", r"^message 1 \(user\): .*'<eos>'.*; ask without it$"),
    ],
)
def test_a_mistake_ends_a_pipe(line, message, monkeypatch, capsys):
    with pytest.raises(UserError, match=message):
        talk(monkeypatch, capsys, Scripted(), line)


def test_base_of_a_model_is_a_mistake(monkeypatch, capsys, tiny_partner):
    with pytest.raises(UserError, match="tiny is a model and not a run"):
        talk(monkeypatch, capsys, tiny_partner, "/base hi")


def test_the_oldest_exchanges_go_where_the_context_is_full_and_it_says_so(monkeypatch, capsys):
    who = Scripted(context=80)
    lines = [f"question {n}" for n in range(4)]
    made, out, err = talk(monkeypatch, capsys, who, *lines, max_new_tokens=20)
    assert out.count("\n") == 4
    assert "longer than the context of 80 tokens less 20 for an answer: forgot its oldest 1" in err
    assert "question 0" in who.asked[0][0]
    assert "question 0" not in who.asked[-1][0]
    assert all(len(TOKENIZER.encode(t, add_special_tokens=False)) <= 60 for t, _ in who.asked)
    assert made.talk.messages[-2]["content"] == "question 3"


def test_a_question_longer_than_the_context(monkeypatch, capsys, tiny_partner):
    with pytest.raises(UserError, match="context of 512 leaves no room"):
        talk(monkeypatch, capsys, tiny_partner, "x" * 600)


def test_an_empty_answer_is_told_and_not_remembered(monkeypatch, capsys):
    made, _, err = talk(monkeypatch, capsys, Scripted(text=" "), "one")
    assert "the answer is empty" in err
    assert made.talk.messages == ()


def test_a_translation_is_asked_line_by_line(monkeypatch, capsys):
    who = Scripted(template=prompts.translation("French"))
    talk(monkeypatch, capsys, who, "one", "two")
    assert who.asked[1][0] == "<bos>Translate this into French:\ntwo\n"


def test_ctrl_c_stops_an_answer_and_not_the_program(monkeypatch, capsys):
    who = Scripted()
    made = session.Chat(who, session.Pipe())
    who.interrupt = True
    made.ask("one")
    who.interrupt = False
    made.ask("two")
    out, err = capsys.readouterr()
    assert out == "tuned\ntuned 2\n"
    assert "stopped" in err
    assert "one" not in who.asked[1][0]


def test_ctrl_c_twice_at_once_ends_the_program(monkeypatch, capsys):
    who = Scripted()
    who.interrupt = True
    made = session.Chat(who, session.Pipe())
    made.ask("one")
    with pytest.raises(KeyboardInterrupt):
        made.ask("two")
    monkeypatch.setattr(session, "IMPATIENT", 0.0)
    made.ask("three")  # some time later


class Typed:
    """What a user types, for ``input``."""

    def __init__(self, *lines) -> None:
        self.lines = iter(lines)

    def __call__(self, prompt: str) -> str:
        line = next(self.lines, None)
        if line is None:
            raise EOFError
        if isinstance(line, type):
            raise line
        return line


def on_terminal(monkeypatch, who, *lines) -> str:
    from rich.console import Console

    terminal = session.Terminal()
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    monkeypatch.setattr("builtins.input", Typed(*lines))
    session.Chat(who, terminal).run()
    return terminal.console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_terminal_tells_mistakes_and_goes_on(monkeypatch):
    written = on_terminal(monkeypatch, Scripted(), "/rest", KeyboardInterrupt, "one")
    assert "there is no command /rest" in written
    assert "/quit or Ctrl-D leaves" in written
    assert "tuned 1" in written


def test_a_terminal_shows_base_and_tuned_in_two_columns(monkeypatch):
    written = on_terminal(monkeypatch, Scripted(), "/base one")
    assert any("base 1" in line and "tuned 2" in line for line in written.splitlines())


def test_an_answer_cannot_command_the_terminal(monkeypatch):
    class Hostile(Scripted):
        def answer(self, *_, **__):
            def pieces():
                yield "a\x1b]0;title\x07b\x9bc"
                return Answer("x", (1,), (0.0,), "end")

            return pieces()

    assert "a]0;titlebc" in on_terminal(monkeypatch, Hostile(), "one")


def test_standard_input_must_be_utf_8(monkeypatch):
    wrong = io.TextIOWrapper(io.BytesIO(b"caf\xe9 \xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", wrong)
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        list(session.Pipe().questions())


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> str:
    return str(tiny.folder("gemma3_text", tmp_path_factory.mktemp("chat") / "base"))


def test_the_command_from_end_to_end(monkeypatch, capfd, base_folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\nand then?\n"))
    cli.main(["chat", base_folder, "--max-new-tokens", "4", "--precision", "fp32"])
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert "\x1b" not in out
    assert "cut after 4 tokens" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature = -1"),
        (["--top-p", "2"], "p = 2"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--precision", "fp8"], "fp8"),
        (["--template", "bok"], "Did you mean 'book'"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(flags, message, base_folder, capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main(["chat", base_folder, *flags])
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


def test_a_template_of_a_users_own_must_be_one_that_a_question_fills(tmp_path, base_folder, capfd):
    file = tmp_path / "quiz.yaml"
    file.write_text("prompt: '{question} {hint}'\ncompletion: '{answer}'\n")
    with pytest.raises(SystemExit):
        cli.main(["chat", base_folder, "--template", str(file)])
    assert "'quiz' has the fields hint, question" in capfd.readouterr().err
