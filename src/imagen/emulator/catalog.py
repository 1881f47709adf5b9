"""The models this emulator answers for: parameters, ranges, defaults, enums and shape of output.

Facts gathered in 2025 and 2026 from the schemas the API itself serves (`latest_version.openapi_schema`), as
kept in public dumps; descriptions are ours. Where no dump showed the shape of the output it is marked
"output assumed". Schemas change without notice, so these are a likeness, not a contract.
"""

from __future__ import annotations

from imagen.emulator import parameters as p
from imagen.emulator.catalog_text import other_models
from imagen.emulator.models import Model

DEPLOYMENTS = {"emulated/flux-deployment": "black-forest-labs/flux-dev"}


def known_models() -> tuple[Model, ...]:
    """Every model, new objects each time."""
    return (
        _flux_schnell(),
        _flux_dev(),
        _flux_pro_1_1(),
        _flux_ultra(),
        _flux_kontext("pro"),
        _flux_kontext("max"),
        _flux_2_pro(),
        _qwen_image(),
        _imagen_4_ultra(),
        _nano_banana(),
        _seedream_4(),
        _sdxl(),
        _recraft_svg(),
        *other_models(),
    )


def _flux_schnell() -> Model:
    return Model(
        name="black-forest-labs/flux-schnell",
        description="Emulated: the fastest of the FLUX.1 models, four steps",
        version="c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e",
        parameters={
            "prompt": p.prompt(),
            "aspect_ratio": p.choice("Aspect ratio for the generated image", "1:1", *p.RATIOS_OF_FLUX),
            "num_outputs": p.whole("Number of outputs to generate", 1, 1, 4),
            "num_inference_steps": p.whole("Number of denoising steps; 4 is recommended", 4, 1, 4),
            "seed": p.seed(),
            "output_format": p.output_format("webp", "webp", "jpg", "png"),
            "output_quality": p.output_quality(),
            "disable_safety_checker": p.safety_checker(),
            "go_fast": p.flag("Run the model optimized for speed", default=True),
            "megapixels": p.choice("Approximate number of megapixels", "1", "1", "0.25"),
        },
    )


def _flux_dev() -> Model:
    return Model(
        name="black-forest-labs/flux-dev",
        description="Emulated: FLUX.1 [dev], 12 billion parameters, text or picture to picture",
        version="6e4a938f85952bdabcc15aa329178c4d681c52bf25a0342403287dc26944661d",
        parameters={
            "prompt": p.prompt(),
            "aspect_ratio": p.choice("Aspect ratio for the generated image", "1:1", *p.RATIOS_OF_FLUX),
            "image": p.picture("Input image for image to image mode", nullable=True),
            "prompt_strength": p.number("Prompt strength in image to image mode", 0.8, 0, 1),
            "num_outputs": p.whole("Number of outputs to generate", 1, 1, 4),
            "num_inference_steps": p.whole("Number of denoising steps; 28 to 50 is recommended", 28, 1, 50),
            "guidance": p.number("Guidance for generated image", 3, 0, 10),
            "seed": p.seed(nullable=True),
            "output_format": p.output_format("webp", "webp", "jpg", "png"),
            "output_quality": p.output_quality(),
            "disable_safety_checker": p.safety_checker(),
            "go_fast": p.flag("Run the model optimized for speed", default=True),
            "megapixels": p.choice("Approximate number of megapixels", "1", "1", "0.25"),
        },
    )


