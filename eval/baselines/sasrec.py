"""SASRec (https://arxiv.org/abs/1808.09781): a causal Transformer over the history against the vectors of all items.

The strongest form that is known to us: the cross-entropy over all items instead of one sampled negative ("Turning
Dross Into Gold Loss", https://arxiv.org/abs/2309.07602), and with `content` vectors of the items beside their
embeddings. As in the paper embeddings are shared by input and output. It gets the same care as our own model: the same
vectors, backbone, optimizer and temperature, the same learnt bonus for items of the history (`onesearch.model.seen`;
not the paper's), and the number of passes is chosen on validation requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model, get_cosine_schedule_with_warmup

from onesearch.context.sequence import SequenceBuilder
from onesearch.corpus import Corpus, Requests
from onesearch.model.contrastive import Bonus, softmax_loss
from onesearch.model.seen import Seen, once
from onesearch.model.sequence import BEGIN
from training.batches import SimilarLengths
from training.histories import Histories

logger = logging.getLogger(__name__)

WIDTH: Final = 128
POSITIONS: Final = 50
DROPOUT: Final = 0.3
TEMPERATURE: Final = 0.07
BATCH: Final = 512
RATE: Final = 4e-3
PASSES: Final = 12
WARM_UP: Final = 50
ASKED: Final = 512
"""Requests answered at once."""


class SASRec(nn.Module):
    """A system like any other, see `System`.

    Args:
        content: (N, V) unit vectors of the items; None for the plain model.
    """

    name = "sasrec"
    calibrated = logarithmic = False

    def __init__(self, builder: SequenceBuilder, content: NDArray[np.float32] | None) -> None:
        super().__init__()
        self.builder, self.tuned = builder, {"passes": PASSES}
        self.item = nn.Embedding(len(builder.corpus.items), WIDTH)
        nn.init.normal_(self.item.weight, std=0.02)
        self.begin = nn.Parameter(torch.zeros(WIDTH))
        self.content = None if content is None else torch.from_numpy(content)
        self.read_content = None if content is None else nn.Linear(content.shape[1], WIDTH, bias=False)
        self.repeat = nn.Parameter(torch.zeros(()))  # of items in the history, in units of a cosine
        self.dropout = nn.Dropout(DROPOUT)
        self.backbone = GPT2Model(
            GPT2Config(
                vocab_size=1,
                n_embd=WIDTH,
                n_layer=2,
                n_head=4,
                n_inner=2 * WIDTH,
                n_positions=POSITIONS + 1,
                activation_function="relu",
                embd_pdrop=0.0,
                resid_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        split: NDArray[np.int8],
        content: NDArray[np.float32] | None,
        valid: Requests,
        seed: int,
    ) -> SASRec:
        """Train on the training events; the weights of the pass with the best NDCG@10 on `valid` are kept."""
        torch.manual_seed(seed)
        model = cls(SequenceBuilder(corpus, POSITIONS, None), content)
        histories = Histories(model.builder, split)
        examples = histories.training(split)
        batch = min(BATCH, len(examples))
        sampler = SimilarLengths(examples.end - examples.first, batch, seed)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.05)
        schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, PASSES * len(sampler) // batch)
        best, weights = -1.0, model.state_dict()
        for number in range(1, PASSES + 1):
            sampler.set_epoch(number)
            order = np.fromiter(sampler, np.int64, len(sampler))
            model.train()
            for rows in order.reshape(-1, batch):
                given = histories.batch(examples, rows.tolist())
                loss = model.loss(given["items"], given["labels"])
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            found = model.ndcg(valid)
            logger.info("sasrec after pass %d: validation NDCG@10 %.4f", number, found)
            if found > best:
                best, model.tuned["passes"] = found, number
                weights = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(weights)
        return model.eval()

    def vectors(self) -> Tensor:
        """(N, D) of the items."""
        embedded = self.item.weight
        return embedded if self.read_content is None else embedded + self.read_content(self.content)

    def states(self, items: Tensor, vectors: Tensor) -> Tensor:
        """(B, T) items -> (B, T, D) unit vectors of what follows each."""
        inputs = torch.where((items == BEGIN).unsqueeze(-1), self.begin, vectors[items.clamp(min=0)])
        states = self.backbone(inputs_embeds=self.dropout(inputs), use_cache=False).last_hidden_state
        return F.normalize(self.dropout(states).float(), dim=-1)

    def loss(self, items: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy over all items of what follows each position."""
        vectors, learnt = self.vectors(), labels >= 0
        state, target = self.states(items, vectors)[learnt], labels[learnt]
        weight = torch.full((len(target),), 1 / max(len(target), 1))
        seen = Seen.of(items, learnt)
        bonus = Bonus(seen.row, seen.item, self.repeat / TEMPERATURE)
        return softmax_loss(state, F.normalize(vectors, dim=-1), target, weight, 1 / TEMPERATURE, bonus=bonus)[0]

    @torch.inference_mode()
    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `System.rank`."""
        count = min(k, len(self.item.weight))
        items = np.full((len(requests), k), -1, np.int32)
        scores = np.full((len(requests), k), -np.inf, np.float32)
        for part, every in self._blocks(requests):
            score, item = every.topk(count, 1)
            items[part, :count], scores[part, :count] = item.numpy(), score.numpy()
        return items, scores

    @torch.inference_mode()
    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Scorer.score`."""
        scores = np.empty(items.shape, np.float32)
        for part, every in self._blocks(requests):
            scores[part] = every.gather(1, torch.from_numpy(items[part].astype(np.int64)).clamp(min=0)).numpy()
        return scores

    def _blocks(self, requests: Requests) -> Iterator[tuple[slice, Tensor]]:
        """Some of the requests at a time, and their (B, N) scores of all items."""
        self.eval()
        vectors = self.vectors()
        keys = F.normalize(vectors, dim=-1)
        for start in range(0, len(requests), ASKED):
            part = slice(start, start + ASKED)
            given, _, last = self.builder.inputs(requests.part(part))
            state = self.states(given, vectors)[torch.arange(len(last)), last]
            had = once(given)
            yield part, (state @ keys.T).scatter_add(1, had.clamp(min=0), self.repeat * (had >= 0))

    def ndcg(self, requests: Requests) -> float:
        """NDCG@10."""
        hit = self.rank(requests, 10)[0] == requests.target[:, None]
        return float((hit / np.log2(np.arange(2, 12))).sum(1).mean())
