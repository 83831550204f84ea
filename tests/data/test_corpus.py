"""Sources, shards, documents and the text to validate on."""

import gzip
import json
import random
import types
from pathlib import Path

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import tiny

from ft.data import corpus, documents, shards
from ft.data.documents import BadRows, Place, read
from ft.data.shards import Shard
from ft.data.windows import require_same
from ft.errors import UserError


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def texts(*sources: str, policy: str = "error", field: str = "text") -> list[str]:
    """All documents of the sources, each put together from its pieces."""
    found, bad = [""], BadRows(policy)
    for shard in shards.find(sources):
        for piece in read(shard, Place(), bad, field):
            found[-1] += piece.text
            found += [""] * piece.ends
    assert found.pop() == ""
    return found


# What a source can be


def test_the_formats(tmp_path):
    plain = write(tmp_path / "a.txt", "One.\nTwo.\r\n\nThree.")
    lines = write(tmp_path / "b.lines", "One.\\nTwo.\r\n\nThree.\n")
    rows = write(tmp_path / "c.jsonl", '{"text": "One.\\nTwo."}\n\n{"text": "Three."}')
    assert texts(plain) == ["One.\nTwo.\r\n\nThree."]
    assert texts(lines) == ["One.\nTwo.", "Three."]
    assert texts(rows) == ["One.\nTwo.", "Three."]


def test_a_format_that_is_said_wins_over_the_suffix(tmp_path):
    name = write(tmp_path / "shard0.txt", "One.\\nTwo.\nThree.\n")
    assert texts(f"lines:{name}") == ["One.\nTwo.", "Three."]
    assert texts(f"text:{name}") == ["One.\\nTwo.\nThree.\n"]
    write(tmp_path / "odd.dat", '{"text": "x"}')
    assert texts(f"jsonl:{tmp_path}/odd.*") == ["x"]


def test_compressed_files_hold_what_was_put_in(tmp_path):
    content = "".join(f"Line {i} of a document.\n" for i in range(5000)).encode()
    half = len(content) // 2
    parts = content[:half], content[half:]  # such files may be several, one after the other
    write(tmp_path / "a.txt.gz", b"".join(map(gzip.compress, parts)))
    packed = [pyarrow.compress(part, codec="zstd", asbytes=True) for part in parts]
    write(tmp_path / "b.txt.zst", b"".join(packed))
    assert texts(str(tmp_path)) == [content.decode()] * 2


def test_several_fields_are_joined(tmp_path):
    name = write(tmp_path / "a.jsonl", json.dumps({"prefix": "The en", "completion": "d."}))
    assert texts(name, field="prefix+completion") == ["The end."]
    with pytest.raises(
        UserError, match=r"a.jsonl:1: no field 'text', its fields are 'prefix', 'co"
    ):
        texts(name)
    with pytest.raises(UserError, match="no field 'prefx'.*Did you mean 'prefix'"):
        texts(name, field="prefx")


