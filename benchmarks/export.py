"""What llama.cpp answers with an exported file, beside the merged model's greedy answers.

python benchmarks/export.py runs/mtnt_lora --data PATH/TO/MTNT --lines 50

Needs `pip install llama-cpp-python==0.3.36`, which compiles llama.cpp. The reference is the merged
model in fp32 with transformers. Where an answer differs, the two tokens' logits in the reference
say by how much they differ there: a near tie, or a fault.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ft import data
from ft.runs import export, merge, opened
from ft.text import tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--outtype", nargs="+", default=["f32", "f16", "bf16", "q8_0"])
    options = parser.parse_args()

    run = opened.finished(options.run)
    rows = data.mtnt("test", run.settings["language_pair"], options.data).head(options.lines)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "merged"
        print(merge.merge_run(run, folder))
        reference = Reference(folder)
        prompts = [run.template.prompt_for(row) for row in rows]
        ids = [tokens.prompt_ids(run.template, row, reference.tokenizer) for row in rows]
        wanted = [reference.answer(prompt, options.max_new_tokens) for prompt in ids]
        print(f"{len(rows)} lines, {sum(map(len, wanted)):,} tokens answered")
        print(f"{'':6}{'MB':>6}{'prompts':>9}{'answers':>9}{'tokens':>9}{'largest gap':>13}")
        for outtype in options.outtype:
            file = Path(place) / f"{outtype}.gguf"
            export.write(folder, file, outtype=outtype, name="merged")
            found = [
                llama_answer(llama, prompt, options.max_new_tokens, reference.ends)
                for llama in [open_file(file)]
                for prompt in prompts
            ]
            same_ids = sum(a == b for (a, _), b in zip(found, ids, strict=True))
            pairs = [(a, b) for (_, a), b in zip(found, wanted, strict=True)]
            equal = sum(common(a, b) for a, b in pairs)
            gaps = [reference.gap(p, a, b) for p, (a, b) in zip(ids, pairs, strict=True) if a != b]
            print(
                f"{outtype:6}{file.stat().st_size / 1e6:6.0f}{same_ids:6}/{len(ids)}"
                f"{sum(a == b for a, b in pairs):6}/{len(ids)}{equal / sum(map(len, wanted)):9.1%}"
                f"{max(gaps, default=0):13.3f}"
            )
            file.unlink()


class Reference:
    """The merged model in fp32, greedy."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.ends = set(self.model.generation_config.eos_token_id)

    def answer(self, prompt: list[int], most: int) -> list[int]:
        """New ids, the one that ends them included."""
        import torch

        ids = torch.tensor([prompt])
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
        )
        return output[0, len(prompt) :].tolist()

    def gap(self, prompt: list[int], other: list[int], own: list[int]) -> float:
        """By how much this model prefers its own token where the two answers part."""
        import torch

        at = common(other, own)
        with torch.no_grad():
            logits = self.model(torch.tensor([prompt + own[:at]])).logits[0, -1]
        return float(logits[own[at]] - logits[other[at]])


def open_file(file: Path) -> Any:
    """The file in llama.cpp."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    return Llama(str(file), n_ctx=1024, logits_all=False, verbose=False)


def llama_answer(llama: Any, prompt: str, most: int, ends: set[int]) -> tuple[list[int], list[int]]:
    """llama.cpp's ids of a prompt, and its greedy answer, the id that ends it included."""
    ids = llama.tokenize(prompt.encode(), add_bos=True, special=True)
    answer: list[int] = []
    for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
        answer.append(token)
        if token in ends or len(answer) == most:
            break
    return ids, answer


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two answers begin with alike."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


if __name__ == "__main__":
    main()
