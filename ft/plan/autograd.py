"""What autograd keeps of a model's operations, recorded with sizes instead of numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Attention = Literal["by_example", "sdpa", "masked", "eager", "tiled", "flash", "varlen"]


@dataclass(eq=False)
class Value:
    """A tensor that only knows its size; ``memory`` is the tensor whose storage it shares."""

    numbers: int
    width: int  # bytes of each
    grad: bool
    memory: "Value | None" = None

    @property
    def storage(self) -> "Value":
        return self.memory or self

    @property
    def bytes(self) -> int:
        return self.numbers * self.width


@dataclass(frozen=True)
class Mode:
    """How a model is trained, as far as its memory is concerned."""

    full: bool = False  # all parameters train
    rank: int = 0  # of the adapter
    width: int = 4  # bytes of a stored weight, and of the residual stream
    product: int = 4  # bytes of what a matrix product returns: 2 under autocast
    quantized: bool = False  # linear layers in 4 bits
    dropout: bool = False  # of the adapter's input
    lean: bool = False  # norms keep their input alone, as ``few_operations`` has them
    fused: bool = False  # a GPU's kernels: norms and gated MLPs keep their inputs, casts of an adapter are made once
    attention: Attention = "by_example"
    targets: tuple[str, ...] | None = None  # ends of names of layers with an adapter; none: all

    def adapts(self, matrix: "Matrix") -> bool:
        """Whether a linear layer gets an adapter."""
        if not (self.rank and matrix.adaptable):
            return False
        return self.targets is None or any(
            f".{matrix.name}".endswith(f".{end}") for end in self.targets
        )


@dataclass(eq=False)
class Step:
    """One operation: what its backward needs, and what it makes."""

    output: Value
    inputs: tuple[Value, ...]
    saved: tuple[Value, ...]
    aliases: bool = False  # its inputs' gradients are its output's, not new tensors


@dataclass(frozen=True)
class Matrix:
    """A linear layer: its name, its sizes, and whether it may be quantised and adapted."""

    name: str
    inputs: int
    outputs: int
    quantizable: bool = True
    adaptable: bool = True

    @property
    def numbers(self) -> int:
        return self.inputs * self.outputs


@dataclass
class Tape:
    """Operations in the order in which a layer runs them, on a batch of ``tokens``."""

    mode: Mode
    tokens: int
    rows: int = 1
    squares: int = 0  # sum of the squares of what attention sees at once: examples or whole rows
    longest: int = 0  # tokens of the longest of these
    steps: list[Step] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    vectors: int = 0  # parameters of norms, biases and the like

    def value(self, width: int, *, each: int = 4, grad: bool = False) -> Value:
        """A tensor of ``width`` numbers for each token."""
        return Value(self.tokens * width, each, grad)

    def record(self, like: Value, inputs: tuple[Value, ...], saved: tuple[Value, ...]) -> Value:
        """An operation with a new result of the size of ``like``; kept only if something needs it."""
        result = Value(like.numbers, like.width, any(x.grad for x in inputs))
        if result.grad:
            self.steps.append(Step(result, inputs, saved))
        return result

    def cast(self, x: Value, width: int) -> Value:
        if x.width == width:
            return x
        return self.record(Value(x.numbers, width, x.grad), (x,), ())

    def view(self, x: Value, numbers: int | None = None) -> Value:
        result = Value(x.numbers if numbers is None else numbers, x.width, x.grad, x.storage)
        if x.grad:
            self.steps.append(Step(result, (x,), (), aliases=True))
        return result

    def add(self, *terms: Value) -> Value:
        like = max(terms, key=lambda x: (x.numbers, x.width))
        result = Value(like.numbers, max(x.width for x in terms), any(x.grad for x in terms))
        if result.grad:
            self.steps.append(Step(result, terms, (), aliases=True))
        return result

    def mul(self, a: Value, b: Value) -> Value:
        saved = (b,) * a.grad + (a,) * b.grad
        like = Value(max(a.numbers, b.numbers), max(a.width, b.width), False)
        return self.record(like, (a, b), saved)

    def unary(self, x: Value, saves: Literal["input", "output", ""] = "input") -> Value:
        """A function of each number that keeps its input, its output or nothing."""
        result = self.record(x, (x,), (x,) if saves == "input" else ())
        if saves == "output" and x.grad:
            self.steps[-1].saved = (result,)
        return result

    def parameter(self, numbers: int) -> Value:
        """A vector that trains where all parameters do."""
        self.vectors += numbers
        return Value(numbers, self.mode.width, self.mode.full)

    def norm(self, x: Value, width: int, kind: Literal["1+w", "w", ""] = "1+w") -> Value:
        """RMS norm in float32 over the last ``width`` numbers, as transformers writes it, ``lean`` or ``fused``."""
        if self.mode.lean or self.mode.fused:
            if kind:
                self.parameter(width)
            roots = (Value(x.numbers // width, 4, False),) * self.mode.lean
            return self.record(x, (x,), (x, *roots))
        exact = self.cast(x, 4)
        mean = self.record(Value(x.numbers // width, 4, False), (exact,), (exact,))
        # Gemma 3n and 4 raise to -0.5, which keeps the mean; the others keep rsqrt's result
        root = self.unary(mean, "output" if kind == "1+w" else "input")
        result = self.mul(exact, root)
        if kind:
            weight = self.cast(self.parameter(width), 4)
            if kind == "1+w":
                weight = (
                    self.record(weight, (weight,), ()) if weight.grad else Value(width, 4, False)
                )
            result = self.mul(result, weight)
        return self.cast(result, x.width)

    def linear(
        self, x: Value, outputs: int, name: str, *, bias: bool = False, plain: bool = False
    ) -> Value:
        """A linear layer without or with an adapter; a ``plain`` one is never adapted nor quantised."""
        mode, inputs = self.mode, x.numbers // self.tokens
        matrix = Matrix(name, inputs, outputs, not plain, not plain)
        self.matrices.append(matrix)
        self.vectors += outputs * bias
        quantized = mode.quantized and not plain
        given = x if quantized else self.cast(x, mode.product)
        saved = (given,) * mode.full
        if mode.width != mode.product and given.grad and not quantized:
            saved += (Value(matrix.numbers, mode.product, False),)  # autocast's copy of the weight
        result = Value(self.tokens * outputs, mode.product, x.grad or mode.full)
        if result.grad:
            self.steps.append(Step(result, (given,), saved))
        if not mode.adapts(matrix):
            return result
        dropped = x
        if mode.dropout:
            mask = Value(x.numbers, 1, False)
            dropped = Value(x.numbers, x.width, x.grad)
            self.steps.append(Step(dropped, (x,), (mask,)))
        small = self.cast(dropped, mode.product)
        low = Value(self.tokens * mode.rank, mode.product, False)
        kept = (small, low)
        if mode.product != 4 and not mode.fused:  # the adapter's weights, in the base's precision
            kept += (Value(mode.rank * (inputs + outputs), mode.product, False),)
        # written into the base's result, whose memory it shares
        adapted = Value(result.numbers, result.width, True, result.storage)
        self.steps.append(Step(adapted, (result, small), kept))
        return adapted

    def attend(
        self, q: Value, k: Value, v: Value, heads: int, kv_heads: int, window: int = 0
    ) -> Value:
        """Softmax attention of ``heads`` over ``kv_heads``, and its result as the rows of o_proj.

        ``window``: how far back a token sees; 0: to the beginning.
        """
        from ft.kernels import flash

        mode, kind = self.mode, self.mode.attention
        if kind in ("flash", "varlen") and q.numbers > max(flash.SIZES) * heads * self.tokens:
            kind = "tiled"  # of wider heads there is neither kernel
        q, k, v = (self.cast(x, mode.product) for x in (q, k, v))
        # one key for all heads is expanded without a copy, except by repeat_interleave
        one_by_one = kind in ("by_example", "sdpa")
        masked = kind == "masked" or (one_by_one and 0 < window < self.longest)
        copied = kind in ("by_example", "varlen") or (kv_heads > 1 and (masked or kind == "eager"))
        if heads > kv_heads and copied:
            k, v = (self._repeat(x, heads // kv_heads) for x in (k, v))
        pairs = heads * self.squares
        if kind == "eager":
            scores = self.record(Value(pairs, mode.product, False), (q, k), (q, k))
            scores = self.unary(scores, "output")  # tanh of the soft cap
            scores = self.unary(self.cast(self.unary(scores, ""), 4), "output")  # softmax
            scores = self.cast(scores, mode.product)
            result = self.record(q, (scores, v), (scores, v))
            return self.unary(result, "")  # laid out by token
        lse = Value(heads * self.tokens, 4, False)
        # a mask of truth values becomes one to add, which each layer keeps
        bias = (Value(self.squares, mode.product, False),) * masked
        result = self.record(q, (q, k, v), (q, k, v, lse, *bias))
        if result.grad:
            self.steps[-1].saved += (result,)
        return self.unary(result, "") if kind == "by_example" else result

    def _repeat(self, x: Value, times: int) -> Value:
        return self.record(Value(x.numbers * times, x.width, False), (x,), ())

    def forward(self) -> int:
        """The most bytes that a layer takes at once where no backward follows.

        A result goes after its last use; what the layer was given stays, its caller has it.
        """
        uses = [{id(v): v for v in _storages((*s.inputs, s.output))} for s in self.steps]
        last = {key: index for index, step in enumerate(uses) for key in step}
        made = {id(step.output.storage) for step in self.steps}
        last |= {key: len(uses) for key in last if key not in made}
        live: dict[int, int] = {}
        peak = 0
        for index, step in enumerate(uses):
            live |= {key: v.bytes for key, v in step.items()}
            peak = max(peak, sum(live.values()))
            live = {key: size for key, size in live.items() if last[key] > index}
        return peak

    def backward(self) -> int:
        """The most bytes that the backward takes at once beyond what the forward kept.

        Gradients of results come and go; what an operation kept goes when it is done.
        """
        last: dict[int, int] = {}
        for index, step in enumerate(self.steps):
            for value in _storages(step.saved):
                last.setdefault(id(value), index)  # the first to keep it is the last to need it
        live: dict[int, int] = {}
        freed, peak = 0, 0
        for index in reversed(range(len(self.steps))):
            step = self.steps[index]
            grad = live.pop(id(step.output), step.output.bytes)
            for x in step.inputs:
                if x.grad and id(x) not in live:
                    live[id(x)] = x.bytes
            own = 0 if step.aliases else grad
            peak = max(peak, sum(live.values()) + own - freed)
            freed += sum(v.bytes for v in _storages(step.saved) if last[id(v)] == index)
        return max(peak, 0)


def _storages(values: Iterable[Value]) -> list[Value]:
    return list({id(v.storage): v.storage for v in values}.values())


def kept(tapes: Iterable[Tape]) -> int:
    """Bytes that all operations of some tapes keep for their backward, each storage once."""
    steps = (step for tape in tapes for step in tape.steps)
    return sum(v.bytes for v in _storages(s for step in steps for s in step.saved))
