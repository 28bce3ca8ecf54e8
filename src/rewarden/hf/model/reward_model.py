"""RewardModel: any Hugging Face backbone, pooling, and the head of any method."""

from __future__ import annotations

import copy
import logging
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from rewarden import methods
from rewarden.core import Method, RewardOutput
from rewarden.hf.attention import families, segments
from rewarden.hf.model.language_head import check_plain, load_language_model, token_output
from rewarden.hf.model.loading import load_config, load_weights
from rewarden.tree.layout import Forest

logger = logging.getLogger(__name__)

Layout = Literal["auto", "tree", "padded"]


class RewardModelConfig(PreTrainedConfig):
    """What a saved reward model is: its backbone's configuration, its method, and what its rewards mean.

    The model type is our own, so that a stock class refuses the folder instead of loading it with a random head.
    """

    model_type = "rewarden"

    backbone: dict | None = None
    """Configuration of the backbone, as a dictionary with its own model_type."""
    method: dict | None = None
    """The method, as `rewarden.methods.to_dict` writes it."""
    pooling: str = "last"
    """Which hidden state a head sees: that of the "last" token, or the "mean" for bidirectional encoders."""
    language_head: str | None = None
    """The language-model head that the method reads: "tied" to the input embedding, or with weights of its "own"; None when
    the model keeps none."""
    limits: dict | None = None
    """Length limits that the model was trained with, as fields of `rewarden.hf.tokens.Limits`."""
    rendering: dict | None = None
    """How the texts of training became tokens, as `rewarden.hf.rendering.record` writes it; None in older models."""
    pad_token_id: int | None = None
    """The backbone's padding token."""
    reward_mean: float | None = None
    """Mean reward on the training completions, in reward units."""
    reward_std: float | None = None
    """Standard deviation of the reward on the training completions, in reward units."""


