"""Images beside text: the ids, labels and pixels of transformers' own processor, in batches and in generation."""

import json

import pytest
import torch
from PIL import Image
from support import seeing, tiny

from ft import __main__ as cli
from ft import models
from ft.chat.conversation import Conversation
from ft.data import images, pictures
from ft.data.images import open_image
from ft.errors import UserError
from ft.generate import answers as generate
from ft.generate.samplers import Beam, TopP
from ft.kernels import cross_entropy
from ft.models import vision
from ft.score import likelihood
from ft.text import chat_template
from ft.text.prompts import by_name
from ft.text.tokens import IGNORE

ASK, TELL = " Which one is <image> and\nwhich <image>? ", "red circle, top left"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a photo that is not square, drawn pictures, and rows with two, one and no image."""
    place = tmp_path_factory.mktemp("vision")
    seeing.folder(place / "base")
    pictures.write(place, 3, 0)
    Image.new("RGBA", (90, 40), (200, 30, 30, 128)).save(place / "photo.png")
    rows = [
        {"images": ["00000.png", "photo.png"], "prompt": ASK, "completion": TELL},
        {"image": "00001.png", "prompt": "What?", "completion": "blue"},
        {"prompt": "What is the capital of France?", "completion": "Paris."},
        {
            "images": ["00002.png"],
            "prompt": "What is on it, and where?",
            "completion": "green cross",
        },
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def base(place):
    found = models.load(str(place / "base"), precision="fp32", text_only=False)
    cross_entropy.install(found.model)
    return found


@pytest.fixture(scope="module")
def see(place):
    return vision.reader(str(place / "base"))


@pytest.fixture(scope="module")
def rows(place):
    return images.read(place / "rows.jsonl")


@pytest.fixture(scope="module")
def chat(base):
    return by_name("chat", base.tokenizer)


@pytest.fixture(scope="module")
def examples(rows, chat, base, see):
    return vision.encode(rows, chat, base.tokenizer, see, max_length=200).examples


def prompt(see, chat, tokenizer, row):
    opened = [open_image(path) for path in row["images"]]
    return see.prompt(chat, {"instruction": row["prompt"], "images": opened}, tokenizer)


def conversation(row, *, answered):
    """A row as messages with parts, as transformers' processors take them."""
    parts = []
    left = [{"type": "image", "image": open_image(path)} for path in row["images"]]
    for number, text in enumerate(row["prompt"].split("<image>")):
        parts += left[:1] if number else []
        left = left[1:] if number else left
        parts += [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": [*left, *parts]}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": row["completion"]}]}
    return [*messages, answer] if answered else messages


@pytest.mark.parametrize("number", range(4))
def test_ids_types_and_pixels_are_those_of_the_processors_chat_template(
    number, rows, examples, chat, base, see
):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    ours = vision.batch([examples[number]], see, 0)
    theirs = see.processor.apply_chat_template(conversation(rows[number], answered=True), **options)
    assert ours.keys() - {"labels"} == theirs.keys() - {"attention_mask"}
    for name in ours.keys() - {"labels"}:
        assert torch.equal(ours[name], theirs[name]), name
    asked = see.processor.apply_chat_template(
        conversation(rows[number], answered=False), add_generation_prompt=True, **options
    )["input_ids"][0]
    end = base.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    answer = base.tokenizer(rows[number]["completion"], add_special_tokens=False)["input_ids"]
    learnt = [(i, x) for i, x in enumerate(ours["labels"][0].tolist()) if x != IGNORE]
    assert learnt == [*enumerate([*answer, end], start=len(asked))]
    given = prompt(see, chat, base.tokenizer, rows[number])
    assert given == asked.tolist()


def test_the_loss_is_transformers_own(base, examples, see):
    """The model with its whole logits, and attention in both directions among an image's tokens."""
    from transformers import Gemma3ForConditionalGeneration

    plain = Gemma3ForConditionalGeneration.from_pretrained(base.path).eval()
    batch = vision.batch(examples[:1], see, 0)
    with torch.no_grad():
        theirs = plain(**batch).loss * (batch["labels"] != IGNORE).sum()
        ours = base.model(**batch)["loss"]
        blind = plain(**batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert abs(blind * (batch["labels"] != IGNORE).sum() - theirs) > 1e-4


def test_a_batch_of_mixed_rows_is_its_rows_one_by_one(base, examples, see):
    with torch.no_grad():
        together = base.model(**vision.batch(examples, see, 0))["loss"]
        alone = [base.model(**vision.batch([e], see, 0))["loss"] for e in examples]
        other = base.model(**vision.batch(examples[::-1], see, 0))["loss"]
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other, together, rtol=1e-5, atol=1e-5)

    def batch(some):
        return vision.batch(some, see, 0)

    whole, pairs = (
        likelihood.loss(base.model, examples, batch_size=n, batch=batch) for n in (4, 2)
    )
    assert whole == pytest.approx(pairs, rel=1e-5)


