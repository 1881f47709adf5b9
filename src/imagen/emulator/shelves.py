"""Collections of models and kinds of hardware, as the API lists them.

The first four kinds of hardware are recorded (2023-11), the others are named in the documentation of 2025 and 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HARDWARE: Mapping[str, str] = {
    "cpu": "CPU",
    "gpu-t4": "Nvidia T4 GPU",
    "gpu-a40-small": "Nvidia A40 GPU",
    "gpu-a40-large": "Nvidia A40 (Large) GPU",
    "gpu-l40s": "Nvidia L40S GPU",
    "gpu-a100-large": "Nvidia A100 (80GB) GPU",
    "gpu-h100": "Nvidia H100 GPU",
}
"""Name by SKU."""


@dataclass(frozen=True)
class Collection:
    """Models that do the same kind of thing."""

    slug: str
    name: str
    description: str
    models: tuple[str, ...]
    """`owner/name`; one that is not listed is left out."""

    def to_json(self) -> dict[str, str]:
        """The item of a list of collections."""
        return {"slug": self.slug, "name": self.name, "description": self.description}


COLLECTIONS = (
    Collection(
        "text-to-image",
        "Generate images",
        "Models that make pictures from words",
        (
            "black-forest-labs/flux-schnell",
            "black-forest-labs/flux-dev",
            "black-forest-labs/flux-1.1-pro",
            "black-forest-labs/flux-1.1-pro-ultra",
            "black-forest-labs/flux-2-pro",
            "google/imagen-4-ultra",
            "bytedance/seedream-4",
            "qwen/qwen-image",
            "stability-ai/sdxl",
        ),
    ),
    Collection(
        "image-editing",
        "Edit images",
        "Models that change pictures by instruction",
        (
            "black-forest-labs/flux-kontext-pro",
            "black-forest-labs/flux-kontext-max",
            "google/nano-banana",
            "bytedance/seedream-4",
        ),
    ),
    Collection(
        "super-resolution",
        "Upscale images",
        "Models that make pictures larger",
        ("nightmareai/real-esrgan",),
    ),
    Collection(
        "vectorize-images",
        "Make vector graphics",
        "Models that draw SVG",
        ("recraft-ai/recraft-v3-svg",),
    ),
    Collection(
        "language-models",
        "Large language models",
        "Models that write text",
        ("meta/meta-llama-3-8b-instruct",),
    ),
)
