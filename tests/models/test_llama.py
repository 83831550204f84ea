"""llama.cpp: which package or program is used, what is asked of it, and one clear error where none is."""

import ctypes
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ft.errors import UserError
from ft.models import llama

VOCABULARY = 7


def only(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Of the packages with llama.cpp these alone are installed, and no program."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (name in packages or None) if name in llama.PACKAGES else found(name),
    )
    monkeypatch.setattr(shutil, "which", lambda _: None)


def test_without_llama_cpp_one_error_says_what_to_install(monkeypatch, tmp_path) -> None:
    only(monkeypatch)
    with pytest.raises(UserError, match=r"--verify needs llama\.cpp, .*llama-cpp-python.* it$"):
        llama.check("--verify needs")
    with pytest.raises(UserError, match=r"q4_k_m .*; or put its llama-quantize on the PATH$"):
        llama.quantise(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_k_m")
    with pytest.raises(UserError, match=r"a\.gguf is read by llama\.cpp, which is not installed"):
        llama.File(tmp_path / "a.gguf", 8)


def test_a_package_that_does_not_load_is_named(monkeypatch, tmp_path) -> None:
    only(monkeypatch, "llama_cpp")

    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "llama_cpp":
                raise OSError("GLIBC_2.99 not found")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    with pytest.raises(UserError, match=r"^llama_cpp is installed and does not load: GLIBC_2\.99"):
        llama.File(tmp_path / "a.gguf", 8)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_program_is_enough_for_k_quants(monkeypatch, tmp_path) -> None:
    only(monkeypatch)
    program = tmp_path / "llama-quantize"
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    whole.write_text("weights")

    def write(*lines: str) -> None:
        program.write_text("\n".join(["#!/bin/sh", *lines]))
        program.chmod(0o755)

    write('echo "$3:" > "$2"', 'cat "$1" >> "$2"')
    llama.quantise(whole, out, "q4_k_m")
    assert out.read_text() == "Q4_K_M:\nweights"
    write("echo one >&2", "echo no such type >&2", "exit 1")
    with pytest.raises(UserError, match=r"could not make q4_k_m of this model: no such type$"):
        llama.quantise(whole, out, "q4_k_m")


def fake(context: list[int], calls: list[int]) -> ModuleType:
    """A module as llama-cpp-python's, whose logits tell the place and the ids before it."""
    made = ModuleType("llama_cpp")
    last: dict[int, Any] = {}

    def batch_init(size: int, *_: int) -> Any:
        calls.append(size)
        blank = [0] * size
        ids = [[0] for _ in blank]
        return SimpleNamespace(token=[*blank], pos=[*blank], n_seq_id=[*blank], seq_id=ids, logits=[*blank])  # fmt: skip

    def decode(_: Any, batch: Any) -> int:
        last.clear()
        for i in range(batch.n_tokens):
            assert batch.pos[i] == len(context)
            context.append(batch.token[i])
            if batch.logits[i]:
                row = [len(context), sum(context), batch.token[i], *[0] * (VOCABULARY - 3)]
                last[i] = (ctypes.c_float * VOCABULARY)(*row)
        return 0

    functions = {
        "llama_log_callback": lambda function: function,
        "llama_log_set": lambda *_: None,
        "llama_model_default_params": lambda: None,
        "llama_context_default_params": SimpleNamespace,
        "llama_model_load_from_file": lambda file, _: Path(os.fsdecode(file)).is_file(),
        "llama_model_get_vocab": lambda _: None,
        "llama_vocab_n_tokens": lambda _: VOCABULARY,
        "llama_init_from_model": lambda _, settings: settings.n_ctx <= 1000,
        "llama_batch_init": batch_init,
        "llama_decode": decode,
        "llama_get_logits_ith": lambda _, i: ctypes.cast(last[i], ctypes.POINTER(ctypes.c_float)),
        "llama_get_memory": lambda _: None,
        "llama_memory_clear": lambda *_: context.clear(),
        "llama_token": ctypes.c_int32,
    }
    freed = dict.fromkeys(("llama_batch_free", "llama_free", "llama_model_free"), calls.append)
    for name, function in (functions | freed).items():
        setattr(made, name, function)
    return made


def test_long_texts_are_read_in_pieces_and_gone_on_with(monkeypatch, tmp_path) -> None:
    only(monkeypatch, "llama_cpp")
    context: list[int] = []
    calls: list[int] = []
    monkeypatch.setitem(sys.modules, "llama_cpp", fake(context, calls))
    (tmp_path / "a.gguf").touch()
    ids = [1, 2, 3, 4] * (llama.PIECE // 2)  # two pieces
    wanted = [0, llama.PIECE - 1, llama.PIECE, len(ids) - 2]
    with llama.File(tmp_path / "a.gguf", 500) as file:
        found = file.read(ids, wanted)
        assert found.shape == (4, VOCABULARY)
        assert found[:, 0].tolist() == [at + 1 for at in wanted]
        assert found[:, 1].tolist() == [sum(ids[: at + 1]) for at in wanted]
        (after,) = file.read([5])
        assert after[:3].tolist() == [len(ids) + 1, sum(ids) + 5, 5]
        file.begin()
        assert file.read([6])[0, 0] == 1
    assert len(calls) == 4  # all that was made is freed
    with pytest.raises(UserError, match=r"llama\.cpp cannot read .*b\.gguf"):
        llama.File(tmp_path / "b.gguf", 500)
    with pytest.raises(UserError, match=r"llama\.cpp has no room for .*a\.gguf"):
        llama.File(tmp_path / "a.gguf", 2000)
