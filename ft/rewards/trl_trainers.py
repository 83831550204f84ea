"""TRL's DPO, KTO, GRPO and RLOO trainers on our ids, generation and log-probabilities; only `learning` imports it."""

import contextlib
import math
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from ft.errors import UserError
from ft.generate.answers import generate
from ft.generate.draft import Answer
from ft.generate.samplers import Sample
from ft.kernels import lora_copies
from ft.machine import agreed, is_main, peak_memory, say
from ft.models import lora
from ft.rewards import policy
from ft.runs.folder import Run
from ft.score import likelihood
from ft.text.batches import Order, largest
from ft.text.examples import Example
from ft.text.template import Template
from ft.train import optim
from ft.train.offloading import Offloading
from ft.train.sft import offloads
from ft.train.staged import Staged
from ft.train.trial import Trial

# what TRL computes of logits that never exist here
NOT_COMPUTED = {"logits/chosen", "logits/rejected", "mean_token_accuracy"}


class _Ours(Trial, Staged):
    """What the trainers share. Only the adapter that learns has gradients; TRL's ``ref`` is its start."""

    model: Any
    optimizer: Any
    compute_loss_context_manager: Any
    largest: list[Example]  # of a batch
    tried = False

    def __init__(self, *, model: Any, **options: Any) -> None:
        """TRL's, whose ``ref`` is as exact as the adapter that it is a copy of."""
        with lora.unrounded(model):
            super().__init__(model=model, **options)  # pyright: ignore[reportCallIssue]
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                start = model.get_parameter(name.replace(".ref.", ".default."))
                parameter.data = start.data.clone()

    def adopt(self, rows: Sequence[Sequence[Example]], run: Run, recompute: bool | None) -> None:
        """After TRL's ``__init__``: freeze the copies of the adapter, and answer with our log-probabilities.

        ``rows`` have the examples that each brings into a batch. TRL draws them by itself; the largest batch is
        that of a draw like it. ``recompute`` is what was asked for (``train.sft``).
        """
        gpu, self.may_recompute = self.args.device.type == "cuda", recompute is None
        self.offloading = Offloading(pinned=gpu) if offloads(run, recompute) else None
        tokens = [sum(len(each["input_ids"]) for each in row) for row in rows]
        size, epochs = self.args.per_device_train_batch_size, math.ceil(self.args.num_train_epochs)
        chosen = largest(Order(tokens, self.args.seed), size, max(1, epochs))
        self.largest = [each for i in chosen for each in rows[i]]
        for name, parameter in self.model.named_parameters():
            if ".ref." in name or ".start." in name:
                parameter.requires_grad_(False)
        inner = self.model.get_base_model()
        plain = inner.forward

        def forward(module: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
            if not fused_lm_head:
                return plain(*args, **kwargs)
            ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
            values = likelihood.logprobs_of_batch(module, ids, mask, kwargs["labels"])
            # the mean of -log p over tokens that the model drew is its entropy; the rest is not logged
            nothing = torch.zeros_like(values.detach())
            return FusedCausalLMOutput(
                log_probs=values,
                entropy=-values.detach(),
                mean_logits=nothing,
                is_top1=nothing.bool(),
            )

        inner.forward = types.MethodType(forward, inner)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)  # pyright: ignore[reportAttributeAccessIssue]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.ExitStack() as meanwhile:
            if self.offloading:
                meanwhile.enter_context(self.offloading.of(self.model))
            if not self.tried and self.args.device.type == "cuda":
                self.try_largest(meanwhile)
            self.tried = True
            super()._run_epoch(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def try_largest(self, meanwhile: contextlib.ExitStack) -> None:
        """Run the largest batch forward and backward. Nothing of it stays: what a GPU does not hold ends the run here."""
        device, tokens = self.args.device, sum(len(e["input_ids"]) for e in self.largest)

        def run() -> None:
            self.model.train()
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout draws
                with self.compute_loss_context_manager():
                    values = torch.cat(likelihood.logprobs(self.model, self.largest))
                values.sum().backward()
            self.model.zero_grad()

        name = f"a batch of {tokens:,} tokens, as large as they may be,"
        self._try(name, tokens, run, meanwhile)
        say(f"{name} was tried: {peak_memory() / 2**30:.1f} GiB at the peak")

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        if self.optimizer is None:
            self.optimizer = optim.create(
                self.model, "adamw", learning_rate=self.args.learning_rate, weight_decay=0.0
            )
        return self.optimizer

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the card is made from the finished run."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter alone; its start and the reference stay as they are."""
        policy.replace_adapter(self.model, Path(resume_from_checkpoint))


class Dpo(_Ours, DPOTrainer):
    """DPO on pairs of ids, which are taken as they are."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class Kto(_Ours, KTOTrainer):
    """KTO on answers as ids, in their order: each has the one of its batch that its KL is estimated on."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class _Draws(_Ours):
    """A trainer whose answers are drawn by ``ft.generate.answers``, at temperature 1."""

    template: Template
    known: dict[str, list[int]]  # each prompt's ids, by its text
    processing_class: Any
    accelerator: Any
    state: Any

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return [self.known[prompt] for prompt in prompts], None, {}

    def draw(self, prompt_ids: list[list[int]]) -> list[Answer]:
        """An answer to each prompt; one that stands there n times gets n different ones."""
        found = generate(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            prompt_ids,
            Sample(),
            max_new_tokens=self.args.max_completion_length,
            template=self.template,
            seed=self.args.seed * 10**6 + self.state.global_step,
        )
        return [answer for (answer,) in found]


class Grpo(_Draws, GRPOTrainer):
    """GRPO with our generation."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        answers = self.draw(prompt_ids)
        return [list(a.ids) for a in answers], [list(a.logprobs) for a in answers]


class Rloo(_Draws, RLOOTrainer):
    """RLOO with our generation."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        return [list(answer.ids) for answer in self.draw(prompt_ids)]


class Journal(TrainerCallback):
    """Metrics of each step, a look at the model every so often, and the end when the time is over."""

    def __init__(
        self, run: Run, watch: Callable[[int], None], every: int, seconds: float | None
    ) -> None:
        self.run, self.watch, self.every = run, watch, every
        self.end = time.perf_counter() + (math.inf if seconds is None else seconds)
        self.bar = tqdm(desc="learn", unit="step", disable=not is_main(), leave=False)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        self.run.rewind(state.global_step)
        lora_copies.refresh(model, lora_copies.matrices(model))  # the frozen ones once
        self.model, self.learning = model, lora_copies.trained(model)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        lora_copies.refresh(self.model, self.learning)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        values = {k: v for k, v in logs.items() if k not in NOT_COMPUTED and v is not None}
        if not math.isfinite(values["loss"]) or not math.isfinite(values.get("grad_norm", 0.0)):
            raise UserError(
                f"the loss became {values['loss']} at step {state.global_step}, its gradient "
                f"{values.get('grad_norm')}; nothing was saved. Try a lower --learning-rate"
            )
        self.run.log({"step": state.global_step} | values)
        shown = {
            k: f"{values[k]:.3f}" for k in ("loss", "reward", "rewards/margins") if k in values
        }
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        over = self.end < math.inf and agreed(time.perf_counter() > self.end)
        if over:
            control.should_training_stop = True
        if over or state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.watch(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
