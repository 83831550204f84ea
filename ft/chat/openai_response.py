"""Answers and errors in the shape that the clients of OpenAI's completion API read."""

import json
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ft.chat.openai_request import Refused, Request
from ft.chat.partner import Trim
from ft.errors import UserError
from ft.generate.draft import UNFINISHED
from ft.text import calls, native_calls

if TYPE_CHECKING:
    from ft.chat.openai_work import Scored
    from ft.generate.draft import Answer, Draft
    from ft.text.forms import Form


def completion(
    request: Request,
    prompts: Sequence[Sequence[int]],
    answers: Sequence["Answer | None"],
    scored: Sequence["Scored | None"],
    tokenizer: Any,
    form: "Form | None",
) -> dict[str, Any]:
    """The whole response for ``n`` answers to each of the prompts' ids; none where a prompt is only echoed."""
    choices = []
    for index, (answer, found) in enumerate(zip(answers, scored, strict=True)):
        said: dict[str, Any]
        if request.chat:
            assert answer is not None
            message = _said(request, answer, form)
            said = {"message": {"role": "assistant"} | message}
        else:
            message, said = {}, {"text": answer.text if answer else ""}
            if request.echo:
                prompt = prompts[index // request.n]
                said["text"] = tokenizer.decode(prompt, skip_special_tokens=True) + said["text"]
        logprobs = likelihoods(found, tokenizer, request.chat) if found else None
        reason = {"finish_reason": _reason(answer, message)}
        choices.append({"index": index, **said, "logprobs": logprobs, **reason})
    written = [answer for answer in answers if answer]
    return head(request) | {"choices": choices, "usage": usage(prompts, written)}


class Stream:
    """The chunks of a streamed response, from the answers while they grow."""

    def __init__(self, request: Request, form: "Form | None") -> None:
        self._request, self._form = request, form
        self._waits = bool(request.tools and not (form and form.call))  # a text may be a call
        self._head = head(request, streamed=True)
        self._texts: dict[int, Trim] = defaultdict(Trim)
        self._thoughts: dict[int, Trim] = defaultdict(Trim)
        self._begun: set[int] = set()

    def chunks(self, drafts: Mapping[int, "Draft"]) -> Iterator[dict[str, Any]]:
        """What the last step has added to each answer, and why it ends."""
        for index, draft in drafts.items():
            if not self._request.chat:
                if draft.piece:
                    yield self._choice(index, {"text": draft.piece})
                if draft.reason:
                    yield self._choice(index, {"text": ""}, _reason(draft.answer(), {}))
                continue
            thought = self._thoughts[index](draft.thought_piece) if self._request.thoughts else ""
            text = "" if self._waits else self._texts[index](draft.piece)
            if thought:
                yield self._delta(index, {"reasoning_content": thought})
            if text:
                yield self._delta(index, {"content": text})
            if draft.reason:
                yield from self._ended(index, draft.answer())

    def usage(
        self, prompts: Sequence[Sequence[int]], answers: Sequence["Answer"]
    ) -> dict[str, Any]:
        """The last chunk of a client that asks for counts."""
        return self._head | {"choices": [], "usage": usage(prompts, answers)}

    def _ended(self, index: int, answer: "Answer") -> Iterator[dict[str, Any]]:
        said = _said(self._request, answer, self._form)
        shown = "" if self._waits else answer.text.strip()
        if unread := (said["content"] or "").removeprefix(shown):  # or a call that says nothing
            yield self._delta(index, {"content": unread})
        for number, call in enumerate(said.get("tool_calls", [])):
            yield self._delta(index, {"tool_calls": [{"index": number} | call]})
        yield self._delta(index, {}, _reason(answer, said))

    def _delta(self, index: int, said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        if index not in self._begun:
            self._begun.add(index)
            said = {"role": "assistant", "content": ""} | said
        return self._choice(index, {"delta": said}, reason)

    def _choice(
        self, index: int, said: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        return self._head | {"choices": [choice]}


def head(request: Request, *, streamed: bool = False) -> dict[str, Any]:
    """What every response begins with; the chunks of one stream share it."""
    kind = "chat.completion" + ".chunk" * streamed if request.chat else "text_completion"
    name = ("chatcmpl-" if request.chat else "cmpl-") + uuid.uuid4().hex
    return {"id": name, "object": kind, "created": int(time.time()), "model": request.model}


def usage(prompts: Sequence[Sequence[int]], answers: Sequence["Answer"]) -> dict[str, int]:
    """Tokens read, written, and both."""
    read, written = sum(map(len, prompts)), sum(len(answer.ids) for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _reason(answer: "Answer | None", said: Mapping[str, Any]) -> str:
    """``length`` for an answer that was cut, ``tool_calls`` for one that calls, else ``stop``."""
    if answer is None or answer.reason == "length":
        return "length"
    return "tool_calls" if "tool_calls" in said else "stop"


def error(fault: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of a mistake; of our own faults nothing is told."""
    if not isinstance(fault, UserError):
        fault = Refused("the server failed; its log says why", status=500)
    elif not isinstance(fault, Refused):
        fault = Refused(str(fault))
    kind = "server_error" if fault.status >= 500 else "invalid_request_error"
    said = {"message": str(fault), "type": kind, "param": fault.key, "code": fault.code}
    return fault.status, {"error": said}


def _said(request: Request, answer: "Answer", form: "Form | None") -> dict[str, Any]:
    """A message's text, thought and calls; a call that cannot be read is part of the text."""
    content, found = answer.text.strip(), []
    if request.tools and not (form and form.call):  # they were asked for in words
        names = {tool["function"]["name"] for tool in request.tools}
        content, read = calls.read_back(content, names)
        found = [call["function"] for call in read]
    for text in answer.calls:
        try:
            found.append(native_calls.read(text, form.quote if form else ""))
        except native_calls.NoCall:
            content += text
    found = found if request.parallel else found[:1]
    said: dict[str, Any] = {"content": content or (None if found else ""), "refusal": None}
    if found:
        said["tool_calls"] = [
            {
                "id": f"call_{uuid.uuid4().hex}",
                "type": "function",
                "function": {"name": one["name"], "arguments": json.dumps(one["arguments"])},
            }
            for one in found
        ]
    if answer.thought and request.thoughts:
        said["reasoning_content"] = answer.thought
    return said


def likelihoods(scored: "Scored", tokenizer: Any, chat: bool) -> dict[str, Any]:
    """Tokens with their log-probabilities, and where in the text each begins."""
    tokens = [tokenizer.decode([token]) for token in scored.ids]
    chances = [_finite(chance) for chance in scored.chances]
    if not chat:
        best = [
            found and {tokenizer.decode([i]): _finite(c) for i, c in reversed(found)}
            for found in scored.likeliest
        ]
        return {
            "tokens": tokens,
            "token_logprobs": chances,
            "top_logprobs": best if any(best) else None,
            "text_offset": _offsets(scored.ids, tokenizer),
        }
    content = []
    for number, chance, best in zip(scored.ids, chances, scored.likeliest, strict=True):
        likeliest = [_spelled(i, c, tokenizer) for i, c in best or []]
        content.append(_spelled(number, chance, tokenizer) | {"top_logprobs": likeliest})
    return {"content": content, "refusal": None}


def _spelled(number: int, chance: Any, tokenizer: Any) -> dict[str, Any]:
    token = tokenizer.decode([number])
    # a byte is part of a letter
    byte = re.fullmatch("<0x(..)>", tokenizer.convert_ids_to_tokens(number) or "")
    spelled = [int(byte[1], 16)] if byte else list(token.encode())
    return {"token": token, "logprob": _finite(chance), "bytes": spelled}


def _offsets(ids: Sequence[int], tokenizer: Any) -> list[int]:
    found, known, shown = [], 0, 0  # ids whose text is counted, and its length
    for upto in range(1, len(ids) + 1):
        found.append(shown)
        text = tokenizer.decode(ids[known:upto], skip_special_tokens=True)
        if not text.endswith(UNFINISHED):
            known, shown = upto, shown + len(text)
    return found


def _finite(chance: float | None) -> float | None:
    return None if chance is None else max(chance, -9999.0)  # JSON has no -inf
