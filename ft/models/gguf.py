"""The header of a GGUF file, and a Gemma tokenizer rebuilt from its lists of tokens, and taken apart into them."""

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft import files
from ft.errors import UserError

# SentencePiece's types of pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
CONTROLS = ("<pad>", "<eos>", "<bos>", "<unk>")  # SentencePiece never makes these from text
MARKS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
SPECIAL = CONTROLS + MARKS  # in Gemma's Hugging Face tokenizer all of them are special tokens
# what Gemma's tokenizer does not call special, and llama.cpp's converter does
LIKE_CONTROL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<unused\d+>|<\|.*\|>")
TOKENIZER_CONFIG = {
    "tokenizer_class": "GemmaTokenizer",
    **{f"{token[1:-1]}_token": token for token in CONTROLS},
    "add_bos_token": True,
    "add_eos_token": False,
    "padding_side": "left",
    "clean_up_tokenization_spaces": False,
}
# The text turns of Gemma 3: a system message goes before the first user turn, as it has no role.
CHAT_TEMPLATE = r"""
{%- macro text(content) -%}
    {%- if content is string -%}
        {{ content | trim }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] != 'text' -%}
                {{ raise_exception('This model reads text only, not ' ~ part['type']) }}
            {%- endif -%}
            {{ part['text'] | trim }}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{ bos_token }}
{%- set system, turns = '', messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] -%}
    {%- set system = (first if first is string else first[0]['text']) ~ '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if turn['role'] != ('user', 'assistant')[loop.index0 % 2] -%}
        {{ raise_exception('Turns must alternate: user, assistant, user, ...') }}
    {%- endif -%}
    {{ '<start_of_turn>' ~ ('user' if turn['role'] == 'user' else 'model') ~ '\n' }}
    {{- (system if loop.first else '') ~ text(turn['content']) ~ '<end_of_turn>\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\n' if add_generation_prompt else '' }}
""".strip()


def read_header(blob: bytearray) -> tuple[dict[str, Any], dict[str, tuple[list[int], int, int]]]:
    """Metadata, and each tensor's shape, quantisation and place, of a GGUF version 3.

    The ``gguf`` package's reader takes ten times as long over 262,144 tokens.
    """
    scalars = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
    cursor = 8  # after the magic and the version

    def take(code: str) -> Any:
        nonlocal cursor
        (value,) = struct.unpack_from(f"<{code}", blob, cursor)
        cursor += struct.calcsize(f"<{code}")
        return value

    def text() -> str:
        return take(f"{take('Q')}s").decode()

    def value(kind: int) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            kind, length = take("I"), take("Q")
            return [value(kind) for _ in range(length)]
        return take(scalars[kind])

    n_tensors, n_fields = take("Q"), take("Q")
    meta = {text(): value(take("I")) for _ in range(n_fields)}
    tensors = {}
    for _ in range(n_tensors):  # GGUF writes the fastest dimension first
        name, shape = text(), [take("Q") for _ in range(take("I"))][::-1]
        tensors[name] = (shape, take("I"), take("Q"))
    start = math.ceil(cursor / 32) * 32
    return meta, {name: (shape, kind, start + at) for name, (shape, kind, at) in tensors.items()}


def write(folder: Path, tokens: list[str], scores: list[float], kinds: list[int]) -> None:
    """Write ``tokenizer.json``, ``tokenizer.model``, their config and the chat template.

    ``tokens``, ``scores`` and ``kinds`` are GGUF's ``tokenizer.ggml.{tokens,scores,token_type}``.
    """
    pieces = _pieces(tokens, scores, kinds)
    files.write_text(folder / "tokenizer.json", _fast(pieces))
    files.write_bytes(folder / "tokenizer.model", _model_proto(pieces))
    files.write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    files.write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)


