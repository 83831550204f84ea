"""Standard benchmarks through lm-eval: our loaded model with exactly one BOS, base beside tuned in one table."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.errors import UserError, nearest
from ft.score import comparison
from ft.score.comparison import Comparison

if TYPE_CHECKING:
    from ft.runs.opened import Finished


def tasks_of(names: Sequence[str]) -> list[Any]:
    """lm-eval's tasks and groups of these names, or of YAML files. Loads their data, but no model.

    Raises ``UserError`` where lm-eval is not installed, knows no such task, or cannot load it.
    """
    try:
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise UserError(
            f"--tasks needs lm-eval, which cannot be imported ({error}): "
            'pip install -c constraints.txt -e ".[lm-eval]"'
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not names:
        raise UserError("--tasks names no task; write for instance --tasks gsm8k,hellaswag")
    files = [name for name in names if Path(name).suffix in (".yaml", ".yml")]
    manager = TaskManager(include_defaults=len(files) < len(names))
    for name in names:
        if name in files and not Path(name).is_file():
            raise UserError(f"task {name}: there is no such file")
        if name not in files and name not in manager.all_tasks:
            raise UserError(
                f"task {name!r}: lm-eval has no such task; `lm-eval ls tasks` lists them, and a "
                f"YAML file of your own may be named.{nearest(name, manager.all_tasks)}"
            )
    try:
        loaded = manager.load(list(names))
    except Exception as error:  # datasets, huggingface_hub, yaml and jinja have each their own
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"tasks {', '.join(names)} cannot be loaded: {text[:300]}") from None
    inner = {child for children in loaded["group_map"].values() for child in children}
    inner |= {task for group in loaded["groups"].values() for task in _leaves(group)}
    both: dict[str, Any] = {**loaded["groups"], **loaded["tasks"]}
    return [item for name, item in both.items() if name not in inner]


def compare(
    run: "Finished",
    tasks: Sequence[Any],
    *,
    precision: str = "auto",
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 1,
) -> Comparison:
    """A run's base and its tuned model on the tasks of ``tasks_of``.

    Of the values ``{"base", "tuned"}`` are lm-eval's own numbers (``results``); the rest is how they
    were made.
    """
    from ft.runs import opened

    o = opened.load(run, precision)
    model, tokenizer = o.model, o.tokenizer
    options = {"limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size}
    base = o.base if run.whole else None
    both = comparison.both(lambda each: evaluate(each, tokenizer, tasks, **options), model, base)
    result: dict[str, Any] = {name: found["results"] for name, found in both.items()}
    found = both["tuned"]
    inner = {child for children in found["group_subtasks"].values() for child in children}
    shown = [task for task in found["results"] if task not in inner]
    keep = {key: found[key] for key in ("n-shot", "versions", "n-samples", "higher_is_better")}
    result |= keep | {"shown": shown} | options
    return Comparison(result, table(result), "")


def evaluate(
    model: Any, tokenizer: Any, tasks: Sequence[Any], *, batch_size: int = 1, **options: Any
) -> dict[str, Any]:
    """lm-eval's result for a loaded model, whatever its precision and adapters."""
    import lm_eval  # pyright: ignore[reportMissingImports]

    from ft.generate.decoding import contiguous_head

    judged = _one_bos(model, tokenizer, batch_size)
    with contiguous_head(model):
        found = lm_eval.simple_evaluate(judged, tasks=list(tasks), log_samples=False, **options)
    assert found is not None, "lm-eval answers the first process only"
    return dict(found)


def table(result: dict[str, Any]) -> str:
    """One line for each metric of each task, base beside tuned, with lm-eval's standard errors."""
    columns = f"{'task':<24}{'metric':<32}{'shots':>5}   {'base':>18}   {'tuned':>18}"
    lines = [f"\n{columns}"]
    for task in result["shown"]:
        shots = result["n-shot"].get(task, "")
        for key in result["tuned"][task]:
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr"):
                continue
            cells = [_cell(result[name][task], metric, chosen) for name in ("base", "tuned")]
            label = metric if chosen == "none" else f"{metric}, {chosen}"
            better = {True: " ↑", False: " ↓"}.get(
                result["higher_is_better"].get(task, {}).get(metric), ""
            )
            lines.append(
                f"{task:<24}{label + better:<32}{shots:>5}   {cells[0]:>18}   {cells[1]:>18}"
            )
    return "\n".join([*lines, "± is lm-eval's standard error"])


def _cell(values: dict[str, Any], metric: str, chosen: str) -> str:
    error = values.get(f"{metric}_stderr,{chosen}")
    known = isinstance(error, float) and error == error
    return f"{values[f'{metric},{chosen}']:.4f}" + (f" ± {error:.4f}" if known else "")


def _leaves(group: Any) -> set[str]:
    return {task.task_name for task in group.get_all_tasks()}


def _one_bos(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's HFLM with one BOS in front of everything that the model reads.

    HFLM leaves that to the tokenizer and looks at the first text of a batch alone; where a text is
    scored in windows, it begins the first with two and the others with none.
    """
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    bos = tokenizer.bos_token_id

    class OneBos(HFLM):
        windows = False  # being made; lm-eval puts BOS in front of the first

        @property
        def max_length(self) -> int:
            return super().max_length - self.windows  # leaves room for BOS

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **_: Any,
        ) -> list[int]:
            ids = self.tokenizer.encode(string, add_special_tokens=False)
            ids = ids[1:] if ids[:1] == [bos] else ids
            if left_truncate_len:
                ids = ids[-(left_truncate_len - 1) :]
            return ids if self.windows or add_special_tokens is False else [bos, *ids]

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[Any, Any]:
            rows = [self.tok_encode(s, left_truncate_len=left_truncate_len) for s in strings]
            padded = self.tokenizer.pad(
                {"input_ids": rows}, padding_side=padding_side, return_tensors="pt"
            )
            return padded["input_ids"], padded["attention_mask"]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            self.windows = True
            try:
                return super().loglikelihood_rolling(requests, disable_tqdm)
            finally:
                self.windows = False

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
            windows, self.windows = self.windows, False
            begun = []
            for text, context, rest in requests:
                bare = context[1:] if context[:1] == [bos] else context
                over = max(0, len(bare) + len(rest) - self.max_length)  # the last token is not read
                begun.append((text, [bos, *bare[over:]], rest))
            try:
                return super()._loglikelihood_tokens(begun, *args, **options)
            finally:
                self.windows = windows

    return OneBos(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
