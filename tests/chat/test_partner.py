"""Who answers: a run's tuned model, its base, or a model; and names that are neither."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support import finished_run, tiny

from ft.chat import partner
from ft.chat.conversation import Conversation
from ft.errors import UserError
from ft.files import sampled_hash
from ft.generate.samplers import Greedy, TopP
from ft.runs import opened
from ft.text import prompts

CHAT = prompts.by_name("chat", tiny.tokenizer())


def write_run(place: Path, template=CHAT, **record) -> Path:
    """A run on a tiny model, asked with ``template``."""
    run = finished_run.write_real(place / "run")
    (run / "config.yaml").write_text(f"model_name_or_path: {place / 'base'}\n")
    found = json.loads((run / "run.json").read_text())
    found["template"] = dataclasses.asdict(template)
    found["model"] |= record
    (run / "run.json").write_text(json.dumps(found))
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("partner")
    write_run(place)
    return place


@pytest.fixture(scope="module")
def tuned(place) -> partner.Partner:
    return partner.load(str(place / "run"), precision="fp32")


def said(who: partner.Partner, **options) -> str:
    ids = Conversation(who.template).asked("hi").ids(who.tokenizer)
    return "".join(who.answer(ids, Greedy(), max_new_tokens=8, seed=0, **options))


def test_a_run_answers_with_its_adapter_and_without_it(place, tuned):
    base = partner.load(str(place / "base"), precision="fp32")
    assert base.template == tuned.template == CHAT
    assert said(tuned) != said(base)
    assert said(tuned, tuned=False) == said(base)
    assert said(tuned) != said(base)  # the adapter is on again
    assert (tuned.name, base.name) == ("run", str(place / "base"))
    assert tuned.context == 512


def test_an_answer_that_is_dropped_leaves_the_adapter_on(tuned):
    before = said(tuned)
    ids = Conversation(CHAT).asked("hi").ids(tuned.tokenizer)
    pieces = tuned.answer(ids, Greedy(), max_new_tokens=8, seed=0, tuned=False)
    next(pieces)
    pieces.close()
    assert said(tuned) == before


def test_a_stream_returns_the_answer(tuned):
    ids = Conversation(CHAT).asked("hi").ids(tuned.tokenizer)
    pieces = partner.trimmed(tuned.answer(ids, Greedy(), max_new_tokens=8, seed=0))
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as ended:
            answer = ended.value
            break
    assert "".join(found) == answer.text.strip()
    assert (answer.reason, len(answer.ids)) == ("length", 8)


def test_a_run_of_all_parameters_has_its_base_beside_it(place, tmp_path):
    whole = tmp_path / "whole"
    tiny.folder("gemma3_text", whole, seed=5)
    for name in ("run.json", "config.yaml"):
        shutil.copy(place / "run" / name, whole / name)
    found = partner.load(str(whole), precision="fp32")
    assert found.run
    assert found.run.whole
    base = partner.load(str(place / "base"), precision="fp32")
    assert said(found, tuned=False) == said(base) != said(found)


def test_a_model_has_no_base_beside_it(place):
    base = partner.load(str(place / "base"), precision="fp32")
    with pytest.raises(UserError, match="base is a model and not a run"):
        said(base, tuned=False)


def test_a_model_without_a_chat_template_completes_text(tmp_path):
    tiny.folder("gemma3_text", tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    found = partner.load(str(tmp_path / "plain"), precision="fp32")
    assert found.template.name == "plain"
    assert "plain is a base model: it completes text" in found.note
    book = partner.load(str(tmp_path / "plain"), precision="fp32", template="book")
    assert (book.template.name, book.note) == ("book", "")


def test_a_run_brings_its_template(place):
    with pytest.raises(UserError, match="run is a run and brings its own"):
        partner.load(str(place / "run"), template="book")


def test_an_adapter_of_another_base(tmp_path, place):
    write_run(shape := tmp_path / "shape")
    shutil.rmtree(shape / "base")
    tiny.folder("gemma3_text", shape / "base", hidden_size=48)
    with pytest.raises(UserError, match="size mismatch"):
        partner.load(str(shape / "run"), precision="fp32")
    write_run(weights := tmp_path / "weights", sha256=sampled_hash(place / "base"))
    partner.load(str(weights / "run"), precision="fp32")
    shutil.rmtree(weights / "base")
    tiny.folder("gemma3_text", weights / "base", seed=9)
    with pytest.raises(UserError, match="run is of another base: the weights in"):
        partner.load(str(weights / "run"), precision="fp32")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-model", "'no-such-model' is neither a folder here, nor a Hub id"),
        ("no/such", "no/such"),
        ("embeded", "Did you mean 'embedded'"),
    ],
)
def test_a_name_that_is_neither_run_nor_model(name, message):
    with pytest.raises(UserError, match=message):
        partner.load(name)


def test_an_adapter_without_its_record_is_no_run(tmp_path, place):
    shutil.copytree(place / "run", tmp_path / "bare")
    (tmp_path / "bare" / "run.json").unlink()
    with pytest.raises(UserError, match="bare: not a run's folder, it has no run.json"):
        partner.load(str(tmp_path / "bare"))


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("google/gemma-3-270m", True),
        ("google/gemma-3-1b-pt", True),
        ("google/recurrentgemma-2b", True),
        ("google/gemma-2b-it", False),
        ("google/gemma-3-4b-it-qat-int4-unquantized", False),
        ("someone/gemma-italian", False),
    ],
)
def test_base_models_are_known_by_googles_names(name, base):
    assert bool(partner.BASE.fullmatch(name)) == base


@pytest.mark.parametrize(("files", "run"), [(["run.json"], True), ([], False)])
def test_a_name_on_the_hub_is_a_run_if_it_has_a_record(files, run, tmp_path, monkeypatch):
    def download(repo, allow_patterns, revision=None):
        for name in set(files) & set(allow_patterns):
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert opened.is_run("owner/name") == run


def test_a_sampler_of_temperature_and_nucleus():
    assert partner.sampler(0, 1.0) == Greedy()
    assert partner.sampler(0.7, 0.9) == TopP(0.9, 0.7)
    with pytest.raises(UserError, match="p = 2"):
        partner.sampler(0, 2)
    with pytest.raises(UserError, match="temperature = -1"):
        partner.sampler(-1, 1.0)
    with pytest.raises(UserError, match="temperature = nan"):
        partner.sampler(float("nan"), 1.0)


def test_white_space_at_the_ends_is_left_out_also_where_it_comes_in_pieces():
    def pieces():
        yield from (" ", "\n a", " ", "\n", "b ", "", " \n")
        return "the answer"

    got = partner.trimmed(pieces())  # pyright: ignore[reportArgumentType]
    assert list(got) == ["a", " \nb"]
