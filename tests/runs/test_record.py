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
    found = record.fingerprint(r, {"learning_rate": 1.0, "output_dir": "x", "save_steps": 3})
    assert found["learning_rate"] == 1.0
    assert found["data.train"] == "a"
    assert not {"output_dir", "save_steps"} & found.keys()
    json.dumps(found)
