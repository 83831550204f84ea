"""What a model is and needs, from its configuration alone: how it is stored, its head, LoRA's layers, memory, export."""

import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.models import embedded, parameters
from ft.models.sources import fetch, read_config, shapes_of
from ft.plan import fitting, layers, rewards, settings, shapes, time
from ft.plan.case import Case, Seen
from ft.plan.moments import GIB
from ft.plan.peak import Plan
from ft.runs import checkpoints
from ft.runs.gguf_settings import ARCHITECTURES

NAMES = {
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "gemma3_text": "Gemma 3",
    "gemma3n": "Gemma 3n",
    "gemma3n_text": "Gemma 3n",
    "recurrent_gemma": "RecurrentGemma, padded on the right only",
    "minigpt": "mini-GPT",
}
SOFT_CAPS = {"gemma2": (50.0, 30.0)}  # what a config.json may leave out: on attention, on logits


def model(case: Case) -> Seen:
    """The model's configuration: stored as it is trained, its towers, whose head it has, its context."""
    if case.model == "embedded" and not embedded.made():
        case.shape = shapes.of(case.model)
        text = (
            "not looked at: `embedded` is unpacked at its first use; its sizes are from the table"
        )
        return Seen("--", "model", text)
    try:
        case.folder = fetch(case.model, weights=False)
    except UserError:
        if not (case.offline and case.on_hub):
            raise
        with contextlib.suppress(UserError):
            case.shape = shapes.of(case.model)
        sizes = "; its sizes are from the table" if case.shape else ""
        text = f"{case.model} is not in the cache, and could not be trained offline{sizes}"
        return Seen("WARN", "model", text)
    case.raw = raw = read_config(case.folder, case.model)
    kind = raw["model_type"]
    texts, status = [_named(kind)], "ok"
    if kind != "minigpt":
        case.shape = shapes.of(case.model if not case.on_hub else str(case.folder))
    if "train_vision" in case.settings and not raw.get("vision_config"):
        raise UserError(
            f"{case.model} takes no images: it is a {kind} model, of text alone. Gemma 3 from 4B on, Gemma 3n "
            "and Gemma 4 take them, such as google/gemma-3-4b-it."
        )
    if towers := [name for name in ("vision", "audio") if raw.get(f"{name}_config")]:
        words = " and ".join("image" if name == "vision" else name for name in towers)
        used = "train_vision" in case.settings
        texts.append(f"{words} tower{'s' * (len(towers) > 1)} {'kept' if used else 'left out'}")
    head, alarming = _head(case.folder, text_of(raw))
    texts.append(head)
    status = "WARN" if alarming else status
    texts.append("not stored quantised")
    if kind == "gemma" and raw.get("hidden_act") == "gelu" and not raw.get("hidden_activation"):
        texts.append('its "gelu" is read as Gemma\'s tanh-GELU')
    context = text_of(raw).get("max_position_embeddings") or (
        case.shape.max_position_embeddings if case.shape else None
    )
    if kind != "recurrent_gemma" and case.length and context:
        if case.length > context:
            raise UserError(
                f"--max-length {case.length}: the model has {context:,} positions; lower --max-length"
            )
        texts.append(f"{context:,} positions")
    return Seen(status, "model", "; ".join(texts))


def _named(kind: str) -> str:
    return NAMES.get(kind, "Gemma 4" if kind.startswith("gemma4") else kind)


def text_of(raw: dict[str, Any]) -> dict[str, Any]:
    """The text part of a ``config.json``."""
    return {**raw, **(raw.get("text_config") or {})}


def _head(folder: Path, text: dict[str, Any]) -> tuple[str, bool]:
    """Whose the head is, and whether flag and weights say different things."""
    tied = text.get("tie_word_embeddings", True)
    try:
        own = any("lm_head" in name for name in shapes_of(folder))
    except UserError as error:  # a loading will refuse it
        return str(error), True
    if tied and own:
        return (
            "own head under a tied flag: training, merge and export keep the head; other programs may "
            "drop it (write tie_word_embeddings false)"
        ), True
    return ("tied head" if tied else "own head"), False


