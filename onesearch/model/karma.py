"""KARMA (https://arxiv.org/abs/2603.22779): a vector of what the user wants next, kept readable while it is learnt.

The paper's: an `[INT]` position after the prompt, h = P(hidden[INT]); the action loss, contrastive between h and the
item that was clicked, whose negatives are items that were shown and not clicked (hard ones) and easy ones; and two
decodability losses, so that h does not collapse into something that only tells items apart: *generate*, the target's
text given the history, and *reconstruct*, its text given h alone; and, for items with pictures, *regress*, the target's
frozen visual features given h alone. L = L_act + l_g L_gen + l_r L_rec + l_v |V h - v|^2. What the decoders need beside
the model is dropped after training.

Our completion, where the paper's exact form is not known, and what a generator of semantic IDs asks for:

- `[INT]` is the last position of a bidirectional encoder. It attends to all others and none attends to it, as at the
  end of a causal prompt. So generation is the same with it and without it, and `generate` cannot see it.
- s = cos(h, e) / .05. An item's vector e adds a projection of its content (text and taste) and one of the sum of its
  SID's embeddings, and has unit length. Items of one SID share it.
- Easy negatives are the other requests' items, each weighed by how rarely it is one (as in "Sampling-bias-corrected
  neural modeling", Yi et al. 2019), so that the denominator estimates the sum over all items. Hard ones share the
  target's first code, are drawn evenly, and count for all that share it. Items that were shown count as they are.
- The target of both decoders is its title *and* its SID, each by itself from the same states: a text that begins with
  an embedding of its own, and codes that begin as answers do. The loss is the mean over all tokens and codes; tokens
  compete with the text vocabulary, codes with their level's. The weights of the decoder are the generator's.
- `reconstruct` gives the decoder k soft tokens U h in place of the encoder's states. As h has unit length, U starts
  with weights of variance 1.
- v has unit length: the mean over the pictures of an item. Items without any have no part in `regress`. In a run
  without pictures v is the frozen vector of the item's text. The paper's autoregressive way to such features is what
  `reconstruct` does where semantic IDs are of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onesearch.model.interest import InterestHead
from onesearch.prefix import PrefixIndex

TEMPERATURE: Final = 0.05


class Interest(nn.Module):
    """The `[INT]` position, the head that reads it, and the items' vectors.

    Args:
        hidden: width H of the backbone. width: D of the vectors. known: V of what the catalogue knows of an item.
    """

    def __init__(self, hidden: int, width: int, known: int) -> None:
        super().__init__()
        self.position = nn.Embedding(1, hidden)
        self.head = InterestHead(hidden, width, TEMPERATURE)
        self.content = nn.Linear(known, width, bias=False) if known else None
        self.codes = nn.Linear(hidden, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, H) states of `[INT]` -> (B, D) interest vectors of unit length."""
        found: Tensor = self.head(hidden)
        return found

    def items(self, content: Tensor, summed: Tensor) -> Tensor:
        """(..., D) unit vectors of items with this content (..., V) and this sum of their SID's embeddings (..., H)."""
        vector = self.codes(summed)
        if self.content is not None:
            vector = vector + self.content(content)
        return F.normalize(vector.float(), dim=-1)


class Decoders(nn.Module):
    """What decoding needs beside the generator, in training only: where a text begins, U (k H, D) and V (F, D).

    Args:
        hidden: H. width: D. texts: whether texts are decoded. soft_tokens: k, 0 without U. features: F, 0 without V.
    """

    def __init__(self, hidden: int, width: int, *, texts: bool, soft_tokens: int, features: int) -> None:
        super().__init__()
        self.begin = nn.Embedding(1, hidden) if texts else None
        self.soft = nn.Linear(width, soft_tokens * hidden, bias=False) if soft_tokens else None
        self.features = nn.Linear(width, features, bias=False) if features else None

    @classmethod
    def of(cls, config: Any, hidden: int) -> Decoders | None:
        """Those of a `GeneratorConfig`; None where nothing is decoded."""
        texts = bool(config.generate or config.reconstruct)
        soft, features = config.soft_tokens if config.reconstruct else 0, config.features if config.regress else 0
        if not texts and not features:
            return None
        return cls(hidden, config.interest, texts=texts, soft_tokens=soft, features=features)

    def soft_tokens(self, interest: Tensor) -> Tensor:
        """(B, D) interest vectors -> (B, k, H) U h."""
        if self.soft is None or self.begin is None:
            raise RuntimeError("no soft tokens without an interest vector")
        states: Tensor = self.soft(interest).view(len(interest), -1, self.begin.embedding_dim)
        return states


