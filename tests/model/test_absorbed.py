from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from onesearch.model.absorbed import NAME, absorbed

WORDS = 100


def bart() -> PreTrainedModel:
    sizes = {f"{part}_{name}": 4 if name == "attention_heads" else 32
             for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")}  # fmt: skip
    return BartForConditionalGeneration(
        BartConfig(vocab_size=WORDS, d_model=32, encoder_layers=1, decoder_layers=2, dropout=0.0, **sizes)
    )


def t5() -> PreTrainedModel:
    """Heads that together are not as wide as the model."""
    config = T5Config(vocab_size=WORDS, d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0)
    return T5ForConditionalGeneration(config)


def text_encoder() -> PreTrainedModel:
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    decoder = BertLMHeadModel(BertConfig(**sizes, is_decoder=True, add_cross_attention=True))
    return EncoderDecoderModel(encoder=BertModel(BertConfig(**sizes)), decoder=decoder)


def learnt(model: torch.nn.Module, written: torch.Tensor) -> dict[str, torch.Tensor]:
    """The decoder's states for prompts of 1 to 17 words, and the gradients of all weights."""
    model.zero_grad()
    ids = torch.randint(3, WORDS, (5, 17), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(17) < torch.tensor([[17], [5], [9], [1], [12]])).long()
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=written, use_cache=False).logits
    logits.square().mean().backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {"logits": logits.detach(), **found}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [bart, t5, text_encoder])
@pytest.mark.parametrize("length", [3, 20], ids=["few", "many"])
def test_the_same_states_and_gradients(make: Callable[[], PreTrainedModel], length: int, attention: str) -> None:
    torch.manual_seed(0)
    model = make().train()
    model.set_attn_implementation(attention)
    written = torch.randint(3, WORDS, (5, length))
    expected = learnt(model, written)
    with absorbed(model) as count:
        found = learnt(model, written)
    assert count == 2
    assert found.keys() == expected.keys()  # two processes wait for a gradient of every weight
    for name, one in expected.items():
        torch.testing.assert_close(
            found[name], one, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_afterwards_all_is_as_it_was() -> None:
    model = bart()
    before = model.model.decoder.layers[0].encoder_attn.config
    names = list(model.state_dict())
    with pytest.raises(RuntimeError), absorbed(model):
        assert model.model.decoder.layers[0].encoder_attn.config._attn_implementation == NAME
        assert model.config._attn_implementation != NAME
        assert list(model.state_dict()) == names
        raise RuntimeError
    attention = model.model.decoder.layers[0].encoder_attn
    assert attention.config is before
    assert "forward" not in vars(attention.k_proj)


def test_adapters_are_left_to_the_library() -> None:
    adapted = get_peft_model(bart(), LoraConfig(target_modules=["k_proj", "v_proj"], r=2))
    with absorbed(adapted) as count:
        assert count == 0


def test_a_prompt_costs_no_keys_and_values() -> None:
    """Operations of a long prompt, forward and backward, counted."""
    from torch.utils.flop_counter import FlopCounterMode

    model = bart()
    states, written = torch.randn(2, 60, 32), torch.randint(3, WORDS, (2, 3))

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            model(encoder_outputs=(states,), decoder_input_ids=written).logits.sum().backward()
        return counter.get_total_flops()

    with absorbed(model):
        few = counted()
    projections = 2 * 2 * (2 * 2 * 60 * 32 * 32) * 2  # keys, values; layers; 2 operations; forward, and as to weights
    assert counted() - few > projections / 3
