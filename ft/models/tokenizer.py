"""A model's tokenizer without torch: what transformers makes of the same files, for looking at data in a second."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.errors import UserError

NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Tokenizer:
    """What ``ft.text`` asks of a tokenizer, by transformers' names; made by ``read``."""

    inner: Any  # of the package tokenizers
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None

    def __len__(self) -> int:
        return self.inner.get_vocab_size()

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True
    ) -> dict[str, Any]:
        """``input_ids`` of a text, or of each of several."""
        if isinstance(text, str):
            return {"input_ids": self.inner.encode(text, add_special_tokens=add_special_tokens).ids}
        found = self.inner.encode_batch_fast(list(text), add_special_tokens=add_special_tokens)
        return {"input_ids": [each.ids for each in found]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        return self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, token: str | Sequence[str]) -> Any:
        """The id of a token; that of the unknown one for any other text. Of several, their list."""
        if not isinstance(token, str):
            return [self.convert_tokens_to_ids(each) for each in token]
        found = self.inner.token_to_id(token)
        return self._id(self.unk_token) if found is None else found

    def get_vocab(self) -> dict[str, int]:
        """Id of each token, the added ones included."""
        return self.inner.get_vocab()

    @functools.cached_property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The added tokens by id, each with ``content`` and ``special``."""
        return self.inner.get_added_tokens_decoder()

    @property
    def bos_token_id(self) -> int | None:
        return self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self._id(self.eos_token)

    @property
    def unk_token_id(self) -> int | None:
        return self._id(self.unk_token)

    @property
    def pad_token_id(self) -> int | None:
        return self._id(self.pad_token)

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        chat_template: str | None = None,
        tools: Any = None,
        **more: Any,
    ) -> str:
        """A conversation as the chat template renders it, in the sandbox that transformers uses."""
        assert not tokenize
        return _compiled(chat_template or self.chat_template or "").render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=None,
            **{name: getattr(self, name) for name in NAMES},
            **more,
        )

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.inner.token_to_id(token)


def read(folder: Path) -> Any:
    """The tokenizer in a model's folder; transformers' own where it lies there only as ``tokenizer.model``.

    Raises ``UserError`` for one that is missing or cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        from ft.models.load import load_tokenizer

        return load_tokenizer(str(folder))
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers has no class of its own for this
        raise UserError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
    settings = read_json(folder / "tokenizer_config.json")
    special = read_json(folder / "special_tokens_map.json") | settings
    words = {name: _text(special.get(name)) for name in NAMES}
    return Tokenizer(inner, chat_template=_template(folder, settings), **words)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one without the file. Raises ``UserError``."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a JSON object")
    return found


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or in the settings, where there may be several by name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    given = read_json(folder / "chat_template.json").get("chat_template")
    found = given or settings.get("chat_template")
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found


@functools.lru_cache(maxsize=16)
def _compiled(chat_template: str) -> Any:
    return _jinja().from_string(chat_template)


@functools.cache
def _jinja() -> Any:
    import datetime

    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made
