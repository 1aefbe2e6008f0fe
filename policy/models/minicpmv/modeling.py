"""The policy: a Qwen3 decoder that sees visual tokens in the place of placeholders.

Parameters have the names of the published checkpoint (`llm.`, `vpm.`, `resampler.`), so the same
tensors go to disk, to the engines and back. Shapes: B rows of T tokens, D decoder width, V
vocabulary; views and groups as in visual_inputs.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3ForCausalLM, Qwen3Model
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutput

from policy.models.minicpmv.resampler import CrossAttention, Resampler
from policy.models.minicpmv.vision import Sizes, VisionTower
from policy.models.minicpmv.visual_inputs import VisualBatch
from rl.config.policy import Part
from rl.data.media.minicpmv import STILL, Groups
from rl.data.media.minicpmv_config import MiniCPMVConfig, refuse_unsupported


class Backbone(nn.Module):
    """What the output layer works on: a module apart, so that it can be wrapped without it."""

    def __init__(self, llm: Qwen3Model, vpm: VisionTower, resampler: Resampler) -> None:
        super().__init__()
        self.llm = llm
        self.vpm = vpm
        self.resampler = resampler

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visual: VisualBatch | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, D] of token ids [B, T], with visual tokens in their places.

        Text alone passes one black patch through tower and resampler and leaves nothing of it but a
        gradient of zero: sharded ranks must all use the same weights, in the same order, though
        only some have images.
        """
        embedded = self.llm.embed_tokens(input_ids)  # [B, T, D]
        if visual is None:
            patch = embedded.new_zeros(1, 3, self.vpm.patch_size, self.vpm.patch_size)
            # Times zero and not left out: autograd must reach the tower.
            embedded = embedded + 0 * self.see(patch, [(1, 1)], [(STILL,)]).sum()
        else:
            tokens = self.see(visual.patches, visual.sizes, visual.groups)  # [G, Q, D]
            seen = tokens[visual.shown].flatten(0, 1).to(embedded.dtype)  # [R * Q, D]
            # index_copy by position, and not wherever the placeholder's id stands: the placeholder
            # is an ordinary word, which a text may hold too.
            merged = embedded.flatten(0, 1).index_copy(0, visual.places, seen)  # [B * T, D]
            embedded = merged.view_as(embedded)
        return self.llm(inputs_embeds=embedded, attention_mask=attention_mask, use_cache=use_cache)

    def see(self, patches: Tensor, sizes: Sizes, groups: Groups) -> Tensor:
        """Visual tokens [G, Q, D]."""
        return self.resampler(self.vpm(patches, sizes), sizes, groups)


class MiniCPMV(PreTrainedModel):
    """Named as in the published config's `architectures`, which `save_pretrained` writes."""

    config_class = MiniCPMVConfig
    config: MiniCPMVConfig
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ("Qwen3DecoderLayer", "VisionLayer", "Resampler")

    def __init__(self, config: MiniCPMVConfig) -> None:
        """Raises ValueError for a relative of 4.5 (rl/data/media/minicpmv_config.py)."""
        refuse_unsupported(config)
        super().__init__(config)
        self.llm = Qwen3ForCausalLM(config)
        self.vpm = VisionTower(config.vision_config)
        self.resampler = Resampler(
            config.query_num, config.hidden_size, config.vision_config.hidden_size
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visual: VisualBatch | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Logits [B, T, V] of token ids [B, T]; of the last `logits_to_keep` positions unless 0."""
        hidden = self.backbone()(input_ids, attention_mask, visual).last_hidden_state
        return CausalLMOutput(logits=self.llm.lm_head(hidden[:, -logits_to_keep:]))

    def backbone(self) -> Backbone:
        """The model without its output layer; a new module each time, of this model's own parts."""
        return Backbone(self.llm.model, self.vpm, self.resampler)

    def parts(self) -> dict[Part, list[nn.Module]]:
        """What `policy.train` chooses from."""
        return {"llm": [self.llm], "vision": [self.vpm], "resampler": [self.resampler]}

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill weights that no checkpoint gave."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Resampler):
            init.normal_(module.query, std=std)
            init.normal_(module.proj, std=module.proj.shape[0] ** -0.5)
        elif isinstance(module, CrossAttention):
            init.normal_(module.in_proj_weight, std=std)
            init.zeros_(module.in_proj_bias)
