"""What a training step holds at each moment that may be its peak, by name, in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ft.plan import answers, parts
from ft.plan import layers as blocks
from ft.plan.autograd import Mode
from ft.plan.shapes import Shape
from ft.train.graph_room import POOL

GIB, MIB = 2**30, 2**20
# Measured by benchmarks/memory.py with constraints.txt's CPU builds: resident bytes of a process that has
# imported torch, transformers and PEFT, of TRL and a trainer on top, of Gemma's tokenizer for each entry.
LIBRARIES = 400 * MIB
TRAINER = 100 * MIB
TOKENIZER = 1120
# oneDNN's and ideep's kernels of bf16 products, one for each shape: 64 stay in either cache, of about 1 MiB
# each. That size is assumed, as it brings the plans of runs on MTNT and Dolly nearest to their peaks.
KERNELS = 130 * MIB
APART = (
    "graphs of rows without gradients"  # by the start, beside those that wait for their backward
)
CONTEXT = 600 * MIB  # what CUDA and its libraries take of a GPU before the first tensor; assumed


@dataclass(frozen=True)
class Step:
    """A training step, by what its bytes depend on."""

    shape: Shape
    mode: Mode
    seen: Sequence[int]  # the lengths that attention sees at once
    rows: int
    optim: str
    device: str
    checkpointing: bool
    offloading: bool  # what is computed again starts from the processor's memory
    passes: str  # before the optimizer steps: a key of SCATTERED
    varied: bool  # rows of ever new lengths
    supervised: int  # tokens
    processes: int
    sharded: bool
    packed: bool
    evaluation: answers.Evaluation | None
    room: int | None
    forwards: int = 0  # of each row without gradients, beside that which it learns by
    launched: bool = False  # rows are no CUDA graphs, as there is no room for these

    @property
    def share(self) -> int:
        """How many processes hold the parameters together."""
        return self.processes if self.sharded else 1

    @property
    def graphs(self) -> bool:
        """Whether rows can be CUDA graphs: the rule of ``train.graphed.refusal``."""
        joint = not self.mode.full and not self.sharded and self.optim in ("adamw", "sgd")
        dropped = self.checkpointing and self.mode.dropout
        able = self.packed and not self.shape.top_k_experts and not dropped
        able = able and (self.processes == 1 or joint)
        return self.device == "cuda" and able and not self.launched

    @property
    def gradients(self) -> int:
        width = self.mode.width if self.mode.full else 4
        return parts.trained(self.shape, self.mode) * width // self.share

    @property
    def start(self) -> dict[str, int]:
        """What is there before the model."""
        if self.device == "cuda":
            return {"CUDA context": CONTEXT}
        return {"libraries": LIBRARIES + TRAINER, "tokenizer": self.shape.vocab_size * TOKENIZER}

    @property
    def base(self) -> dict[str, int]:
        """The model as it is loaded, whole in each process."""
        return parts.weights(self.shape, self.mode, towers=self.mode.full)


def passing_of(step: Step, named: Mapping[str, int]) -> int:
    """What of a moment's bytes a CUDA graph of a row has of its own; none where rows are no graphs."""
    if not step.graphs:
        return 0
    stays = {*_always(step), "gradients", "fragmentation", APART}
    return sum(size for name, size in named.items() if name not in stays)