def test_the_tokens_of_an_image_look_both_ways_and_at_no_later_image(base, examples, see):
    """The trained path: what an image's last token is decides what its first one becomes."""
    batch = vision.batch(examples[:1], see, 0)
    seen = (batch["token_type_ids"][0] == 1).nonzero().flatten()
    first, last, later = int(seen[0]), int(seen[15]), int(seen[16])
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}

    def hidden(ids):
        with torch.no_grad():
            return base.model.model(**inputs | {"input_ids": ids}, use_cache=False)[0][0, first]

    def changed(at):
        ids = batch["input_ids"].clone()
        ids[0, at] = 7
        return not torch.allclose(hidden(ids), hidden(batch["input_ids"]), atol=1e-6)

    assert changed(last)
    assert not changed(later)


@pytest.mark.parametrize("sampler", [generate.Greedy(), TopP(0.9), Beam(2)], ids=repr)
def test_generation_with_images_is_the_same_cached_uncached_together_and_alone(
    sampler, base, rows, chat, see
):
    def written(chosen, **options):
        found = [prompt(see, chat, base.tokenizer, row) for row in chosen]
        answers = generate.generate(
            base.model, base.tokenizer, found, sampler, max_new_tokens=8, template=chat, **options
        )
        return [answer.ids for (answer,) in answers]

    together = written(rows)
    assert together == written(rows, use_cache=False)
    assert together == [written([row])[0] for row in rows]
    assert len(set(together)) > 1


def test_the_answer_depends_on_the_image_and_is_transformers_own(base, rows, chat, see, place):
    from transformers import Gemma3ForConditionalGeneration

    plain = Gemma3ForConditionalGeneration.from_pretrained(base.path).eval()
    row = rows[1]
    found = prompt(see, chat, base.tokenizer, row)
    inputs = see.processor.apply_chat_template(
        conversation(row, answered=False),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = plain.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(found) :]
    ((answer,),) = generate.generate(base.model, base.tokenizer, [found], max_new_tokens=8)
    assert list(answer.ids) == ids.tolist()
    with torch.no_grad():
        inputs["pixel_values"] = -inputs["pixel_values"]
        assert not torch.equal(plain(**inputs).logits, base.model(**found_inputs(found)).logits)


def found_inputs(found):
    ids = torch.tensor([found])
    return {"input_ids": ids, found.types: (ids == found.token).long(), **found.pixels}


def test_a_conversation_keeps_its_image_and_earlier_turns(base, chat, see):
    red = Image.new("RGB", (64, 64), "red")
    talk = Conversation(chat, see=see).instructed("Be brief.").asked("What?", [red])
    talk = talk.answered("red").asked("Sure?")
    ids = talk.ids(base.tokenizer)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": red}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    theirs = see.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    plain = Conversation(chat, see=see).asked("What?", [red]).answered("red").asked("Sure?")
    assert plain.ids(base.tokenizer) == theirs["input_ids"][0].tolist()
    assert torch.equal(ids.pixels["pixel_values"], theirs["pixel_values"])
    assert ids.count(see.token) == 16
    assert talk.fitted(base.tokenizer, 30)[1] == 1  # without the exchange that had it


def test_a_prompt_without_a_template_begins_with_the_image(base, see):
    red = Image.new("RGB", (64, 64), "red")
    ids = see.prompt(None, {"text": "It is", "images": [red]}, base.tokenizer)
    shown = base.tokenizer.decode(ids)
    assert shown.startswith("<bos>\n\n<start_of_image><image_soft_token>")
    assert shown.endswith("<end_of_image>\n\nIt is")


def test_images_are_never_cut(rows, chat, base, see):
    def encode(length, policy):
        return vision.encode(rows, chat, base.tokenizer, see, max_length=length, policy=policy)

    whole = encode(200, "error")
    longest = max(whole.lengths)
    cut = encode(longest - 1, "truncate")
    assert cut.truncated == 1
    assert [e["input_ids"].count(see.token) for e in cut.examples] == [32, 16, 0, 16]
    assert encode(longest - 1, "drop").rows == [1, 2, 3]
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: 2 images take 32 tokens, which max_length=32 has no"
    ):
        encode(32, "drop")


