"""KARMA: the interest head leaves generation as it is, and the losses see what they should and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from catalogues import TEXT, batch, random_batch, random_codes, random_generator
from torch import Tensor

from onesearch.model import Generator
from onesearch.model.karma import (
    action_loss,
    decoded_nats,
    decoding_loss,
    karma_losses,
    leaf_codes,
    read_last,
    regression_loss,
    same_prefix,
)
from onesearch.prefix import PrefixIndex

SIZES = (4, 5, 6)
CODES = random_codes(np.random.default_rng(0), 30, SIZES, unique=True)
LABELS = torch.from_numpy(CODES[:3].astype(np.int64))
WIDTH = 8
FEATURES = 7
ALL = {"interest": WIDTH, "generate": 0.1, "reconstruct": 0.1, "regress": 0.1, "features": FEATURES}
TOLD = {
    "text": torch.tensor([[5, 6, 2, 0], [7, 2, 0, 0], [8, 9, 10, 2]], dtype=torch.int32),
    "log_chance": torch.tensor([0.2, 0.3, 0.1]).log(),
    "vector": torch.nn.functional.normalize(
        torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(5)), dim=-1
    ),
    "shown_codes": torch.stack([torch.from_numpy(CODES[3:5].astype(np.int64)), -torch.ones(2, 3).long(), LABELS[1:]]),
}


def generator(family: str = "bart", **options: Any) -> Generator:
    return random_generator(0, CODES, SIZES, family, **options)


def inputs(seed: int = 1) -> dict[str, Tensor]:
    return batch(random_batch(np.random.default_rng(seed), CODES))


def losses(model: Generator, context: Any, told: dict[str, Tensor] = TOLD) -> dict[str, Tensor]:
    torch.manual_seed(3)  # of the negatives
    hidden = model.hidden(context, LABELS[:, None, :-1])[:, 0]
    return karma_losses(model, context, hidden, LABELS, model.bound.index.nodes(LABELS), told)


def test_the_last_position_reads_all_others_and_nobody_reads_it() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)[:, None, None]
    last = read_last(mask)
    assert last.place.tolist() == [2, 1]
    assert last.others[:, 0, 0].int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert last.attended[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_without_it_nothing_changes_and_with_it_generation_does_not(family: str) -> None:
    plain, heading = generator(family, spread=0), generator(family, spread=0, **ALL)
    weights = heading.state_dict()
    assert not any(name.startswith(("interest", "decoders")) for name in plain.state_dict())
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weights[name], weight, atol=0, rtol=0, msg=name)
    plain = generator(family)
    heading = generator(family, **ALL).bind(plain.bound)
    heading.load_state_dict(plain.state_dict(), strict=False)
    with torch.inference_mode():
        one, other = (model(**inputs(), labels=LABELS) for model in (plain, heading))
        assert plain.read(**inputs()).interest is None
        interest = heading.read(**inputs()).interest
    torch.testing.assert_close(one.log_prob, other.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(interest.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_interest_depends_on_query_and_history_and_not_on_the_batch(family: str) -> None:
    model, requests = generator(family, interest=WIDTH), random_batch(np.random.default_rng(4), CODES)
    with torch.inference_mode():
        together = model.read(**batch(requests)).interest
        for row, request in enumerate(requests):
            alone = model.read(**request).interest[0]
            torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=1e-5)
            changed = dict(request, query_ids=(request["query_ids"] - 2) % (TEXT - 3) + 3)
            assert not torch.allclose(model.read(**changed).interest[0], alone, atol=1e-4)
            past = dict(
                request, slot_codes=torch.from_numpy(CODES[None, 20 : 20 + request["slot_codes"].shape[1]]).long()
            )
            assert not torch.allclose(model.read(**past).interest[0], alone, atol=1e-4)


def test_action_loss_by_hand() -> None:
    """Requests 0 and 2 have the same item, so each has request 1 alone for an easy negative, and one hard one."""
    interest = torch.eye(3)
    items = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    hard = torch.tensor([[[0.5, 0, 0]], [[0, 0, 0]], [[0, 0, 1.0]]])
    log_count = torch.tensor([[3.0], [1.0], [1.0]]).log()
    log_count[1] = -torch.inf
    chance = torch.tensor([2 / 3, 1 / 3, 2 / 3])
    found = action_loss(interest, items, torch.tensor([4, 7, 4]), chance.log(), hard, log_count, scale=2.0)
    e, one = np.exp(2.0), 1.0  # a negative counts 1 / (2 chance): 1.5 for item 7, .75 for item 4 twice
    expected = [
        -np.log(e / (e + 1.5 * one + 3 * np.exp(1.0))),
        -np.log(e / (e + 2 * 0.75 * one)),
        -np.log(one / (one + 1.5 * one + e)),
    ]
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_easy_negatives_estimate_the_softmax_over_all_items() -> None:
    """Requests for rare items and common ones, as often as they are bought."""
    chance = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.04, 0.01])
    item = torch.arange(6).repeat_interleave((4000 * chance).round().long())
    logit = torch.tensor([0.5, -1.0, 0.3, 1.2, -0.4, 2.0])
    nothing = torch.zeros(len(item), 0)
    wanted, items = torch.ones(len(item), 1), logit[item].unsqueeze(1)  # items of one number
    found = action_loss(wanted, items, item, chance[item].log(), nothing.unsqueeze(-1), nothing, scale=1.0)
    expected = torch.nn.functional.cross_entropy(logit.expand(len(item), -1), item)
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_hard_negatives_share_the_first_code_and_stand_for_all_that_do() -> None:
    index = PrefixIndex.build(CODES)
    path = index.nodes(torch.from_numpy(CODES.astype(np.int64)))
    torch.manual_seed(0)
    node, log_count = same_prefix(index, path[0], path[-1], 500)
    codes = index.semantic_ids()[node]  # every semantic ID is one item's
    assert (codes[..., 0] == torch.from_numpy(CODES[:, :1])).all()
    itself = node == path[-1].unsqueeze(1)
    assert itself.any() and log_count[itself].isneginf().all()
    below = np.array([(CODES[:, 0] == code).sum() for code in CODES[:, 0]])
    for row, size in enumerate(below):
        assert len(set(node[row].tolist())) == size, "each of them is drawn"
    np.testing.assert_allclose(log_count.exp().sum(1), below - 1, rtol=0.25)


def test_a_leaf_has_the_codes_of_its_items() -> None:
    shared = np.array([[1, 2, 3], [1, 2, 0], [1, 2, 3], [0, 4, 1]])
    index = PrefixIndex.build(shared)
    leaf = index.nodes(torch.from_numpy(shared))[-1]
    assert leaf_codes(index, leaf.view(2, 2)).flatten(0, 1).tolist() == shared.tolist()


def test_decoded_nats_by_hand() -> None:
    states = torch.tensor([[[1.0, 0], [0, 1], [9, 9]]])
    nats, count = decoded_nats(states, torch.eye(2), torch.tensor([[0, 0, 1]]), torch.tensor([[True, True, False]]))
    e = np.e
    assert count == 2 and float(nats) == pytest.approx(-np.log(e / (e + 1)) - np.log(1 / (e + 1)), rel=1e-5)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_reconstruct_sees_the_interest_vector_alone(family: str) -> None:
    """Other encoder states with the same h: the same loss. The gradient reaches the encoder through h alone."""
    model = generator(family, **ALL).train()
    context = model.read(**inputs())
    found = losses(model, context)
    elsewhere = losses(
        model, replace(context, states=torch.randn_like(context.states), mask=context.mask & False | True)
    )
    torch.testing.assert_close(elsewhere["reconstruct"], found["reconstruct"], atol=0, rtol=0)
    assert not torch.allclose(elsewhere["generate"], found["generate"])
    (to_states,) = torch.autograd.grad(found["reconstruct"], context.states, retain_graph=True)
    read = to_states.abs().sum(-1) > 0
    assert (read.sum(1) == 1).all() and not (read & context.mask[:, 0, 0]).any(), "only the position that h is made of"
    cut = losses(model, replace(context, interest=context.interest.detach()))
    cut["reconstruct"].backward()
    encoder = model.backbone.get_encoder()
    assert all(one.grad is None for one in model.interest.parameters())
    weights = [one for name, one in encoder.named_parameters() if "embed_tokens" not in name and "shared" not in name]
    assert weights and all(one.grad is None for one in weights)


def test_regression_is_the_distance_of_items_that_have_a_vector() -> None:
    told = torch.tensor([[1.0, 0.0], [0.0, 0.5], [3.0, 3.0]])
    vector = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert regression_loss(told, vector).item() == pytest.approx((2 + 0.25) / 2)
    assert regression_loss(told, torch.zeros(3, 2)).item() == 0


def test_regress_alone_reads_the_interest_vector_and_decodes_no_text() -> None:
    model = generator(interest=WIDTH, action=0.0, regress=0.1, features=FEATURES).train()
    out = model(**inputs(), labels=LABELS, told=TOLD)
    assert set(out.terms) == {"regress"} and model.decoders.begin is None and model.decoders.soft is None
    told = model.decoders.features(model.read(**inputs()).interest)
    torch.testing.assert_close(out.terms["regress"], regression_loss(told, TOLD["vector"]).detach())
    (gradient,) = torch.autograd.grad(out.loss, model.decoders.features.weight)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_generate_does_not_see_the_interest_position(family: str) -> None:
    model = generator(family, **ALL).train()
    found = losses(model, model.read(**inputs()))
    (to_position,) = torch.autograd.grad(found["generate"], model.interest.position.weight, allow_unused=True)
    assert to_position is None or (to_position == 0).all()
    with torch.no_grad():
        model.interest.position.weight.normal_(0, 5.0)
    changed = losses(model, model.read(**inputs()))
    torch.testing.assert_close(changed["generate"], found["generate"], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(changed["action"], found["action"])


def test_a_decoding_loss_is_the_mean_over_tokens_and_codes() -> None:
    """The codes' part by the generator's own states; the text's token by token, each after those before it."""
    model = generator(**ALL)
    context = model.read(**inputs())
    hidden = model.hidden(context, LABELS[:, None, :-1])[:, 0]
    given = decoding_loss(model, context.states, context.mask, TOLD["text"], LABELS, hidden)
    anew = decoding_loss(model, context.states, context.mask, TOLD["text"], LABELS)
    torch.testing.assert_close(given, anew)
    embed, nats = model.backbone.get_input_embeddings(), []
    for row, text in enumerate(TOLD["text"].long()):
        for place in range(int((text > 0).sum())):
            before = torch.cat([model.decoders.begin.weight, embed(text[:place])])[None]
            states = model.backbone.get_decoder()(
                inputs_embeds=before,
                encoder_hidden_states=context.states[row : row + 1],
                encoder_attention_mask=context.mask[row : row + 1],
                use_cache=False,
            ).last_hidden_state[0, -1]
            nats.append(-(states @ embed.weight[:TEXT].T).log_softmax(-1)[text[place]])
        for level, code in enumerate(LABELS[row]):
            first = model.level_start[level]
            logit = hidden[row, level] @ embed.weight[first : first + SIZES[level]].T
            nats.append(-logit.log_softmax(-1)[code])
    torch.testing.assert_close(given, torch.stack(nats).mean())


