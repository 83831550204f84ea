"""TRL's SFTTrainer on our ids, labels, rows and loss; imports TRL at its top, so only `train` imports it."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import AutocastKwargs, FullyShardedDataParallelPlugin
from datasets import Dataset
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.trainer.sft_trainer import SFTTrainer

from ft.kernels import cross_entropy, lora_copies
from ft.machine import launched, say
from ft.models import lora, parameters
from ft.text import row_inputs
from ft.text.batches import Order, WithBlank, blank, is_blank, largest, layout
from ft.text.examples import IGNORE, Example, lengths_of
from ft.train import optim
from ft.train.graphed import Graphed
from ft.train.offloading import Offloading
from ft.train.reading import Reading
from ft.train.staged import Staged
from ft.train.trial import Trial


class Trainer(Graphed, Trial, Reading, Staged, SFTTrainer):
    """One micro-batch is a list of examples; it runs through the model as packed rows without padding.

    The loss of a step is the sum over supervised tokens divided by their number in the whole
    optimizer step, over all micro-batches and processes.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        examples: Sequence[Example],
        tokenizer: Any,
        shuffle: bool,
        packing: bool,
        row_length: int,
        optimizer_name: optim.Name,
        fingerprint: dict[str, Any],
        callbacks: list[Any],
        batch: Callable[[Sequence[Example]], dict[str, torch.Tensor]] | None = None,
        make_graph: Any = None,
        offloading: bool = False,
        may_recompute: bool = False,
    ) -> None:
        self.batch, self.may_recompute = batch, may_recompute
        gpu = args.device.type == "cuda"
        self.offloading = Offloading(pinned=gpu) if offloading else None
        self.graphs, self.tried = None, False
        self.pad = tokenizer.pad_token_id
        self.packing, self.row_length = packing, row_length
        self.optimizer_name: optim.Name = optimizer_name
        self.fingerprint = fingerprint
        self.tokens = self.supervised = self.tokens_seen = self.supervised_seen = 0
        size = args.per_device_train_batch_size * args.world_size  # of all processes
        step = size * args.gradient_accumulation_steps
        lengths = lengths_of(examples)
        unpadded = packing or args.per_device_train_batch_size == 1
        self.order = Order(lengths, args.seed, None if unpadded else step, shuffle, size)
        with lora.unrounded(model):
            super().__init__(
                model=model,
                args=args,
                train_dataset=Dataset.from_list([blank(self.pad)]),  # what TRL looks at
                processing_class=tokenizer,
                data_collator=self.collate,
                callbacks=callbacks,
            )
        self.train_dataset: Any = WithBlank(examples, blank(self.pad))
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        cross_entropy.install(inner)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.step_loss = torch.zeros((), device=args.device)
        self.read_loss, self.unread, self.awaited = 0.0, None, False
        self.wants_to_stop, self.stops = (lambda: False), False
        if make_graph:
            self._use_graphs(make_graph)

    def create_accelerator_and_postprocess(self) -> None:
        """Shard on CPUs too where FSDP is asked for: Accelerate leaves it out there without a word."""
        super().create_accelerator_and_postprocess()
        # a row uses each weight once: kept copies of all would take half of it again, and of a graph's memory
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        state: AcceleratorState = self.accelerator.state
        asked = launched()["sharded"]
        if asked and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True
        plugin: Any = state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin and not plugin.transformer_cls_names_to_wrap:
            # a model that sees names parts that it need not have, which Accelerate refuses
            model: Any = self.model
            there = {type(module).__name__ for module in model.modules()}
            plugin.transformer_cls_names_to_wrap = sorted(there & {*model._no_split_modules})

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        # sharded parameters are gathered in each forward, so all processes must run as many
        capacity = sum(self.order.lengths) if self.is_fsdp_enabled else self.row_length
        filled = [e for e in examples if not is_blank(e)] or examples[:1]
        if self.batch:
            return {"rows": [self._row(self.batch(filled))]}
        rows = layout(filled, packing=self.packing, capacity=capacity, pad=self.pad)
        return {"rows": [self._row(row) for row in rows]}

    def _row(self, row: dict[str, torch.Tensor]) -> dict[str, Any]:
        """A row with its counts, taken here, where no GPU has to be waited for."""
        counts = {
            "tokens": row["input_ids"].numel(),
            "supervised": int((row["labels"][:, 1:] != IGNORE).sum()),
        }
        inputs: dict[str, Any] = row
        if self.packing and self.batch is None:
            inputs = row_inputs.of(row, self.args.per_device_train_batch_size)
            inputs = row_inputs.padded(inputs) if self.graphs else inputs
        return counts | {"inputs": inputs}

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The schedule; a warm-up never takes the only step, whose rate it would make 0."""
        if num_training_steps == 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def _run_epoch(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """An epoch, unless the training is over: a run killed after its last step learns no more."""
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if self.control.should_training_stop:
            return
        model.train()
        with contextlib.ExitStack() as meanwhile:
            if not self.is_fsdp_enabled:
                meanwhile.enter_context(parameters.listed(model))
            if self.offloading:
                meanwhile.enter_context(self.offloading.of(model))
            if not self.tried and self._tries:
                self._try_largest(meanwhile)
            self.tried = True
            super()._run_epoch(model, *args, **kwargs)

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        if self.optimizer is None:
            model: Any = self.model_wrapped if self.is_fsdp_enabled else self.model
            self.optimizer = optim.create(
                model,
                self.optimizer_name,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                joint=(joint := self._joins()),
            )
            if joint:
                self._keep_gradients()
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        count = sum(row["supervised"] for batch in batch_samples for row in batch["rows"])
        if self.accelerator.num_processes == 1:
            return count
        return self.accelerator.reduce(self._sent(count)).float()[0]

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch, row by row; gradients meet at the last row."""
        if not model.training:
            model.train()
        rows: Any = self._prepare_inputs(inputs)["rows"]
        self.step_loss.zero_()
        processes = self.accelerator.num_processes  # DDP averages what should be summed
        for at, row in enumerate(rows):
            last = at == len(rows) - 1
            share = torch.full((), processes, device=self.args.device) / num_items_in_batch
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                (self.graphs or self._run)(row["inputs"] | {"share": share})
            self.tokens += row["tokens"] if row["supervised"] else 0
            self.supervised += row["supervised"]
        self._average()
        self._settle()
        return self.step_loss.clone()

    def _run(self, inputs: Mapping[str, Any]) -> None:
        """Forward and backward of one row, without a look at any value."""
        with self.compute_loss_context_manager():
            given = {name: x for name, x in inputs.items() if name != "share"}
            model: Any = self.model_wrapped
            part = model(**given)["loss"] * inputs["share"]
        self._back(part)

    @property
    def _tries(self) -> bool:
        """Whether the largest row is run before the first step: on a GPU, which ends a run that it does not hold."""
        return bool(self.graphs) or self.args.device.type == "cuda"

    def _try_largest(self, meanwhile: contextlib.ExitStack) -> None:
        """Run the largest row of the training, once, beside room for the optimizer's states.

        Nothing of it stays but what it took. What the memory does not hold ends the run here, and not after an hour.
        """
        padded = self.batch is not None or not self.packing
        size, epochs = self.args.per_device_train_batch_size, int(self.state.num_train_epochs)
        chosen = largest(self.order, size, epochs, padded=padded)
        found: Any = self._prepare_inputs(self.collate([self.train_dataset[i] for i in chosen]))
        row = max(found["rows"], key=lambda row: row["tokens"])
        inputs = row["inputs"] | {"share": torch.ones((), device=self.args.device)}
        model: Any = self.model
        gpu: Any = [self.args.device] if self.args.device.type == "cuda" else []
        states = optim.to_come(self.optimizer, self.optimizer_name) if gpu else 0

        def run() -> None:
            room = torch.empty(states, dtype=torch.uint8, device=self.args.device)
            with torch.random.fork_rng(gpu):  # dropout draws
                if self.graphs:
                    self.graphs.rehearse(inputs)
                else:
                    self._run(inputs)
                    model.zero_grad()
            del room

        self._try(f"the largest row, {row['tokens']:,} tokens,", row["tokens"], run, meanwhile)
        if gpu:
            taken = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at the peak"
            if self.offloading:
                taken += f", and {self.offloading.taken / 2**30:.1f} of the processor's memory"
            say(f"the largest row, {row['tokens']:,} tokens, was tried: {taken}")

    def floating_point_ops(self, inputs: Any) -> int:
        return (
            0  # counted by ft.models.parameters, which knows what is frozen and what is supervised
        )

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the card is made from the finished run, not at each checkpoint."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super(SFTTrainer, self).log(logs, start_time)  # past TRL's metrics, which we do not compute

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, or the model where all of it trains; a frozen base is not gathered."""
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        frozen = hasattr(self.model, "peft_config")
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=frozen
        )
        model: Any = self.model
        state = get_model_state_dict(model, options=options)
        for tied in getattr(model, "all_tied_weights_keys", ()):
            state.pop(tied, None)  # gathered twice, under two names
        # the others hold nothing, and older transformers would write that
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def load_best(self) -> None:
        """Go back to the weights of the best step, of its checkpoint."""
        place = Path(str(self.args.output_dir)) / f"checkpoint-{self.best_step}"
        wrapped: Any = self.model_wrapped if self.is_fsdp_enabled else self.model
        self._load_from_checkpoint(str(place), wrapped)
        lora_copies.refresh(self.model)
