"""``recipes/minigpt_pretrain.py`` as it is: streamed data, clipping, AdamW, logging at every step."""

from pathlib import Path

from minigpt_job import open_job, threads


def main() -> None:
    """Run the recipe, whose meter waits for its turn before each step."""
    job, pipe = open_job()
    import torch

    from ft.minigpt import MiniGPTForCausalLM
    from ft.runs import opened
    from ft.train.pretraining import Meter

    torch.set_num_threads(threads())
    model = MiniGPTForCausalLM.from_pretrained(Path(job.weights).parent)
    ids = torch.from_numpy(job.load_batches()[0])
    with torch.no_grad():
        check = model(ids[:, :-1], shift_labels=ids[:, 1:]).loss.item()
    del model

    class Paced(Meter):
        def begin(self) -> None:
            pipe.wait(**({"loss": self.mean} if self.step else {"check": check}))
            super().begin()

    place = Path(__file__).resolve().parents[2] / "recipes" / "minigpt_pretrain.py"
    recipe, c = opened.recipe(place, [*job.flags, "--output-dir", f"{job.output}/run"])
    recipe.Meter = Paced
    recipe.environment.use_all_cores = lambda: f"{threads()} threads"  # the driver's choice
    torch.set_flush_denormal(True)
    recipe.main(c)


if __name__ == "__main__":
    main()
