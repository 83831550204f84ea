"""Not a peer but their limit: the fastest fp32 matrix product among the model's own shapes and a square one."""

from minigpt_job import open_job, threads
from roofline import gflops


def main() -> None:
    """After every step the GFLOP/s of the best shape."""
    job, pipe = open_job()
    import torch

    torch.set_num_threads(threads())
    torch.set_flush_denormal(True)
    d, inner, v = (job.shape[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    rows = 2048
    shapes = [(rows, inner, d), (rows, d, inner), (rows // 2, v, d), (rows, rows, rows)]
    factors = [(torch.randn(n, into), torch.randn(out, into)) for n, out, into in shapes]
    result: dict[str, float] = {}
    while True:
        pipe.wait(**result)
        result = {"gflops": max(gflops(x, weight) for x, weight in factors)}


if __name__ == "__main__":
    main()