def numbers(case: Case) -> Seen:
    """What is computed, and by what: attention that is exact for this model, and never fp16 alone."""
    assert case.raw
    kind, text = case.raw["model_type"], text_of(case.raw)
    default = SOFT_CAPS.get(kind, (None, None))
    on_scores = text.get("attn_logit_softcapping", default[0])
    on_logits = text.get("final_logit_softcapping", text.get("logits_soft_cap", default[1]))
    caps = [
        f"{cap:g} on {where}"
        for where, cap in (("attention", on_scores), ("logits", on_logits))
        if cap
    ]
    attention = "sdpa attention"
    if kind == "gemma2":
        attention = "eager attention, as sdpa leaves a soft cap out"
    if case.place.kind == "cuda":
        attention = "the GPU's attention of packed rows, which loading chooses and says why"
    if (asked := case.settings.get("attention", "auto")) != "auto":
        attention = f"{asked} attention, as asked"
    if case.settings.get("precision") in ("fp16", "float16", "half"):
        raise UserError(
            "precision fp16 is not offered: activations of Gemma 2, 3 and 4 overflow in it"
        )
    return Seen(
        "ok",
        "numbers",
        f"{attention}; soft caps: {', '.join(caps) or 'none'}; fp32 or bf16, never fp16 alone; positions and "
        "norms in fp32; a value that is not finite stops the run and is named",
    )


def batches(case: Case) -> Seen:
    """How examples share rows, and what a step's loss is the mean of; ``--weights`` measures both."""
    by_trl = "max_kl" in case.settings and "rounds" not in case.settings
    packs = not by_trl and "train_vision" not in case.settings
    packs = packs and case.settings.get("backend") != "unsloth"
    laid = (
        "packed, each example apart from the others"
        if packs
        else "padded on the right, one to a row"
    )
    sees = "train_vision" in case.settings
    kinds = "token_type_ids tell images from text" if sees else "no token_type_ids needed"
    return Seen(
        "ok",
        "batches",
        f"{laid}, {kinds}; "
        + ("the loss is TRL's, of whole answers" if by_trl else "the loss is the mean over ")
        + ("" if by_trl else "a step's supervised tokens, whatever the accumulation"),
    )


def lora(case: Case) -> Seen | None:
    """The layers that the adapter goes on, and that none of them is of a tower."""
    if "lora_r" not in case.settings or case.shape is None:
        return None
    rank, targets = (
        case.settings["lora_r"],
        list(case.settings.get("lora_target_modules", ["auto"])),
    )
    if rank == 0 and case.settings.get("precision") == "nf4":
        raise UserError(parameters.NO_GRADIENT)
    if rank == 0:
        return Seen("ok", "lora", "none: all parameters of the language model train")
    if rank < 0:
        raise UserError(f"--lora-r {rank}: must be 1 or more, or 0 to train all parameters")
    targets = [target for target in targets if target.strip()]
    if not targets:
        raise UserError("no LoRA targets: give `auto`, or names such as q_proj,v_proj")
    chosen = adapted(case.shape, targets)
    towers = (
        case.settings.get("train_vision") and "the image tower has its own" or "none in a tower"
    )
    leaves = sorted({m.name.rpartition(".")[2] for m in chosen})
    return Seen("ok", "lora", f"{len(chosen)} layers ({', '.join(leaves)}), {towers}, the head not")


def adapted(shape: shapes.Shape, targets: list[str]) -> list[Any]:
    """The linear layers that ``parameters.select`` would choose. Raises ``UserError`` for one that fits none."""
    able = [m for m in layers.matrices(shape) if m.adaptable]
    if len(targets) == 1 and targets[0] in parameters.AUTO:
        return able
    leaves = {m.name.rpartition(".")[2]: [] for m in able}
    for target in targets:
        if not any(f".{m.name}".endswith(f".{target}") for m in able):
            settings.refuse_target(target, sorted(leaves))
    return [m for m in able if any(f".{m.name}".endswith(f".{target}") for target in targets)]


