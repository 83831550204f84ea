"""`ft check --weights`: the model on one batch, each number against another way to get it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ft.errors import UserError
from ft.models import lora, parameters
from ft.models.load import load
from ft.plan import check_environment as around
from ft.plan.case import Case, Seen
from ft.runs import merge, proof, record
from ft.score import likelihood
from ft.text.batches import layout, row_length
from ft.text.tokens import IGNORE, Example
from ft.train import first_batch

BATCH = 8  # examples that are looked at
# how far two ways to the same loss may be apart, as a share of it: rounding of the base's precision
CLOSE = {"fp32": 1e-4, "bf16": 2e-2, "nf4": 2e-2}
CACHED = 24  # tokens that are read one by one


def look(case: Case) -> list[Seen]:
    """Load the model as the recipe would, and see on one batch whether it trains as it is used."""
    if not case.provable:
        return [Seen("--", "weights", "not looked at: for recipes that fine-tune a Gemma on text")]
    assert case.encoded
    limit = case.length or math.inf
    fitting = [e for e in case.encoded["train"].examples if len(e["input_ids"]) <= limit][:BATCH]
    if not fitting:
        return [Seen("--", "weights", "not looked at: no example of the sample is short enough")]
    try:
        base, model = _loaded(case)
    except UserError as error:
        return [Seen("ERROR", "weights", str(error))]
    fingerprint = around.known(case, record.model_of(base))
    case.proven = proof.of(fingerprint, case.settings, base.attention)
    seen = [_start(model, fitting, case.settings.get("accept_loss", False))]
    if seen[0].status == "ERROR":
        return seen
    close = CLOSE[base.precision]
    for check in (packed, cached, accumulated):
        seen.append(check(model, fitting, close))
    if hasattr(model, "peft_config"):
        seen.append(merged(model, fitting, base.precision))
    return seen


def _loaded(case: Case) -> tuple[Any, Any]:
    """Base and model as the recipe's settings have them."""
    from ft import machine

    given = case.settings
    machine.use_all_cores()
    whole = given["lora_r"] == 0
    precision = "fp32" if whole and given["precision"] == "auto" else given["precision"]
    base = load(
        case.model,
        precision=precision,
        backend=given.get("backend", "auto"),
        attention=given.get("attention", "auto"),
        max_length=case.length,
        text_only=not whole,
    )
    machine.seed_everything(given.get("seed", 0))
    if whole:
        return base, parameters.train_all(base)
    model = lora.attach(
        base,
        r=given["lora_r"],
        alpha=given["lora_alpha"],
        targets=given.get("lora_target_modules", ("auto",)),
        variant=given.get("lora_variant", "lora"),
    )
    return base, model


def _start(model: Any, examples: Sequence[Example], accept: bool) -> Seen:
    """The loss before the first step: finite and sane."""

    def again() -> float:
        return likelihood.loss(model, examples)

    loss = again()
    if not math.isfinite(loss):
        why = first_batch.culprit(model, again) or "every module's output is finite"
        return Seen("ERROR", "start loss", f"{loss}: {why}")
    if loss > first_batch.bound(model):
        text = first_batch.too_high(model, loss)
        if not accept:
            return Seen("ERROR", "start loss", f"{text} {first_batch.ACCEPT}")
        return Seen("WARN", "start loss", f"{text} Accepted.")
    return Seen("ok", "start loss", first_batch.sane(model, loss))


def packed(model: Any, examples: Sequence[Example], close: float) -> Seen:
    """Packed rows give the loss of padded ones."""
    from ft.kernels.recurrent import packs_exactly

    if not packs_exactly(model):
        return Seen("ok", "packed", "examples of this model and backend are padded, never packed")
    return _equal(
        "packed",
        "packed",
        _loss(model, examples, True),
        "padded",
        _loss(model, examples, False),
        close,
    )


