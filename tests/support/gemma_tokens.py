"""The tiny tokenizer with the control tokens of Gemma 4 and FunctionGemma, and chat templates to put on it."""

from pathlib import Path

from support import tiny

GEMMA4 = ["<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"]
GEMMA4 += ["<|tool_response>", "<tool_response|>", "<|channel>", "<channel|>", '<|"|>', "<|think|>"]
FUNCTION = [
    f"<{at}_function_{what}>"
    for what in ("declaration", "call", "response")
    for at in ("start", "end")
] + ["<escape>", "<mask>"]


def tokenizer_of(jinja):
    """A tokenizer that reads every one of these tokens as one, with a chat template."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*tiny.SPECIAL[4:], *GEMMA4, *FUNCTION]}
    )
    tokenizer.chat_template = jinja
    return tokenizer


def of_trl():
    """The Gemma chat templates that TRL ships, by name."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {file.stem: file for file in sorted(folder.glob("*gemma*.jinja"))}