def test_what_was_shown_and_not_taken_makes_the_action_harder() -> None:
    model = generator(**ALL, hard_negatives=0)
    context = model.read(**inputs())
    without = {name: tensor for name, tensor in TOLD.items() if name != "shown_codes"}
    more, less = (losses(model, context, told)["action"] for told in (TOLD, without))
    assert more > less
    nothing = TOLD | {"shown_codes": torch.full((3, 2, 3), -1)}
    torch.testing.assert_close(losses(model, context, nothing)["action"], less)
    itself = TOLD | {"shown_codes": LABELS.unsqueeze(1)}
    torch.testing.assert_close(losses(model, context, itself)["action"], less)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_the_terms_are_weighed_into_the_loss_in_training_only(family: str) -> None:
    model = generator(family, **ALL | {"action": 0.5}).train()
    torch.manual_seed(0)
    out = model(**inputs(), labels=LABELS, told=TOLD)
    plain = -out.log_prob.sum(-1).mean() - model.config.plain_loss * out.plain_log_prob.sum(-1).mean()
    assert set(out.terms) == {"action", "generate", "reconstruct", "regress"}
    added = 0.5 * out.terms["action"] + 0.1 * sum(out.terms[name] for name in ("generate", "reconstruct", "regress"))
    torch.testing.assert_close(out.loss, plain + added)
    out.loss.backward()
    for name, parameter in [*model.interest.named_parameters(), *model.decoders.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    held_out = model.eval()(**inputs(), labels=LABELS, told=TOLD)
    torch.testing.assert_close(held_out.loss, -held_out.log_prob.sum(-1).mean())


def test_generation_alone_needs_no_head_and_decoders_are_dropped_from_what_is_saved(tmp_path: Path) -> None:
    model = generator(generate=0.1).train()
    assert set(model(**inputs(), labels=LABELS, told=TOLD).terms) == {"generate"}
    model = generator(**ALL)
    wanted = model.read(**inputs()).interest
    model.drop_decoders()
    model.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path).bind(model.bound).eval()
    assert loaded.decoders is None and not any(name.startswith("decoders") for name in loaded.state_dict())
    torch.testing.assert_close(loaded.read(**inputs()).interest, wanted, atol=0, rtol=0)
    leaves = torch.arange(len(CODES))
    torch.testing.assert_close(
        loaded.leaf_vectors(model.bound, leaves), model.leaf_vectors(model.bound, leaves), atol=0, rtol=0
    )


def test_without_a_head_there_is_no_interest() -> None:
    plain = generator()
    with pytest.raises(RuntimeError, match="no interest head"):
        plain.leaf_vectors(plain.bound, torch.zeros(1, dtype=torch.int64))
