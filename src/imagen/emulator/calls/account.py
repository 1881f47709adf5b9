"""The calls about the account itself: who it is, and the secret its webhooks are signed with."""

from __future__ import annotations

from aiohttp import web

from imagen.emulator.exchange import Exchange


async def get_account(exchange: Exchange) -> web.Response:
    """`GET /account`: the account of this token."""
    username = exchange.owner.username
    return exchange.json(
        {
            "type": "user",
            "username": username,
            "name": f"Emulated account {exchange.owner.key}",
            "github_url": f"https://github.com/{username}",
            "avatar_url": f"{exchange.world.api_url}/avatars/{username}.png",
        }
    )


async def get_webhook_secret(exchange: Exchange) -> web.Response:
    """`GET /webhooks/default/secret`."""
    return exchange.json({"key": exchange.owner.webhooks_secret})
