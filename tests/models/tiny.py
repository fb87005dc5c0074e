"""Tiny random models of every first-class family. Plumbing only: random weights support no quality claim."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEAD = {"head_dim": 4}
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}
_QWEN_VL_IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}


def _decoder(name: str, **extra: Any) -> nn.Module:
    config = getattr(hf, f"{name}Config")(**{**_TEXT, **extra})
    return getattr(hf, f"{name}ForCausalLM")(config)


def _gemma3_text() -> nn.Module:
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_TEXT, **_HEAD, sliding_window=8))


def _llava() -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_TOWER, projection_dim=16),
        text_config=hf.LlamaConfig(**_TEXT),
        image_token_index=90,
        image_seq_length=4,
    )
    return hf.LlavaForConditionalGeneration(config)


def _llava_next() -> nn.Module:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_TOWER, projection_dim=16),
        text_config=hf.MistralConfig(**_TEXT),
        image_token_index=90,
        image_seq_length=4,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    return hf.LlavaNextForConditionalGeneration(config)


def _llava_onevision() -> nn.Module:
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=hf.Qwen2Config(**_TEXT),
        image_token_index=90,
        video_token_index=91,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def _qwen2_vl() -> nn.Module:
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "num_heads": 4,
        "mlp_ratio": 2,
        "hidden_size": 16,
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    config = hf.Qwen2VLConfig(
        vision_config=vision, text_config={**_TEXT, "rope_parameters": _MROPE}, tie_word_embeddings=True, **_QWEN_VL_IDS
    )
    return hf.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> nn.Module:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 4,
        "intermediate_size": 24,
        "out_hidden_size": 16,
        "patch_size": 4,
        "window_size": 16,
        "spatial_merge_size": 2,
        "fullatt_block_indexes": [1],
    }
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**_TEXT, "rope_parameters": _MROPE},
        tie_word_embeddings=False,
        **_QWEN_VL_IDS,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> nn.Module:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 4,
        "intermediate_size": 24,
        "out_hidden_size": 16,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    text = {**_TEXT, **_HEAD, "rope_parameters": {**_MROPE, "mrope_interleaved": True}}
    config = hf.Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, **_QWEN_VL_IDS)
    return hf.Qwen3VLForConditionalGeneration(config)


def _idefics3(name: str = "Idefics3") -> nn.Module:
    config = getattr(hf, f"{name}Config")(
        vision_config=_TOWER, text_config=hf.LlamaConfig(**_TEXT), image_token_id=90, scale_factor=2, pad_token_id=0
    )
    return getattr(hf, f"{name}ForConditionalGeneration")(config)


def _paligemma() -> nn.Module:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=hf.GemmaConfig(**_TEXT, **_HEAD),
        projection_dim=16,
        hidden_size=16,
        image_token_index=90,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def _clip() -> nn.Module:
    return hf.CLIPModel(hf.CLIPConfig(text_config=_CLIP_TEXT, vision_config=_TOWER, projection_dim=16))


def _siglip() -> nn.Module:
    return hf.SiglipModel(hf.SiglipConfig(text_config={**_CLIP_TEXT, "projection_size": 16}, vision_config=_TOWER))


def _owlv2() -> nn.Module:
    config = hf.Owlv2Config(text_config=_CLIP_TEXT, vision_config={**_TOWER, "image_size": 32}, projection_dim=16)
    return hf.Owlv2ForObjectDetection(config)


def _vit(name: str = "ViT") -> nn.Module:
    config = getattr(hf, f"{name}Config")(**_TOWER, num_labels=3)
    return getattr(hf, f"{name}ForImageClassification")(config)


def _bert(name: str = "Bert", head: str = "ForSequenceClassification") -> nn.Module:
    text = {key: value for key, value in _TEXT.items() if key != "num_key_value_heads"}
    return getattr(hf, name + head)(getattr(hf, f"{name}Config")(**text, num_labels=3))


def _whisper() -> nn.Module:
    config = hf.WhisperConfig(
        vocab_size=96,
        num_mel_bins=8,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        d_model=16,
        max_source_positions=16,
        max_target_positions=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return hf.WhisperForConditionalGeneration(config)


def _rwkv() -> nn.Module:
    config = hf.RwkvConfig(
        vocab_size=96,
        context_length=32,
        hidden_size=16,
        attention_hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return hf.RwkvForCausalLM(config)


def _mamba() -> nn.Module:
    config = hf.MambaConfig(
        vocab_size=96, hidden_size=16, state_size=4, num_hidden_layers=2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return hf.MambaForCausalLM(config)


def _mixtral() -> nn.Module:
    return _decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2)


def _qwen2_moe() -> nn.Module:
    return _decoder(
        "Qwen2Moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
    )


def _qwen3_moe() -> nn.Module:
    return _decoder(
        "Qwen3Moe", **_HEAD, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, mlp_only_layers=[1]
    )


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: _decoder("Llama"),
    "mistral": lambda: _decoder("Mistral"),
    "qwen2": lambda: _decoder("Qwen2", tie_word_embeddings=True),
    "qwen3": lambda: _decoder("Qwen3", **_HEAD),
    "gemma": lambda: _decoder("Gemma", **_HEAD),
    "gemma2": lambda: _decoder("Gemma2", **_HEAD, sliding_window=8),
    "gemma3": _gemma3_text,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "idefics3": _idefics3,
    "smolvlm": lambda: _idefics3("SmolVLM"),
    "paligemma": _paligemma,
    "clip": _clip,
    "siglip": _siglip,
    "owlv2": _owlv2,
    "vit": _vit,
    "deit": lambda: _vit("DeiT"),
    "bert": _bert,
    "bert_lm": lambda: _bert(head="ForMaskedLM"),
    "roberta": lambda: _bert("Roberta"),
    "roberta_lm": lambda: _bert("Roberta", "ForMaskedLM"),
    "whisper": _whisper,
    "rwkv": _rwkv,
    "mamba": _mamba,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The tiny model of one family, with seeded random weights, float32, eval mode, without gradients."""
    torch.manual_seed(seed)
    return BUILDERS[name]().eval().requires_grad_(False)


