"""What of the trainer has to do with rows that are CUDA graphs, and with an adapter that is one tensor to the optimizer."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ft.machine import say
from ft.text.row_inputs import HEAD
from ft.train.graphs import Graphs

ON = (
    "CUDA graphs: each row is filled up to one of few sizes, whose forward and backward are captured, "
    "as launching the kernels one by one takes longer than they do"
)
DRAWS = "recomputed dropout needs the generator's state, which a graph does not show"

if TYPE_CHECKING:
    from torch import Tensor


def drops(model: Any) -> bool:
    """Whether a model draws what it leaves out."""
    import torch

    return any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())


def recomputing(model: Any) -> dict[str, Any]:
    """How PyTorch computes the layers of ``model`` again."""
    # to ask a GPU for its generator's state takes time, and is forbidden in a graph
    return {"use_reentrant": False, "preserve_rng_state": drops(model)}


def recomputes(model: Any, args: Any) -> bool:
    """Whether a training of ``model`` with these arguments computes activations again."""
    names = (
        "activation_checkpointing",
        "gradient_checkpointing",
    )  # the second before transformers 5.22
    there = next((f"is_{name}" for name in names if hasattr(model, f"is_{name}")), "")
    return bool(getattr(model, there, False)) or any(getattr(args, n, False) is True for n in names)


def leave_nothing_shared(model: Any) -> None:
    """Let layers of Gemma 3n and 4 drop the keys and values that others share once they are computed again.

    The others, which come later, have gone back by then. Kept, these would hold their own way back for ever: of what leads
    to no parameter ``row.accumulate`` goes through nothing, and autograd drops what it went through.
    """
    for module in model.modules():
        if getattr(module, "store_full_length_kv", False):
            # it does nothing but in a backward, and stays
            module.register_forward_pre_hook(_aside, with_kwargs=True)


def _aside(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    import torch

    going_back = torch._C._current_graph_task_id() != -1  # pyright: ignore[reportAttributeAccessIssue]
    if going_back and (shared := kwargs.get("shared_kv_states")) is not None:
        shared.clear()
        return args, kwargs | {"shared_kv_states": {}}
    return None


def halves(
    model: Any, context: Callable[[], Any], back: Callable[["Tensor"], None]
) -> "tuple[Callable[[Mapping[str, Any]], Tensor], Callable[[Tensor, Mapping[str, Any]], None]]":
    """``body`` and ``head`` of ``Graphs`` for a model with our loss, whose forward runs in ``context()``.

    ``back`` goes backward from a row's part of the loss, and counts it.
    """
    from ft.kernels import cross_entropy

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model

    def body(inputs: Mapping[str, Any]) -> "Tensor":
        with context():
            return model(**inputs, hidden_only=True).hidden

    def head(hidden: "Tensor", inputs: Mapping[str, Any]) -> None:
        at, targets, share = (inputs[name] for name in HEAD)
        with context():
            part = cross_entropy.loss_at(inner, hidden, at, targets) * share
        back(part)

    return body, head


def refusal(
    model: Any, *, packing: bool, processes: int, checkpointing: bool, joint: bool = True
) -> str:
    """Why rows of this training cannot be graphs; nothing where they can, as far as can be known.

    ``joint``: the optimizer sees an adapter as one tensor, whose gradient processes average themselves.
    """
    from ft.kernels import attention

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if processes > 1 and not joint:
        return "several processes meet in each backward, but where AdamW or SGD trains an adapter"
    if not packing:
        return "its batches are not packed rows"
    if getattr(inner.config.get_text_config(), "enable_moe_block", False):
        return "which expert a token goes to depends on the data"
    if not attention.installed(inner):
        return "its attention waits for the lengths of examples"
    if attention.asked(inner) == "sdpa":
        return "sdpa takes the examples one by one"
    if checkpointing and drops(model):
        return DRAWS
    return ""


class Graphed:
    """A part of ``Trainer``: rows through ``graphs``, where that is possible, in one process or several.

    Several meet once in an optimizer step: where the adapter is one tensor, so is what they average.
    """

    graphs: Graphs | None
    model: Any
    args: Any
    accelerator: Any
    optimizer: Any
    optimizer_name: str
    packing: bool
    batch: Any
    is_fsdp_enabled: bool
    step_loss: "Tensor"
    compute_loss_context_manager: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; what comes after has the memory of the graphs and of the gradients."""
        try:
            return super().train(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            vars(self.model).pop("zero_grad", None)
            self.model.zero_grad()
            if self.graphs:
                self.graphs.release()

    def _use_graphs(self, make: Any) -> None:
        """Run rows as CUDA graphs, where that is possible."""
        from ft.kernels import joined

        why = refusal(
            self.model,
            packing=self.packing and self.batch is None,
            processes=self.accelerator.num_processes,
            checkpointing=recomputes(self.model, self.args),
            joint=self._is_one_adapter(),
        )
        if why:
            say(f"CUDA graphs: off, as {why}")
            return
        say(ON)
        model: Any = self.model
        leave_nothing_shared(model)
        joined.lay_plain(model)  # as answers would between two steps, under the graphs
        self._without_ddp()
        self.graphs = Graphs(
            *halves(model, self.compute_loss_context_manager, self._back),
            model.parameters(),
            say,
            together=hasattr(model, "peft_config"),
            drops=drops(model),
            make=make,
        )

    def _without_ddp(self) -> None:
        """Let Accelerate leave the model as it is: DDP's hooks would wait for gradients that graphs add by themselves."""
        if self.accelerator.num_processes > 1:
            options = {"device_placement": False, "evaluation_mode": True}
            prepare = self.accelerator.prepare_model
            self.accelerator.prepare_model = lambda model, **_: prepare(model, **options)

    def _back(self, part: "Tensor") -> None:
        """Go backward from a row's part of the loss, and count it."""
        self.accelerator.backward(part)
        self.step_loss += part.detach()

    def _joins(self) -> bool:
        """Whether the optimizer sees all that trains as one tensor: where no other process has hooks on its parts."""
        alone = self.accelerator.num_processes == 1 or self.graphs is not None
        return alone and self._is_one_adapter()

    def _keep_gradients(self) -> None:
        """Leave the gradients of a joint optimizer where they are, as graphs know them by their place; all begin alike."""
        clear = self.optimizer.zero_grad
        self.model.zero_grad = functools.partial(clear, set_to_none=False)
        self._begin_alike()

    def _begin_alike(self) -> None:
        """Give all processes the first one's adapter, as DDP does."""
        import torch.distributed

        if self.accelerator.num_processes > 1:
            for whole in self._wholes():
                torch.distributed.broadcast(whole.data, 0)

    def _average(self) -> None:
        """Average the gradients of all processes at the end of a step, where no DDP does it."""
        import torch.distributed

        processes = self.accelerator.num_processes
        if self.graphs and processes > 1 and self.accelerator.sync_gradients:
            for whole in self._wholes():
                torch.distributed.all_reduce(whole.grad.div_(processes))

    def _wholes(self) -> list[Any]:
        """What a joint optimizer sees: all matrices of an adapter as one, for those that decay and the others."""
        assert self.optimizer is not None
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _is_one_adapter(self) -> bool:
        """Whether all that trains can be one tensor: states in 8 bits have a scale for each part of a parameter."""
        model: Any = self.model
        trained = [p for p in model.parameters() if p.requires_grad]
        adapter = hasattr(model, "peft_config") and not self.is_fsdp_enabled
        plain = self.optimizer_name in ("adamw", "sgd")
        return adapter and plain and len({(p.dtype, p.device) for p in trained}) == 1