def test_folders_and_globs_are_sorted_and_take_what_is_text(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.md", "picture.png"):
        write(tmp_path / name, name)
    assert texts(str(tmp_path)) == ["a.txt", "b.txt", "deep/c.md"]
    assert texts(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert texts(f"{tmp_path}/**/*.md") == ["deep/c.md"]


def test_sources_that_name_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", "x")
    write(tmp_path / "a.txt", "x")
    (tmp_path / "empty").mkdir()
    for sources, said in (
        (["nowhere.txt"], "nowhere.txt does not exist"),
        (["bultin"], "Did you mean 'builtin'"),
        (["a.csv"], r"a.csv has suffix '.csv'; allowed are .txt.*text:FILE"),
        (["empty"], "empty holds no text"),
        (["*.md"], r"no file matches \*.md"),
        (["a.txt", "*.txt"], "a.txt is named twice"),
        ([], "no corpus is named"),
        (["hub:noslash"], "hub:noslash: write hub:owner/name"),
    ):
        with pytest.raises(UserError, match=said):
            shards.find(sources)


# Bad rows


LATIN = "Grüße".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"One.\nTwo.\n" + LATIN, r"a.txt:3: invalid UTF-8: byte 0xfc at offset 12 of"),
        ("a.lines", b"One.\n" + LATIN + b"\n", r"a.lines:2: invalid UTF-8: byte 0xfc at offset 7"),
        ("a.jsonl", b'{"text": "' + LATIN + b'"}', r"a.jsonl:1: invalid UTF-8: byte 0xfc at offs"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a.jsonl:2: broken JSON: Expecting value: col"),
        ("a.jsonl", b'{"text": null}', r"a.jsonl:1: the text is not a string but null"),
        ("a.jsonl", b'{"text": 7}', r"a.jsonl:1: the text is not a string but int"),
        (
            "a.jsonl",
            b'{"tekst": "x"}',
            r"a.jsonl:1: no field 'text', its fields.*Did you mean 'tek",
        ),
        ("a.jsonl", b'["text"]', r"a.jsonl:1: not a JSON object but list"),
        ("a.jsonl", b'{"text": "\\ud83d"}', r"a.jsonl:1: half a character \(U\+D83D\)"),
    ],
)
def test_a_bad_row_is_named_or_left_out_and_counted(tmp_path, name, content, said):
    source = write(tmp_path / name, content)
    with pytest.raises(UserError, match=said):
        texts(source)
    bad = BadRows("skip")
    kept = [p.text for p in read(shards.find([source])[0], Place(), bad)]
    assert bad.skipped == 1
    assert "Gr" not in "".join(kept)


def test_bad_bytes_can_be_replaced(tmp_path):
    plain = write(tmp_path / "a.txt", LATIN)
    rows = write(tmp_path / "a.jsonl", '{"text": "a \\ud83d b"}')
    assert texts(plain, policy="replace") == ["Gr��e"]
    assert texts(rows, policy="replace") == ["a � b"]
    with pytest.raises(UserError, match="broken JSON"):
        texts(write(tmp_path / "b.jsonl", "{"), policy="replace")
    with pytest.raises(UserError, match="on_bad_row is 'drop'.*'error', 'skip', 'replace'"):
        BadRows("drop")


def test_only_the_bad_line_of_a_plain_text_is_left_out(tmp_path):
    source = write(tmp_path / "a.txt", b"One.\n" + LATIN + b"\nThree.\n")
    assert texts(source, policy="skip") == ["One.\n\nThree.\n"]


def test_a_file_that_is_cut_off_or_not_what_its_name_says(tmp_path):
    whole = gzip.compress(random.Random(0).randbytes(1000).hex().encode())
    for name, content in (
        ("cut.txt.gz", whole[:-300]),
        ("no.txt.gz", b"plain"),
        ("no.txt.zst", b"plain text"),
    ):
        source = write(tmp_path / name, content)
        with pytest.raises(UserError, match=f"cannot read .*{name}: "):
            texts(source)


def test_the_mark_at_a_files_beginning_is_no_text(tmp_path):
    mark = "\ufeff"
    assert texts(write(tmp_path / "a.txt", mark + "x")) == ["x"]
    assert texts(write(tmp_path / "a.lines", mark + "x\ny")) == ["x", "y"]
    assert texts(write(tmp_path / "a.jsonl", mark + '{"text": "x"}')) == ["x"]


# Long documents


LONG = st.text(alphabet="ab é😀\n\\漢", max_size=120)


