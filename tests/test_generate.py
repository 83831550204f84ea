"""Greedy answers: a batch gives what single prompts give, and what transformers gives; stops do not leak."""

import pytest
import tiny
import torch

from ft import generate, prompts
from ft.errors import UserError

ROWS = [{"source": text} for text in ("le chat", "Hello, my name is Morgane.", "a", "table " * 9)]
TEMPLATE = prompts.translation()


def answers(model, rows=ROWS, template=TEMPLATE, **options):
    return generate.greedy(
        model, tiny.tokenizer(), template, rows, **{"max_new_tokens": 12, **options}
    )


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_batch_gives_exactly_what_single_prompts_give(kind):
    model = tiny.build(kind)
    assert answers(model) == [answers(model, [row])[0] for row in ROWS]


def test_answers_equal_transformers_own():
    model, tokenizer = tiny.build("gemma3_text"), tiny.tokenizer()
    template = prompts.Template("plain", "{source}", "{target}")
    for row, found in zip(ROWS, answers(model, template=template), strict=True):
        ids = torch.tensor([tokenizer(row["source"])["input_ids"]])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        text = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert found == text.strip()


def test_generation_stops_at_every_token_that_holds_a_stop_string():
    tokenizer = tiny.tokenizer()
    stops = generate.stop_ids(tokenizer, TEMPLATE)
    assert tokenizer.eos_token_id in stops
    newline = tokenizer("a\nb", add_special_tokens=False)["input_ids"]
    assert set(newline) & set(stops)
    assert all("\n" in tokenizer.decode([i]) for i in stops if i != tokenizer.eos_token_id)


def test_what_stands_before_the_stop_inside_its_token_is_kept(monkeypatch):
    """A token such as ``.\\n`` ends the answer and gives it its full stop."""
    model, tokenizer = tiny.build("gemma3_text"), tiny.tokenizer()
    template = prompts.Template("plain", "{source}", "{target}")
    (whole,) = answers(model, ROWS[:1], template)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    monkeypatch.setattr(generate, "stop_ids", lambda *_: [1, ids[2]])
    (stopped,) = answers(model, ROWS[:1], template)
    assert whole.startswith(stopped)
    assert len(stopped) >= len(tokenizer.decode(ids[:3]).strip())


def test_an_answer_is_bounded_by_its_own_prompt_whatever_its_batch():
    model = tiny.build("gemma3_text")
    template = prompts.Template("plain", "{source}", "{target}")
    whole = answers(model, template=template, max_new_tokens=60)
    bounded = answers(model, template=template, max_new_tokens=60, max_ratio=0.5)
    alone = [answers(model, [row], template, max_new_tokens=60, max_ratio=0.5)[0] for row in ROWS]
    assert bounded == alone
    assert all(long.startswith(short) for long, short in zip(whole, bounded, strict=True))
    assert bounded != whole


def test_training_mode_is_left_as_it_was():
    model = tiny.build("gemma3_text").train()
    answers(model, ROWS[:1])
    assert model.training


def test_an_empty_row_is_named():
    with pytest.raises(UserError, match="row 2 is empty"):
        answers(tiny.build("gemma3_text"), [ROWS[0], {"source": "  "}])


def test_a_prompt_longer_than_the_context_is_named():
    with pytest.raises(UserError, match=r"row 1 has \d+ tokens; .*context of 512"):
        answers(tiny.build("gemma3_text"), [{"source": "x" * 600}])


@pytest.mark.real
def test_the_real_base_model_continues_in_french():
    pytest.importorskip("gguf", reason='needs pip install "ft[embedded]"')
    from ft import models

    base = models.load("embedded", precision="fp32")
    template = prompts.Template(
        "one example",
        "English: Good morning.\nFrench: Bonjour.\nEnglish: {source}\nFrench:",
        "{target}",
        stop=("\n",),
    )
    rows = [{"source": "My name is Morgane."}]
    found = generate.greedy(base.model, base.tokenizer, template, rows, max_new_tokens=12)
    assert found == ["Je m'appelle Morgane."]


def test_the_highest_logit_is_the_first_one_also_by_blocks():
    torch.manual_seed(0)
    for width in (2 * generate.BLOCK, 700):
        logits = torch.randn(5, width).bfloat16()
        logits[1, [3, 600]] = logits[2, [40, 41]] = 9.0
        assert generate._argmax(logits).tolist() == [
            max(range(width), key=lambda i, row=row: row[i].item()) for row in logits
        ]
    assert generate._argmax(logits).tolist()[1:3] == [3, 40]


def test_a_batch_holds_no_more_keys_and_values_than_it_may(monkeypatch):
    model, sizes = tiny.build("gemma3_text"), []
    width = generate._cache_bytes(model)
    c = model.config
    assert width == 4 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    monkeypatch.setattr(generate, "CACHE_BYTES", {"cpu": 3 * 40 * width})
    plain = generate._answers
    monkeypatch.setattr(
        generate,
        "_answers",
        lambda m, prompts, *a: sizes.append(len(prompts)) or plain(m, prompts, *a),
    )
    rows = [{"source": "a b c"}] * 7
    found = answers(model, rows, max_new_tokens=4)
    assert len(found) == 7
    assert max(sizes) < 7
    assert sum(sizes) == 7
