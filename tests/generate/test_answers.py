"""Answers: a batch gives what single prompts give, and what transformers gives; stops do not leak; bad input is named."""

import dataclasses

import pytest
import torch
from support import tiny

from ft import models
from ft.errors import UserError
from ft.generate import answers as generate
from ft.generate import growing, room, together
from ft.generate.constraints import Banned, Forced, RepetitionPenalty
from ft.generate.samplers import Beam, Chain, Contrastive, Greedy, Sample, TopK, TopP
from ft.models import lora
from ft.text import prompts
from ft.text.template import Template

ROWS = [{"source": text} for text in ("le chat", "Hello, my name is Morgane.", "a", "table " * 9)]
TEMPLATE = prompts.translation()
PLAIN = Template("plain", "{source}", "{target}")
PROMPTS = [row["source"] for row in ROWS]


def answers(model, rows=ROWS, template=TEMPLATE, **options):
    return generate.of_rows(
        model, tiny.tokenizer(), template, rows, **{"max_new_tokens": 12, **options}
    )


def written(model, prompts, sampler=Greedy(), **options):  # noqa: B008
    return generate.generate(
        model, tiny.tokenizer(), prompts, sampler, **{"max_new_tokens": 10, **options}
    )


def ids(found):
    return [[answer.ids for answer in group] for group in found]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_batch_gives_exactly_what_single_prompts_give(kind):
    model = tiny.build(kind)
    assert answers(model) == [answers(model, [row])[0] for row in ROWS]


def test_answers_equal_transformers_own():
    model, tokenizer = tiny.build("gemma3_text"), tiny.tokenizer()
    for row, found in zip(ROWS, answers(model, template=PLAIN), strict=True):
        ids = torch.tensor([tokenizer(row["source"])["input_ids"]])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        text = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert found == text.strip()


def test_what_stands_before_the_stop_inside_its_token_is_kept():
    """A token such as ``.\\n`` ends the answer and gives it its full stop."""
    model = tiny.build("gemma3_text")
    (whole,) = answers(model, ROWS[:1], PLAIN)
    assert len(whole) > 4
    for at in range(1, len(whole) - 1):
        stop = whole[at : at + 2]
        (stopped,) = answers(model, ROWS[:1], dataclasses.replace(PLAIN, stop=(stop,)))
        assert stopped == whole[: whole.find(stop)].strip()


def test_an_answer_is_bounded_by_its_own_prompt_whatever_its_batch():
    model = tiny.build("gemma3_text")
    whole = answers(model, template=PLAIN, max_new_tokens=60)
    bounded = answers(model, template=PLAIN, max_new_tokens=60, max_ratio=0.5)
    alone = [answers(model, [row], PLAIN, max_new_tokens=60, max_ratio=0.5)[0] for row in ROWS]
    assert bounded == alone
    assert all(long.startswith(short) for long, short in zip(whole, bounded, strict=True))
    assert bounded != whole
    drawn = written(model, PROMPTS, Sample(), n=2, max_new_tokens=60, max_ratio=0.5)
    assert max(len(answer.ids) for group in drawn for answer in group) > 16
    for prompt, group in zip(PROMPTS, drawn, strict=True):
        most = len(tiny.tokenizer()(prompt)["input_ids"]) // 2 + 16
        assert all(len(answer.ids) <= most for answer in group)


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
    pytest.importorskip("gguf", reason='needs pip install "gemma-ft[embedded]"')
    base = models.load("embedded", precision="fp32")
    template = Template(
        "one example",
        "English: Good morning.\nFrench: Bonjour.\nEnglish: {source}\nFrench:",
        "{target}",
        stop=("\n",),
    )
    rows = [{"source": "My name is Morgane."}]
    found = generate.of_rows(base.model, base.tokenizer, template, rows, max_new_tokens=12)
    assert found == ["Je m'appelle Morgane."]


def test_a_batch_holds_no_more_keys_and_values_than_it_may(monkeypatch):
    model, sizes = tiny.build("gemma3_text"), []
    width = room.cache_bytes(model)
    c = model.config
    assert width == 4 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    monkeypatch.setattr(room, "CACHE_BYTES", {"cpu": 3 * 40 * width})
    plain = together.Decoder
    monkeypatch.setattr(
        together, "Decoder", lambda m, p, *a, **o: sizes.append(len(p)) or plain(m, p, *a, **o)
    )
    rows = [{"source": "a b c"}] * 7
    found = answers(model, rows, max_new_tokens=4)
    assert len(found) == 7
    assert max(sizes) < 7
    assert sum(sizes) == 7


