"""The import graph of ft, written down once and checked, and imports that stay cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p.stem for p in (ROOT / "ft").glob("*.py"))

BASE = {"errors", "files", "__init__"}  # what any module may import
GRAPH = {
    # level 0: one concept each
    "comments": set(),
    "config": {"comments"},
    "rows": set(),
    "tables": {"rows"},
    "instructions": {"rows", "tables", "template"},
    "data": {"instructions", "rows", "tables"},
    "template": set(),
    "chat_template": {"template"},
    "prompts": {"chat_template", "template"},
    "tokens": {"recurrent", "template"},
    "environment": set(),
    "int8": set(),
    "hardware": {"int8"},
    "gguf_tokenizer": set(),
    "gguf_metadata": {"gguf_tokenizer"},
    "gguf_file": {"gguf_metadata", "gguf_tokenizer"},
    "embedded": {"gguf_tokenizer"},
    "hub_errors": set(),
    "sources": {"embedded", "hub_errors", "tiny_vision"},
    "images": set(),
    "image_rows": {"images", "pictures", "rows", "tables"},
    "pictures": set(),
    "tiny_vision": {"embedded", "pictures"},
    "vision": {"image_rows", "images", "models", "sources", "stopping", "template", "tokens"},
    "vision_scores": {"answers", "generate", "images", "pictures", "rows", "template", "vision"}
    | {"voting"},
    "models": {
        "attention",
        "hardware",
        "minigpt",
        "int8",
        "nf4",
        "recurrent",
        "sources",
        "unsloth_backend",
    },
    "recurrent": {"rg_lru"},
    "rg_lru": set(),
    "unsloth_backend": set(),
    "targets": set(),
    "lora": {"lora_linear", "targets", "unsloth_backend"},
    "merge": {"divergence", "lora", "models", "recurrent", "runs", "stopping", "template"},
    "attention": set(),
    "divergence": set(),
    "lora_linear": set(),
    "nf4": set(),
    "loss": {"attention", "tokens"},
    "optim": set(),
    "order": {"tokens"},
    "full": set(),
    "memory": {"full", "hardware", "optim"},
    "known_shapes": set(),
    "shapes": {"known_shapes", "tiny_vision"},
    "tower": {"estimate", "known_shapes", "optim", "tiny_vision"},
    "tape": set(),
    "block_parts": {"known_shapes", "tape"},
    "altup": {"block_parts", "known_shapes", "tape"},
    "blocks": {"altup", "block_parts", "known_shapes", "tape"},
    "footprint": {"blocks", "known_shapes", "loss", "optim", "tape"},
    "estimate": {"blocks", "footprint", "known_shapes", "tape", "tokens"},
    "fit": {"blocks", "estimate", "hardware", "shapes", "tower"},
    "devices": {"estimate", "speed"},
    "plan": {"config", "devices", "estimate", "fit", "runs"},
    "speed": set(),
    "run": {"environment"},
    "card_metadata": set(),
    "card_example": {"template"},
    "card": {"card_example", "card_metadata"},
    "draw": set(),
    "samplers": {"draw"},
    "constraints": {"samplers"},
    "stopping": {"template"},
    "few_rows": set(),
    "decode": {"stopping"},
    "beam": {"decode", "draw", "samplers", "stopping"},
    "generate": {"beam", "decode", "draw", "few_rows", "samplers", "stopping", "template"},
    "generate_command": {"environment", "generate", "models", "partner", "prompts", "runs"}
    | {"constraints", "images", "samplers", "stopping", "tokens", "vision"},
    "console": set(),
    "activations": set(),
    "score": {"activations", "loss", "tokens"},
    "architecture": {"card_metadata", "loss", "sources"},
    "dropout": set(),
    "minigpt_config": set(),
    "minigpt": {"dropout", "loss", "minigpt_config", "tokens"},
    "meter": {"run", "speed"},
    "checkpoints": {"config"},
    "pretrain": {"checkpoints", "run", "score", "shards", "tokenizer_training"},
    "builtin_text": set(),
    "shards": {"builtin_text", "hub_errors"},
    "documents": {"hub_errors", "rows", "shards"},
    "token_stream": {"documents", "shards"},
    "token_cache": {"shards", "token_stream"},
    "windows": {"shards", "token_stream"},
    "corpus": {"shards", "token_cache", "token_stream", "windows"},
    "tokenizer_training": {"shards", "token_stream"},
    # level 1: parts put together
    "_journal": {"speed", "run"},
    "_trainer": {"checkpoints", "environment", "loss", "optim", "order", "tokens"},
    "train": {"_journal", "_trainer", "checkpoints", "environment", "memory", "optim", "run"}
    | {"tokens"},
    "evaluate": {"generate", "prompts", "tokens"},
    "answers": {"evaluate", "generate", "rows", "template", "tokens"},
    "rewards": set(),
    "preference": {"generate", "rewards", "rows", "samplers", "stopping", "template", "tokens"},
    "pairs": {"preference", "rows", "tables", "template", "tokens"},
    "logprobs": {"attention", "loss", "tokens"},
    "policy": {"lora", "loss", "models", "run", "runs"},
    "guards": {"generate", "logprobs", "policy", "samplers", "stopping", "template", "tokens"},
    "rounds": {"config", "guards", "preference", "run"},
    "align": {"_preference_trainers", "pairs", "rewards", "rows", "run", "template"},
    "_preference_trainers": {
        "generate",
        "logprobs",
        "optim",
        "run",
        "samplers",
        "stopping",
        "template",
    },
    "reward_model": {
        "align",
        "models",
        "pairs",
        "rewards",
        "rows",
        "sources",
        "targets",
        "template",
    },
    "reward_command": {"environment", "pairs", "reward_model", "runs", "voting"},
    "eval_command": {"answers", "data", "evaluate", "gsm8k", "harness", "instructions"}
    | {"image_rows", "vision", "vision_scores"}
    | {"reasoning", "report", "reward_model", "rows", "runs", "tokens"},
    "gsm8k": {"rewards", "rows", "tables"},
    "voting": {"rewards"},
    "reasoning": {"answers", "evaluate", "rewards", "rows", "samplers", "stopping", "template"}
    | {"tokens", "voting"},
    "solve_command": {"console", "generate", "generate_command", "partner", "reasoning", "runs"}
    | {"reward_model", "tokens", "voting"},
    "harness": {"decode", "runs"},
    "hub": {"card", "card_example", "hub_errors"},
    "export": {"card_metadata", "gguf_file", "merge", "partner", "runs", "sources"},
    "report": {"run"},
    "runs": {"config", "environment", "hub", "lora", "loss", "models", "run", "template"},
    "conversation": {"template", "tokens", "vision"},
    "partner": {"conversation", "environment", "generate", "hub_errors", "models", "prompts"}
    | {"run", "runs", "samplers", "sources", "stopping", "template", "vision"},
    "screen": {"partner", "stopping"},
    "chat": {"conversation", "images", "partner", "screen"},
    "openai_request": {"template"},
    "openai_response": {"openai_request", "stopping"},
    "openai_http": {"conversation", "generate", "openai_request", "openai_response", "partner"},
    "openai_server": {"openai_http", "partner"},
    "serve": {"openai_server", "partner"},
    "score_command": {"console", "generate_command", "score"},
    "samplers_figure": {"console", "generate", "generate_command", "samplers", "score"}
    | {"score_command"},
    "summary": {"architecture", "console", "hardware", "lora", "models", "partner", "runs"},
}
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "huggingface_hub"}
HEAVY |= {"unsloth", "matplotlib", "numpy", "sacrebleu", "rich", "pandas", "pyarrow"}
OPEN = {
    "_trainer",
    "_journal",
    "_preference_trainers",
    "minigpt",
    "minigpt_config",
}  # subclasses of TRL's and transformers' classes, imported where they are needed


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ft":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ft."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ft.")}
    return found & set(MODULES)


@pytest.mark.parametrize("name", [m for m in MODULES if m not in BASE | {"__main__"}])
def test_ft_imports_only_downwards(name):
    assert imported(ROOT / "ft" / f"{name}.py") <= GRAPH[name] | BASE, f"{name} imports upwards"


def test_the_graph_has_no_cycle_and_no_ghost():
    assert set(GRAPH) == set(MODULES) - BASE - {"__main__"}
    seen: set[str] = set()
    while len(seen) < len(GRAPH):
        ready = {name for name in GRAPH if GRAPH[name] <= seen} - seen
        assert ready, f"a cycle among {set(GRAPH) - seen}"
        seen |= ready


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.stem)
def test_a_recipe_imports_ft_and_no_other_recipe(path):
    others = {p.stem for p in path.parent.glob("*.py")}
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not names & others


def heavy_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_ft_loads_nothing_heavy():
    names = [m for m in MODULES if m not in OPEN | {"__init__"}]
    assert heavy_after("\n".join(f"import ft.{name}" for name in names)) == set()


def test_that_test_can_fail():
    assert heavy_after("import numpy") == {"numpy"}


@pytest.mark.parametrize("name", [m for m in MODULES if m != "__init__"])
def test_the_tree_in_the_readme_is_the_first_sentence_of_each_module(name):
    text = ast.get_docstring(ast.parse((ROOT / "ft" / f"{name}.py").read_text())) or ""
    first = text.split("\n\n")[0]
    assert first.endswith(".")
    assert len(first) < 140
    assert f"    {name + '.py':<19} {first[:-1]}\n" in (ROOT / "README.md").read_text()
