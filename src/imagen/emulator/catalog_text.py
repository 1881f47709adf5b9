"""Models of the emulator that take no prompt, or give no picture: an upscaler, a language model, a greeting.

Facts as for `catalog.py`: parameters after the schemas that the API serves, descriptions ours.
"""

from __future__ import annotations

from imagen.emulator import parameters as p
from imagen.emulator.models import Model


def other_models() -> tuple[Model, ...]:
    """Every one of them, new objects each time."""
    return _real_esrgan(), _llama(), _hello_world()


def _real_esrgan() -> Model:
    return Model(
        name="nightmareai/real-esrgan",
        description="Emulated: Real-ESRGAN, makes a picture larger; it takes no prompt",
        tags=("super-resolution", "upscaler"),
        version="f121d640bd286e1fdc67f9799164c1d5be36ff74576ee11c803ae5b665dd46aa",
        output="uri",
        required=("image",),
        parameters={
            "image": p.picture("Input image"),
            "scale": p.number("Factor to scale image by", 4, 0, 10),
            "face_enhance": p.flag("Run GFPGAN face enhancement along with upscaling", default=False),
        },
    )


def _llama() -> Model:
    return Model(
        name="meta/meta-llama-3-8b-instruct",
        description="Emulated: Llama 3, 8 billion parameters, writes text piece by piece",
        tags=("text", "language-model"),
        output="strings",
        parameters={
            "prompt": p.prompt("Prompt"),
            "system_prompt": p.text("System prompt", "You are a helpful assistant"),
            "max_tokens": p.whole("Most tokens to generate", 512, 1),
            "min_tokens": p.whole("Fewest tokens to generate", 0, 0),
            "temperature": p.number("How much chance there is", 0.7, 0, 5),
            "top_p": p.number("Probability of the tokens that are considered", 0.95, 0, 1),
            "top_k": p.whole("Number of the tokens that are considered", 0, 0),
            "stop_sequences": p.text("Texts to stop at, with commas between them", ""),
            "presence_penalty": p.number("Presence penalty", 0),
            "frequency_penalty": p.number("Frequency penalty", 0),
            "seed": p.seed(),
        },
    )


def _hello_world() -> Model:
    return Model(
        name="replicate/hello-world",
        description="Emulated: says hello",
        tags=("text",),
        version="9dcd6d78e7c6560c340d916fe32e9f24aabfa331e5cce95fe31f77fb03121426",
        official=False,
        output="string",
        required=("text",),
        parameters={"text": p.text("Text to prefix with 'hello '")},
    )