def test_answers_to_one_prompt_are_no_more_at_a_time_than_there_is_room_for(monkeypatch):
    model, sizes = tiny.build("gemma3_text"), []
    monkeypatch.setattr(room, "CACHE_BYTES", {"cpu": 3 * 20 * room.cache_bytes(model)})
    model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = written(model, [[2, 40, 50], [2, 60]], Sample(), n=7, max_new_tokens=15)
    assert 3 <= max(sizes) <= 4
    monkeypatch.undo()
    assert ids(found) == ids(
        written(model, [[2, 40, 50], [2, 60]], Sample(), n=7, max_new_tokens=15)
    )


# prompts to answers by any sampler


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_with_a_cache_and_without_the_answers_are_the_same(kind):
    model = tiny.build(kind)
    found = written(model, PROMPTS)
    assert ids(found) == ids(written(model, PROMPTS, use_cache=False))
    evaluated = answers(model, [{"source": p} for p in PROMPTS], PLAIN, max_new_tokens=10)
    assert [answer.text.strip() for (answer,) in found] == evaluated


@pytest.mark.parametrize("kind", ["gemma3_text", "gemma4_text", "recurrent_gemma"])
@pytest.mark.parametrize("sampler", [TopP(0.9), Contrastive(3, 0.5), Beam(3)])
def test_every_sampler_gives_a_batch_what_single_prompts_get(kind, sampler):
    model = tiny.build(kind)
    together = written(model, PROMPTS, sampler, max_new_tokens=6)
    alone = [written(model, [p], sampler, max_new_tokens=6)[0] for p in PROMPTS]
    uncached = written(model, PROMPTS, sampler, max_new_tokens=6, use_cache=False)
    assert ids(together) == ids(alone) == ids(uncached)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "recurrent_gemma"])
@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_and_beam_equal_transformers(kind, beams):
    model, tokenizer = tiny.build(kind), tiny.tokenizer()
    for penalty in (0.0, 1.0) if beams > 1 else (1.0,):
        sampler = Beam(beams, penalty) if beams > 1 else Greedy()
        for prompt, found in zip(
            PROMPTS[:3], written(model, PROMPTS[:3], sampler, n=beams), strict=True
        ):
            given = torch.tensor([tokenizer(prompt)["input_ids"]])
            theirs = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=10,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=penalty if beams > 1 else None,
            )[:, given.shape[1] :]
            for ours, other in zip(found, theirs.tolist(), strict=True):
                assert list(ours.ids) == other[: len(ours.ids)]
                assert set(other[len(ours.ids) :]) <= {0, 1}  # where others are longer


