"""Tiny models and files of rows, each with one of the faults by which fine-tunes of Gemma are known to fail."""

import functools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from support import tiny, tiny_gguf

ASK = ["What is the capital of France?", "Name the animal.", "Say hello.", "Where is the cat?"]
ANSWER = ["Paris.", "The cat.", "Hello, my name is Morgane.", "On the table."]


def rows(file: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Records as JSON lines."""
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return file


def instructions(n: int = 40) -> list[dict[str, Any]]:
    """Questions with answers, no two alike."""
    return [
        {"instruction": f"{ASK[i % 4]} {i}", "context": "", "response": f"{ANSWER[i % 4]} {i}"}
        for i in range(n)
    ]


def chats(n: int = 40) -> list[dict[str, Any]]:
    """Conversations of two exchanges."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{ASK[i % 4]} {i}"},
                {"role": "assistant", "content": f"{ANSWER[i % 4]} {i}"},
                {"role": "user", "content": f"And then {i}?"},
                {"role": "assistant", "content": f"The table {i}."},
            ]
        }
        for i in range(n)
    ]


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}, indent=1))


def weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of a model."""
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    change(found)
    kept = {name: tensor.contiguous() for name, tensor in found.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


class Bench:
    """A folder in which models and files are made once each, as they are asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @functools.cache  # noqa: B019  # a bench lives as long as the tests of its file
    def model(self, kind: str = "gemma3_text") -> Path:
        """A tiny model in which nothing is wrong."""
        if kind == "gguf":
            return tiny_gguf.model_folder(self.place / kind, "gemma3_text")
        return tiny.folder(kind, self.place / kind, max_position_embeddings=4096)

    def copy(self, name: str, kind: str = "gemma3_text") -> Path:
        """Another one, to do harm to."""
        folder = self.place / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.model(kind), folder)
        return folder

    def data(self, records: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
        """A file of rows."""
        return rows(self.place / name, records)
