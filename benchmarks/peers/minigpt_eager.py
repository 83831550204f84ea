"""Peer: the same model in plain eager PyTorch and a loop over batches, as nanoGPT writes it."""

from typing import Any

from minigpt_job import open_job, threads


def main() -> None:
    """Full logits, PyTorch's fused attention and AdamW, gradients clipped, the loss read at each step."""
    job, pipe = open_job()
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(threads())
    torch.set_flush_denormal(True)
    torch.manual_seed(42)
    s: dict[str, Any] = job.shape
    width, heads, inner, p = (
        s["hidden_size"],
        s["num_attention_heads"],
        s["intermediate_size"],
        s["dropout"],
    )

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
            self.norms = nn.ModuleList(nn.LayerNorm(width, eps=s["norm_eps"]) for _ in range(2))
            self.drop = nn.Dropout(p)

        def forward(self, x: Any) -> Any:
            q, k, v = (
                part.unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in self.qkv(x).split(width, -1)
            )
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=p if self.training else 0.0
            )
            x = self.norms[0](x + self.drop(self.out(mixed.transpose(1, 2).flatten(2))))
            return self.norms[1](x + self.drop(self.down(F.relu(self.up(x)))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(s["vocab_size"], width)
            self.positions = nn.Embedding(s["max_position_embeddings"], width)
            self.norm = nn.LayerNorm(width, eps=s["norm_eps"])
            self.blocks = nn.ModuleList(Block() for _ in range(s["num_hidden_layers"]))

        def forward(self, ids: Any, targets: Any) -> Any:
            x = self.norm(self.tokens(ids) + self.positions.weight[: ids.shape[1]])
            for block in self.blocks:
                x = block(x)
            logits = x @ self.tokens.weight.T
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    model, w = GPT(), load_file(job.weights)
    renamed = {
        "tokens.weight": w["model.embed_tokens.weight"],
        "positions.weight": w["model.embed_positions.weight"],
    }
    for kind in ("weight", "bias"):
        renamed[f"norm.{kind}"] = w[f"model.norm.{kind}"]
        for i in range(s["num_hidden_layers"]):
            old, new = f"model.layers.{i}.", f"blocks.{i}."
            parts = [w[f"{old}attention.{n}_proj.{kind}"] for n in "qkv"]
            renamed[f"{new}qkv.{kind}"] = torch.cat(parts)
            renamed[f"{new}out.{kind}"] = w[f"{old}attention.o_proj.{kind}"]
            renamed[f"{new}up.{kind}"] = w[f"{old}mlp.up_proj.{kind}"]
            renamed[f"{new}down.{kind}"] = w[f"{old}mlp.down_proj.{kind}"]
            renamed[f"{new}norms.0.{kind}"] = w[f"{old}attention_norm.{kind}"]
            renamed[f"{new}norms.1.{kind}"] = w[f"{old}mlp_norm.{kind}"]
    model.load_state_dict(renamed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job.learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )
    batches = torch.from_numpy(job.load_batches())
    with torch.no_grad():
        model.eval()
        result = {"check": model(batches[0, :, :-1], batches[0, :, 1:]).item()}
        model.train()
    for ids in batches:
        pipe.wait(**result)
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        result = {"loss": loss.item()}


if __name__ == "__main__":
    main()