@pytest.mark.parametrize("kind", ["text", "lines", "jsonl"])
@settings(deadline=None, max_examples=60)
@given(document=LONG, following=LONG)
@example(document="\\ " + "a" * 40, following="é" * 40 + "\\n" + "\n" * 40)
def test_a_long_document_comes_in_pieces_from_any_place_on(
    tmp_path_factory, kind, document, following
):
    if kind == "lines":  # which cannot hold a backslash before an n, nor an end of spaces alone
        document, following = (t.replace("\\", "/") for t in (document, following))
    content = {
        "text": document,
        "lines": "".join(t.replace("\n", "\\n") + "\n" for t in (document, following)),
        "jsonl": "".join(json.dumps({"text": t}) + "\n" for t in (document, following)),
    }[kind]
    file = tmp_path_factory.mktemp("long") / "file"
    file.write_bytes(content.encode())
    shard, wanted = Shard(str(file), kind), [document, following][: 1 if kind == "text" else 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", 16)
        pieces = list(read(shard, Place(), BadRows()))
        assert all(len(piece.text.encode()) <= 16 for piece in pieces)
        for at, piece in enumerate(pieces):
            assert list(read(shard, piece.after, BadRows())) == pieces[at + 1 :]
    joined = "".join(piece.text + "\0" * piece.ends for piece in pieces)
    assert joined == "".join(text + "\0" for text in wanted if text)


def test_a_row_of_json_beyond_all_measure_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROW", 40)
    rows = [json.dumps({"text": "x" * n}) for n in (3, 200, 4)]
    source = write(tmp_path / "a.jsonl", "\n".join(rows))
    with pytest.raises(UserError, match=r"a.jsonl:2: a row of more than 0 MiB"):
        texts(source)
    assert texts(source, policy="skip") == ["xxx", "xxxx"]


# Train and validation


def test_every_twentieth_document_is_held_out(tmp_path):
    rows = "".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(45))
    source = write(tmp_path / "a.jsonl", rows)
    train, valid = shards.split([source])
    assert texts(*valid) == ["10", "30"]
    assert sorted(texts(*train) + texts(*valid)) == sorted(texts(source))


def test_of_a_plain_text_pieces_are_held_out(tmp_path):
    words = " ".join(f"{i:07}" for i in range(50_000))  # 400 KB
    source = write(tmp_path / "a.txt", words)
    train, valid = shards.split([source])
    held_out = texts(*valid)
    assert len(held_out) == 1  # a document of its own, and the text ends before it
    assert len(texts(*train)) == 2
    assert 0.02 < len(held_out[0]) / len(words) < 0.06
    before, after = texts(*train)
    assert before + held_out[0] + after == words


def test_a_folder_that_names_its_splits_is_taken_at_its_word(tmp_path):
    for name in ("train-0.txt", "train.1.txt", "valid.txt", "test.txt"):
        write(tmp_path / name, name)
    train, valid = shards.split([str(tmp_path)])
    assert (texts(*train), texts(*valid)) == (["train-0.txt", "train.1.txt"], ["valid.txt"])
    write(tmp_path / "train.2.txt", "One.\\nTwo.")
    train, valid = shards.split([f"lines:{tmp_path}"])
    assert texts(*train) == ["train-0.txt", "train.1.txt", "One.\nTwo."]
    assert valid == [f"lines:{tmp_path}/valid.txt"]


def test_validation_predicts_each_token_once_and_counts_its_bytes(tmp_path):
    text = "Ce matin, le chat dort sur la table; 猫😀 the cat sleeps."
    source = write(tmp_path / "a.lines", f"{text}\n" * 30)
    tokenizer = tiny.tokenizer()
    ids = tokenizer([text], add_special_tokens=False)["input_ids"][0] + [tokenizer.eos_token_id]
    stream = ids * 30
    windows, size = corpus.validation([source], tokenizer, 8, 10**9)
    count = (len(stream) - 1) // 8
    assert windows.shape == (count, 9)
    assert [*windows[:, :-1].ravel(), windows[-1, -1]] == stream[: count * 8 + 1]
    # all but the first token, and what the last window does not reach
    lost = tokenizer.decode(stream[0]) + tokenizer.decode(
        stream[count * 8 + 1 :], skip_special_tokens=True
    )
    assert size == 30 * len(text.encode()) - len(lost.encode())
    few, bytes_of_few = corpus.validation([source], tokenizer, 8, 40)
    assert few.shape == (5, 9)
    assert 0 < bytes_of_few < size
    with pytest.raises(UserError, match="tokens, fewer than one window of 100001"):
        corpus.validation([source], tokenizer, 100_000, 10**9)


@pytest.mark.parametrize("content", ["", "\n\n\n"])
def test_an_empty_corpus(tmp_path, content):
    source = write(tmp_path / "a.lines", content)
    options = {"length": 8, "shuffle_buffer": 0, "seed": 0, "workers": 0}
    with pytest.raises(UserError, match=r"no text in .*a.lines"):
        next(iter(corpus.windows([source], tiny.tokenizer(), **options)))
    with pytest.raises(UserError, match=r"no text in .*a.lines"):
        corpus.validation([source], tiny.tokenizer(), 8, 100)