def test_log_probabilities_are_the_models_own():
    model, tokenizer = tiny.build("gemma2"), tiny.tokenizer()
    for sampler in (Greedy(), TopK(5, temperature=0.5), Beam(2), Contrastive(4, 0.6)):
        ((answer,),) = written(model, PROMPTS[:1], sampler)
        prompt = tokenizer(PROMPTS[0])["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer.ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(answer.ids)), answer.ids]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=1e-4, atol=1e-4)


def test_draws_depend_on_seed_prompt_and_number_alone():
    model = tiny.build("gemma")
    four = written(model, [PROMPTS[0]], Sample(), n=4)[0]
    assert len({a.ids for a in four}) == 4
    expected = [a.ids for a in four]
    assert ids(written(model, [PROMPTS[0]] * 4, Sample())) == [[i] for i in expected]
    assert ids(written(model, PROMPTS, Sample(), n=2))[0] == expected[:2]
    assert ids(written(model, PROMPTS[::-1], Sample(), n=3))[-1] == expected[:3]
    assert not {a.ids for a in written(model, [PROMPTS[0]], Sample(), n=4, seed=1)[0]} & {
        a.ids for a in four
    }


def test_a_function_of_ones_own_and_chains_write_answers():
    model = tiny.build("gemma")
    own = written(model, PROMPTS, lambda logits, _: logits.argmax(-1))
    assert own == written(model, PROMPTS, Greedy())
    forced = Chain((Forced((40, 50)), Banned((60,)), RepetitionPenalty(1.3), TopK(8)))
    for (answer,) in written(model, PROMPTS, forced):
        assert answer.ids[:2] == (40, 50)
        assert 60 not in answer.ids


def test_repetition_is_penalised():
    model = tiny.build("gemma")
    plain, penalised = (
        written(model, ["a"], sampler, max_new_tokens=60)[0][0].ids
        for sampler in (Greedy(), Chain((RepetitionPenalty(20.0), Greedy())))
    )
    assert len(set(penalised)) > len(set(plain))


def test_reasons_and_what_each_leaves_out():
    model, tokenizer = tiny.build("gemma3_text"), tiny.tokenizer()
    ((whole,),) = written(model, PROMPTS[:1])
    assert whole.reason == "length"
    assert len(whole.ids) == len(whole.logprobs) == 10
    assert whole.text == tokenizer.decode(whole.ids)
    stop = whole.text[3:6]
    ((cut,),) = written(model, PROMPTS[:1], stop=[stop])
    assert (cut.reason, cut.text) == ("stop", whole.text[: whole.text.find(stop)])
    assert cut.ids == whole.ids[: len(cut.ids)]
    model.generation_config.eos_token_id = [1, whole.ids[4]]
    ((ended,),) = written(model, PROMPTS[:1])
    at = whole.ids.index(whole.ids[4])
    assert (ended.reason, ended.ids) == ("end", whole.ids[: at + 1])
    assert ended.text == tokenizer.decode(whole.ids[:at])


def test_the_templates_end_token_and_stop_strings_end_answers():
    model, tokenizer = tiny.build("gemma"), tiny.tokenizer()
    ((whole,),) = written(model, PROMPTS[:1])
    turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    forced = Chain((Forced((*whole.ids[:2], turn, 60)), Greedy()))
    template = Template("turns", "{source}", "{target}", end="<end_of_turn>")
    ((answer,),) = written(model, PROMPTS[:1], forced, template=template)
    assert (answer.reason, answer.ids) == ("end", (*whole.ids[:2], turn))
    ((by_name,),) = written(model, PROMPTS[:1], forced, stop=["<end_of_turn>"])
    assert by_name == answer
    ((past,),) = written(model, PROMPTS[:1], forced)
    assert past.ids[2:4] == (turn, 60)
    book = Template("book", "{source}", "{target}", stop=("[end]",))
    said = tuple(tokenizer("le chat[end] dort", add_special_tokens=False)["input_ids"])
    assert len(said) > 6
    forced = Chain((Forced(said), Greedy()))
    ((answer,),) = written(model, PROMPTS[:1], forced, template=book, max_new_tokens=len(said))
    assert (answer.reason, answer.text) == ("stop", "le chat")
    assert len(answer.ids) < len(said)


@pytest.mark.parametrize("sampler", [Greedy(), TopP(0.9), Contrastive(3, 0.5), Beam(2)])
def test_a_stream_gives_the_text_of_the_first_answer(sampler):
    model, tokenizer = tiny.build("gemma3_text"), tiny.tokenizer()
    for stop in ([], ["e"], ["t t"]):
        ((answer,),) = written(model, PROMPTS[:1], sampler, stop=stop, max_new_tokens=40)
        pieces = growing.stream(model, tokenizer, PROMPTS[0], sampler, max_new_tokens=40, stop=stop)
        assert "".join(pieces) == answer.text


def test_a_stream_is_written_as_it_is_read_and_leaves_the_model_as_it_was():
    model, tokenizer = tiny.build("gemma3_text").train(), tiny.tokenizer()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    pieces = growing.stream(model, tokenizer, "a b", max_new_tokens=30)
    assert not calls
    next(pieces)
    assert len(calls) < 8
    assert not model.training
    assert not torch.is_inference_mode_enabled()
    pieces.close()
    assert model.training
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_answers_to_one_prompt_share_its_computation():
    model, widths = tiny.build("gemma3_text"), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    written(model, ["a b c"], Sample(), n=5, max_new_tokens=3)
    assert widths[0][0] == 1
    assert widths[1] == (5, 1)


def test_an_answer_ends_where_the_context_does():
    model = tiny.build("gemma", max_position_embeddings=20)
    ((answer,),) = written(model, [[2] * 15], max_new_tokens=99)
    assert (len(answer.ids), answer.reason) == (5, "length")


def test_bos_is_put_before_text_once_and_ids_are_taken_as_they_are(monkeypatch):
    model, seen = tiny.build("gemma"), []
    plain = together.Decoder
    monkeypatch.setattr(
        together, "Decoder", lambda m, p, *a, **o: seen.extend(p) or plain(m, p, *a, **o)
    )
    written(model, ["a", "<bos>a", [70, 71]], max_new_tokens=1)
    assert sorted(map(tuple, seen)) == sorted([(2, seen[0][1]), (2, seen[0][1]), (70, 71)])


def test_adapters_and_quantised_bases_write(folder):
    base = models.load(folder("gemma3_text"), precision="nf4")
    plain = written(base.model, PROMPTS)
    adapted = lora.attach(base, r=2, alpha=4)
    assert ids(written(adapted, PROMPTS)) == ids(plain)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight += 0.3
    tuned = written(adapted, PROMPTS)
    assert ids(tuned) != ids(plain)
    for (batched,), prompt in zip(tuned, PROMPTS, strict=True):
        ((alone,),) = written(adapted, [prompt])
        # products in bf16 round by their shape, so that of two close words either may be the first
        assert batched.logprobs[0] == pytest.approx(alone.logprobs[0], abs=0.1)


def test_other_causal_models_write_too():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=400,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=2,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    found = written(model, PROMPTS)
    assert ids(found) == ids(written(model, PROMPTS, use_cache=False))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([""], {}, "prompt 1 is empty"),
        (["a", []], {}, "prompt 2 is empty"),
        ("a", {}, "prompts is a single string"),
        ([[2, 400]], {}, "prompt 1: id 400; the model's go from 0 to 399"),
        (["x" * 600], {}, "prompt 1 has 601 tokens, and the model's context of 512"),
        (["a"], {"stop": ["b", ""]}, "a stop string is empty"),
        (["a"], {"stop": ""}, "a stop string is empty"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens = 0"),
        (["a"], {"n": 0}, "n = 0"),
        (["a"], {"n": 2, "sampler": Beam(1)}, r"n = 2: Beam\(width=1.* has 1 answer to a prompt"),
        (["a"], {"n": 4, "sampler": Beam(3)}, "has 3 answers to a prompt"),
        (["a"], {"n": 2, "sampler": Greedy()}, "has 1 answer to a prompt"),
        (["a"], {"n": 2, "sampler": Contrastive(2, 0.5)}, "has 1 answer to a prompt"),
    ],
)
def test_what_cannot_be_answered_is_one_error(prompts, options, message):
    model = tiny.build("gemma")
    with pytest.raises(UserError, match=message):
        written(model, prompts, **options)


def test_a_stream_refuses_at_once():
    model, tokenizer = tiny.build("gemma"), tiny.tokenizer()
    with pytest.raises(UserError, match="prompt 1 is empty"):
        growing.stream(model, tokenizer, "")


@pytest.mark.parametrize("sampler", [Greedy(), TopK(3), Beam(2), Contrastive(3, 0.5)])
def test_damaged_weights_are_one_error(sampler):
    model = tiny.build("gemma")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        written(model, PROMPTS, sampler)


@pytest.mark.real
def test_greedy_and_beam_equal_transformers_on_the_real_model():
    pytest.importorskip("gguf", reason='needs pip install "gemma-ft[embedded]"')
    base = models.load("embedded", precision="fp32")
    for beams, text in ((1, "The capital of France is"), (3, "Once upon a time, a cat")):
        given = torch.tensor([base.tokenizer(text)["input_ids"]])
        theirs = base.model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False,
            num_beams=beams,
        )  # fmt: skip
        sampler = Beam(beams) if beams > 1 else Greedy()
        ((ours,),) = generate.generate(
            base.model, base.tokenizer, [text], sampler, max_new_tokens=12
        )
        assert list(ours.ids) == theirs[0, given.shape[1] :].tolist()