def memory(case: Case) -> Seen:
    """The peak that ``ft plan`` tells, against the memory there is, and the time on a known device."""
    given = rewards.completed(case.settings)
    assert case.shape
    if missing := [name for name in settings.NEEDED if name not in given]:
        return Seen("--", "memory", f"not looked at: the recipe has no setting {missing[0]}")
    if given["lora_r"] == 0 and given["precision"] == "nf4":
        return Seen("--", "memory", "not looked at: such a run is refused")
    folder = case.folder if case.on_hub else None
    seen = given | ({"model_name_or_path": str(folder)} if folder else {})
    place = case.place
    options: dict[str, Any] = dict(place.options)
    if case.encoded and case.splits and (groups := _kept(case, given, "train")):
        lengths = rewards.flat(groups)
        if "answers_each" in given:
            seen["answers_each"] = len(groups[0])
        options["lengths"] = lengths if case.everything else None
        largest = settings.likely_largest(seen, groups, len(case.splits["train"]))
        options["largest"] = largest
        options["usual_share"] = settings.usual_of(lengths, largest)
    case.plan = settings.of(seen, **options)
    text = f"peak {case.plan.peak / GIB:.1f} of {place}, {case.plan.moment}"
    if case.plan.peak > place.room:
        if place.here and place.kind == "cpu":
            other = "; will not fit here (--gpu SIZE for another machine)"
            return Seen("WARN", "memory", text + other)
        text += f"; will not fit. What would: {fitting.ways(seen, place.room, options)}"
        if place.here:  # a plan is no measurement, and what is free changes
            return Seen("WARN", "memory", text)
        raise UserError(text)
    if place.card and case.encoded and not rewards.draws(given):
        text += f"; {_time(case, case.plan, place.card)}"
    return Seen("ok", "memory", text)


def _time(case: Case, plan: Plan, device: str) -> str:
    """How long the steps of a run take on a card, with the validations between them; not its start and its scores."""
    given = case.settings
    batches, epoch = _epoch(case, plan, device, "train")
    each = given["gradient_accumulation_steps"]
    steps = given.get("max_steps") or math.ceil(given["num_train_epochs"] * batches / each)
    seconds = steps * each * epoch / batches
    if "valid" in (case.encoded or ()) and "eval_steps" in given:
        apart = given["eval_steps"] or checkpoints.interval(steps)
        looks = steps // apart + 2  # with the first and the last
        seconds += looks * _epoch(case, plan, device, "valid")[1] / 2  # forward alone
    took = f"about {time.duration(seconds)}" if seconds >= 60 else "under a minute"
    article = "an" if device[0] in "ahlr" else "a"
    return f"{steps:,} step{'s' * (steps > 1)} in {took} on {article} {device}"


def _kept(case: Case, given: Mapping[str, Any], split: str) -> list[list[int]]:
    """Lengths of what each row of a split's sample brings into a batch, of those that are learnt from."""
    assert case.encoded
    most, drops = case.length or sys.maxsize, case.settings.get("length_policy", "drop") == "drop"
    found = rewards.groups(given, case.encoded[split])
    if "step_answers" in given and not hasattr(case.encoded[split], "pairs"):
        return found  # of answers that are still to be drawn, as long as they may be
    return [[min(n, most) for n in group] for group in found if max(group) <= most or not drops]


def _epoch(case: Case, plan: Plan, device: str, split: str) -> tuple[int, float]:
    """Batches of a split, and the seconds that learning from each of them once takes."""
    assert case.encoded
    assert case.sample
    assert case.splits
    given, encoded = rewards.completed(case.settings), case.encoded[split]
    groups = _kept(case, given, split)
    found = rewards.flat(groups)
    rows = len(case.splits[split]) / len(case.sample[split])  # of the split for one of the sample
    batches = max(1, math.ceil(rows * len(groups) / given["per_device_train_batch_size"]))
    part = rewards.supervised(given, encoded, rewards.flat(rewards.groups(given, encoded)))
    tokens = rows * sum(found) / batches
    return batches, batches * time.on_card(plan, device, tokens, supervised=part)


def exported(case: Case) -> Seen:
    """Whether the finished run could be one GGUF file."""
    assert case.raw
    assert case.folder
    kind = case.raw["model_type"]
    if kind not in ARCHITECTURES:
        return Seen("ok", "export", f"merged folder; GGUF: not of {_named(kind)}")
    if ARCHITECTURES[kind] != "gemma4" and not (case.folder / "tokenizer.model").is_file():
        return Seen(
            "ok", "export", "merged folder; GGUF: not without a tokenizer.model beside the model"
        )
    return Seen("ok", "export", "merged folder; GGUF: possible")
