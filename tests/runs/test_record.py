"""How a run begins: what its record says, and what must stay the same where it goes on."""

import json
import os

import torch

from ft.runs import folder as run
from ft.runs import record


def start(place, overwrite=False, resume=None):
    target = run.Target(place, overwrite, resume)
    return record.begin(target, recipe=__file__, config_yaml="seed: 1\n", seed=1)


def test_a_new_run_records_where_it_came_from(tmp_path):
    start(tmp_path / "run").note(extra=1)
    found = run.read(tmp_path / "run")
    assert found["recipe"] == "test_record"
    assert found["seed"] == 1
    assert found["extra"] == 1
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["cores"] == os.cpu_count()
    assert (tmp_path / "run" / run.CONFIG).read_text() == "seed: 1\n"


def test_the_fingerprint_leaves_out_what_does_not_decide_what_is_learnt(tmp_path):
    r = start(tmp_path)
    r.note(
        data={"train": {"sha256": "a"}},
        model={"name": "m", "sha256": "b", "precision": "fp32", "backend": "transformers"},
        template={"name": "t", "stop": ["\n"]},
    )
    free = {"output_dir": "x", "save_steps": 3, "gradient_checkpointing": True}
    found = record.fingerprint(r, {"learning_rate": 1.0} | free)
    assert found["learning_rate"] == 1.0
    assert found["data.train"] == "a"
    assert not free.keys() & found.keys()
    json.dumps(found)


def test_what_moved_or_is_named_otherwise_is_the_same_where_its_hash_is(tmp_path):
    r = start(tmp_path)
    made = {"precision": "fp32", "backend": "transformers", "sha256": "b"}
    known = {"data": {"train": {"sha256": "a"}}, "template": {"name": "t"}}
    r.note(**known, model=made | {"name": "base"})
    before = record.fingerprint(r, {"model_name_or_path": "base", "data": "rows.jsonl", "run": "a"})
    r.note(model=made | {"name": "/moved/base/"})
    moved = {"model_name_or_path": "/moved/base/", "data": "/moved/rows.jsonl", "run": "/b/a/"}
    assert record.fingerprint(r, moved) == before
    r.note(model=made | {"sha256": "c"})
    assert record.fingerprint(r, moved) != before


def test_what_learns_from_its_own_answers_keeps_no_examples(tmp_path, capsys):
    from dataclasses import dataclass
    from types import SimpleNamespace

    from support import tiny

    from ft.data.rows import Rows
    from ft.text import prompts, tokens

    @dataclass(frozen=True)
    class Config:
        seed: int = 1
        per_device_train_batch_size: int = 1
        max_length: int = 500

    base = SimpleNamespace(name="tiny", path=tmp_path, model=tiny.build("gemma3_text"))
    vars(base).update(precision="fp32", backend="transformers", attention="eager")
    base.tokenizer = tiny.tokenizer()
    t, rows = prompts.translation_of("en-fr"), [{"source": "a", "target": "b"}]
    splits = {"train": Rows(rows, "here", "hash", 0)}
    _, encoded = tokens.encode_splits(splits, t, base.tokenizer, max_length=500)
    given = {"recipe": __file__, "config": Config(), "task": "translation", "base": base}
    given |= {"template": t, "splits": splits, "encoded": encoded}
    for examples in (True, False):
        target = run.Target(tmp_path / str(examples), False, None)
        found = record.start(target, **given, examples=examples)
        assert (found.folder / "examples.txt").exists() == examples
        assert ("first example" in capsys.readouterr().out) == examples
        assert found.made_with["data.train"] == "hash"
        assert sum(found.record["lengths"]["train"].values()) == len(rows)