def test_a_control_token_in_a_text_and_a_tokenizer_that_cuts_images_up_are_refused(
    rows, chat, base, see
):
    bad = [rows[1] | {"prompt": "<start_of_image>?"}]
    with pytest.raises(UserError, match="row 1, prompt: the text contains '<start_of_image>'"):
        vision.encode(bad, chat, base.tokenizer, see, max_length=99)
    with pytest.raises(UserError, match=r"rows\.jsonl:2: 0 image tokens for images of 16"):
        vision.encode([rows[1]], chat, tiny.tokenizer(), see, max_length=999)
    with pytest.raises(UserError, match="the text has <image> 1 times, and there are 0 images"):
        vision.marked("<image>", 0)


def test_models_that_do_not_fit_images_are_refused(place, folder, tmp_path):
    with pytest.raises(UserError, match="takes no images: it is a gemma3_text model"):
        vision.reader(folder("gemma3_text"))
    with pytest.raises(UserError, match="has no image processor"):
        vision.reader(folder("gemma3"))
    seeing.folder(tmp_path / "base")
    file = tmp_path / "base" / "processor_config.json"
    file.write_text(file.read_text().replace('"image_seq_length": 16', '"image_seq_length": 4'))
    with pytest.raises(UserError, match="writes 4 tokens for an image, and the model makes 16"):
        vision.reader(str(tmp_path / "base"))


def test_commands_show_an_image(place, capsys, monkeypatch, folder):
    import io
    import sys

    photo, model = str(place / "photo.png"), str(place / "base")
    short = ["--max-new-tokens", "4", "--precision", "fp32", "--image", photo]
    said = {}
    for name, more in {"one": [], "two": ["--image", str(place / "00000.png")]}.items():
        cli.main(["generate", model, "What?", *short, *more, "--template", "chat", "--json"])
        said[name] = json.loads(capsys.readouterr().out)["ids"]
    assert said["one"] != said["two"]
    lines = f"What?\n/image {place / '00000.png'}\nAnd now?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    cli.main(["chat", model, *short])
    out, err = capsys.readouterr()
    assert out.count("\n") >= 2
    assert "the next question is about" in err
    for command in (["generate", folder("gemma3_text"), "What?"], ["chat", folder("gemma3_text")]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, *short])
        assert stop.value.code == 2
        assert "takes no images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["chat", model, "--image", str(place / "none.png")])
    assert "none.png: No such file" in capsys.readouterr().err


def test_the_chat_template_of_the_tiny_model_is_read_as_turns(base):
    template = chat_template.read(base.tokenizer)
    assert template.end == "<end_of_turn>"
    assert template.prompt.startswith("{?system}") or "<start_of_turn>user\n" in template.prompt


def gemma4(both_ways):
    """A tiny Gemma 4, whose images have as many tokens as their shape asks for, and its reader.

    transformers' own processor needs torchvision for its videos, so its parts for images stand alone here.
    """
    from types import SimpleNamespace

    pytest.importorskip(  # of transformers 5.17 even these parts need it
        "transformers.models.gemma4.processing_gemma4", reason="no torchvision"
    )
    from transformers import AutoModelForCausalLM
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    config = tiny.config("gemma4", use_bidirectional_attention="vision" if both_ways else None)
    config.vision_config.position_embedding_size = 64
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    cross_entropy.install(model)
    tokenizer = tiny.tokenizer()
    names = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values())})
    processor = SimpleNamespace(
        tokenizer=tokenizer,
        image_processor=Gemma4ImageProcessorPil(
            patch_size=4, pooling_kernel_size=2, max_soft_tokens=70
        ),
        **names,
    )
    processor.replace_image_token = lambda *a: Gemma4Processor.replace_image_token(processor, *a)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<|image|>")
    return model, vision.Reader(
        processor, model.config.image_token_id, "mm_token_type_ids", "<|image|>"
    )


@pytest.mark.parametrize("both_ways", [False, True])
def test_gemma_4_sees_images_of_several_shapes(both_ways, rows):
    model, see = gemma4(both_ways)
    tokenizer, plain = see.processor.tokenizer, by_name("plain", see.processor.tokenizer)
    found = vision.encode(rows, plain, tokenizer, see, max_length=300).examples
    photo, square = (see.filling([rows[0]["images"][i]])("<image>") for i in (1, 0))
    assert photo.count("<|image|>") != square.count("<|image|>") > 0
    with torch.no_grad():
        together = model(**vision.batch(found, see, 0))["loss"]
        alone = [model(**vision.batch([e], see, 0))["loss"] for e in found]
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-5)
    prompts = [prompt(see, plain, tokenizer, row) for row in rows]
    cached, uncached = (
        [
            a.ids
            for (a,) in generate.generate(model, tokenizer, prompts, max_new_tokens=5, use_cache=c)
        ]
        for c in (True, False)
    )
    assert cached == uncached
