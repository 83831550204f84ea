"""Log-probabilities of a batch's answers, by the model that learns and by its start, whose rows are CUDA graphs on a GPU."""

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ft.machine import say
from ft.models import lora
from ft.rewards import policy
from ft.score import likelihood
from ft.text.examples import IGNORE
from ft.train import graphed
from ft.train.hidden_states import HiddenStates

if TYPE_CHECKING:
    from torch import Tensor

GIVEN = ("input_ids", "attention_mask", "completion_mask")  # of a batch, as TRL names them
NOTED = "_unpadded"  # of a batch's ids: what they are, where no GPU has to be asked


class LogProbs(graphed.Graphed):
    """A part of TRL's trainers: their model's answers, packed into rows without padding, and none of the logits."""

    graphs: HiddenStates | None  # pyright: ignore[reportIncompatibleVariableOverride]
    optimizer_name = "adamw"
    weights = ""  # ``policy.START``: of the start, and not of the active adapter

    def answer(self) -> None:
        """Let the model answer TRL's call of its own head with our log-probabilities."""
        import torch
        from trl.trainer.utils import FusedCausalLMOutput

        inner = self.model.get_base_model()
        plain = inner.forward

        def forward(module: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
            if not fused_lm_head:
                return plain(*args, **kwargs)
            ids, mask = (kwargs[name] for name in GIVEN[:2])
            values = self.logprobs(ids, mask, kwargs["labels"])
            # the mean of -log p over tokens that the model drew is its entropy; the rest is not logged
            nothing = torch.zeros_like(values.detach())
            return FusedCausalLMOutput(
                log_probs=values,
                entropy=-values.detach(),
                mean_logits=nothing,
                is_top1=nothing.bool(),
            )

        inner.forward = types.MethodType(forward, inner)

    def use_graphs(self, make: Any) -> None:
        """Run rows as graphs that ``make`` makes, where that is possible."""
        why = graphed.refusal(
            self.model,
            packing=True,
            processes=self.accelerator.num_processes,
            checkpointing=graphed.recomputes(self.model, self.args),
            joint=self._is_one_adapter(),
        )
        if why:
            return say(f"CUDA graphs: off, as {why}")
        say(graphed.ON)
        graphed.leave_nothing_shared(self.model)
        self._without_ddp()
        drops, parameters = graphed.drops(self.model), self.model.parameters()
        self.graphs = HiddenStates(self._hidden, parameters, say, drops=drops, make=make)

    def logprobs(self, ids: "Tensor", mask: "Tensor", labels: "Tensor") -> "Tensor":
        """Those of the next tokens [B, T - 1] of a padded batch [B, T], as ``likelihood.logprobs_of_batch`` has it.

        What ``noting`` found of it needs no wait for a GPU.
        """
        batch = getattr(ids, NOTED, None) or likelihood.unpadded(ids, mask, labels)
        inner, losses = self.model.get_base_model(), self._losses if self.graphs else None
        return likelihood.logprobs_of_batch(inner, batch, losses)

    def of_the_start(self, ids: "Tensor", mask: "Tensor", answers: "Tensor") -> "Tensor":
        """The start's log-probability [B] of each answer, whose tokens have 1 in ``answers`` [B, T]."""
        import torch

        with torch.no_grad(), self._asking_the_start():
            return self.logprobs(ids, mask, ids.masked_fill(answers == 0, IGNORE)).sum(1)

    @contextlib.contextmanager
    def _asking_the_start(self) -> Iterator[None]:
        """The model as it began; rows that are graphs have its weights, and need no switch of adapters, which takes long."""
        if not self.graphs:
            with policy.as_it_began(self.model):
                yield
            return
        self.weights = policy.START
        try:
            yield
        finally:
            self.weights = ""

    def _hidden(self, inputs: Mapping[str, Any], weights: str) -> "Tensor":
        with contextlib.ExitStack() as now:
            if weights == policy.START:
                now.enter_context(policy.as_it_began(self.model))
            now.enter_context(self.compute_loss_context_manager())
            return self.model.get_base_model()(**inputs, hidden_only=True).hidden

    def _losses(self, inputs: dict[str, Any]) -> "Tensor":
        """Of a row's supervised places."""
        from ft.kernels import cross_entropy

        graphs, inner = self.graphs, self.model.get_base_model()
        assert graphs is not None
        weights = self.weights or lora.active(self.model)
        places = inputs["supervised_at"], inputs["targets"]

        def run() -> "Tensor":
            return cross_entropy.losses_at(inner, graphs(inputs, weights), *places)

        return graphs.in_room(run, inputs["input_ids"])


def noting(collate: Callable[[Any], dict[str, Any]], rows: Any) -> dict[str, Any]:
    """A batch, with what its ids are while the CPU has them: the answers supervised, as TRL has it."""
    batch = collate(rows)
    for kind in ("", "KL_"):
        if kind + GIVEN[0] in batch:
            ids, mask, answers = (batch[kind + name] for name in GIVEN)
            labels = ids.masked_fill(answers == 0, IGNORE)
            batch[kind + GIVEN[0] + NOTED] = likelihood.unpadded(ids, mask, labels)
    return batch


def noted(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of ``noting`` on a GPU as TRL knows it, its ids with what was noted of them."""
    found = {name: x for name, x in batch.items() if not name.endswith(NOTED)}
    for name, x in batch.items():
        if name.endswith(NOTED):
            setattr(found[name.removesuffix(NOTED)], NOTED, x)
    return found
