"""Write on from a prompt, by any sampler."""

import argparse
import json as json_text
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ft.cli import console
from ft.errors import UserError

if TYPE_CHECKING:
    from ft.generate.draft import Answer
    from ft.generate.samplers import Sampler

# the settings of each sampler, and what they are where none is given
SAMPLERS: dict[str, dict[str, float]] = {
    "greedy": {},
    "sample": {"temperature": 1.0},
    "top-k": {"k": 40, "temperature": 1.0},
    "top-p": {"p": 0.9, "temperature": 1.0},
    "min-p": {"p": 0.1, "temperature": 1.0},
    "beam": {"width": 4, "length_penalty": 1.0},
    "contrastive": {"k": 4, "alpha": 0.6},
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft generate``."""
    parser.epilog = 'example: ft generate embedded "Once upon a time" --sampler top-k --k 5 --n 4'
    add = parser.add_argument
    add("name", metavar="RUN|MODEL", help="a run, or a model: a folder, Hub id, or `embedded`")
    add("prompts", metavar="PROMPT", nargs="+", help="one or several texts to go on from")
    add("--sampler", choices=list(SAMPLERS), default="greedy", help="(default greedy)")
    add("--k", type=int, help="of top-k (default 40) and contrastive (4)")
    add("--p", type=float, help="of top-p (default 0.9) and min-p (0.1)")
    add("--temperature", type=float, help="of sample, top-k, top-p and min-p (default 1)")
    add("--width", type=int, help="of beam (default 4)")
    add("--length-penalty", type=float, help="of beam: above 1 favours long answers (default 1)")
    add("--alpha", type=float, help="of contrastive: weight of the penalty for likeness (0.6)")
    add("--repetition-penalty", type=float, help="above 1: what was said becomes less likely")
    add("--n", type=int, default=1, help="answers to each prompt (default 1)")
    add("--seed", type=int, default=0, help="of what is drawn (default 0)")
    add("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    add("--stop", action="append", default=[], help="end before this text; may be repeated")
    add("--raw", action="store_true", help="a run: the prompt as it is, not in the run's template")
    add("--base", action="store_true", help="the base model of a run instead")
    add("--precision", default="auto", help="auto, fp32, bf16, nf4 or int8 (default auto)")
    add("--image", action="append", default=[], help="an image that it sees first; repeatable")
    add("--json", action="store_true", help="JSON lines with ids, log-probabilities and reason")
    into = "put the prompt into this template: chat, dolly, … or a YAML file; a run has its own"
    console.adapter_options(parser, template=into)


def command(
    name: str,
    prompts: list[str],
    sampler: str,
    repetition_penalty: float | None,
    n: int,
    seed: int,
    max_new_tokens: int,
    stop: list[str],
    template: str | None,
    raw: bool,
    base: bool,
    precision: str,
    json: bool,
    image: Sequence[str] = (),
    any_base: bool = False,
    model: str | None = None,
    **settings: float | None,
) -> None:
    """Print the answers; a single one while it is written."""
    from ft.data import images
    from ft.generate import answers as generate
    from ft.generate import growing
    from ft.runs import opened

    shown = [images.open_image(path) for path in image]
    chosen = named(sampler, settings, repetition_penalty)
    generate.check(chosen, max_new_tokens=max_new_tokens, stop=stop, n=n)
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("a prompt is empty: there is nothing to go on from")
    run = opened.find(name, any_base=any_base, template=template, model=model)
    for flag, given in (("--raw", raw), ("--base", base)):
        if given and run is None:
            raise UserError(f"{flag}: {name} is a model, not a run")
    asked = None if run else template
    o = opened.load(run or name, precision, template=asked, tuned=not base, images=bool(shown))
    loaded, tokenizer, used = o.model, o.tokenizer, None if raw else o.template
    shared: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "template": used,
        "stop": stop,
        "seed": seed,
    }
    if shown:
        assert o.see
        ids = [o.see.prompt(used, _row(used, p) | {"images": shown}, tokenizer) for p in prompts]
    else:
        ids = prompts if used is None else [_filled(used, prompt, tokenizer) for prompt in prompts]
    if len(ids) == n == 1 and sampler != "beam" and not json:
        for piece in growing.stream(loaded, tokenizer, ids[0], chosen, **shared):
            print(piece, end="", flush=True)
        print()
        return
    quiet = len(ids) == 1 or not sys.stderr.isatty()
    found = generate.generate(loaded, tokenizer, ids, chosen, n=n, progress=not quiet, **shared)
    for prompt, answers in zip(prompts, found, strict=True):
        for number, answer in enumerate(answers, 1):
            print(_line(prompt, answer) if json else _block(prompt, number, n, answer))


def named(
    sampler: str, settings: Mapping[str, float | None], repetition_penalty: float | None = None
) -> "Sampler":
    """The sampler of this name. Raises ``UserError`` for a setting that it does not have or allow."""
    from ft.generate import constraints, samplers

    given = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key not in SAMPLERS[sampler]:
            having = [each for each in SAMPLERS if key in SAMPLERS[each]]
            raise UserError(
                f"--{key.replace('_', '-')} is a setting of {', '.join(having)}, not of {sampler}: "
                "choose one with --sampler"
            )
    kinds: dict[str, Any] = {
        "greedy": samplers.Greedy,
        "sample": samplers.Sample,
        "top-k": samplers.TopK,
        "top-p": samplers.TopP,
        "min-p": samplers.MinP,
        "beam": samplers.Beam,
        "contrastive": samplers.Contrastive,
    }
    chosen = kinds[sampler](**SAMPLERS[sampler] | given)
    if repetition_penalty is None:
        return chosen
    if not isinstance(chosen, samplers.Filter):
        raise UserError(f"--repetition-penalty does not go with --sampler {sampler}")
    return samplers.Chain((constraints.RepetitionPenalty(repetition_penalty), chosen))


def _filled(template: Any, prompt: str, tokenizer: Any) -> Sequence[int]:
    """The ids of a template with the prompt as its source or instruction."""
    from ft.text import tokens

    return tokens.prompt_ids(template, _row(template, prompt), tokenizer)


def _row(template: Any, prompt: str) -> dict[str, Any]:
    """The fields of a template that a prompt fills; without a template its text."""
    if template is None:
        return {"text": prompt}
    fields = ("source", "text")  # of a translation, and of plain text
    return {next((f for f in fields if f"{{{f}}}" in template.prompt), "instruction"): prompt}


def _line(prompt: str, answer: "Answer") -> str:
    values = {
        "prompt": prompt,
        "text": answer.text,
        "ids": answer.ids,
        "logprobs": [round(value, 4) for value in answer.logprobs],
        "reason": answer.reason,
    }
    return json_text.dumps(values, ensure_ascii=False)


def _block(prompt: str, number: int, n: int, answer: "Answer") -> str:
    of = f", {number} of {n}" if n > 1 else ""
    total = sum(answer.logprobs)
    return (
        f"── {prompt.splitlines()[0][:60]}{of}: {len(answer.ids)} tokens, {answer.reason}, "
        f"log-probability {total:.1f}\n{answer.text}"
    )
