"""A small case of every kernel for NVIDIA's checkers, which run a program a hundred times slower:

    compute-sanitizer --tool memcheck python -m tests.triton.sanitize
    compute-sanitizer --tool racecheck python -m tests.triton.sanitize

Forward, backward and decode, past the end of tiles, through a wrap of the ring, with exact and quantised memory.
"""

import torch

from dsmr_kernels import MemoryStack, Retention, recurrent_attention


def main() -> None:
    for storage in (None, "int8", "float8_e4m3"):
        for retention in (Retention(), Retention(3, "random")):
            for dim in (24, 64):
                walk(storage, retention, dim)
    torch.cuda.synchronize()


def walk(storage: str | None, retention: Retention, dim: int) -> None:
    """Segments of 70 tokens and single ones in turn, until the ring has wrapped twice."""
    stack = MemoryStack([90], 2, 1, dim, 70, torch.bfloat16, "cuda", storage, retention)
    for i in range(8):
        tokens = 70 if i % 2 else 1
        q, k, v = (
            torch.randn(2, tokens, heads, dim, dtype=torch.bfloat16, device="cuda", requires_grad=True)
            for heads in (2, 1, 1)
        )
        real = torch.tensor([tokens, tokens // 2], device="cuda")
        out = recurrent_attention(q, k, v, stack[0], segment_len=real, impl="triton")
        out.float().square().sum().backward()
        stack.advance(tokens, segment_len=real)


if __name__ == "__main__":
    main()
