"""The Python in a model card that asks the run, as its template reads and stops."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ft.runs.report_rows import asked
from ft.text.template import OPTIONAL, Template, from_record

WORDS = 3  # of the question that is asked, at least
HERE = 'tuned = "."  # the folder of this file'  # a push writes the repository's name here

LOAD_ADAPTER = """
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

{here}
tokenizer = AutoTokenizer.from_pretrained(tuned)
base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, tuned)
"""
LOAD_MODEL = """
from transformers import AutoModelForCausalLM, AutoTokenizer

{here}
tokenizer = AutoTokenizer.from_pretrained(tuned)
model = AutoModelForCausalLM.from_pretrained(tuned)
"""
ASK = """
inputs = tokenizer(prompt, return_tensors="pt")  # puts <bos> in front
output = model.generate(
    **inputs,
    max_new_tokens=256,
    do_sample=False,{stopping}
)
new_ids = output[0, inputs["input_ids"].shape[1] :]
answer = tokenizer.decode(new_ids, skip_special_tokens=True)
"""
END = """
    eos_token_id=tokenizer.convert_tokens_to_ids([tokenizer.eos_token, {end!r}]),"""
BEAMS = """
    num_beams={num_beams},
    length_penalty={length_penalty},"""
STOP = """
    stop_strings={stop!r},
    tokenizer=tokenizer,"""
CUT = """for text in {stop!r}:
    answer = answer.partition(text)[0]
"""
ASKED = {"instruction": "How can I make brownies?", "source": "Hello, my name is Morgane."}


def typical(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sample whose question is of median length, among those of ``WORDS`` words or more."""
    longer = [sample for sample in samples if len(asked(sample).split()) >= WORDS] or samples
    return sorted(longer, key=lambda sample: len(asked(sample)))[len(longer) // 2]


def example(
    kept: Mapping[str, Any],
    base: str,
    sample: Mapping[str, Any],
    *,
    whole: bool,
    decoding: Mapping[str, Any],
) -> str:
    """The example for a run with the template of its record, which asks for ``sample``'s fields.

    ``whole``: the folder is a model, and not an adapter of ``base``. ``decoding``: as its scores were made.
    """
    template = from_record(kept)
    pieces = list(template._pieces("prompt"))
    fields = dict.fromkeys(name for _, *names, _ in pieces for name in names if name)
    row = {name: str(sample.get(name, ASKED.get(name, OPTIONAL.get(name, "…")))) for name in fields}
    stop = list(template.stop)
    searched = BEAMS.format(**decoding) if decoding.get("num_beams", 1) > 1 else ""
    stopping = (
        searched + END.format(end=template.end) if template.end else ""
    )  # else as its base names it
    stopping += STOP.format(stop=stop) if stop else ""
    lines = [
        (LOAD_MODEL if whole else LOAD_ADAPTER).format(here=HERE, base=base),
        *("row = {", *(f"    {name!r}: {text!r}," for name, text in row.items()), "}"),
        *('prompt = "".join(', "    [", *_parts(template), "    ]", ")"),
        ASK.format(stopping=stopping).strip(),
        (CUT.format(stop=stop) if stop else "") + "print(answer.strip())",
    ]
    return "\n".join(lines)


def _parts(template: Template) -> list[str]:
    """The prompt's pieces as Python, a section's with the condition that it stands under."""
    parts = []
    for (section, present), group in itertools.groupby(
        template._pieces("prompt"), key=lambda piece: piece[2:]
    ):
        value = " + ".join(
            f"row[{field!r}]" + ".strip()" * (field in template.strip) if field else repr(literal)
            for literal, field, *_ in group
            if literal or field
        )
        condition = f"{'' if present else 'not '}row[{section!r}].strip()"
        if value:
            parts.append(f"        {value}" + f' if {condition} else ""' * bool(section) + ",")
    return parts