class LastPosition(NamedTuple):
    """Where `[INT]` is: place (B,); the mask (B, 1, 1, S) of the others; and who attends to whom (B, 1, S, S)."""

    place: Tensor
    others: Tensor
    attended: Tensor


def read_last(mask: Tensor) -> LastPosition:
    """The last used position of each request reads all others and itself; nobody else reads it.

    Args:
        mask: (B, 1, 1, S) bool, used positions first.
    """
    place = mask[:, 0, 0].sum(1) - 1
    here = torch.arange(mask.shape[-1], device=mask.device) == place.unsqueeze(1)
    others = mask & ~here[:, None, None]
    return LastPosition(place, others, others | (here[:, None, :, None] & here[:, None, None]))


def action_loss(
    interest: Tensor, items: Tensor, item: Tensor, log_chance: Tensor, hard: Tensor, log_count: Tensor, scale: float
) -> Tensor:
    """() InfoNCE of what each user wants against the item that followed.

    Args:
        interest, items: (B, D) unit vectors of h and of the items that followed.
        item: (B,) which item that is; equal items are no negatives of each other.
        log_chance: (B,) log of how likely a request's item is this one.
        hard: (B, K, D) more negatives. log_count: (B, K) log of how many items each stands for, -inf for none.
        scale: the inverse temperature.
    """
    logit = scale * interest @ items.T
    right = logit.diagonal().unsqueeze(1)
    easy = logit - log_chance - math.log(max(len(item) - 1, 1))
    easy = easy.masked_fill(item.unsqueeze(1) == item, -torch.inf)
    more = scale * torch.einsum("bd,bkd->bk", interest, hard) + log_count
    return (torch.cat([right, easy, more], 1).logsumexp(1) - right[:, 0]).mean()