def _flux_pro_1_1() -> Model:
    ratios = ("custom", "1:1", "16:9", "3:2", "2:3", "4:5", "5:4", "9:16", "3:4", "4:3")
    return Model(
        name="black-forest-labs/flux-1.1-pro",
        description="Emulated: FLUX 1.1 [pro]",
        version="badb73d13c01c716f59b538fae81023a6c0a4f3aaedd00d477602c204c9e1232",
        output="uri",
        parameters={
            "prompt": p.prompt("Text prompt for image generation"),
            "image_prompt": p.picture("Image that guides the composition, together with the prompt"),
            "aspect_ratio": p.choice("Aspect ratio for the generated image", "1:1", *ratios),
            "width": p.whole("Width; only with aspect_ratio=custom", None, 256, 1440),
            "height": p.whole("Height; only with aspect_ratio=custom", None, 256, 1440),
            "safety_tolerance": p.whole("1 is most strict, 6 most permissive", 2, 1, 6),
            "seed": p.seed(),
            "prompt_upsampling": p.flag("Rewrite the prompt for more creative results", default=False),
            "output_format": p.output_format("webp", "webp", "jpg", "png"),
            "output_quality": p.output_quality(),
        },
    )


def _flux_ultra() -> Model:
    ratios = ("21:9", "16:9", "3:2", "4:3", "5:4", "1:1", "4:5", "3:4", "2:3", "9:16", "9:21")
    return Model(
        name="black-forest-labs/flux-1.1-pro-ultra",
        description="Emulated: FLUX 1.1 [pro] ultra, up to 4 megapixels, with a raw mode",
        version="5ea10f739af9f6d4002fae9aee4c15be14c3c8d7f8b309e634bf68df09159863",
        output="uri",
        megapixels=4.0,
        parameters={
            "prompt": p.prompt("Text prompt for image generation"),
            "image_prompt": p.picture("Image that guides the composition", nullable=True),
            "image_prompt_strength": p.number("Blend between prompt and image prompt", 0.1, 0, 1),
            "aspect_ratio": p.choice("Aspect ratio for the generated image", "1:1", *ratios),
            "safety_tolerance": p.whole("1 is most strict, 6 most permissive", 2, 1, 6),
            "seed": p.seed(nullable=True),
            "raw": p.flag("Less processed, more natural-looking images", default=False),
            "output_format": p.output_format("jpg", "jpg", "png"),
        },
    )