class RewardModel(PreTrainedModel):
    """Backbone, pooling, head: token ids in, `RewardOutput` out.

    Two layouts give the same rewards. Prompt trees (`tree`) hold all sequences in one row and process each prompt once; they
    are used where that is known to be exact. The padded layout works with every backbone.
    """

    config_class = RewardModelConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["head"]  # noqa: RUF012  (transformers declares it as an instance variable)

    def __init__(self, config: RewardModelConfig) -> None:
        super().__init__(config)
        if config.backbone is None or config.method is None:
            raise ValueError("this configuration names no backbone or no method; build the model with from_backbone")
        fields = {key: value for key, value in config.backbone.items() if key != "model_type"}
        # A copy per model: models that share a configuration object share their attention implementation too.
        backbone_config = AutoConfig.for_model(config.backbone["model_type"], **copy.deepcopy(fields))
        self.backbone = AutoModel.from_config(backbone_config)
        _drop_pooler(self.backbone)
        self.method = methods.from_dict(config.method)
        self.head = self.method.head(backbone_config.hidden_size)
        if self.method.uses_language_model and config.language_head is None:
            raise ValueError(
                f"{type(self.method).__name__} reads the language-model head, and this configuration keeps none; "
                "build the model with from_backbone"
            )
        self.language_head: torch.nn.Linear | None = None
        if config.language_head == "own":
            self.language_head = torch.nn.Linear(backbone_config.hidden_size, backbone_config.vocab_size, bias=False)
        self.layout: str = "padded"
        self.post_init()

    def __repr__(self) -> str:
        """One line; `print(model.backbone)` shows the layers."""
        size = sum(weight.numel() for weight in self.parameters()) / 1e6
        return f"RewardModel({self.method}, {self.config.backbone['model_type']} with {size:,.1f} M weights, {self.layout})"

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Backbones and heads initialise themselves."""

    @classmethod
    def from_backbone(cls, name: str, method: Method, *, layout: Layout = "auto", seed: int = 0) -> RewardModel:
        """A reward model with a pretrained backbone and a fresh head, in float32; with its language model where needed.

        Args:
            name: Folder or hub id of a language model or encoder.
            method: What head to put on it.
            layout: "tree", "padded", or "auto" for trees wherever they are exact.
            seed: Initialises the head.

        Raises:
            ValueError: When `layout` is "tree" and the backbone cannot use it, or the method reads a language-model head and
                the model has none that can be used.
        """
        head: Tensor | None = None
        if method.uses_language_model:
            found = load_language_model(name)
            check_plain(name, found.head)
            pretrained, head = found.body, None if found.is_tied else found.head.weight.detach()
        else:
            _check_one_stack(name, load_config(name))
            pretrained = load_weights(AutoModel, name)
        _drop_pooler(pretrained)
        fields = pretrained.config.to_dict()
        for private in ("_name_or_path", "transformers_version", "architectures", "dtype"):
            fields.pop(private, None)
        config = RewardModelConfig(
            backbone=fields,
            method=methods.to_dict(method),
            pooling="last" if families.is_causal(pretrained) else "mean",
            pad_token_id=getattr(pretrained.config, "pad_token_id", None),
            language_head=("tied" if head is None else "own") if method.uses_language_model else None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        model.backbone.load_state_dict(pretrained.state_dict())
        if model.language_head is not None:
            model.language_head.load_state_dict({"weight": head})
        return model.use_layout(layout)

    @classmethod
    def load(cls, folder: str, *, layout: Layout = "auto", dtype: torch.dtype = torch.float32) -> RewardModel:
        """A saved reward model in evaluation mode.

        Raises:
            ValueError: When the folder is damaged or lacks weights, or `layout` is "tree" and the backbone cannot use it.
        """
        model: Any = load_weights(cls, folder, dtype=dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                # Weights mapped from a file may be unaligned, and CPU kernels then sum in another order: rewards would differ
                # in the last bit from those of the model that was saved.
                parameter.data = parameter.data.clone()
        model.eval()
        return model.use_layout(layout)

    def freeze_backbone(self) -> None:
        """Train the head alone: what came from the pretrained model, its language-model head included, stays as it is."""
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    def use_layout(self, layout: Layout) -> RewardModel:
        """Switch to prompt trees or to padding; "auto" takes trees where they are exact, and logs why when they are not."""
        reason = None
        if layout != "padded":
            reason = families.refusal(self.backbone.config) or families.probe(self.backbone)
        if layout == "tree" and reason is not None:
            raise ValueError(f"layout 'tree' is not available: {reason}; use layout 'padded' or 'auto'")
        if layout == "auto" and reason is not None:
            logger.info("using the padded layout: %s", reason)
        self.layout = "padded" if layout == "padded" or reason is not None else "tree"
        if self.layout == "padded":
            self.backbone.set_attn_implementation(families.twin(self.backbone))
        else:
            _drop_dropout(self.backbone)
            self.backbone.set_attn_implementation(segments.IMPLEMENTATION)
            if (kind := self.backbone.config.model_type) not in families.FAMILIES:
                logger.info("using prompt trees: %s is not a family our tests cover, and it passed every check", kind)
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        tree: Forest | None = None,
        predictors: Int[Tensor, "batch longest"] | None = None,
        targets: Int[Tensor, "batch longest"] | None = None,
    ) -> RewardOutput:
        """Rewards of every sequence: those of the tree layout in its order, or one per padded row.

        The head runs in float32 with autocast off: in bfloat16, rewards of 20.03 and 20.05 are the same number. Where
        `predictors` and `targets` name the tokens of the completions (`rewarden.hf.batches.token_targets`), the output has
        `tokens`; a reward alone does not need them, and scoring leaves them out.

        Raises:
            ValueError: When tokens are asked for and the model keeps no language-model head.
        """
        hidden = self.hidden_states(input_ids, attention_mask, position_ids, tree)
        output = self.head_output(self.pooled(hidden, attention_mask, tree))
        if predictors is None or targets is None:
            return output
        return output._replace(tokens=token_output(hidden, self.output_embedding(), predictors, targets))

    def head_output(self, hidden: Float[Tensor, "batch hidden"]) -> RewardOutput:
        """The head on pooled hidden states, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float())

    def encode(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        tree: Forest | None = None,
    ) -> Float[Tensor, "batch hidden"]:
        """What the head sees of every sequence: the hidden state of its last token, or the mean for encoders."""
        hidden = self.hidden_states(input_ids, attention_mask, position_ids, tree)
        return self.pooled(hidden, attention_mask, tree)

    def hidden_states(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        tree: Forest | None = None,
    ) -> Float[Tensor, "rows tokens hidden"]:
        """Last hidden states of every position of the batch, those of padding included."""
        extra: dict[str, Any] = {"use_cache": False} if self.config.pooling == "last" else {}
        if position_ids is not None:
            extra["position_ids"] = position_ids
        if tree is not None:
            extra["tree"] = tree
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state

    def pooled(
        self,
        hidden: Float[Tensor, "rows tokens hidden"],
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
        tree: Forest | None = None,
    ) -> Float[Tensor, "batch hidden"]:
        """One hidden state per sequence, in either layout."""
        if tree is not None:
            return hidden[0, tree.ends()]
        if attention_mask is None:
            attention_mask = hidden.new_ones(hidden.shape[:2], dtype=torch.long)
        return pool(hidden, attention_mask, self.config.pooling)

    def output_embedding(self) -> Float[Tensor, "vocabulary hidden"]:
        """Weight of the language-model head; the input embedding where the two are tied.

        Raises:
            ValueError: When the model keeps no language-model head.
        """
        if self.config.language_head is None:
            raise ValueError(
                f"this model keeps no language-model head, because {type(self.method).__name__} does not read it; "
                "ask for no tokens, or build the model with a method that uses the language model"
            )
        if self.language_head is not None:
            return self.language_head.weight
        return self.backbone.get_input_embeddings().weight


def pool(
    hidden: Float[Tensor, "rows tokens hidden"], mask: Int[Tensor, "rows tokens"], kind: str
) -> Float[Tensor, "rows hidden"]:
    """The last attended position whatever side the padding is on, or the mean over attended positions."""
    if kind == "mean":
        weights = mask.to(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(1) / weights.sum(1)
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def _check_one_stack(name: str, config: PreTrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model {name!r}: a {config.model_type} is an encoder with a decoder, and a reward model has one stack of layers; "
            "give a causal language model or an encoder such as BERT"
        )


def _drop_pooler(backbone: PreTrainedModel) -> None:
    """Encoders of the BERT family carry a pooler that nothing here reads; unused weights break distributed training."""
    if getattr(backbone, "pooler", None) is not None:
        backbone.register_module("pooler", None)


def _drop_dropout(backbone: PreTrainedModel) -> None:
    """Branches share their prompt, so noise inside the backbone would be shared too; it is switched off and said."""
    for name, rate in families.switch_off_dropout(backbone):
        logger.warning("%s %s is set to 0: prompt trees share a prompt between its completions", name, rate)


AutoConfig.register("rewarden", RewardModelConfig)
