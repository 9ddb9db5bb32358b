"""How much of a text can be read out of a vector: by a small decoder that is fitted to do so, the same for every model.

A probe is a GRU that starts from the vector and tells the text token by token. It is fitted on the vectors of some
requests and measured on those of others, whatever the model was trained for, so that models whose training had a
decoder and models whose training had none are compared alike. A probe of nothing, whose vectors are all zero, tells how
well texts are foreseen without any.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH: Final = 96
STEPS: Final = 400
BATCH: Final = 256
RATE: Final = 5e-3


@dataclass(frozen=True)
class Decodability:
    """Of held-out texts: cross-entropy `nats` per token, and the mean Jaccard index `jaccard` of the tokens that the
    most likely text and the right one consist of."""

    nats: float
    jaccard: float

    def as_dict(self) -> dict[str, float]:
        """Ready for JSON."""
        return asdict(self)


class Probe(nn.Module):
    """Tells a text from a vector (B, D). Texts are (B, T) int64 with `end` behind the last token, and 0 pads."""

    def __init__(self, known: int, vocabulary: int, end: int) -> None:
        super().__init__()
        self.end = end
        self.start, self.embed = nn.Linear(known, WIDTH), nn.Embedding(vocabulary, WIDTH)
        self.step, self.out = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, vocabulary)

    def nats(self, vectors: Tensor, text: Tensor) -> Tensor:
        """The cross-entropy of every token (n,)."""
        before = F.pad(text[:, :-1], (1, 0), value=self.end)  # no text begins with its end
        states, _ = self.step(self.embed(before), self._begin(vectors))
        used = text > 0
        return F.cross_entropy(self.out(states[used]), text[used], reduction="none")

    @torch.inference_mode()
    def most_likely(self, vectors: Tensor, length: int) -> Tensor:
        """(B, length) the likeliest token after the likeliest ones before it."""
        token = torch.full((len(vectors), 1), self.end)
        state, told = self._begin(vectors), []
        for _ in range(length):
            out, state = self.step(self.embed(token), state)
            token = self.out(out).argmax(-1)
            told.append(token)
        return torch.cat(told, 1)

    def _begin(self, vectors: Tensor) -> Tensor:
        return self.start(vectors).tanh().unsqueeze(0)


def decodability(
    fit: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], vocabulary: int, end: int, seed: int = 0
) -> Decodability:
    """Fit a probe on vectors (n, D) and their texts (n, T), and measure it on others.

    Args:
        vocabulary: number of tokens. end: the token behind a text.
        seed: of the probe's weights and the order of the requests; the state of the random numbers stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vectors, text = fit[0].float(), fit[1].long()
        scale = vectors.std(0).clamp(min=1e-6) if vectors.any() else torch.ones(vectors.shape[1])
        mean = vectors.mean(0)
        probe = Probe(vectors.shape[1], vocabulary, end)
        steps = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=0.01)
        falling = torch.optim.lr_scheduler.OneCycleLR(steps, RATE, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(text), (BATCH,))
            loss = probe.nats((vectors[rows] - mean) / scale, text[rows]).mean()
            steps.zero_grad()
            loss.backward()
            steps.step()
            falling.step()
    vectors, text = (held_out[0].float() - mean) / scale, held_out[1].long()
    with torch.inference_mode():
        parts = zip(vectors.split(1024), text.split(1024), strict=True)
        nats = torch.cat([probe.nats(*part) for part in parts]).mean()
    told = probe.most_likely(vectors, text.shape[1])
    return Decodability(float(nats), float(jaccard(told, text, end, vocabulary).mean()))


def jaccard(told: Tensor, text: Tensor, end: int, vocabulary: int) -> Tensor:
    """(n,) common tokens over all tokens of pairs of texts (n, T) and (n, T'), up to their ends, without padding."""
    one, other = (_tokens(each, end, vocabulary) for each in (told, text))
    return (one & other).sum(1) / (one | other).sum(1).clamp(min=1)


def _tokens(text: Tensor, end: int, vocabulary: int) -> Tensor:
    """(n, M) bool which tokens come before the end."""
    before = (text == end).cumsum(1) == 0
    found = torch.zeros(len(text), vocabulary, dtype=torch.bool)
    found.scatter_(1, text.masked_fill(~before, 0), True)
    found[:, 0] = False
    return found
