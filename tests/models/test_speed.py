"""FLOPs from arithmetic."""

from support import tiny

from ft.models import lora, speed


def test_flops_follow_from_the_shapes():
    model = tiny.build("gemma")
    config = model.config
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * h, config.num_key_value_heads * h
    layer = d * q + 2 * d * kv + q * d + 3 * d * f
    trunk = config.num_hidden_layers * layer
    head = d * config.vocab_size
    assert speed.training_flops(model) == (6 * trunk, 6 * head)
    adapted = lora.attach(model, r=2, alpha=2)
    adapter = lora.count(adapted)[0]
    assert speed.training_flops(adapted) == (4 * trunk + 6 * adapter, 4 * head)