def same_prefix(index: PrefixIndex, first: Tensor, leaf: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Items that share the first code with what followed, drawn evenly with replacement.

    Args:
        first: (B,) nodes of depth 1. leaf: (B,) nodes of depth L below them. count: K.

    Returns:
        (B, K) nodes of depth L; (B, K) log of how many nodes each stands for, -inf where it is `leaf` itself.
    """
    edges = index.below[-1]
    low = torch.searchsorted(edges, index.below[1][first])
    size = (torch.searchsorted(edges, index.below[1][first + 1]) - low).unsqueeze(1)
    drawn = (torch.rand(len(first), count, device=first.device) * size).long()
    node = low.unsqueeze(1) + torch.minimum(drawn, size - 1)
    weight = (size / max(count, 1)).log().expand(node.shape)
    return node, weight.masked_fill(node == leaf.unsqueeze(1), -torch.inf)


def leaf_codes(index: PrefixIndex, leaf: Tensor) -> Tensor:
    """(..., L) int64 the semantic IDs of nodes (...) of depth L."""
    place = index.below[-1][leaf]
    nodes = [torch.searchsorted(edges, place, right=True) - 1 for edges in index.below[1:]]
    return torch.stack([code[node].long() for code, node in zip(index.code, nodes, strict=True)], -1)


def decoded_nats(states: Tensor, table: Tensor, target: Tensor, used: Tensor | None = None) -> tuple[Tensor, int]:
    """The summed cross-entropy () of tokens under softmax(states @ table.T), and how many there are.

    Args:
        states: (B, T, H) decoder states. table: (M, H) embeddings of what competes. target: (B, T) rows of the table.
        used: (B, T) bool; by default all.
    """
    if used is not None:
        states, target = states[used], target[used]
    logit = (states @ table.T).flatten(0, -2).float()
    return F.cross_entropy(logit, target.flatten().long(), reduction="sum"), target.numel()


def regression_loss(told: Tensor, vector: Tensor) -> Tensor:
    """() mean squared distance of what h tells (B, F) from the frozen vectors (B, F) of what followed; items without
    one, which are rows of zeros, count nowhere."""
    there = vector.any(-1)
    apart = (told.float() - vector).square().sum(-1)
    return (apart * there).sum() / there.sum().clamp(min=1)


def read_from(decoder: nn.Module, inputs: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, H) decoder states over inputs (B, T, H) that see `states` (B, S, H) where the mask (B, 1, 1, S) allows."""
    found: Tensor = decoder(
        inputs_embeds=inputs, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    return found


def decoding_loss(
    model: Any, states: Tensor, mask: Tensor | None, text: Tensor, labels: Tensor, code_states: Tensor | None = None
) -> Tensor:
    """() mean cross-entropy of the text and the SID of what followed, read from some states by the model's decoder.

    Args:
        model: the `Generator`, with its `decoders`.
        states: (B, S, H) all that the decoder sees. mask: (B, 1, 1, S); None for all of them.
        text: (B, T) tokens, 0 pads. labels: (B, L) codes.
        code_states: (B, L, H) decoder states before each code, where they are known already.
    """
    embed, decoder, levels = model.backbone.get_input_embeddings(), model.backbone.get_decoder(), labels.shape[1]
    text = text.long()
    begin = model.decoders.begin.weight.expand(len(text), 1, -1)
    told = read_from(decoder, torch.cat([begin, embed(text[:, :-1])], 1), states, mask)
    found = [decoded_nats(told, embed.weight[: model.config.text_vocabulary], text, text > 0)]
    starts = torch.tensor(model.level_start, device=labels.device)
    if code_states is None:
        answer = torch.full_like(labels[:, :1], model.config.begin_token)
        before = torch.cat([answer, (labels + starts)[:, :-1]], 1)
        code_states = read_from(decoder, embed(before), states, mask)
    for level in range(levels):
        first = model.level_start[level]
        table = embed.weight[first : first + model.config.level_sizes[level]]
        found.append(decoded_nats(code_states[:, level], table, labels[:, level]))
    total = torch.stack([nats for nats, _ in found]).sum()
    return total / sum(count for _, count in found)


def karma_losses(
    model: Any,
    context: Any,
    hidden: Tensor,
    labels: Tensor,
    path: list[Tensor],
    told: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The terms that are switched on, () each and without their weights.

    Args:
        model, context: a `Generator` and what it read.
        hidden: (B, L, H) decoder states before each code. labels: (B, L) codes. path: L tensors (B,) of their nodes.
        told: of what followed: `log_chance` (B,) for the action loss, perhaps `shown_codes` (B, S, L) of items that
            were shown and not taken, -1 in empty places; `text` (B, T) for the decoders, `vector` (B, F) for `regress`.
    """
    config, found = model.config, {}
    interest, leaf = context.interest, path[-1]
    if interest is not None and config.action:
        negative, log_count = same_prefix(context.catalogue.index, path[0], leaf, config.hard_negatives)
        if "shown_codes" in told:
            codes = told["shown_codes"]
            there = codes[..., 0] >= 0
            node = context.catalogue.index.nodes(torch.where(there.unsqueeze(-1), codes, labels.unsqueeze(1)))[-1]
            negative = torch.cat([negative, node], 1)
            shown = torch.zeros(node.shape, device=node.device).masked_fill(
                ~there | (node == leaf[:, None]), -torch.inf
            )
            log_count = torch.cat([log_count, shown], 1)
        scale = model.interest.head.scale
        items, more = (model.leaf_vectors(context.catalogue, which) for which in (leaf, negative))
        found["action"] = action_loss(interest, items, leaf, told["log_chance"], more, log_count, scale)
    if config.generate:
        found["generate"] = decoding_loss(model, context.states, context.mask, told["text"], labels, hidden)
    if interest is not None and config.reconstruct:
        soft = model.decoders.soft_tokens(interest)
        found["reconstruct"] = decoding_loss(model, soft, None, told["text"], labels)
    if interest is not None and config.regress:
        found["regress"] = regression_loss(model.decoders.features(interest), told["vector"])
    return found
