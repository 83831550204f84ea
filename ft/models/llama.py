"""llama.cpp, from the package that is installed: makes K-quants of a GGUF file, and answers with one.

``llama_cpp`` (llama-cpp-python) and ``llama_cpp_py_sync`` (llama-cpp-py-sync) both hand on llama.cpp's own C functions,
``include/llama.h``; a program ``llama-quantize`` is enough for K-quants.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

PACKAGES = ("llama_cpp", "llama_cpp_py_sync")
PROGRAM = "llama-quantize"
HOW = (
    "pip install llama-cpp-py-sync, which is built already, or llama-cpp-python, which compiles it"
)
PIECE = 64  # tokens computed at a time: each has a row of logits, of 1 MB with Gemma's vocabulary


def package() -> str | None:
    """The package that is installed, if any is."""
    from importlib.util import find_spec

    return next(filter(find_spec, PACKAGES), None)


def check(wanted: str, *, program: bool = False) -> None:
    """Raise ``UserError`` where no llama.cpp is here for what is ``wanted``; ``program``: its own would do."""
    if not package() and not (program and shutil.which(PROGRAM)):
        other = f"; or put its {PROGRAM} on the PATH" if program else ""
        raise UserError(f"{wanted} llama.cpp, which is not installed: {HOW}{other}")


def quantise(whole: Path, out: Path, kind: str) -> None:
    """Write ``whole``, a GGUF file in 16 or 32 bits, as ``out`` with matrices of ``kind``, such as q4_k_m.

    Raises ``UserError`` where llama.cpp cannot, or is not here.
    """
    check(f"{kind} needs", program=True)
    if package():
        library = _Library()
        settings = library.c.llama_model_quantize_default_params()
        settings.ftype = library.file_type(kind)
        paths = (os.fsencode(whole), os.fsencode(out))
        failed = library.c.llama_model_quantize(*paths, library.address(settings))
        said = library.said()
    else:
        line = [str(shutil.which(PROGRAM)), str(whole), str(out), kind.upper()]
        found = subprocess.run(line, capture_output=True, text=True, errors="replace")
        failed = found.returncode
        said = "".join(f": {line}" for line in found.stderr.splitlines()[-1:])
    if failed:
        raise UserError(f"llama.cpp could not make {kind} of this model{said}")


class File:
    """A GGUF file that llama.cpp has opened, with room for ``context`` tokens; a context manager."""

    def __init__(self, file: Path, context: int) -> None:
        check(f"{file} is read by")
        self._library = library = _Library()
        c = library.c
        self._context = self._batch = None
        self._model = c.llama_model_load_from_file(
            os.fsencode(file), c.llama_model_default_params()
        )
        if not self._model:
            raise UserError(f"llama.cpp cannot read {file}{library.said()}")
        self._vocabulary = c.llama_model_get_vocab(self._model)
        self._size = c.llama_vocab_n_tokens(self._vocabulary)
        settings = c.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, PIECE, PIECE
        settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
        self._context = c.llama_init_from_model(self._model, settings)
        if not self._context:
            self.close()
            raise UserError(f"llama.cpp has no room for {file}{library.said()}")
        self._batch = c.llama_batch_init(PIECE, 0, 1)
        self._at = 0

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give its memory back."""
        c = self._library.c
        if self._batch is not None:
            c.llama_batch_free(self._batch)
        if self._context:
            c.llama_free(self._context)
        if self._model:
            c.llama_model_free(self._model)
        self._model = self._context = self._batch = None

    def encode(self, text: str) -> list[int]:
        """The ids that llama.cpp gives a text, special tokens read as such and BOS in front."""
        raw = text.encode()
        ids = self._library.tokens(len(raw) + 8)
        found = self._library.c.llama_tokenize(
            self._vocabulary, raw, len(raw), ids, len(raw) + 8, True, True
        )
        return list(ids[0:found])

    def begin(self) -> None:
        """Forget what was read."""
        memory = self._library.c.llama_get_memory(self._context)
        self._library.c.llama_memory_clear(memory, True)
        self._at = 0

    def read(self, ids: Sequence[int], wanted: Sequence[int] = (-1,)) -> "Float[np.ndarray, 'n v']":
        """Go on with ``ids``; the logits of the token after each of those at the places ``wanted``."""
        import numpy as np

        places = {place % len(ids) for place in wanted}
        rows = [np.empty((0, self._size), np.float32)]
        batch, c = self._batch, self._library.c
        assert batch is not None
        for first in range(0, len(ids), PIECE):
            piece = ids[first : first + PIECE]
            for i, token in enumerate(piece):
                batch.token[i], batch.pos[i] = token, self._at + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = first + i in places
            batch.n_tokens = len(piece)
            if c.llama_decode(self._context, batch):
                raise UserError(f"llama.cpp could not compute{self._library.said()}")
            self._at += len(piece)
            rows += [
                self._library.floats(c.llama_get_logits_ith(self._context, i), self._size)[None]
                for i in range(len(piece))
                if first + i in places
            ]
        return np.concatenate(rows)


class _Library:
    """The functions of ``include/llama.h`` as ``c``, and what the two packages name otherwise."""

    _kept: Any = None  # the callback, which C holds no reference to
    _lines: list[str] = []  # noqa: RUF012  # errors, as llama.cpp says them

    def __init__(self) -> None:
        name = package()
        try:
            if name == "llama_cpp":
                self._by_ctypes()
            else:
                self._by_cffi()
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(f"{name} is installed and does not load: {error}") from None

    def _by_ctypes(self) -> None:
        import ctypes

        import llama_cpp  # pyright: ignore[reportMissingImports]
        import numpy as np

        self.c = llama_cpp
        self.tokens = lambda n: (llama_cpp.llama_token * n)()
        self.address = ctypes.byref
        self.floats = lambda pointer, n: np.ctypeslib.as_array(pointer, (n,)).copy()
        self._log(llama_cpp.llama_log_callback, ctypes.c_void_p(0), lambda text: text)

    def _by_cffi(self) -> None:
        import numpy as np
        from llama_cpp_py_sync._cffi_bindings import (  # pyright: ignore[reportMissingImports]
            get_ffi,
            get_lib,
        )

        ffi, self.c = get_ffi(), get_lib()
        self.tokens = lambda n: ffi.new("llama_token[]", n)
        self.address = ffi.addressof
        self.floats = lambda pointer, n: np.frombuffer(
            ffi.buffer(pointer, 4 * n), np.float32
        ).copy()
        self._log(ffi.callback("ggml_log_callback"), ffi.NULL, ffi.string)
        self.c.llama_backend_init()

    def _log(self, callback: Any, nothing: Any, text_of: Any) -> None:
        """Keep what llama.cpp says away from the terminal, but for what went wrong."""

        def keep(level: int, text: Any, _: Any) -> None:
            if level == 4:  # GGML_LOG_LEVEL_ERROR
                _Library._lines.append(text_of(text).decode(errors="replace").strip())

        _Library._lines.clear()
        _Library._kept, before = callback(keep), _Library._kept
        self.c.llama_log_set(_Library._kept, nothing)
        del before  # until now C may have called it

    def file_type(self, kind: str) -> int:
        """llama.cpp's number of a mixture of types."""
        import gguf

        return int(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])

    def said(self) -> str:
        """What llama.cpp first complained of."""
        return "".join(f": {line}" for line in _Library._lines[:1])
