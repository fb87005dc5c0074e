"""Where the parts of each model family are: one table row per family, no code per family.

Paths are module paths inside the model. `@` stands for the base model, the one that a task head wraps (`model` in
`LlamaForCausalLM`, `bert` in `BertForMaskedLM`, nothing in a bare `LlamaModel`). A tensor belongs to the part with the
longest path that holds it; whatever no part holds is the `head`.

To add a family, add a row.
"""

from dataclasses import dataclass

from gossamer.core.paths import compile_pattern

# Sets of sibling layers that run as one matrix in deployed kernels and so must share a setting. The first that fits
# the end of a layer's path holds.
CROSS = ("encoder_attn.{q_proj}", "encoder_attn.{k_proj,v_proj}")
ATTENTION = ("{q_proj,k_proj,v_proj}",)
GATED = ("{gate_proj,up_proj}",)
EXPERTS = ("experts.*.{gate_up_proj,gate_proj,up_proj,down_proj}",)
BERT_ATTENTION = ("self.{query,key,value}",)
FUSED = CROSS + ATTENTION + BERT_ATTENTION + EXPERTS + GATED

TOWER = ("encoder.layers", "layers", "transformer.layers", "blocks", "encoder.layer")
DECODER = ("layers", "blocks", "h", "decoder.layers")


@dataclass(frozen=True)
class Part:
    """One modality's place. `blocks` are candidate paths of its block list under `root` (the first that exists holds);
    `also` are further modules or tensors, outside `root`, that belong to the modality."""

    modality: str
    root: str = ""
    blocks: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One row. `types` are the `model_type` values of the configs it covers, `fused` its fused sets."""

    name: str
    types: tuple[str, ...]
    parts: tuple[Part, ...]
    fused: tuple[str, ...] = FUSED


_EMBEDDINGS = Part("embeddings", "@.embed_tokens")
_INNER_LANGUAGE = (
    Part("embeddings", "@.language_model.embed_tokens"),
    Part("language", "@.language_model", DECODER),
)
_TOWERS = (
    Part("vision", "@.vision_model", TOWER),
    Part("text", "@.text_model", TOWER),
    Part("projector", also=("@.visual_projection", "@.text_projection")),
    Part("head", also=("@.logit_scale", "@.logit_bias")),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "decoder",
        (
            "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo",
            "olmo2", "starcoder2", "smollm3", "granite", "stablelm", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe",
        ),
        (_EMBEDDINGS, Part("language", "@", ("layers",))),
    ),
    Family(
        "llava",
        ("llava", "llava_next", "llava_onevision", "llava_next_video", "vipllava", "paligemma", "gemma3", "mistral3"),
        (
            Part("vision", "@.vision_tower", TOWER),
            Part("projector", "@.multi_modal_projector", also=("@.image_newline",)),
            *_INNER_LANGUAGE,
        ),
    ),
    Family(
        "qwen_vl",
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
        (
            Part("vision", "@.visual", ("blocks",)),
            Part("projector", "@.visual.merger", also=("@.visual.deepstack_merger_list",)),
            *_INNER_LANGUAGE,
        ),
    ),
    Family(
        "idefics3",
        ("idefics3", "smolvlm"),
        (
            Part("vision", "@.vision_model", TOWER),
            Part("projector", "@.connector"),
            Part("embeddings", "@.text_model.embed_tokens"),
            Part("language", "@.text_model", DECODER),
        ),
    ),
    Family("clip", ("clip", "siglip", "siglip2", "owlv2", "owlvit"), _TOWERS),
    Family("vit", ("vit", "deit", "dinov2"), (Part("vision", "@", TOWER),)),
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        (Part("embeddings", "@.embeddings"), Part("language", "@", ("encoder.layer",))),
    ),
    Family(
        "whisper",
        ("whisper",),
        (
            Part("audio", "@.encoder", ("layers",)),
            Part("embeddings", "@.decoder.embed_tokens"),
            Part("language", "@.decoder", ("layers",)),
        ),
    ),
    # RWKV's key, value and receptance read differently mixed inputs: nothing is fused.
    Family("rwkv", ("rwkv",), (Part("embeddings", "@.embeddings"), Part("language", "@", ("blocks",))), fused=()),
    Family(
        "mamba",
        ("mamba", "mamba2", "falcon_mamba"),
        (Part("embeddings", "@.embeddings"), Part("language", "@", ("layers",))),
        fused=(),
    ),
)  # fmt: skip


def family_of(model_type: str) -> Family | None:
    """The row that covers a config's `model_type`, or None."""
    return next((family for family in FAMILIES if model_type in family.types), None)


def unit_of(path: str, fused: tuple[str, ...] = FUSED) -> str:
    """The fused set that the layer at `path` belongs to, as a glob that selects its members; `path` if it has none."""
    segments = path.split(".")
    for pattern in fused:
        length = pattern.count(".") + 1
        if length < len(segments) and compile_pattern(pattern).fullmatch(".".join(segments[-length:])):
            members = pattern.rsplit(".", 1)[-1]
            return path if "," not in members else ".".join([*segments[:-1], members])
    return path
