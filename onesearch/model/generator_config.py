"""The settings of the project's own generator."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class GeneratorConfig(PreTrainedConfig):
    """Settings of a `Generator`.

    Args:
        backbone: any encoder-decoder configuration; its vocabulary is replaced by text pieces followed by SID tokens.
        text_vocabulary: number of text pieces; id `begin_token` begins an answer.
        level_sizes: codes per level.
        history_features: numbers that describe a history slot, besides how well it fits the query.
        content: width of the query's and items' text vectors (0 switches the content path off).
        taste: width of the items' taste vectors, which follow the text in `Catalogue.content`; a query's vector ends
            with two of them, of all that the user bought and of what fits the query.
        spelling: whether the query's terms are looked up below each prefix.
        priors: popularity counts that the prior is given (0 switches it off).
        offers: kinds of offers that are told apart (0 switches them off).
        copy: whether history slots add their own probability.
        plain_loss: weight of the loss of the model without its copy path, so that it learns to spell items as well.
        views: what else is read of the user, by name, with the sizes of each (`ViewReader.sizes`).
        interest: width of the interest vector (0 switches it off).
        action, generate, reconstruct, regress: weights of KARMA's losses (`onesearch.model.karma`).
        soft_tokens: k of `reconstruct`. features: width of the frozen vectors of `regress`.
        hard_negatives: of the action loss, drawn for each request.
        interest_share: what the interest head counts beside generation where both answer.
    """

    model_type = "onesearch-generator"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone": SubConfigSpec(config_class=AutoConfig, model_type="bart")
    }

    backbone: PreTrainedConfig | dict | None = None
    text_vocabulary: int = 4000
    begin_token: int = 2
    level_sizes: list[int] | tuple[int, ...] = (256, 256, 256)
    history_features: int = 5
    content: int = 128
    taste: int = 0
    spelling: bool = True
    priors: int = 2
    offers: int = 0
    copy: bool = True
    plain_loss: float = 0.3
    views: dict | None = None
    interest: int = 0
    action: float = 1.0
    generate: float = 0.0
    reconstruct: float = 0.0
    regress: float = 0.0
    soft_tokens: int = 2
    features: int = 0
    hard_negatives: int = 4
    interest_share: float = 0.5
    is_encoder_decoder: bool | None = True