def cached(model: Any, examples: Sequence[Example], close: float) -> Seen:
    """What training sees of a text is what generation, with its cache, sees of it."""
    import torch
    from transformers import DynamicCache

    from ft.kernels import cache as caches
    from ft.kernels import recurrent

    ids = min((e["input_ids"] for e in examples), key=len)[:CACHED]
    row = torch.tensor([ids], device=model.device)
    with _training(model), torch.no_grad():
        trained = model(input_ids=row, use_cache=False).logits[0].float()
    model.eval()
    steps, past = [], None
    if recurrent.installed(model):  # which keeps its state in what it is given, and gives none back
        past = DynamicCache(config=model.config)
    with torch.no_grad():
        for token in row.unbind(1):
            out = model(input_ids=token[:, None], use_cache=True, **{caches.name(): past})
            past = out.get(caches.name(), past)
            steps.append(out.logits[0, -1].float())
            if past is None:
                return Seen("--", "cached", "this model keeps no cache that can be compared")
    used = torch.stack(steps)
    nll = [
        -x.log_softmax(-1)[:-1].gather(1, row[0, 1:, None]).mean().item() for x in (trained, used)
    ]
    return _equal("cached", "training", nll[0], "generation with its cache", nll[1], close)


def accumulated(model: Any, examples: Sequence[Example], close: float) -> Seen:
    """One batch of 8 and 8 of 1 have the same gradient."""
    import torch

    norms, kept = [], []
    for size in (len(examples), 1):
        model.zero_grad(set_to_none=True)
        with _training(model), torch.enable_grad():
            for at in range(0, len(examples), size):
                for batch in _rows(model, examples[at : at + size], None):
                    (model(**batch)["loss"] / _count(examples)).backward()
        grads = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        kept.append(torch.cat(grads))
        norms.append(kept[-1].norm().item())
    model.zero_grad(set_to_none=True)
    apart = (kept[0] - kept[1]).norm().item() / max(norms[0], 1e-12)
    text = f"gradient of 1 x {len(examples)} and {len(examples)} x 1: norm {norms[0]:.4g} and {norms[1]:.4g}"
    if not apart <= 5 * close:
        return Seen(
            "ERROR",
            "accumulate",
            f"{text}, apart by {apart:.1%}: accumulation changes what is learnt",
        )
    return Seen("ok", "accumulate", f"{text}, the same direction")


def merged(model: Any, examples: Sequence[Example], precision: str) -> Seen:
    """After a step, the adapter merged into its base answers as both together do. Changes the model."""
    import torch

    if precision == "nf4":
        return Seen("--", "merged", "a 4-bit base is merged in 16 bits, and compared, by ft merge")
    with _training(model), torch.enable_grad():
        for batch in _rows(model, examples, None):
            (model(**batch)["loss"] / _count(examples)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                scale = parameter.grad.norm().clamp(min=1e-12)
                parameter -= 0.1 * parameter.grad / scale
    model.zero_grad(set_to_none=True)
    from ft.kernels import lora_copies

    lora_copies.refresh(model)
    ids = [torch.tensor([e["input_ids"]]) for e in examples[:4]]
    before = merge.logits(model, ids)
    try:
        after = merge.logits(model.merge_and_unload(safe_merge=True), ids)
    except ValueError as error:  # PEFT's, for weights that are no numbers after it
        return Seen("ERROR", "merged", f"after a step the adapter cannot be merged: {error}")
    found = merge.compare(before, after, merge.BOUNDS[precision])
    status = "ok" if found.kl <= found.bound else "ERROR"
    return Seen(status, "merged", f"after a step, adapter and merged model {found}")


def _training(model: Any) -> Any:
    """The model as a step sees it, but for dropout, which would draw."""
    import contextlib

    import torch

    @contextlib.contextmanager
    def mode() -> Iterator[None]:
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        try:
            yield
        finally:
            model.eval()

    return mode()


def _rows(model: Any, examples: Sequence[Example], packing: bool | None) -> list[dict[str, Any]]:
    from ft.kernels.recurrent import packs_exactly

    packing = packs_exactly(model) if packing is None else packing
    made = layout(examples, packing=packing, capacity=row_length("cpu"), pad=0)
    return [{key: value.to(model.device) for key, value in row.items()} for row in made]


def _count(examples: Sequence[Example]) -> int:
    return sum(label != IGNORE for e in examples for label in e["labels"][1:])


def _loss(model: Any, examples: Sequence[Example], packing: bool) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        total = sum(model(**row)["loss"].item() for row in _rows(model, examples, packing))
    return total / _count(examples)


def _equal(name: str, one: str, a: float, other: str, b: float, close: float) -> Seen:
    text = f"{one} {a:.4f}, {other} {b:.4f} nats a token"
    if not abs(a - b) <= close * max(abs(a), abs(b), 1.0):
        return Seen(
            "ERROR", name, f"{text}: they differ, so this model would not learn what it is used for"
        )
    return Seen("ok", name, text)
