"""Fixtures of the evaluation tests."""

import os
from pathlib import Path

import pytest
import torch
from standins import llama, opened


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data sets, where the machine has one."""
    if not os.environ.get("GOSSAMER_DATA"):
        pytest.skip("GOSSAMER_DATA is not set: the real data sets are elsewhere")
    return Path(os.environ["GOSSAMER_DATA"])


@pytest.fixture(scope="session")
def text_model():
    return llama()


@pytest.fixture(scope="session")
def vlm():
    """An untrained LLaVA with the scenes' vocabulary and processor, opened."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from gossamer.data.scenes import PROMPT, vocabulary

    words = vocabulary()
    base = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64,
            patch_size=8, projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_id=words.index("<image>"), vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_seq_length=64,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    return opened(model, processor=processor, tokenizer=tokenizer, defaults={"prompt": PROMPT})