def _flux_kontext(size: str) -> Model:
    ratios = ("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "4:5", "5:4", "21:9", "9:21", "2:1", "1:2")
    versions = {"pro": "897a70f5a7dbd8a0611413b3b98cf417b45f266bd595c571a22947619d9ae462"}
    return Model(  # max: output assumed, as kontext-pro
        name=f"black-forest-labs/flux-kontext-{size}",
        description=f"Emulated: FLUX.1 Kontext [{size}], editing by instruction",
        version=versions.get(size, ""),
        output="uri",
        parameters={
            "prompt": p.prompt("What to generate, or how to edit the given image"),
            "input_image": p.picture("Reference image: jpeg, png, gif or webp", nullable=True),
            "aspect_ratio": p.choice("Aspect ratio", "match_input_image", "match_input_image", *ratios),
            "seed": p.seed(nullable=True),
            "output_format": p.output_format("png", "jpg", "png"),
            "safety_tolerance": p.whole("0 is most strict, 6 most permissive", 2, 0, 6),
            "prompt_upsampling": p.flag("Automatic prompt improvement", default=False),
        },
    )


def _flux_2_pro() -> Model:
    ratios = ("custom", "1:1", "16:9", "3:2", "2:3", "4:5", "5:4", "9:16", "3:4", "4:3")
    areas = ("match_input_image", "0.5 MP", "1 MP", "2 MP", "4 MP")
    return Model(
        name="black-forest-labs/flux-2-pro",
        description="Emulated: FLUX.2 [pro], up to eight reference images",
        version="ccb5e33141097816e6fab8c895e702fe4c619e4e07500885b71214e9f6382a5c",
        output="uri",
        parameters={
            "prompt": p.prompt("Text prompt for image generation"),
            "input_images": p.pictures("Up to 8 input images: jpeg, png, gif or webp"),
            "aspect_ratio": p.choice("Aspect ratio", "1:1", "match_input_image", *ratios),
            "resolution": p.choice("Area in megapixels; not used with aspect_ratio=custom", "1 MP", *areas),
            "width": p.whole("Width; only with aspect_ratio=custom", None, 256, 2048, nullable=True),
            "height": p.whole("Height; only with aspect_ratio=custom", None, 256, 2048, nullable=True),
            "safety_tolerance": p.whole("1 is most strict, 5 most permissive", 2, 1, 5),
            "seed": p.seed(),
            "output_format": p.output_format("webp", "webp", "jpg", "png"),
            "output_quality": p.output_quality(),
        },
    )


def _qwen_image() -> Model:
    sizes = ("optimize_for_quality", "optimize_for_speed")
    return Model(  # output assumed: a list
        name="qwen/qwen-image",
        description="Emulated: Qwen-Image, good at writing inside pictures",
        version="0bba9e70f78437359725e0989ead45ca8b09e6c12a070dfe9a09e6856b43a44d",
        parameters={
            "prompt": p.prompt(),
            "enhance_prompt": p.flag("Enhance the prompt", default=False),
            "lora_weights": p.text("LoRA weights by URL", nullable=True),
            "replicate_weights": p.text("LoRA weights of a Replicate training", nullable=True),
            "lora_scale": p.number("How strongly the main LoRA is applied", 1),
            "extra_lora_weights": p.listed("More LoRA weights by URL", "string"),
            "extra_lora_scale": p.listed("Scales of the additional LoRAs", "number"),
            "image": p.picture("Input image for image to image mode"),
            "strength": p.number("Strength in image to image mode", 0.9, 0, 1),
            "negative_prompt": p.text("Negative prompt", " "),
            "aspect_ratio": p.choice(
                "Aspect ratio", "16:9", "1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3"
            ),
            "image_size": p.choice("Size of the generated image", "optimize_for_quality", *sizes),
            "go_fast": p.flag("Run with additional optimizations", default=True),
            "num_inference_steps": p.whole("Number of denoising steps", 30, 1, 50),
            "guidance": p.number("Guidance for generated image", 3, 0, 10),
            "seed": p.seed(nullable=True),
            "output_format": p.output_format("webp", "webp", "jpg", "png"),
            "output_quality": p.output_quality(),
            "disable_safety_checker": p.safety_checker(),
        },
    )


def _imagen_4_ultra() -> Model:
    filters = ("block_low_and_above", "block_medium_and_above", "block_only_high")
    return Model(  # output assumed: one file; values of image_size beyond its default "1K" assumed
        name="google/imagen-4-ultra",
        description="Emulated: Imagen 4 Ultra; it has no seed",
        output="uri",
        parameters={
            "prompt": p.prompt("Text prompt for image generation"),
            "aspect_ratio": p.choice("Aspect ratio", "1:1", "1:1", "9:16", "16:9", "3:4", "4:3"),
            "image_size": p.choice("Resolution of the generated image", "1K", "1K", "2K"),
            "safety_filter_level": p.choice("How much is blocked", "block_only_high", *filters),
            "output_format": p.output_format("jpg", "jpg", "png"),
        },
    )


def _nano_banana() -> Model:
    ratios = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
    return Model(
        name="google/nano-banana",
        description="Emulated: Nano Banana, pictures from words and pictures; it has no seed",
        output="uri",
        parameters={
            "prompt": p.prompt("What the image should show"),
            "image_input": p.pictures("Input images to transform or use as reference"),
            "aspect_ratio": p.choice("Aspect ratio", "match_input_image", "match_input_image", *ratios),
            "output_format": p.output_format("jpg", "jpg", "png"),
        },
    )


def _seedream_4() -> Model:
    ratios = ("match_input_image", "1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "21:9")
    return Model(  # output assumed: a list (max_images goes to 15)
        name="bytedance/seedream-4",
        description="Emulated: Seedream 4, up to 4K, several pictures of one idea; it has no seed",
        version="cf7d431991436f19d1c8dad83fe463c729c816d7a21056c5105e75c84a0aa7e9",
        output_format="jpg",
        parameters={
            "prompt": p.prompt("Text prompt for image generation"),
            "image_input": p.pictures("1 to 10 input images"),
            "size": p.choice("1K, 2K, 4K, or custom with width and height", "2K", "1K", "2K", "4K", "custom"),
            "aspect_ratio": p.choice("Aspect ratio; not with size=custom", "match_input_image", *ratios),
            "width": p.whole("Width; only with size=custom", 2048, 1024, 4096),
            "height": p.whole("Height; only with size=custom", 2048, 1024, 4096),
            "sequential_image_generation": p.choice("Several pictures", "disabled", "disabled", "auto"),
            "max_images": p.whole("Most pictures with sequential_image_generation=auto", 1, 1, 15),
            "enhance_prompt": p.flag("Enhance the prompt; takes longer", default=True),
        },
    )


def _sdxl() -> Model:
    schedulers = (
        "DDIM",
        "DPMSolverMultistep",
        "HeunDiscrete",
        "KarrasDPM",
        "K_EULER_ANCESTRAL",
        "K_EULER",
        "PNDM",
    )
    refiners = ("no_refiner", "expert_ensemble_refiner", "base_image_refiner")
    return Model(
        name="stability-ai/sdxl",
        description="Emulated: Stable Diffusion XL, a community model: runs by version only",
        version="7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc",
        official=False,
        required=(),
        parameters={
            "prompt": p.text("Input prompt", "An astronaut riding a rainbow unicorn"),
            "negative_prompt": p.text("Negative prompt", ""),
            "image": p.picture("Input image for img2img or inpaint mode"),
            "mask": p.picture("Mask for inpaint mode: white areas are painted"),
            "width": p.whole("Width of output image", 1024),
            "height": p.whole("Height of output image", 1024),
            "num_outputs": p.whole("Number of images to output", 1, 1, 4),
            "scheduler": p.choice("Scheduler", "K_EULER", *schedulers),
            "num_inference_steps": p.whole("Number of denoising steps", 50, 1, 500),
            "guidance_scale": p.number("Scale for classifier-free guidance", 7.5, 1, 50),
            "prompt_strength": p.number("Prompt strength in img2img and inpaint mode", 0.8, 0, 1),
            "seed": p.seed(),
            "refine": p.choice("Which refiner is used", "no_refiner", *refiners),
            "high_noise_frac": p.number("Fraction of noise, expert_ensemble_refiner", 0.8, 0, 1),
            "refine_steps": p.whole("Steps to refine, base_image_refiner"),
            "apply_watermark": p.flag("Apply an invisible watermark", default=True),
            "lora_scale": p.number("LoRA additive scale, trained models only", 0.6, 0, 1),
            "replicate_weights": p.text("LoRA weights of a Replicate training"),
            "disable_safety_checker": p.safety_checker(),
        },
    )


def _recraft_svg() -> Model:
    squarish = ("1024x1024", "1365x1024", "1024x1365", "1536x1024", "1024x1536", "1820x1024", "1024x1820")
    longish = (
        "1024x2048",
        "2048x1024",
        "1434x1024",
        "1024x1434",
        "1024x1280",
        "1280x1024",
        "1024x1707",
        "1707x1024",
    )
    ratios = (
        "1:1",
        "4:3",
        "3:4",
        "3:2",
        "2:3",
        "16:9",
        "9:16",
        "1:2",
        "2:1",
        "7:5",
        "5:7",
        "4:5",
        "5:4",
        "3:5",
        "5:3",
    )
    return Model(
        name="recraft-ai/recraft-v3-svg",
        description="Emulated: Recraft V3 SVG, vector graphics; it has no seed",
        version="df041379628fa1d16bd406409930775b0904dc2bc0f3e3f38ecd2a4389e9329d",
        output="uri",
        output_format="svg",
        parameters={
            "prompt": p.prompt("Text prompt for image generation"),
            "aspect_ratio": p.choice("Aspect ratio", "Not set", "Not set", *ratios),
            "size": p.choice("Width and height; not with aspect_ratio", "1024x1024", *squarish, *longish),
            "style": p.choice("Style", "any", "any", "engraving", "line_art", "line_circuit", "linocut"),
        },
    )
