"""TRL's DPO, KTO, GRPO and RLOO trainers on our ids, generation and log-probabilities; only `learning` imports it."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from tqdm import tqdm
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from ft.errors import UserError
from ft.generate.answers import generate
from ft.generate.draft import Answer
from ft.generate.samplers import Sample
from ft.kernels import lora_copies
from ft.machine import agreed, is_main, peak_memory, say
from ft.models import lora, parameters
from ft.rewards import logprobs, policy
from ft.rewards.logprobs import GIVEN, LogProbs
from ft.runs.folder import Run
from ft.score import likelihood
from ft.text.batches import Order, largest
from ft.text.examples import Example
from ft.text.template import Template
from ft.train import graph_room, optim
from ft.train.offloading import Offloading
from ft.train.sft import offloads
from ft.train.staged import Staged
from ft.train.trial import Trial

# what TRL computes of logits that never exist here
NOT_COMPUTED = {"logits/chosen", "logits/rejected", "mean_token_accuracy"}


class _Ours(LogProbs, Trial, Staged):
    """What the trainers share. Only the adapter that learns has gradients; ``policy.START`` is the reference."""

    model: Any
    optimizer: Any
    largest: list[Example]  # of a batch
    tried = False
    waiting = True  # one loss is taken of a batch
    takes_copy = False  # TRL asks its own copy of the adapter

    def __init__(self, *, model: Any, **options: Any) -> None:
        """TRL's, without its own copy of the adapter as it is now, or with an exact one."""
        with lora.unrounded(model):
            super().__init__(model=model, **options)  # pyright: ignore[reportCallIssue]
        if self.takes_copy:
            for name, parameter in model.named_parameters():
                if ".ref." in name:
                    start = model.get_parameter(name.replace(".ref.", ".default."))
                    parameter.data = start.data.clone()
                    parameter.requires_grad_(False)
        elif "ref" in model.peft_config:
            model.delete_adapter("ref")
        # kept copies of weights would be part of a graph, or be gone when it runs
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)

    def adopt(self, rows: Sequence[Sequence[Example]], run: Run, recompute: bool | None) -> None:
        """After TRL's ``__init__``: answer with our log-probabilities, whose rows are CUDA graphs where that is possible.

        ``rows`` have the examples that each brings into a batch. TRL draws them by itself; the largest batch is
        that of a draw like it. ``recompute`` is what was asked for (``train.sft``).
        """
        gpu, self.may_recompute = self.args.device.type == "cuda", recompute is None
        aside = offloads(run, recompute)
        self.offloading = Offloading(pinned=gpu, apart=self.waiting) if aside else None
        tokens = [sum(len(each["input_ids"]) for each in row) for row in rows]
        size, epochs = self.args.per_device_train_batch_size, math.ceil(self.args.num_train_epochs)
        chosen = largest(Order(tokens, self.args.seed), size, max(1, epochs))
        self.largest = [each for i in chosen for each in rows[i]]
        self.answer()
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)  # pyright: ignore[reportAttributeAccessIssue]
        if gpu:
            self.use_graphs(graph_room.CudaGraph)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.graphs:
            self.graphs.begin()
        found = super().training_step(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self._average()
        return found

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # for which each step would go through all modules

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.model.train()
        with contextlib.ExitStack() as meanwhile:
            meanwhile.enter_context(parameters.listed(self.model))
            if self.offloading:
                meanwhile.enter_context(self.offloading.of(self.model))
            if not self.tried and self.args.device.type == "cuda":
                self.try_largest(meanwhile)
            self.tried = True
            super()._run_epoch(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def try_largest(self, meanwhile: contextlib.ExitStack) -> None:
        """Run the largest batch forward and backward. Nothing of it stays: what a GPU does not hold ends the run here."""
        device, tokens = self.args.device, sum(len(e["input_ids"]) for e in self.largest)
        gpu = [device] if device.type == "cuda" else []
        states = optim.to_come(self.optimizer, "adamw") if gpu else 0

        def run() -> None:
            self.model.train()
            with contextlib.ExitStack() as trial:
                room = torch.empty(states, dtype=torch.uint8, device=device)
                trial.enter_context(torch.random.fork_rng(gpu))  # dropout draws
                given: list[Any] = []
                if self.graphs:
                    trial.enter_context(self.graphs.rehearsal())
                    given = [self._losses]
                with self.compute_loss_context_manager():
                    values = torch.cat(likelihood.logprobs(self.model, self.largest, *given))
                values.sum().backward()
                del room
            self.model.zero_grad()

        name = f"a batch of {tokens:,} tokens, as large as they may be,"
        self._try(name, tokens, run, meanwhile)
        say(f"{name} was tried: {peak_memory() / 2**30:.1f} GiB at the peak")

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        if self.optimizer is None:
            options: dict[str, Any] = {"learning_rate": self.args.learning_rate}
            self.optimizer = optim.create(
                self.model, "adamw", joint=(joint := self._joins()), **options
            )
            if joint:
                self._keep_gradients()
        return self.optimizer

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the card is made from the finished run."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter alone; its start and the reference stay as they are."""
        policy.replace_adapter(self.model, Path(resume_from_checkpoint))


class _Prefers(_Ours):
    """A trainer on ids, which are taken as they are. What the start thinks of them TRL reads from the batch."""

    precompute_ref_logps: bool

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.precompute_ref_logps = True
        self.data_collator = functools.partial(logprobs.noting, self.data_collator)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given = logprobs.noted(inputs)
        given |= self.reference(given)
        return super()._compute_loss(model, given, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def reference(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the start thinks of a batch, as TRL names it."""
        raise NotImplementedError


class Dpo(_Prefers, DPOTrainer):
    """DPO on pairs of ids."""

    def reference(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        chosen, rejected = self.of_the_start(*(inputs[name] for name in GIVEN)).chunk(2)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


class Kto(_Prefers, KTOTrainer):
    """KTO on answers as ids, in their order: each has the one of its batch that its KL is estimated on."""

    def reference(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {"ref_logps": self.of_the_start(*(inputs[name] for name in GIVEN))}
        others = self.of_the_start(*(inputs[f"KL_{name}"] for name in GIVEN))
        return found | {"ref_KL_logps": others}


class _Draws(_Ours):
    """A trainer whose answers are drawn by ``ft.generate.answers``, at temperature 1."""

    template: Template
    known: dict[str, list[int]]  # each prompt's ids, by its text
    processing_class: Any
    accelerator: Any
    state: Any

    @property
    def takes_copy(self) -> bool:
        return bool(self.args.beta)

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
