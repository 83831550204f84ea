"""A checked request as work for the model: its prompts, how the next token is chosen, and how likely what came was."""

import dataclasses
import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft.chat.conversation import Conversation
from ft.chat.openai_request import Refused, Request
from ft.chat.partner import Partner
from ft.errors import UserError
from ft.text import forms

if TYPE_CHECKING:
    from ft.generate.draft import Answer, Draft
    from ft.generate.samplers import Beam, Filter
    from ft.text.forms import Form

BASE = "-base"  # behind a run's name: its base model, asked as the run is


@dataclass(frozen=True)
class Scored:
    """Ids with their log-probabilities, and the likeliest ids at each place; nothing of the first."""

    ids: list[int]
    chances: list[float | None]
    likeliest: list[list[tuple[int, float]] | None]


def names(answering: Partner) -> list[str]:
    """The models that one may ask: what is served, and of a run its base."""
    return [answering.name] + [answering.name + BASE] * (answering.run is not None)


def prompts(answering: Partner, request: Request) -> list[list[int]]:
    """The ids of each prompt. Raises ``Refused`` for one too long, or that the template cannot say."""
    key = "messages" if request.chat else "prompt"
    try:
        if request.chat:
            talk = Conversation(
                _template(answering, request), request.messages, tools=request.tools
            )
            found = [talk.ids(answering.tokenizer)]
        else:
            found = [answering.ids(p) if isinstance(p, str) else [*p] for p in request.prompts]
    except UserError as error:
        raise Refused(str(error), key=key) from None
    longest, context = max(map(len, found)), answering.context
    if context and longest + (request.max_tokens != 0) > context:
        raise Refused(
            f"{key}: {longest} tokens leave no room for an answer in the context of {context}",
            key=key,
            code="context_length_exceeded",
        )
    return found


def steps(
    answering: Partner, request: Request, prompts: list[list[int]], max_new_tokens: int
) -> Generator[dict[int, "Draft"], None, list[list["Answer"]]]:
    """The answers while they grow, as ``growing.steps`` gives them. Raises ``Refused`` as ``sampler`` does."""
    return answering.steps(
        prompts,
        sampler(answering, request),
        n=request.n,
        max_new_tokens=max_new_tokens,
        template=_template(answering, request),
        stop=request.stop,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        calls=request.chat,
        tuned=_tuned(answering, request),
    )


def sampler(answering: Partner, request: Request) -> "Filter | Beam":
    """What chooses the next token: biases and constraints, then temperature, then what is cut off.

    At temperature 0 and with nothing else asked the run's own way to the likeliest answer.
    """
    from ft.generate import constraints, samplers

    parts: list[Filter] = []
    if request.repetition_penalty != 1:
        parts.append(constraints.RepetitionPenalty(request.repetition_penalty))
    if request.presence_penalty or request.frequency_penalty:
        parts.append(constraints.Penalty(request.presence_penalty, request.frequency_penalty))
    if request.logit_bias:
        parts.append(constraints.Bias(request.logit_bias))
    parts += _constraints(answering, request)
    if request.temperature == 0 and not parts:
        return answering.likeliest
    if request.temperature == 0:
        parts.append(samplers.Greedy())
    else:
        if request.top_k and request.top_k > 0:
            parts.append(samplers.TopK(request.top_k, request.temperature))
        if request.min_p:
            warm = request.temperature if not (request.top_k and request.top_k > 0) else 1.0
            parts.append(samplers.MinP(request.min_p, warm))
        cooled = any(isinstance(part, samplers.TopK | samplers.MinP) for part in parts)
        parts.append(samplers.TopP(request.top_p, 1.0 if cooled else request.temperature))
    return parts[0] if len(parts) == 1 else samplers.Chain(tuple(parts))


def score(answering: Partner, request: Request, prompt: Sequence[int], answer: Any) -> Scored:
    """Log-probabilities by the model itself: of the prompt where it is echoed, and of the answer's text.

    Behind an echoed prompt every id has its place, an end token too: lm-eval asks for one new token
    and leaves out the last place, which would else be the prompt's own.
    """
    import torch

    from ft.score import logits

    ids = [*prompt, *(answer.ids if answer else ())]
    with answering.of(tuned=_tuned(answering, request)) as model:
        device = model.get_input_embeddings().weight.device
        found = logits.top(
            model, torch.tensor([ids], device=device), k=max(1, request.logprobs or 0)
        )
    chances = [None, *found.target_logprobs[0, :-1].tolist()]
    pairs = zip(found.ids[0].tolist(), found.logprobs[0].tolist(), strict=True)
    best = [None, *[list(zip(*pair, strict=True))[: request.logprobs] for pair in pairs]]
    if request.echo:
        shown = [*range(len(ids))]
    else:
        shown = [len(prompt) + place for place in (answer.shown if answer else ())]
    return Scored([ids[i] for i in shown], [chances[i] for i in shown], [best[i] for i in shown])


def form(answering: Partner) -> "Form | None":
    """What the model's answers are made of where its own chat template asks it."""
    return forms.own_form(answering.template, answering.tokenizer)


def _tuned(answering: Partner, request: Request) -> bool:
    return request.model != answering.name + BASE


def _template(answering: Partner, request: Request) -> Any:
    if request.thinking is None:
        return answering.template
    return dataclasses.replace(answering.template, thinking=request.thinking)


def _constraints(answering: Partner, request: Request) -> list["Filter"]:
    """Filters for what an answer must be: JSON of a schema, a call, or no call."""
    from ft.generate import constraints, grammar
    from ft.generate.draft import end_ids, stop_strings

    tokenizer = answering.tokenizer
    if request.schema is not None:
        ends = end_ids(answering.model, tokenizer, *stop_strings(answering.template))
        try:
            return [grammar.of_schema(request.schema, tokenizer, sorted(ends))]
        except UserError as error:
            raise Refused(str(error), key="response_format") from None
    if request.tool_choice in (None, "none", "auto"):
        return []
    found = form(answering)
    name = "" if request.tool_choice == "required" else request.tool_choice
    if found and found.call:
        begin = f"{found.call[0]}call:{name}{{" if name else found.call[0]
    else:
        begin = f'{{"name": "{name}"' if name else '{"name": "'
    ids = tokenizer(begin, add_special_tokens=False)["input_ids"]
    return [constraints.Forced(tuple(ids))]
