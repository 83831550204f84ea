"""Learning from preferences (DPO, KTO) and from rewards (GRPO, RLOO) through TRL's trainers, watched while it goes on."""

import functools
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ft.data.preferences import asking
from ft.data.rows import Row
from ft.errors import UserError
from ft.rewards.drawn import Pair, example
from ft.runs.folder import Run, go_on
from ft.score.rewards import Reward
from ft.text.template import Template
from ft.text.tokens import prompt_ids
from ft.train.sft import of_every_trainer, on_one_gpu, recomputes

LEAST = (1, 16)  # TRL's version; older losses need Triton, and have no head to put ours in place of


@dataclass(frozen=True)
class Learnt:
    """What a training took."""

    steps: int
    seconds: float


def dpo(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    run: Run,
    learning_rate: float,
    beta: float,
    per_device_train_batch_size: int,
    gradient_accumulation_steps: int = 1,
    gradient_checkpointing: bool | None = None,
    num_train_epochs: float = 1.0,
    max_steps: int | None = None,
    save_steps: int | None = None,
    seed: int = 0,
) -> Any:
    """A trainer of direct preference optimisation (Rafailov et al. 2023) for a model of ``policy.load``.

    The reference is the adapter as it is now. ``gradient_checkpointing`` as ``train.sft`` has it. Raises
    ``UserError`` for an old TRL.
    """
    require_trl()
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    from ft.rewards.trl_trainers import Dpo

    args = DPOConfig(
        **common(
            *(model, run.folder, learning_rate, per_device_train_batch_size, max_steps, seed),
            recompute=recomputes(run, gradient_checkpointing),
        ),
        **saving(save_steps),
        gradient_accumulation_steps=gradient_accumulation_steps,
        num_train_epochs=num_train_epochs,
        beta=beta,
        max_length=None,
    )
    trainer = Dpo(
        model=model,
        args=on_one_gpu(args),
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
    )
    names = ("chosen_ids", "rejected_ids")
    both = [[example(pair["prompt_ids"], pair[name]) for name in names] for pair in pairs]
    trainer.adopt(both, run, gradient_checkpointing)
    return trainer


def kto(
    model: Any,
    tokenizer: Any,
    answers: Sequence[Pair],
    *,
    run: Run,
    learning_rate: float,
    beta: float,
    per_device_train_batch_size: int,
    gradient_accumulation_steps: int = 1,
    gradient_checkpointing: bool | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    num_train_epochs: float = 1.0,
    max_steps: int | None = None,
    save_steps: int | None = None,
    seed: int = 0,
) -> Any:
    """A trainer of KTO (Ethayarajh et al. 2024) for a model of ``policy.load``, on single answers with labels.

    They are shuffled once by ``seed``; the KL is estimated on the answer before each in its batch. The
    reference is the adapter as it is now, ``gradient_checkpointing`` as ``train.sft`` has it. Raises
    ``UserError`` for an old TRL and for batches of one.
    """
    require_trl()
    if per_device_train_batch_size < 2 or len(answers) < 2:
        raise UserError(
            f"batch size {per_device_train_batch_size}, {len(answers)} answers: KTO estimates its KL on "
            "the other answers of a batch, so it needs two or more"
        )
    from datasets import Dataset
    from trl.trainer.kto_config import KTOConfig

    from ft.rewards.trl_trainers import Kto

    args = KTOConfig(
        **common(
            *(model, run.folder, learning_rate, per_device_train_batch_size, max_steps, seed),
            recompute=recomputes(run, gradient_checkpointing),
        ),
        **saving(save_steps),
        gradient_accumulation_steps=gradient_accumulation_steps,
        num_train_epochs=num_train_epochs,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        max_length=None,
    )
    order = random.Random(seed).sample(list(answers), len(answers))
    trainer = Kto(
        model=model,
        args=on_one_gpu(args),
        train_dataset=Dataset.from_list(mismatched(order, per_device_train_batch_size)),
        processing_class=tokenizer,
    )
    each = [[example(answer["prompt_ids"], answer["completion_ids"])] for answer in order]
    trainer.adopt(each, run, gradient_checkpointing)
    return trainer


def mismatched(answers: Sequence[Pair], size: int) -> list[Pair]:
    """Each answer with that of its neighbour in its batch, as ``KL_completion_ids``; none with its own.

    A batch left with a single answer takes the one before it.
    """
    found = []
    for at in range(0, len(answers), size):
        batch = answers[at : at + size]
        others = [answers[at - 1]] if len(batch) == 1 else [batch[-1], *batch[:-1]]
        found += [
            one | {"KL_completion_ids": other["completion_ids"]}
            for one, other in zip(batch, others, strict=True)
        ]
    return found


def weights(
    answers: Sequence[Pair], wanted: float | None, unwanted: float | None
) -> tuple[float, float]:
    """Weights of wanted and unwanted answers: those given, else what makes up for their numbers.

    The KTO paper's equation 8 wants weight times number of both in a ratio of 1 to 4/3; it is 1 here.
    Raises ``UserError`` where all answers have the same label.
    """
    good = sum(bool(answer["label"]) for answer in answers)
    bad = len(answers) - good
    if not good or not bad:
        raise UserError(
            f"all {len(answers)} labels are {'true' if good else 'false'}: KTO learns from answers that are "
            "wanted and ones that are not"
        )
    if wanted is None and unwanted is None:
        return max(1.0, bad / good), max(1.0, good / bad)
    if wanted is None:
        assert unwanted is not None
        return unwanted * bad / good, unwanted
    return wanted, wanted * good / bad if unwanted is None else unwanted