def _always(step: Step) -> dict[str, int]:
    """What a step has from its beginning to its end."""
    shape, mode = step.shape, step.mode
    found = step.start | {name: size // step.share for name, size in step.base.items()}
    if step.sharded and (whole := parts.constants(shape, mode)):
        packed = step.base[parts.BASE[0]]
        found[parts.BASE[0]] = (packed - whole) // step.share + whole
    trained = parts.trained(shape, mode)
    found["LoRA weights, fp32"] = 0 if mode.full else trained * 4 // step.share
    if mode.fused and mode.product == 2 and not mode.full and not step.sharded:
        found["LoRA weights, cast"] = trained * 2
    found[f"optimizer states, {step.optim}"] = parts.states(shape, mode, step.optim) // step.share
    if step.processes > 1 and not step.sharded and not step.graphs:
        found["DDP buckets"] = step.gradients
    if step.device == "cpu" and step.varied and mode.product == 2:
        found["kernels, by shape"] = KERNELS
    if step.sharded:
        root = sum(size for name, size in step.base.items() if "layers" not in name)
        found["FSDP, gathered layers"] = root + 2 * parts.layer_weights(shape, mode)
    return found


def training(step: Step) -> dict[str, dict[str, int]]:
    """Named bytes at each moment that may be the peak."""
    shape, mode, always = step.shape, step.mode, _always(step)
    layers, passing, whole = parts.activations(
        *(shape, mode, step.seen, step.rows),
        checkpointing=step.checkpointing,
        offloading=step.offloading,
    )
    scattered = parts.SCATTERED["gpu" if step.device == "cuda" else step.passes]
    kept = always | {
        "activations": layers,
        "attention masks": parts.masks(shape, mode, step.seen),
        "attention scores in flight": parts.scores(shape, mode, step.seen),
        "dequantised layer in flight": parts.largest(shape, mode, joined=step.device == "cuda"),
        "fragmentation": int(scattered[step.checkpointing] * whole),
    }
    # all parameters' gradients arrive as the activations go, unless they are there, as graphs need them
    if step.passes == "several" or not mode.full or step.graphs:
        kept["gradients"] = step.gradients
    if step.graphs and step.forwards:
        kept[APART] = int(POOL * parts.on_their_way(shape, mode, step.seen))
    # of the head and of the embedding, which are one
    tied = shape.vocab_size * shape.hidden_size * mode.width if mode.full else 0
    moments = {
        "in the loss": kept
        | {
            "loss of the head": parts.head(shape, mode, step.supervised, step.device),
            "gradient of the head": tied,
            "backward of one layer": passing * step.graphs,  # whose memory is its graph's
        },
        "in the backward": kept
        | {
            "backward of one layer": passing,
            "gradient of the head": 2 * tied,  # and scaled
        },
        "at the end of the backward": always
        | {
            # an adapter's are added to those of earlier rows when all are there
            "gradients": step.gradients * (2 if step.graphs and not mode.full else 1),
            "gradient of the embedding": tied * (2 if step.passes == "several" else 1),
        },
    }
    if step.device == "cpu":
        moments["while it loads"] = _loading(step)
    return moments


def answering(step: Step, fragmentation: int) -> dict[str, dict[str, int]]:
    """The moments of an evaluation, when optimizer, gradients and activations are gone."""
    if not step.evaluation:
        return {}
    held = _always(step) | {f"optimizer states, {step.optim}": 0, "DDP buckets": 0}
    if step.device == "cpu":  # the holes that training left stay, and every length has kernels
        held["fragmentation"] = fragmentation
        held["kernels, by shape"] = KERNELS * (step.mode.width == 2)
    free = (step.room or 2**60) - sum(held.values())
    attention = parts.attention(step.shape, step.device, packing=False)
    found = answers.moments(step.shape, step.mode, step.evaluation, step.device, attention, free)
    return {name: held | named for name, named in found.items()}


def _loading(step: Step) -> dict[str, int]:
    """A file of another dtype is mapped while it is converted; of the same one it is the model."""
    shape, mode = step.shape, step.mode
    number = sum(blocks.count(shape)) + shape.towers
    converted = mode.quantized or mode.width != shape.stored
    extra = {"checkpoint, mapped": number * shape.stored} if converted else {}
    if mode.quantized:  # freed one by one, between what stays
        matrices = blocks.matrices(shape)
        extra["linear layers before quantisation"] = sum(m.numbers for m in matrices) * mode.width
    return step.start | {"libraries": LIBRARIES} | step.base | extra