def lists(folder: Path, pieces: Path, rows: int) -> tuple[list[str], list[float], list[int]]:
    """GGUF's ``tokens``, ``scores`` and ``token_type`` of a tokenizer, one for each row of the embedding.

    As llama.cpp's converter gives them, of which ``write`` is the reverse. ``folder`` has
    ``tokenizer.json``, and ``pieces`` the ``tokenizer.model`` that alone knows scores: ``UserError``
    where one is missing.
    """
    from sentencepiece import SentencePieceProcessor

    fast, slow = folder / "tokenizer.json", pieces / "tokenizer.model"
    for file in (fast, slow):
        if not file.is_file():
            raise UserError(
                f"{file.parent} has no {file.name}, which GGUF's list of tokens is made from: copy it "
                "from the folder of the base model"
            )
    model = SentencePieceProcessor(model_file=str(slow))
    found: list[tuple[str, float, int]] = [(f"[PAD{i}]", -10_000.0, UNUSED) for i in range(rows)]
    for i in range(min(rows, len(model))):
        kinds = (
            (UNKNOWN, model.is_unknown(i)),
            (CONTROL, model.is_control(i)),
            (UNUSED, model.is_unused(i)),
            (BYTE, model.is_byte(i)),
        )
        kind = next((kind for kind, is_it in kinds if is_it), NORMAL)
        found[i] = (model.id_to_piece(i), model.get_score(i), kind)
    for at, token, kind in added_tokens(fast):
        if at < rows:  # Gemma 3's placeholder of an image has no row in its text models
            found[at] = (token, -1000.0, kind)
    tokens, scores, types = map(list, zip(*found, strict=True))
    return tokens, scores, types


def added_tokens(fast: Path) -> Iterator[tuple[int, str, int]]:
    """Id, text and GGUF's type of each token that is cut out of a text first, by a ``tokenizer.json``."""
    for added in json.loads(fast.read_text("utf-8"))["added_tokens"]:
        token = added["content"]
        special = added["special"] or LIKE_CONTROL.fullmatch(token)
        kind = CONTROL if special else USER_DEFINED
        yield added["id"], token if special else token.replace("▁", " "), kind


def _pieces(
    tokens: list[str], scores: list[float], kinds: list[int]
) -> list[tuple[str, float, int]]:
    """SentencePiece's (piece, score, type) of every id.

    llama.cpp's converter writes spaces for U+2581, calls most user-defined pieces control, and
    gives all of them the score -1000.
    """
    pieces = []
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            kind = CONTROL if token in CONTROLS else USER_DEFINED
            token, score = token.replace(" ", "▁"), 0.0
        if token == "<unk>":
            kind = UNKNOWN
        pieces.append((token, score, kind))
    return pieces


def _fast(pieces: list[tuple[str, float, int]]) -> str:
    """The ``tokenizer.json`` whose ids are SentencePiece's.

    Only text of ``CONTROLS`` differs, on purpose: Hugging Face reads it as the special token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    # The longest user-defined piece is cut out first. Those that are not special are sought in
    # the normalised text, for there a run of spaces reads as its piece does.
    whole = [piece for piece, _, kind in pieces if kind in (CONTROL, UNKNOWN, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(piece, normalized=piece not in SPECIAL) for piece in whole])
    tokenizer.add_special_tokens(list(SPECIAL))
    # In what is left, SentencePiece joins the two neighbours whose joined piece scores best.
    merges = []
    for piece, score, kind in pieces:
        if kind == NORMAL:
            splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
            merges += [
                (-score, left, right) for left, right in splits if {left, right} <= vocab.keys()
            ]
    merges.sort(key=lambda merge: (merge[0], len(merge[1])))
    content = json.loads(tokenizer.to_str())
    # "left right" rather than ["left", "right"]: transformers then loads it in half the time.
    content["model"]["merges"] = [f"{left} {right}" for _, left, right in merges]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _model_proto(pieces: list[tuple[str, float, int]]) -> bytes:
    """A ``sentencepiece.ModelProto``, encoded by hand: the format is three kinds of fields.

    Numbers as in ``sentencepiece_model.proto``; what is absent has its default.
    """
    proto = b"".join(
        _field(1, _field(1, piece.encode()) + _field(2, score) + _field(3, kind))
        for piece, score, kind in pieces
    )
    trainer = {3: 2, 4: len(pieces), 22: 0, 25: 1, 26: 1, 35: 1, 40: 3, 41: 2, 42: 1, 43: 0}
    names = {45: b"<unk>", 46: b"<bos>", 47: b"<eos>", 48: b"<pad>"}
    normalizer = {1: b"identity", 3: 0, 4: 0}
    for number, message in ((2, trainer | names), (3, normalizer)):
        proto += _field(number, b"".join(_field(*item) for item in message.items()))
    return proto


def _field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
