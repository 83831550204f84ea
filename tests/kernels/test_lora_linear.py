"""Our LoRA layer computes what PEFT's does, gradients included, and leaves to PEFT what it does not know."""

import collections
import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from ft.kernels import joined, lora_copies, lora_linear


def adapted(kind="gemma3_text", **options):
    """A tiny Gemma with a LoRA adapter whose B is not zero, once as PEFT has it and once with ours."""
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    plain = get_peft_model(tiny.build(kind), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = copy.deepcopy(plain)
    lora_linear.install(ours)
    return plain, ours


class Counting(TorchDispatchMode):
    """Operations by name."""

    def __init__(self, names: collections.Counter) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


def step(model, dtype=torch.float32):
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ids = torch.arange(3, 27).reshape(2, 12)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(input_ids=ids).logits
    logits.float().square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert grads
    assert all(g.abs().sum() > 0 for g in grads.values())
    return logits.detach(), torch.cat([g.flatten() for g in grads.values()])


@pytest.mark.parametrize(
    "options", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}], ids=["plain", "dropout", "rslora"]
)
def test_outputs_and_gradients_are_those_of_peft(options):
    (expected, expected_grad), (found, found_grad) = (step(m.train()) for m in adapted(**options))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_grad, expected_grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 4}},
        {"alpha_pattern": {"up_proj": 16}},
    ],
    ids=["plain", "ranks", "scales"],
)
def test_layers_that_read_the_same_are_those_of_peft_together(options, monkeypatch):
    """Queries, keys and values of one rank or several; gate and up only where they have one scale."""
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    calls, plain_function = [], lora_linear._whole_function()

    class Seen:
        @staticmethod
        def apply(x, parts, apart, *factors):
            calls.append(len(parts))
            return plain_function.apply(x, parts, apart, *factors)

    monkeypatch.setattr(lora_linear, "_whole_function", lambda: Seen)
    plain, ours = adapted(**options)
    other = copy.deepcopy(ours)
    (expected, expected_grad), (found, found_grad) = step(plain.train()), step(ours.train())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_grad, expected_grad, atol=1e-6, rtol=1e-4)
    pattern = [3, 1, 1, 1, 1] if "up_proj" in str(options) else [3, 1, 2, 1]
    assert calls == pattern * (len(calls) // len(pattern))
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        answers = [one(input_ids=ids).logits for one in (ours, plain)]
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
    assert calls == pattern * (len(calls) // len(pattern))
    torch.testing.assert_close(step(other.train())[1], expected_grad, atol=1e-6, rtol=1e-4)


class Pair(torch.nn.Module):
    """What comes first in a gated MLP."""

    def __init__(self, make=torch.nn.Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = make(64, 128), make(64, 192)

    def forward(self, x):
        return self.gate_proj(x), self.up_proj(x)


def test_results_may_be_written_into(monkeypatch):
    """Gemma 3n scales in place what projects the inputs of its layers."""
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    plain, ours = adapted("gemma3n")
    ids = torch.arange(3, 27).reshape(2, 12)
    for model in (plain, ours):
        model(input_ids=ids).logits.square().mean().backward()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [torch.no_grad, torch.enable_grad])
def test_a_layer_in_fp32_answers_so_under_autocast(rows):
    """As one in 4 bits does for an input in fp32, which Gemma 3n's sparse layers have."""
    x, made = torch.randn(5, 8), torch.randn(5, 6)
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    with rows(), torch.autocast("cpu", torch.bfloat16):
        found = lora_linear.add_low_rank(made.clone(), x, a, b, 2.0)
    assert torch.allclose(found, made + 2 * x @ a.T @ b.T, atol=0.2)
    if found.requires_grad:
        found.sum().backward()
        assert torch.allclose(b.grad, 2 * (x @ a.T).sum(0).expand(6, 4), atol=0.2)


def test_a_result_that_nothing_reads_has_no_part_in_the_gradient(monkeypatch):
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    torch.manual_seed(0)

    model = get_peft_model(Pair(), LoraConfig(r=2, target_modules=["gate_proj", "up_proj"]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    apart = copy.deepcopy(model)
    lora_linear.install(model)
    x = torch.randn(3, 64)
    for read in (0, 1):
        slopes = []
        for one in (apart, model):
            leaf = x.clone().requires_grad_()
            leaves = [leaf, *(p for p in one.parameters() if p.requires_grad)]
            out = one(leaf)[read].square().sum()
            found = torch.autograd.grad(out, leaves, allow_unused=True)
            slopes.append(
                [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(leaves, found, strict=True)
                ]
            )
        for ours, theirs in zip(*slopes, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max())
            )


@pytest.mark.parametrize("quantized", [False, True], ids=["linear", "4-bit"])
def test_layers_that_read_the_same_are_one_product(quantized, monkeypatch):
    """Both ways; what is in 4 bits is brought back into one matrix."""
    import bitsandbytes

    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    torch.manual_seed(0)
    make = functools.partial(
        bitsandbytes.nn.Linear4bit, bias=False, compute_dtype=torch.float32, quant_type="nf4"
    )
    pair = Pair(make).to("cpu") if quantized else Pair()
    model = get_peft_model(pair, LoraConfig(r=4, target_modules=["gate_proj", "up_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    apart = copy.deepcopy(model)
    kept = {n: p.clone() for n, p in model.state_dict().items() if torch.is_tensor(p)}
    lora_linear.install(model)
    assert all(torch.equal(model.state_dict()[n], x) for n, x in kept.items())
    x, gradients = torch.randn(2, 5, 64), [torch.randn(2, 5, n) for n in (128, 192)]
    found = []
    for one in (apart, model):
        leaf, names = x.clone().requires_grad_(), collections.Counter()
        leaves = [leaf, *(p for p in one.parameters() if p.requires_grad)]
        with Counting(names):
            out = one(leaf)
            slopes = torch.autograd.grad(out, leaves, gradients)
        found.append([*out, *slopes])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    # base, A and B of each forward; then B, its gradient, and base, A and A's gradient
    products = sum(names[n] for n in ("mm", "addmm", "addmm_", "linear"))
    assert products == (1 + 1 + 2) + (2 + 2 + 1 + 1 + 1)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "gemma4_text"])
def test_copies_of_a_below_the_weights_come_out_of_the_same_product(kind, monkeypatch):
    """And take the gradient of what all read along, where there is room behind the results' gradients."""
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    plain, ours = adapted(kind, r=8, lora_alpha=12)
    expected, expected_grad = step(plain.train())
    step(ours.train())  # brings the adapter to fp32
    for parameter in ours.parameters():
        parameter.grad = None
        if parameter.requires_grad:  # so that fp32 is the lower precision
            parameter.data = parameter.data.double()
    before = collections.Counter()
    with Counting(before):
        ours(input_ids=torch.arange(3, 15)[None])
    assert lora_copies.refresh(ours) > 0
    after, seen = collections.Counter(), []
    plain_values = lora_linear._values
    monkeypatch.setattr(
        lora_linear,
        "_values",
        lambda p, a, t: (seen.append(a is not None), plain_values(p, a, t))[1],
    )
    with Counting(after):
        found = ours(input_ids=torch.arange(3, 27).reshape(2, 12)).logits
    assert all(seen)
    assert after["addmm_"] < before["addmm_"]
    found.square().mean().backward()
    assert (found.detach() - expected).norm() < 1e-5 * expected.norm()
    found_grad = torch.cat([p.grad.flatten() for p in ours.parameters() if p.requires_grad])
    torch.testing.assert_close(found_grad.float(), expected_grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("lone", [False, True])
def test_a_gradient_with_room_behind_it_needs_no_second_product(lone, monkeypatch):
    """What GEGLU and norms give back lies as what they were given."""
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    torch.manual_seed(0)
    names = ["up_proj"] if lone else ["gate_proj", "up_proj"]
    model = get_peft_model(
        Pair(functools.partial(torch.nn.Linear, bias=False)), LoraConfig(r=8, target_modules=names)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter.data).double()
    apart = copy.deepcopy(model)
    lora_linear.install(model)
    monkeypatch.setattr(
        type(model),
        "get_input_embeddings",
        lambda self: self.base_model.model.gate_proj,
        raising=False,
    )
    lora_copies.refresh(model)
    x, results = torch.randn(1, 5, 64), []
    sizes = [192] if lone else [128, 192]
    gradients = [torch.randn(1, 5, n) for n in sizes]
    wide = torch.full((1, 5, sum(sizes) + 8 * len(sizes)), torch.nan)
    wide[..., : sum(sizes)] = torch.cat(gradients, -1)
    for one, given in ((apart, gradients), (model, wide[..., : sum(sizes)].split(sizes, -1))):
        leaf, counted_names = x.clone().requires_grad_(), collections.Counter()
        leaves = [leaf, *(p for p in one.parameters() if p.requires_grad)]
        out = one(leaf)[-len(sizes) :]
        with Counting(counted_names):
            slopes = torch.autograd.grad(out, leaves, given)
        results.append([*out, *slopes])
    for theirs, ours in zip(*results, strict=True):
        bound = 1e-4 * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=bound)
    # B of each, its gradient, then what is read, and A's gradient
    assert counted_names["mm"] + counted_names["addmm_"] == 2 * len(sizes) + 2
    assert "cat" not in counted_names


def test_gradients_that_are_halves_of_one_matrix_are_not_copied():
    whole, like = torch.randn(6, 20), torch.zeros(6, 2)
    first, second = whole.view(2, 3, 20).split([12, 8], -1)
    found = joined.side_by_side([first, second], [12, 8], like)
    assert found.data_ptr() == whole.data_ptr()
    assert torch.equal(found, whole)
    swapped = joined.side_by_side([second, first], [8, 12], like)
    assert torch.equal(swapped, torch.cat([whole[:, 12:], whole[:, :12]], 1))
    alone = joined.side_by_side([None, second], [12, 8], like)
    assert torch.equal(alone, torch.cat([torch.zeros(6, 12), whole[:, 12:]], 1))


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_what_attention_keeps_holds_nothing_else_in_memory(kind, monkeypatch):
    """Values wait for their gradient; queries and keys, as they were before they were rotated, only for a norm's."""
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    model = get_peft_model(tiny.build(kind), LoraConfig(r=2, target_modules="all-linear"))
    lora_linear.install(model)
    layer = model.base_model.model.model.layers[0].self_attn
    x = torch.randn(1, 5, layer.q_proj.in_features)
    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    places = [each.untyped_storage().data_ptr() for each in (q, k, v)]
    assert places[0] == places[1]
    assert (places[2] == places[0]) == (kind == "gemma3_text")


def test_copies_of_layers_that_read_the_same_lie_in_one_matrix():
    """So that their A are one factor of a product, and no copy is made for it."""
    model = half_precision()
    lora_copies.refresh(model)
    for layer in model.modules():
        if together := vars(layer).get(lora_linear.TOGETHER):
            lows = [
                lora_copies.cast(each.lora_A["default"].weight, torch.bfloat16)
                for each in together.layers
            ]
            stacked = joined.stacked(lows)
            assert stacked.data_ptr() == lows[0].data_ptr()
            assert torch.equal(stacked, torch.cat(lows))


def test_bf16_is_no_farther_from_fp32_than_peft_under_autocast():
    plain, ours = adapted()
    exact = step(copy.deepcopy(plain))[1]
    distance = [(step(m, torch.bfloat16)[1] - exact).norm() / exact.norm() for m in (plain, ours)]
    assert distance[0] > 1e-4  # bf16 was at work
    assert distance[1] <= 1.2 * distance[0]


def test_the_function_passes_gradcheck():
    torch.manual_seed(0)
    shapes = [(2, 3, 5), (2, 3, 4), (2, 4), (5, 2)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def run(result, x, a, b):
        return lora_linear.add_low_rank(result * 1, x, a, b, 0.5)  # a copy: it is written into

    assert torch.autograd.gradcheck(run, inputs)


def test_a_layer_that_is_more_than_plain_lora_answers_as_peft_wrote_it():
    plain, ours = adapted(use_dora=True)
    torch.testing.assert_close(step(ours), step(plain))
    plain, ours = adapted()
    ids = torch.arange(3, 15)[None]
    adapter = ours(input_ids=ids).logits
    with ours.disable_adapter(), plain.disable_adapter():
        base = plain(input_ids=ids).logits
        torch.testing.assert_close(ours(input_ids=ids).logits, base)
    assert (adapter - base).abs().max() > 1e-3
    ours.merge_adapter()
    torch.testing.assert_close(ours(input_ids=ids).logits, adapter, atol=1e-4, rtol=1e-4)
    ours.unmerge_adapter()
    merged = ours.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, adapter, atol=1e-4, rtol=1e-4)


def test_a_deep_copy_uses_its_own_weights():
    _, ours = adapted()
    other = copy.deepcopy(ours)
    for name, parameter in other.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    ids = torch.arange(3, 15)[None]
    assert (ours(input_ids=ids).logits - other(input_ids=ids).logits).abs().max() > 1e-3


def counted(model, ids):
    """Operations of a forward and a backward pass by name."""
    names = collections.Counter()
    with Counting(names), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids).logits.float().square().mean().backward()
    return names


def half_precision(kind="gemma2", **options):
    """A tiny Gemma in bf16 with a LoRA adapter in fp32."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = get_peft_model(tiny.build(kind).to(torch.bfloat16), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter.data.float()) * 0.1
    lora_linear.install(model)
    return model


def test_with_copies_no_forward_casts_and_all_numbers_are_the_same_bits():
    model, ids = half_precision(), torch.arange(3, 15)[None]
    layers = sum(hasattr(module, "lora_A") for module in model.modules())

    def gradients():
        found = [p.grad for p in model.parameters() if p.requires_grad]
        model.zero_grad()
        return torch.cat([g.flatten() for g in found])

    before, plain = counted(model, ids), gradients()
    assert lora_copies.refresh(model) == 2 * layers
    after, found = counted(model, ids), gradients()
    assert torch.equal(found, plain)
    assert before["_to_copy"] - after["_to_copy"] == 2 * layers
    assert sum(after.values()) <= sum(before.values()) - 2 * layers
    lora_copies.release(model)
    assert counted(model, ids)["_to_copy"] == before["_to_copy"]


def test_copies_follow_the_parameters_and_stay_where_they_are():
    model, ids = half_precision(), torch.arange(3, 15)[None]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    lora_copies.refresh(model)
    first = next(p for p in model.parameters() if p.requires_grad)
    place = getattr(first, lora_copies.LOW)[0].data_ptr()
    for _ in range(2):
        counted(model, ids)
        optimizer.step()
        lora_copies.refresh(model)
        with torch.no_grad():
            found = model(input_ids=ids).logits
            lora_copies.release(other := copy.deepcopy(model))
            assert torch.equal(other(input_ids=ids).logits, found)
    assert getattr(first, lora_copies.LOW)[0].data_ptr() == place
    state = {
        name: torch.zeros_like(x) for name, x in model.state_dict().items() if "lora_B" in name
    }
    with torch.no_grad():
        model.load_state_dict(state, strict=False)  # without a refresh
        zeroed = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(zeroed, model(input_ids=ids).logits)


def test_fp32_needs_no_copies():
    _, ours = adapted()
    assert lora_copies.refresh(ours) == 0


@pytest.mark.parametrize("quantized", [False, True], ids=["linear", "4-bit"])
def test_base_and_update_as_one_function_compute_the_same(quantized, monkeypatch):
    """Equal up to the order of sums in fp32, without the operations of two functions."""
    import bitsandbytes

    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(64, 128, bias=not quantized))
    if quantized:
        layer = bitsandbytes.nn.Linear4bit(
            64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        layer.load_state_dict(ours[0].state_dict())
        ours = torch.nn.Sequential(layer.to("cpu"))
    model = get_peft_model(ours, LoraConfig(r=4, lora_alpha=12, target_modules=["0"]))
    torch.nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    lora_linear.install(model)
    x, gradient = torch.randn(2, 7, 64), torch.randn(2, 7, 128)

    def results():
        leaf = x.clone().requires_grad_()
        out = model(leaf)
        leaves = [leaf, *(p for p in model.parameters() if p.requires_grad)]
        return out.grad_fn.name(), [out.detach(), *torch.autograd.grad(out, leaves, gradient)]

    apart, expected = results()
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    whole, found = results()
    assert "Adapted" in whole
    assert "Adapted" not in apart
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_a_layer_as_one_function_is_its_eight_products(monkeypatch):
    """Three forward and five backward, and on a CPU, whose products stay in 16 bits, two casts."""
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    ours = torch.nn.Sequential(torch.nn.Linear(6, 8, bias=False).bfloat16())
    model = get_peft_model(ours, LoraConfig(r=2, target_modules=["0"]))
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    lora_linear.install(model)
    layer = model.base_model.model[0]
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    for parameter in factors:  # what refresh makes
        low = (parameter.detach().bfloat16(), parameter._version, parameter.data_ptr())
        setattr(parameter, lora_copies.LOW, low)
    x = torch.randn(1, 3, 6, dtype=torch.bfloat16, requires_grad=True)
    names = collections.Counter()
    gradient = torch.ones(1, 3, 8, dtype=torch.bfloat16)
    with Counting(names):
        torch.autograd.grad(model(x), [x, *factors], gradient)
    assert names["mm"] + names["addmm_"] == 8
    assert names["_to_copy"] == 2
    without_work = {
        "view",
        "_unsafe_view",
        "t",
        "permute",
        "new_empty",
        "empty_like",
        "detach",
        "set_",
    }
    without_work |= {"as_strided", "split_with_sizes", "alias", "slice"}
    assert names.keys() <= {"mm", "addmm_", "_to_copy"} | without_work


def test_a_dropout_of_nothing_is_none(monkeypatch):
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    found = []
    for rate in (0.0, 0.5):
        torch.manual_seed(0)
        _, ours = adapted(lora_dropout=rate)
        for module in ours.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if rate:
            monkeypatch.setattr(torch.nn.Dropout, "forward", None)  # its use would be an error
        found.append(step(ours.train()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"use_dora": True}], ids=["dropout", "dora"]
)
def test_what_is_more_than_plain_lora_is_not_one_function(options, monkeypatch):
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    _, ours = adapted(**options)
    monkeypatch.setattr(lora_linear, "_whole_function", None)  # its use would be an error
    step(ours.train())


def test_answers_move_no_weight_that_a_training_knows_by_its_place(monkeypatch):
    """Not those without an adapter either: a CUDA graph would go on reading where they were."""
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    plain, _ = adapted(target_modules=["q_proj", "v_proj"])
    model = plain.bfloat16()
    lora_linear.install(model)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    with joined.fast(model):
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
        layers = model.base_model.model.model.layers
        assert all("forward" in vars(layer.mlp.gate_proj) for layer in layers)