def run(name: str, model: nn.Module) -> tuple[torch.Tensor, ...]:
    """What the model computes on fixed inputs: the outputs of every tower and of the whole."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 80, (2, 7), generator=generator)
    side = 32 if name == "owlv2" else 16
    pixels = torch.randn(2, 3, side, side, generator=generator)
    with torch.no_grad():
        if name in ("clip", "siglip"):
            out = model(input_ids=ids, pixel_values=pixels)
            return (out.logits_per_image, out.image_embeds)
        if name == "owlv2":
            out = model(input_ids=ids, pixel_values=pixels)
            return (out.logits, out.pred_boxes)
        if name in ("vit", "deit"):
            return (model(pixel_values=pixels).logits,)
        if name == "whisper":
            sound = torch.randn(2, 8, 32, generator=generator)
            return (model(input_features=sound, decoder_input_ids=ids).logits,)
        if name in ("llava", "idefics3", "smolvlm", "paligemma", "llava_next", "llava_onevision"):
            inner = model.model
            tower = inner.vision_model if hasattr(inner, "vision_model") else inner.vision_tower
            projector = inner.connector if hasattr(inner, "connector") else inner.multi_modal_projector
            states = tower(pixels).last_hidden_state
            patches = states[:, 1:] if states.shape[1] == 5 else states
            return (model(input_ids=ids).logits, states, projector(patches))
        if name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
            patches = torch.randn(16, 3 * 2 * 4 * 4, generator=generator)
            seen = model.model.visual(patches, grid_thw=torch.tensor([[1, 4, 4]]))
            return (model(input_ids=ids).logits, seen.pooler_output)
        return (model(input_ids=ids).logits,)
