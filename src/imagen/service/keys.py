"""The keys of the gateway: made, shown once, looked up for every request, revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from cachetools import LRUCache

from imagen.catalog import Catalog
from imagen.domain.identifiers import new_id, new_secret
from imagen.domain.key import (
    PREFIX,
    Key,
    check_key,
    hash_key,
    looks_like_key,
    scope_of,
)
from imagen.domain.secret import Secret
from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.ports import Budgets, Clock, Keys

REMEMBERED_SECONDS = 1.0
"""How long a key that was looked up is not looked up again: what a revocation by another process may take at most."""
_MOST_REMEMBERED = 4096

_Found = tuple["asyncio.Task[Key | None]", float]


class KeyBook:
    """Makes, lists, revokes and finds keys: the gateway's `KeyRing`. Safe to share between the tasks of one loop.

    Args:
        keys: where they are kept.
        budgets: may count a key alone.
        catalog: knows what models are called.
        clock: tells when something remembered is too old.
    """

    def __init__(self, *, keys: Keys, budgets: Budgets, catalog: Catalog, clock: Clock) -> None:
        self._keys = keys
        self._budgets = budgets
        self._catalog = catalog
        self._clock = clock
        # By digest, so that no plain key stays in memory.
        self._remembered: LRUCache[str, _Found] = LRUCache(_MOST_REMEMBERED)

    async def create(
        self,
        name: str,
        *,
        models: Iterable[str] = (),
        routes: Iterable[str] = (),
        concurrent: int | None = None,
        per_minute: int | None = None,
    ) -> tuple[Key, Secret]:
        """Make a key.

        Args:
            name: whom the ledger will name; no other key that is good has it.
            models: names or aliases of the models it is good for; none for all.
            routes: the paths it is good for, of `domain.key.ROUTES`; none for all.
            concurrent: predictions at the same time, 1 to 100000; None leaves it to the account.
            per_minute: predictions a minute, 1 to 1000000; None leaves it to the account.

        Returns:
            The key, and what its holder shows. Nobody can tell the latter a second time.

        Raises:
            InvalidInput: a field makes no sense.
            IdempotencyConflict: the name is taken.
            StoreError: it was not written down.
        """
        asked, allowed = frozenset(models), frozenset(routes)
        check_key(name=name, models=asked, routes=allowed, concurrent=concurrent, per_minute=per_minute)
        now = self._clock.now()
        key = Key(
            id=new_id("key", now),
            name=name,
            models=frozenset(self._scope(text) for text in asked),
            routes=allowed,
            concurrent=concurrent,
            per_minute=per_minute,
            created_at=now,
        )
        plain = Secret(new_secret(PREFIX))
        await self._keys.add(key, digest=hash_key(plain.reveal()))
        return key, plain

    async def list(self) -> Sequence[Key]:
        """The keys that are good, by name.

        Raises:
            StoreError: they could not be read.
        """
        return await self._keys.list()

    async def revoke(self, name: str) -> tuple[Key, Sequence[str]]:
        """Let a key be good for nothing: here at once, in other processes within a second.

        Returns:
            The key, and the names of the budgets that counted it alone: they count nobody now.

        Raises:
            NotFound: no key that is good is called so.
            StoreError: it was not written down, so the key is still good.
        """
        now = self._clock.now()
        balances = await self._budgets.list(now=now)
        revoked = await self._keys.revoke(name, at=now)
        self._remembered.clear()
        idle = {
            one.budget.name
            for one in balances
            if (one.budget.scope, one.budget.subject) == ("key", revoked.id)
        }
        return revoked, sorted(idle)

    async def find(self, shown: str) -> Key | None:
        """The key that was shown; None when there is none, or it was revoked.

        No comparison here takes part of a secret's time: what is compared is the hash of what was shown. Whoever
        learned the hash of a key from the time that an answer takes would still not know the key.

        Raises:
            StoreError: it could not be looked up.
        """
        if not looks_like_key(shown):
            return None
        digest = hash_key(shown)
        now = self._clock.monotonic()
        found = self._remembered.get(digest)
        if found is None or now >= found[1]:
            # The second counts from before the read, so that it never shows what is older. Those who ask meanwhile
            # wait for the same read.
            found = (asyncio.get_running_loop().create_task(self._look_up(digest)), now + REMEMBERED_SECONDS)
            self._remembered[digest] = found
        # Whoever leaves takes the read away from nobody else.
        return await asyncio.shield(found[0])

    async def _look_up(self, digest: str) -> Key | None:
        try:
            return await self._keys.find(digest)
        except BaseException:
            self._remembered.pop(digest, None)  # a fault is nothing to remember
            raise

    def _scope(self, text: str) -> str:
        """What a model that was named for a key is called in it."""
        try:
            ref = self._catalog.resolve(text)
        except InvalidRequest as error:
            raise InvalidInput(
                [Problem("models", error.detail)], subject="the key", hint=error.hint
            ) from None
        if ":" in text:
            # Leaving the version out silently would make the key good for more than was said.
            problem = Problem(
                "models", f"{text[:120]!r} must be without a version; a key is good for all of them"
            )
            raise InvalidInput([problem], subject="the key")
        known = self._catalog.find(text)
        return known.name if known is not None else scope_of(ref)
