"""lm-eval's `local-completions`: the likelihoods that it reads off our answers are the model's own."""

import json
import warnings
from operator import itemgetter
from typing import Any

import pytest
import torch
import yaml
from support import tiny
from support.serving import post, serving

from ft.chat import openai_work, partner
from ft.generate import constraints
from ft.score import logits, texts
from ft.text import prompts

TOKENIZER = tiny.tokenizer()
COMPLETIONS = "/v1/completions"
# what lm-eval 0.4.13 sends for a likelihood, and for an answer
LIKELIHOOD = {
    "model": "tiny",
    "temperature": 0,
    "max_tokens": 1,
    "logprobs": 1,
    "seed": 1234,
    "echo": True,
}
ANSWER = {"model": "tiny", "max_tokens": 6, "temperature": 0, "stop": ["\n", "<eos>"], "seed": 1234}
PAIRS = [
    ("Question: What is the capital of France?\nAnswer:", " Paris"),
    ("Question: Where does the cat sleep?\nAnswer:", " on the table this morning"),
    ("Question: Who?\nAnswer:", " é"),
    ("Question: Who?\nAnswer:", " 😀"),
    ("the cat " * 60 + "\nAnswer:", " sleeps"),
]


def divided(pair) -> tuple[list[int], int]:
    """Ids of both texts as one, and how many of them are the first's, with one BOS."""
    context, rest = pair
    count = len(TOKENIZER(context)["input_ids"])
    ids = TOKENIZER(context + rest)["input_ids"]
    assert ids[0] == 2
    assert len(ids) > count
    return ids, count


def read(found, counts) -> list[tuple[float, bool]]:
    """Log-likelihood, and whether it is the greedy answer, as lm-eval takes them from a response."""
    result = []
    for choice, count in zip(
        sorted(found["choices"], key=itemgetter("index")), counts, strict=True
    ):
        chances = choice["logprobs"]["token_logprobs"][count:-1]
        likeliest = choice["logprobs"]["top_logprobs"][count:-1]
        greedy = all(c == max(best.values()) for c, best in zip(chances, likeliest, strict=True))
        result.append((sum(chances), greedy))
    return result


def own(model, ids, count) -> tuple[float, bool]:
    found = logits.top(model, torch.tensor([ids]))
    greedy = found.ids[0, count - 1 : -1, 0].tolist() == ids[count:]
    return float(found.target_logprobs[0, count - 1 : -1].sum()), greedy


def write(token: str, monkeypatch) -> None:
    """Let the model write this token next, whatever it reads."""
    ids = TOKENIZER(token, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(openai_work, "sampler", lambda *_: constraints.Forced(tuple(ids)))


@pytest.mark.parametrize("after", ["", "<eos>", "<end_of_turn>", "x"])
@pytest.mark.parametrize("as_text", [False, True])
def test_likelihoods_are_the_models_whatever_it_would_write_next(
    after, as_text, server, model, monkeypatch
):
    if after:
        write(after, monkeypatch)
    asked = [divided(pair) for pair in PAIRS]
    sent = [TOKENIZER.decode(ids) if as_text else ids for ids, _ in asked]
    wanted = [own(model, *pair) for pair in asked]
    counts = [count for _, count in asked]
    together = read(post(server, COMPLETIONS, LIKELIHOOD | {"prompt": sent}), counts)
    alone = [
        read(post(server, COMPLETIONS, LIKELIHOOD | {"prompt": one}), [count])[0]
        for one, count in zip(sent, counts, strict=True)
    ]
    for found in (together, alone):
        assert [chance for chance, _ in found] == pytest.approx([c for c, _ in wanted], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_what_the_model_writes_is_greedy(server, model):
    ids, _ = divided(PAIRS[0])
    following = int(logits.top(model, torch.tensor([ids])).ids[0, -1, 0])
    body = LIKELIHOOD | {"prompt": [[*ids, following]]}
    ((chance, greedy),) = read(post(server, COMPLETIONS, body), [len(ids)])
    assert greedy
    assert chance == pytest.approx(own(model, [*ids, following], len(ids))[0], abs=1e-4)


def test_a_prompt_may_leave_room_for_one_token_alone(server, model):
    ids = [2, *[70, 71, 72] * 170]  # of a context of 512
    ((chance, _),) = read(post(server, COMPLETIONS, LIKELIHOOD | {"prompt": [ids]}), [1])
    assert chance == pytest.approx(own(model, ids, 1)[0], rel=1e-5)


def test_an_answer_ends_at_what_lm_eval_stops_at(server):
    body = ANSWER | {"prompt": [TOKENIZER(context)["input_ids"] for context, _ in PAIRS]}
    found = post(server, COMPLETIONS, body)["choices"]
    assert [choice["index"] for choice in found] == [0, 1, 2, 3, 4]
    plain = post(server, COMPLETIONS, body | {"stop": []})["choices"]
    assert [c["text"] for c in found] == [c["text"].split("\n")[0] for c in plain]
    stop = plain[0]["text"][2]
    stopped = post(server, COMPLETIONS, body | {"stop": [stop, "<eos>"]})["choices"]
    assert [c["text"] for c in stopped] == [c["text"].split(stop)[0] for c in plain]


@pytest.mark.parametrize("options", ["True,num_concurrent=2", "False,num_concurrent=1"])
def test_lm_eval_itself_scores_what_is_served(options, model, tmp_path, monkeypatch):
    for name in ("lm_eval", "aiohttp", "tenacity"):
        pytest.importorskip(name)
    write("<eos>", monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies'
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

        rows = [{"question": q, "choices": [a, " the cat", " 12"]} for q, a in PAIRS]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task: dict[str, Any] = {"task": "own", "dataset_path": "json", "test_split": "test"}
        task |= {"output_type": "multiple_choice", "doc_to_text": "{{question}}"}
        task |= {"doc_to_choice": "{{choices}}", "doc_to_target": 0, "target_delimiter": ""}
        files = {"test": str(tmp_path / "rows.jsonl")}
        task["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path / "hf")}
        task["metric_list"] = [{"metric": "acc"}]
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(task))
        TOKENIZER.save_pretrained(tmp_path / "tokenizer")
        who = partner.Partner("tiny", model, TOKENIZER, prompts.by_name("chat", TOKENIZER))
        with serving(who) as server:
            arguments = f"base_url={server.url}{COMPLETIONS},model=tiny,add_bos_token=True"
            arguments += f",tokenizer={tmp_path / 'tokenizer'},tokenized_requests={options}"
            found = lm_eval.simple_evaluate(
                "local-completions",
                model_args=arguments,
                tasks=["own"],
                task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
                batch_size=2,
            )
    right = 0
    for row in found["samples"]["own"]:
        asked = [(row["doc"]["question"], choice) for choice in row["doc"]["choices"]]
        own = [sum(scored.logprobs) for scored in texts.score_texts(model, TOKENIZER, asked)]
        theirs = [float(chance) for chance, _ in row["filtered_resps"]]
        assert theirs == pytest.approx(own, abs=1e-3)
        right += max(own) == own[0]
    assert found["results"]["own"]["acc,none"] == pytest.approx(right / len(PAIRS))