def grpo(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    reward: Reward,
    *,
    run: Run,
    method: Literal["grpo", "rloo"] = "grpo",
    learning_rate: float,
    beta: float = 0.0,
    prompts: int,
    n: int,
    per_device_train_batch_size: int,
    max_new_tokens: int,
    gradient_checkpointing: bool | None = None,
    max_steps: int | None = None,
    seed: int = 0,
) -> Any:
    """A trainer of GRPO (Shao et al. 2024) or RLOO (Ahmadian et al. 2024) for a model of ``policy.load``.

    A step draws ``n`` answers to each of ``prompts`` rows and learns from all of them,
    ``per_device_train_batch_size`` in one forward; ``gradient_checkpointing`` as ``train.sft`` has it.
    Raises ``UserError`` for an old TRL and numbers that do not fit.
    """
    require_trl()
    if n < 2 or prompts * n % per_device_train_batch_size:
        raise UserError(
            f"n = {n}, prompts = {prompts}, batch size {per_device_train_batch_size}: n must be 2 or "
            f"more, and the {prompts * n} answers of a step must be a multiple of the batch size"
        )
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.rloo_config import RLOOConfig

    from ft.rewards.trl_trainers import Grpo, Rloo

    kinds: dict[str, Any] = {"grpo": (Grpo, GRPOConfig), "rloo": (Rloo, RLOOConfig)}
    kind, configuration = kinds[method]
    args = configuration(
        **saving(None),
        **common(
            *(model, run.folder, learning_rate, per_device_train_batch_size),
            *(max_steps or 10**6, seed),
            recompute=recomputes(run, gradient_checkpointing),
        ),
        gradient_accumulation_steps=prompts * n // per_device_train_batch_size,
        num_generations=n,
        max_completion_length=max_new_tokens,
        temperature=1.0,
        beta=beta,
    )
    ids = [prompt_ids(template, asking(row), tokenizer) for row in rows]
    texts = [
        tokenizer.decode(found[1:]) if "messages" in row else template.prompt_for(row)
        for row, found in zip(rows, ids, strict=True)
    ]
    data = [{"prompt": text, "row": i} for i, text in enumerate(texts)]
    trainer = kind(
        model=model,
        reward_funcs=[reward.for_trl(template.trim, rows)],
        args=on_one_gpu(args),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    trainer.template, trainer.known = template, dict(zip(texts, ids, strict=True))
    # as long as answers may be, whatever they say
    each = [[example(prompt, prompt[-1:] * max_new_tokens)] for prompt in ids]
    trainer.adopt(each, run, gradient_checkpointing)
    return trainer


def learn(
    trainer: Any,
    *,
    run: Run,
    watch: Callable[[int], None],
    watch_steps: int,
    seconds: float | None = None,
    resume: str | None = None,
) -> Learnt:
    """Train. ``watch(step)`` is called every ``watch_steps`` and at the end, and may raise.

    ``resume`` is ``"last"`` or the folder of a checkpoint of this very run. After ``seconds`` no step
    begins. Raises ``UserError`` for a loss that is not finite and, from ``Reward.batch``, for rewards
    that nothing can be learnt from.
    """
    from ft.rewards.trl_trainers import Journal

    trainer.fingerprint = run.made_with
    checkpoint = go_on(run, resume, run.made_with)
    look = lambda step: trainer.beside_graphs(functools.partial(watch, step))  # noqa: E731
    trainer.add_callback(Journal(run, look, watch_steps, seconds))
    model, start = trainer.model, time.perf_counter()
    with warnings.catch_warnings():
        # TRL goes by the old name of what computes activations again
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.made_room:
        run.note(made_room=[*trainer.made_room])
    if "ref" in model.peft_config:  # TRL's copy of the start
        model.delete_adapter("ref")
    model.config.use_cache = True  # the trainer clears it, and a saved model would generate slowly
    return Learnt(trainer.state.global_step, time.perf_counter() - start)


def require_trl() -> None:
    """Raise ``UserError`` unless TRL is new enough."""
    import trl

    found = tuple(int(part) for part in trl.__version__.split(".")[:2])
    if found < LEAST:
        raise UserError(
            f"learning from rewards needs TRL {'.'.join(map(str, LEAST))} or later, and this is "
            f"{trl.__version__}, whose trainers fail on a CPU: pip install -c constraints.txt trl"
        )


def saving(save_steps: int | None) -> dict[str, Any]:
    """Settings that keep a checkpoint every ``save_steps``; none: no checkpoint."""
    return (
        {"save_strategy": "steps", "save_steps": save_steps}
        if save_steps
        else {"save_strategy": "no"}
    )


def common(
    model: Any,
    folder: Path,
    learning_rate: float,
    per_device_train_batch_size: int,
    max_steps: int | None,
    seed: int,
    *,
    recompute: bool = False,
) -> dict[str, Any]:
    """Settings that all of TRL's trainers take; activations are computed again with ``recompute``."""
    return of_every_trainer(model, recompute) | {
        "output_dir": str(folder),
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": -1 if max_steps is None else max_steps,
        "per_device_train_batch_size": per_device_train_batch_size,
        "report_to": "none",
        "seed": seed,
    }
