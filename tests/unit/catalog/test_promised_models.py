"""The models that the product promises, with every parameter by its real name.

The names are repeated here by hand, so that nobody drops one from the data without saying so twice.
"""

from __future__ import annotations

import pytest

from imagen.catalog import Catalog
from imagen.catalog.model import EDIT_KEYS, GUIDE_KEYS

CATALOG = Catalog.load()

PROMISED = """
black-forest-labs/flux-1.1-pro-ultra:
    aspect_ratio image_prompt image_prompt_strength output_format prompt raw safety_tolerance seed
black-forest-labs/flux-1.1-pro:
    aspect_ratio height image_prompt output_format output_quality prompt prompt_upsampling safety_tolerance
    seed width
black-forest-labs/flux-2-dev:
    aspect_ratio disable_safety_checker go_fast height input_images output_format output_quality prompt seed
    width
black-forest-labs/flux-2-flex:
    aspect_ratio guidance height input_images output_format output_quality prompt prompt_upsampling resolution
    safety_tolerance seed steps width
black-forest-labs/flux-2-klein-4b:
    aspect_ratio disable_safety_checker go_fast images output_format output_megapixels output_quality prompt
    seed
black-forest-labs/flux-2-klein-9b:
    aspect_ratio disable_safety_checker go_fast images megapixels output_format output_quality prompt seed
black-forest-labs/flux-2-max:
    aspect_ratio height input_images output_format output_quality prompt resolution safety_tolerance seed
    width
black-forest-labs/flux-2-pro:
    aspect_ratio height input_images output_format output_quality prompt resolution safety_tolerance seed
    width
black-forest-labs/flux-dev:
    aspect_ratio disable_safety_checker go_fast guidance image megapixels num_inference_steps num_outputs
    output_format output_quality prompt prompt_strength seed
black-forest-labs/flux-fill-pro:
    guidance image mask outpaint output_format prompt prompt_upsampling safety_tolerance seed steps
black-forest-labs/flux-kontext-max:
    aspect_ratio input_image output_format prompt prompt_upsampling safety_tolerance seed
black-forest-labs/flux-kontext-pro:
    aspect_ratio input_image output_format prompt prompt_upsampling safety_tolerance seed
black-forest-labs/flux-schnell:
    aspect_ratio disable_safety_checker go_fast megapixels num_inference_steps num_outputs output_format
    output_quality prompt seed
bytedance/seedream-4.5:
    aspect_ratio disable_safety_checker height image_input max_images prompt sequential_image_generation size
    width
bytedance/seedream-4:
    aspect_ratio enhance_prompt height image_input max_images prompt sequential_image_generation size width
bytedance/seedream-5-lite:
    aspect_ratio image_input max_images output_format prompt sequential_image_generation size
bytedance/seedream-5-pro:
    aspect_ratio image_input output_format prompt size
google/imagen-3:
    aspect_ratio output_format prompt safety_filter_level
google/imagen-4-fast:
    aspect_ratio output_format prompt safety_filter_level
google/imagen-4-ultra:
    aspect_ratio image_size output_format prompt safety_filter_level
google/imagen-4:
    aspect_ratio image_size output_format prompt safety_filter_level
google/nano-banana-2-lite:
    aspect_ratio image_input output_format prompt
google/nano-banana-2:
    aspect_ratio google_search image_input image_search output_format prompt resolution
google/nano-banana-pro:
    allow_fallback_model aspect_ratio image_input output_format prompt resolution safety_filter_level
google/nano-banana:
    aspect_ratio image_input output_format prompt
ideogram-ai/ideogram-character:
    aspect_ratio character_reference_image image magic_prompt_option mask prompt rendering_speed resolution
    seed style_type
ideogram-ai/ideogram-v2-turbo:
    aspect_ratio image magic_prompt_option mask negative_prompt prompt resolution seed style_type
ideogram-ai/ideogram-v2:
    aspect_ratio image magic_prompt_option mask negative_prompt prompt resolution seed style_type
ideogram-ai/ideogram-v2a:
    aspect_ratio magic_prompt_option prompt resolution seed style_type
ideogram-ai/ideogram-v3-balanced:
    aspect_ratio image magic_prompt_option mask prompt resolution seed style_preset style_reference_images
    style_type
ideogram-ai/ideogram-v3-quality:
    aspect_ratio image magic_prompt_option mask prompt resolution seed style_preset style_reference_images
    style_type
ideogram-ai/ideogram-v3-turbo:
    aspect_ratio image magic_prompt_option mask prompt resolution seed style_preset style_reference_images
    style_type
luma/photon-flash:
    aspect_ratio character_reference character_reference_url image_reference image_reference_url
    image_reference_weight prompt seed style_reference style_reference_url style_reference_weight
minimax/image-01:
    aspect_ratio number_of_images prompt prompt_optimizer subject_reference
openai/gpt-image-1.5:
    aspect_ratio background input_fidelity input_images moderation number_of_images openai_api_key
    output_compression output_format prompt quality user_id
openai/gpt-image-2:
    aspect_ratio background input_images moderation number_of_images openai_api_key output_compression
    output_format prompt quality user_id
qwen/qwen-image-2-pro:
    aspect_ratio enable_prompt_expansion image match_input_image negative_prompt prompt seed
qwen/qwen-image-edit-plus:
    aspect_ratio disable_safety_checker go_fast image output_format output_quality prompt seed
qwen/qwen-image-edit:
    disable_safety_checker go_fast image output_format output_quality prompt seed
qwen/qwen-image:
    aspect_ratio disable_safety_checker enhance_prompt extra_lora_scale extra_lora_weights go_fast guidance
    image image_size lora_scale lora_weights negative_prompt num_inference_steps output_format output_quality
    prompt replicate_weights seed strength
recraft-ai/recraft-v3-svg:
    aspect_ratio prompt size style
recraft-ai/recraft-v3:
    aspect_ratio prompt size style
recraft-ai/recraft-v4-pro:
    aspect_ratio prompt size
recraft-ai/recraft-v4:
    aspect_ratio prompt size
stability-ai/sdxl:
    apply_watermark disable_safety_checker guidance_scale height high_noise_frac image lora_scale mask
    negative_prompt num_inference_steps num_outputs prompt prompt_strength refine refine_steps
    replicate_weights scheduler seed width
stability-ai/stable-diffusion-3.5-large-turbo:
    aspect_ratio cfg image negative_prompt output_format prompt prompt_strength seed
stability-ai/stable-diffusion-3.5-large:
    aspect_ratio cfg image negative_prompt output_format prompt prompt_strength seed
stability-ai/stable-diffusion-3.5-medium:
    aspect_ratio cfg image negative_prompt output_format prompt prompt_strength seed
"""


def promised() -> dict[str, set[str]]:
    models: dict[str, set[str]] = {}
    name = ""
    for line in PROMISED.split("\n"):
        if line.startswith(" "):
            models[name] |= set(line.split())
        elif line:
            name = line.removesuffix(":")
            models[name] = set()
    return models


def test_there_are_forty_eight() -> None:
    assert len(promised()) == 48
    assert all("prompt" in names for names in promised().values())


@pytest.mark.parametrize(
    ("name", "parameters"), promised().items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_its_parameters_have_their_real_names(name: str, parameters: set[str]) -> None:
    model = CATALOG.find(name)
    assert model is not None
    assert {parameter.name for parameter in model.parameters or ()} == parameters


def test_every_place_of_an_input_picture_is_used_by_some_model() -> None:
    used = {model.image_input.key for model in CATALOG if model.image_input}
    assert {"image", "image_prompt", "input_image", "input_images", "images", "image_input"} <= used
    assert used <= {*EDIT_KEYS, *GUIDE_KEYS}
