"""What `imagen config init` writes."""

from __future__ import annotations

SAMPLE = """\
# imagen.yaml: how imagen makes pictures.
# It is looked for as --config, $IMAGEN_CONFIG, ./imagen.yaml and in your own configuration folder.
# Every setting can also come from the environment, which wins: IMAGEN_TIMEOUT, IMAGEN_REPLICATE__API_BASE.
# `imagen config show` prints what is in force and where it came from.

# The backend that makes pictures when none is named with -b.
default_backend: flux-schnell-replicate

backends:
  # On your own GPU. This type of backend comes in a later release.
  # flux-schnell-local:
  #   type: diffusers
  #   model: black-forest-labs/FLUX.1-schnell

  # Fast drafts, a third of a cent each.
  flux-schnell-replicate:
    type: replicate
    model: black-forest-labs/flux-schnell
    default_steps: 4

  # Better pictures, slower.
  flux-dev-replicate:
    type: replicate
    model: black-forest-labs/flux-dev
    default_aspect_ratio: "16:9"

  # Practice pictures without Replicate, without a token and without cost: `emulator` is always there.

# The token is no setting. Put it into the environment variable REPLICATE_API_TOKEN, or keep it with
# `imagen auth login`.
# replicate:
#   api_base: https://api.replicate.com
#   api_token_env: REPLICATE_API_TOKEN

# Where pictures go. Without it: a folder of imagen's own.
# output: ~/Pictures/imagen

# What a model costs you, where the price that is known (`imagen models`) is wrong or missing.
# models:
#   flux-dev:
#     price: 0.025

# Write model, prompt and seed into the pictures.
# metadata: true

# Seconds after which a prediction is given up. Without it: by model.
# timeout: 120

# What your account at Replicate may do.
# limits:
#   concurrent: 60
#   creates_per_minute: 600

# Where `imagen serve` listens.
# server:
#   host: 127.0.0.1
#   port: 5003
"""
