"""A Transformer-XL-style language model whose memory earns its keep. Runs in seconds on a CPU.

Every piece is written with 2 letters out of 8, other ones in each piece, and is read in segments of 4. A model without
memory meets every segment as a stranger; one with memory soon knows the two letters: log 2 = 0.69 nats.
"""

import math

from dsmr.process import keep_spins_short

keep_spins_short()  # idle threads sleep soon: said before torch is imported

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsmr_kernels import MemoryStack, RingMemory, recurrent_attention

LETTERS, ALPHABET, SEGMENT, LANES, WIDTH, HEADS = 8, 2, 4, 8, 64, 2


class Layer(nn.Module):
    """A pre-LN block; positions enter queries and keys, and memory is the layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qk, self.v, self.out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, position: Tensor, memory: RingMemory) -> Tensor:
        """`x [lanes, T, WIDTH]` to the same shape; appends this segment to the memory."""
        h = self.norm1(x)
        q, k = self.qk(h + position).unflatten(-1, (2 * HEADS, -1)).chunk(2, dim=2)  # [lanes, T, heads, head_dim]
        attended = recurrent_attention(q, k, self.v(h).unflatten(-1, (HEADS, -1)), memory)
        x = x + self.out(attended.flatten(2))
        return x + self.feed_forward(self.norm2(x))


class LanguageModel(nn.Module):
    """Embedding, layers, head; the recurrent state is a `MemoryStack` that the caller holds."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.head = nn.Linear(WIDTH, LETTERS)

    def forward(self, tokens: Tensor, stack: MemoryStack) -> Tensor:
        """Ids `[lanes, T]` to logits `[lanes, T, LETTERS]`."""
        index = stack.clock.length[:, None] + torch.arange(tokens.shape[1])
        angles = index[..., None] * 10_000 ** -torch.linspace(0, 1, WIDTH // 2)
        x, position = self.embedding(tokens), torch.cat([angles.sin(), angles.cos()], -1)
        for layer, memory in zip(self.layers, stack, strict=True):
            x = layer(x, position, memory)
        stack.advance(tokens.shape[1])
        return self.head(x)


def train(horizon: int, pieces: int = 40, segments: int = 8) -> float:
    """Mean loss in nats over the last quarter of training, with a memory of `horizon` tokens in each layer."""
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    stack = MemoryStack([horizon] * len(model.layers), LANES, HEADS, WIDTH // HEADS, SEGMENT)
    losses = []
    for _ in range(pieces):
        stack.reset()  # every lane begins a new piece
        alphabets = torch.rand(LANES, LETTERS).topk(ALPHABET).indices
        text = alphabets.gather(1, torch.randint(ALPHABET, (LANES, segments * SEGMENT + 1)))
        for at in range(0, segments * SEGMENT, SEGMENT):
            logits = model(text[:, at : at + SEGMENT], stack)
            loss = F.cross_entropy(logits.flatten(0, 1), text[:, at + 1 : at + 1 + SEGMENT].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses[-len(losses) // 4 :]) / (len(losses) // 4)


if __name__ == "__main__":
    print(f"guessing: {math.log(LETTERS):.2f} nats, knowing the alphabet: {math.log(ALPHABET):.2f} nats")
    for horizon in (0, 32):
        print(f"memory of {horizon} tokens: {train(horizon):.2f} nats")
