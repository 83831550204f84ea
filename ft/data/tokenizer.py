"""Train a SentencePiece tokenizer on a corpus, and save it as a fast Hugging Face tokenizer with identical ids."""

import io
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ft import files
from ft.data import shards
from ft.data.rows import digest
from ft.data.token_stream import Reader
from ft.errors import UserError
from ft.machine import say

END = "<|endoftext|>"
COMPARED = 2_000_000  # characters of the corpus whose ids are compared after training
NORMAL = 1  # SentencePiece's type of a learnt piece


def train(
    sources: Sequence[str],
    out: Path,
    *,
    vocab_size: int = 8000,
    limit: int = 100_000_000,
    text_field: str = "text",
    on_bad_row: str = "error",
) -> str:
    """Write the tokenizer of ``sources`` to the new folder ``out``; a line that says what came of it.

    BPE over characters with bytes for rare ones, on at most ``limit`` characters: text is taken as
    it is, every space counts, and a line break is a piece of its own, so that tokens never reach
    from one line into the next. ``<|endoftext|>`` (id 1) is BOS, EOS and padding.
    Raises UserError if ``out`` is there, and if the corpus is empty or cannot fill ``vocab_size``.
    """
    import sentencepiece

    if out.exists():
        raise UserError(f"{out} already exists: choose another folder with --out, or delete it")
    found, start = shards.find(sources), time.perf_counter()
    print(f"learning {vocab_size:,} pieces from {', '.join(sources)} …", file=sys.stderr)

    def pieces() -> Iterator[str]:
        size = 0
        for job in Reader(found, text_field=text_field, on_bad_row=on_bad_row, seed=0).jobs():
            for text in job.texts:
                yield text
                size += len(text)
                if size >= limit:
                    return

    proto = _learn((line for text in pieces() for line in text.split("\n") if line), vocab_size)
    tokenizer = fast(proto)
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto)
    characters, tokens = 0, 0
    for text in pieces():
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text), text
        characters, tokens = characters + len(text), tokens + len(ids)
        if characters >= COMPARED:
            break
    with files.new_dir(out) as folder:
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(proto)
    return (
        f"{out}: {len(tokenizer):,} pieces in {time.perf_counter() - start:.0f} s, "
        f"{characters / tokens:.2f} characters a token; the ids of {characters:,} characters of the "
        "corpus are SentencePiece's"
    )


def _learn(lines: Iterator[str], vocab_size: int) -> bytes:
    """SentencePiece's model."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=0.9995,
            user_defined_symbols=[END, "\n"],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=2**20,
            minloglevel=2,
        )
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if match := re.search(r"Vocabulary size too high .*<= (\d+)", text):
            raise UserError(
                f"the corpus is too small for a vocabulary of {vocab_size:,}: it fills "
                f"{int(match[1]):,} at most; set --vocab-size"
            ) from None
        if match := re.search(r"smaller than required_chars. \d+ vs (\d+)", text):
            raise UserError(
                f"a vocabulary of {vocab_size:,} has no room for 256 bytes and the corpus's "
                f"characters: it needs at least {int(match[1]):,}; set --vocab-size"
            ) from None
        raise
    return model.getvalue()


def fast(proto: bytes) -> Any:
    """The fast tokenizer with the ids of a SentencePiece model that ``train`` makes."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    reference = sentencepiece.SentencePieceProcessor(model_proto=proto)
    names = [reference.id_to_piece(i) for i in range(reference.get_piece_size())]
    scores = {
        name: reference.get_score(i)
        for i, name in enumerate(names)
        if not (reference.is_unknown(i) or reference.is_byte(i) or name in (END, "\n"))
    }
    merges = [
        (-score, at, name[:at], name[at:])
        for name, score in scores.items()
        for at in range(1, len(name))
        if name[:at] in scores and name[at:] in scores
    ]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=[(left, right) for _, _, left, right in sorted(merges)],
        unk_token=names[0],
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # No learnt piece reaches over a line break: to split there changes no id, and short stretches
    # are merged faster (to split at spaces too is slower again).
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,  # and no unk_token: text that reads "<unk>" is text
        clean_up_tokenization_spaces=False,
    )


def make(sources: Sequence[str], *, vocab_size: int, **reading: Any) -> Any:
    """A tokenizer of a corpus, from the cache where the same was made before."""
    content = [shards.hashes(shards.find(sources)), vocab_size, reading]
    folder = files.cache_dir() / "tokenizers" / digest(json.dumps(content).encode())[:16]
    if not folder.exists():
        say(train(sources, folder, vocab_size=vocab_size, **reading))
    return load(folder)


def load(name: str | Path) -> Any:
    """The tokenizer of a folder or of the Hub. Raises ``UserError`` where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer {name}: {' '.join(str(error).split())}") from None
