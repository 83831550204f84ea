"""Draw chains of thought for a question and let them vote."""

import argparse
import json as json_text
from typing import TYPE_CHECKING, Any

from ft.cli import console
from ft.errors import UserError

if TYPE_CHECKING:
    from ft.score.reasoning import Chain

LONGEST_BAR = 40  # characters


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft solve``."""
    parser.epilog = (
        'example: ft solve runs/gsm8k_lora "A pen costs 3 dollars. How much do 12 cost?"'
    )
    add = parser.add_argument
    add("name", metavar="RUN|MODEL", help="a run, or a model: a folder, Hub id, or `embedded`")
    add("question", help="a question whose answer is a number")
    add("--n", type=int, default=16, help="chains to sample (default 16)")
    add("--temperature", type=float, default=0.7, help="above 0 (default 0.7)")
    add("--seed", type=int, default=0, help="of what is drawn (default 0)")
    add("--max-new-tokens", type=int, default=256, help="longest chain (default 256)")
    add("--reward", help="folder of `ft reward`: say which chain it holds to be the best")
    add("--base", action="store_true", help="the base model of a run instead")
    add("--precision", default="auto", help="auto, fp32, bf16, nf4 or int8 (default auto)")
    add("--json", action="store_true", help="one JSON object with all chains")
    console.adapter_options(parser)


def command(
    name: str,
    question: str,
    n: int,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    reward: str | None,
    base: bool,
    precision: str,
    json: bool,
    any_base: bool = False,
    model: str | None = None,
    template: str | None = None,
) -> None:
    """Print the vote, the distribution of answers and a chain for each. Raises ``UserError``."""
    from ft.generate import answers
    from ft.rewards import reward_model
    from ft.runs import opened
    from ft.score import reasoning
    from ft.text import tokens

    draw = reasoning.sampler(temperature)
    answers.check(draw, max_new_tokens=max_new_tokens, n=n)
    if not question.strip():
        raise UserError("the question is empty")
    run = opened.find(name, any_base=any_base, model=model, template=template)
    if run and "ANSWER:" not in run.template.prompt:
        raise UserError(
            f"{name} was not trained to write ANSWER: and a number, so its chains cannot vote; "
            "train one with recipes/gsm8k_lora.py"
        )
    asked = None if run else template or "steps"
    o = opened.load(run or name, precision, template=asked, tuned=not base)
    assert o.template
    judge = reward_model.load(reward, o.tokenizer) if reward else None
    row = {"instruction": question}
    found = answers.generate(
        o.model,
        o.tokenizer,
        [tokens.prompt_ids(o.template, row, o.tokenizer)],
        draw,
        n=n,
        seed=seed,
        max_new_tokens=max_new_tokens,
        template=o.template,
    )
    chains = [reasoning.chain(answer, row, judge) for answer in found[0]]
    counted, chosen = reasoning.tally(chains), reasoning.best(chains) if judge else None
    if json:
        best = {"best": chosen and reasoning.shown(chosen)} if judge else {}
        values = {
            "question": question,
            "answer": reasoning.shown(counted[0][0]) if counted else None,
            "votes": [[reasoning.shown(number), count] for number, count in counted],
            **best,
            "chains": [_values(c, "reward" if judge else "logprob") for c in chains],
        }
        return print(json_text.dumps(values, ensure_ascii=False))
    silent = n - sum(count for _, count in counted)
    where = console.standard_output()
    made = console.table(where, "answer", "votes", "share", "", right=("answer", "votes", "share"))
    for number, count in counted:
        made.add_row(reasoning.shown(number), *_bar(count, n, "█"))
    if silent:
        made.add_row("none", *_bar(silent, n, "░"))
    console.show(where, made)
    for number, _ in counted:
        at = next(i for i, c in enumerate(chains) if c.number == number)
        print(f"\n── {reasoning.shown(number)}, chain {at + 1} of {n}\n{chains[at].text}")
    if counted:
        print(f"\nANSWER: {reasoning.shown(counted[0][0])}  ({counted[0][1]} of {n} chains)")
        if judge and chosen is not None:
            print(f"best by the {judge.name}: {reasoning.shown(chosen)}")
    else:
        print(f"\nno chain came to ANSWER: and a number; the first of them:\n{chains[0].text}")


def _values(chain: "Chain", judged_by: str) -> dict[str, Any]:
    """A chain as plain values."""
    from ft.score import reasoning

    number = None if chain.number is None else reasoning.shown(chain.number)
    return {"text": chain.text, "number": number, judged_by: round(chain.reward, 4)}


def _bar(count: int, n: int, block: str) -> tuple[str, str, str]:
    """Votes, their share, and a bar as long as it."""
    return str(count), f"{count / n:.0%}", block * max(1, round(LONGEST_BAR * count / n))
