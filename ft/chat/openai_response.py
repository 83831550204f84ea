"""Answers and errors in the shape that the clients of OpenAI's completion API read."""

import re
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ft.chat.openai_request import Refused, Request
from ft.errors import UserError
from ft.generate.draft import UNFINISHED

if TYPE_CHECKING:
    from ft.generate.draft import Answer


def completion(
    request: Request,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence["Answer"]],
    tokenizer: Any,
) -> dict[str, Any]:
    """The whole response for ``n`` answers to each of the prompts' ids."""
    flat = [answer for group in answers for answer in group]
    choices = []
    for index, answer in enumerate(flat):
        logprobs = _likelihoods(answer, tokenizer, request.chat) if request.logprobs else None
        if request.chat:
            message = {"role": "assistant", "content": answer.text.strip(), "refusal": None}
            thought = {"reasoning_content": answer.thought} if answer.thought else {}
            said = {"message": message | thought}
        else:
            said = {"text": answer.text}
        reason = {"finish_reason": finish_reason(answer)}
        choices.append({"index": index, **said, "logprobs": logprobs, **reason})
    return head(request) | {"choices": choices, "usage": usage(prompts, flat)}


def head(request: Request, *, streamed: bool = False) -> dict[str, Any]:
    """What every response begins with; the chunks of one stream share it."""
    kind = "chat.completion" + ".chunk" * streamed if request.chat else "text_completion"
    name = ("chatcmpl-" if request.chat else "cmpl-") + uuid.uuid4().hex
    return {"id": name, "object": kind, "created": int(time.time()), "model": request.model}


def chunk(request: Request, text: str, reason: str | None = None, *, first: bool = False) -> dict:
    """The choices of one chunk of a stream: a piece of text, or why it ends."""
    if not request.chat:
        said: dict[str, Any] = {"text": text}
    else:
        opening = {"role": "assistant", "content": text} if first else {}
        said = {"delta": opening or ({"content": text} if text else {})}
    return {"choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}]}


def usage(prompts: Sequence[Sequence[int]], answers: Sequence["Answer"]) -> dict[str, int]:
    """Tokens read, written, and both."""
    read, written = sum(map(len, prompts)), sum(len(answer.ids) for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def finish_reason(answer: "Answer") -> str:
    """``length`` for an answer that was cut, else ``stop``."""
    return "length" if answer.reason == "length" else "stop"


def error(fault: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of a mistake; of our own faults nothing is told."""
    if not isinstance(fault, UserError):
        fault = Refused("the server failed; its log says why", status=500)
    elif not isinstance(fault, Refused):
        fault = Refused(str(fault))
    kind = "server_error" if fault.status >= 500 else "invalid_request_error"
    said = {"message": str(fault), "type": kind, "param": fault.key, "code": fault.code}
    return fault.status, {"error": said}


def _likelihoods(answer: "Answer", tokenizer: Any, chat: bool) -> dict[str, Any]:
    """The tokens of an answer's text with their log-probabilities, and where in the text each begins."""
    tokens, offsets = [], []
    known = shown = 0  # ids whose text is counted, and its length
    for upto, token in enumerate(answer.ids, 1):
        if shown >= len(answer.text):
            break
        tokens.append(tokenizer.decode([token]))
        offsets.append(shown)
        text = tokenizer.decode(answer.ids[known:upto], skip_special_tokens=True)
        if not text.endswith(UNFINISHED):
            known, shown = upto, shown + len(text)
    # JSON has no -inf
    chances = [max(chance, -9999.0) for chance in answer.logprobs[: len(tokens)]]
    if not chat:
        return {"tokens": tokens, "token_logprobs": chances, "text_offset": offsets} | {
            "top_logprobs": None
        }
    content = []
    for token, number, chance in zip(tokens, answer.ids, chances, strict=False):
        byte = re.fullmatch(
            "<0x(..)>", tokenizer.convert_ids_to_tokens(number)
        )  # a part of a letter
        spelled = [int(byte[1], 16)] if byte else list(token.encode())
        content.append({"token": token, "logprob": chance, "bytes": spelled, "top_logprobs": []})
    return {"content": content, "refusal": None}
