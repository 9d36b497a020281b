"""What the providers' models count pictures and sounds as, by the model's name.

OpenAI: https://platform.openai.com/docs/guides/images-vision#calculating-costs. A picture with
tiles has at most 8 (2048 x 768 pixels, tiles of 512), so it costs the base and 8 tiles; a picture
with patches has a budget of patches and a factor. Where bills and documentation differ
(https://community.openai.com/t/1377015), the higher number stands here. OpenAI's audio has 10
tokens a second: https://platform.openai.com/docs/guides/realtime-costs.
Anthropic: https://platform.claude.com/docs/en/build-with-claude/vision.
Gemini: https://ai.google.dev/gemini-api/docs/media-resolution and /audio.
Mistral: https://docs.mistral.ai/capabilities/vision.
"""

from __future__ import annotations

import re
from functools import cache

from primarch_fleet.prompt_size import MediaTokens


def _tiles(base: int, tile: int) -> MediaTokens:
    return MediaTokens(image=base + 8 * tile, image_low=base, audio_second=10)


def _patches(budget: int, factor: float, original_budget: int = 0) -> MediaTokens:
    image = int(budget * factor) + 1
    original = int(original_budget * factor) + 1 if original_budget else None
    return MediaTokens(image=image, image_original=original, audio_second=10)


#: The first pattern that matches a part of a model's name decides.
MODELS: dict[str, MediaTokens] = {
    r"gpt-4o-mini": _tiles(2833, 5667),
    r"gpt-4\.1-mini": _patches(1536, 1.62),
    r"gpt-4\.1-nano": _patches(1536, 2.46),
    r"o4-mini|codex-mini": _patches(1536, 1.72),
    r"gpt-5-mini": _patches(1536, 1.62),
    r"gpt-5-nano": _patches(1536, 2.46),
    r"gpt-5\.\d": _patches(2500, 1.62, original_budget=10_000),
    r"gpt-5": _tiles(70, 140),
    r"gpt-4|chatgpt-4o|gpt-audio": _tiles(85, 170),
    r"(^|/)o[13]($|-)": _tiles(75, 150),
    r"computer-use": _tiles(65, 129),
    r"claude-(opus-4-[7-9]|[a-z]+-([5-9]|\d\d))": MediaTokens(image=4784),
    r"claude": MediaTokens(image=1600),
    r"gemini-[3-9]": MediaTokens(image=2240, audio_second=32),
    r"gemini": MediaTokens(image=4128, audio_second=32),
    r"pixtral|mistral|magistral|ministral": MediaTokens(image=4096, audio_second=12.5),
    r"voxtral": MediaTokens(audio_second=12.5),
    r"grok": MediaTokens(image=1792),
}


@cache
def media_tokens(model: str) -> MediaTokens:
    """Return what a model counts media as.

    Args:
        model: The provider's name of the model, or a name that contains it, such as
            `us.anthropic.claude-sonnet-4-5-v1:0`.

    Returns:
        The bounds; those of the largest public model for a name that is not known.
    """
    for pattern, tokens in MODELS.items():
        if re.search(pattern, model, re.IGNORECASE):
            return tokens
    return MediaTokens()