def test_a_corpus_of_bad_rows_alone(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"body": "x"}\n' * 3)
    with pytest.raises(UserError, match="no text in .*; the last of 3 bad rows is .*:3: no field"):
        corpus.validation([source], tiny.tokenizer(), 8, 100, on_bad_row="skip")


# What identifies a corpus, and what fits it


def test_the_settings_see_content_and_names_what_differs(tmp_path):
    sources = [write(tmp_path / "a.txt", "one"), write(tmp_path / "b.txt", "two")]
    tokenizer = tiny.tokenizer()

    def settings(sources: list[str], length: int = 8) -> dict:
        options = {"length": length, "shuffle_buffer": 0, "seed": 0, "workers": 0}
        return corpus.windows(sources, tokenizer, **options).settings

    before = json.loads(json.dumps(settings(sources)))
    require_same(before, settings(sources))

    def differs(said: str, sources: list[str] = sources, **change) -> None:
        with pytest.raises(UserError, match=said):
            require_same(before, settings(sources, **change))

    differs("length was 8, is 9", length=9)
    differs("b.txt is missing; c.txt is new", [sources[0], write(tmp_path / "c.txt", "three")])
    differs("the shards are in another order", sources[::-1])
    write(tmp_path / "b.txt", "owt")
    differs("b.txt has other content")
    write(tmp_path / "b.txt", "two")
    tokenizer.add_tokens(["<new>"])
    differs("tokenizer was '[0-9a-f]+', is '[0-9a-f]+'")


def test_a_tokenizer_without_separator_or_without_speed(tmp_path):
    source, options = write(tmp_path / "a.txt", "text"), {"length": 8, "tokens": 8}
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        corpus.validation([source], tokenizer, **options)
    with pytest.raises(UserError, match="SimpleNamespace is not a fast tokenizer"):
        corpus.validation([source], types.SimpleNamespace(eos_token_id=1), **options)


# The Hub, and what Python brings along


def test_the_hub_is_streamed_at_one_commit_and_resumed(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    for i in range(2):
        rows = (json.dumps({"body": f"row {i}.{j}"}) for j in range(3))
        write(tmp_path / f"{i}.jsonl", "\n".join(rows))
    asked = []
    load = datasets.load_dataset

    def fake(*names, **options):
        asked.append((names, options["split"], options["revision"], options["streaming"]))
        files = sorted(str(file) for file in tmp_path.glob("*.jsonl"))
        return load("json", data_files=files, split="train", streaming=True)

    class Api:
        def dataset_info(self, repo, revision):
            return types.SimpleNamespace(sha="c0ffee" if revision == "v2" else "other")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    found = shards.find(["hub:owner/name@v2/en:validation"])
    assert asked == [(("owner/name", "en"), "validation", "c0ffee", True)]
    pieces = [list(read(shard, Place(), BadRows(), "body")) for shard in found]
    assert [[p.text for p in part] for part in pieces] == [
        [f"row {i}.{j}" for j in range(3)] for i in range(2)
    ]
    rest = list(read(found[1], pieces[1][0].after, BadRows(), "body"))
    assert rest == pieces[1][1:]
    assert shards.hashes(found)[1] == ("hub:owner/name@v2/en:validation 2/2", 0, "c0ffee")


def test_the_hub_out_of_reach():
    with pytest.raises(UserError, match="owner/name"):  # offline in tests
        shards.find(["hub:owner/name"])


def test_a_python_without_its_source(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="without the source of its library.*--data"):
        shards.find(["builtin"])


def test_python_brings_text_along():
    found = texts("builtin")
    assert len(found) > 1000
    assert 800_000 < sum(map(len, found)) < 4_000_000
    lines = [line for text in found for line in text.split("\n")]
    assert len(lines) == len(set(lines))
    assert any(line.startswith("Return the ") and line.endswith(".") for line in lines)
    assert not any(">>>" in line or "  " in line for line in lines)
    assert shards.find(["builtin"])[0].name == str(shards.builtin())
