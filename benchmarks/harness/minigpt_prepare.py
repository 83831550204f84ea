"""Before the peers start: the tokenizer, the batches that ft's recipe will read, and its initial weights."""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Write ``batches.npy`` and the folder ``model`` for the recipe's flags."""
    task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    import numpy as np
    from transformers import set_seed

    from ft.data import corpus
    from ft.errors import exit_cleanly
    from ft.minigpt import MiniGPTForCausalLM
    from ft.runs import opened

    with exit_cleanly():
        module, c = opened.recipe(Path(task["recipe"]), task["flags"])
        tokenizer = module.load_tokenizer(c)
        windows = iter(
            corpus.windows(
                module.sources(c)["train"],
                tokenizer,
                length=c.max_length,
                shuffle_buffer=c.shuffle_buffer,
                seed=c.seed,
                workers=0,
            )
        )
        rows = [next(windows) for _ in range(task["steps"] * c.per_device_train_batch_size)]
        shape = module.shape(c, tokenizer)
        set_seed(c.seed)
        model = MiniGPTForCausalLM(shape)
    place = Path(task["output"])
    np.save(place / "batches.npy", np.stack(rows).reshape(task["steps"], -1, c.max_length + 1))
    model.save_pretrained(place / "model")


if __name__ == "__main__":
    main()
