"""Which weights of a language model are learnt: all, low-rank adapters and the rows of the SID tokens, or those rows.

The rows are PEFT's trainable tokens: where the output layer is tied to the input embeddings they are one set of rows,
where it is not there is one for each.
"""

from __future__ import annotations

from typing import Any, Literal

from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import EncoderDecoderModel, PreTrainedModel

from onesearch.errors import UserError

Tuning = Literal["full", "lora", "rows"]


def tuned(
    model: PreTrainedModel, tuning: Tuning, tokens: range, rank: int = 16, alpha: int = 32, dropout: float = 0.0
) -> Any:
    """The model with what is learnt of it.

    Args:
        tokens: of the codes. Their rows must have their starting values, they are copied.
        rank, alpha, dropout: of the adapters, which are on every linear layer but the output layer.
    """
    if tuning == "full":
        return model
    if isinstance(model, EncoderDecoderModel):
        remedy = "use full: its decoder is new and has everything to learn"
        raise UserError(
            "a text encoder with a new decoder has no adapters", place="tuning", value=tuning, remedy=remedy
        )
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    tables: list[Any] = [model.get_input_embeddings()]
    tied = model.config.get_text_config().tie_word_embeddings
    if not tied:
        tables.append(model.get_output_embeddings())
    modules = [names[id(table)] for table in tables]
    if tuning == "rows":
        return get_peft_model(model, TrainableTokensConfig(target_modules=modules, token_indices=list(tokens)))
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": "all-linear"}
    options["trainable_token_indices"] = list(tokens) if tied else {name: list(tokens) for name in modules}
    return get_peft_model(model, LoraConfig(**options))


def gathered(objective: Any) -> dict[str, Any]:
    """The whole weights of the model in an `Objective` that FSDP has split, tied ones once; every process must take
    part, and the first gets them."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(objective, options=options)
    again = dict(objective.named_parameters(remove_duplicate=False)).keys() - dict(objective.named_parameters()).keys()
    names = [name for name in state if name.startswith("model.") and name not in again]
    return {name.removeprefix("model."): state[name] for name in names}


def merged(model: Any) -> PreTrainedModel:
    """The plain model with what was learnt in its weights; the adapters are gone."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
