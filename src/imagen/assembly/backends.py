"""The backends of one process, as the settings have them, each built when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from imagen.backends.registry import BackendContext, build_backend
from imagen.catalog import Catalog
from imagen.credentials import CredentialStore
from imagen.domain.prediction import EMULATOR
from imagen.domain.secret import Secret
from imagen.errors import NotFound
from imagen.ports import Backend, CallBudget, Clock, Observer
from imagen.remote.generate import Habits
from imagen.settings import (
    BackendSettings,
    Settings,
    choose_backend,
)
from imagen.transport.client import HttpClient
from imagen.transport.message import is_loopback

GATEWAY = "gateway"
"""The backend of the account that `replicate` names at the top of the settings: any model, as asked for."""


class Tokens:
    """Where tokens come from: the environment first, then what `imagen auth login` stored."""

    def __init__(self, settings: Settings, credentials: CredentialStore) -> None:
        self._settings = settings
        self._credentials = credentials

    def find(self, name: str) -> Secret | None:
        """The token called `name`, None when there is none.

        Raises:
            ConfigError: it exists but cannot be read.
        """
        return self._settings.environ_token(name) or self._credentials.load(name)

    def is_set(self, name: str) -> bool:
        """Whether there is one, without opening the keyring."""
        return bool(self._settings.environ_token(name)) or self._credentials.where(name) is not None


class ConfiguredBackends:
    """`ports.Backends` by the settings."""

    def __init__(
        self,
        settings: Settings,
        *,
        tokens: Tokens,
        client: HttpClient,
        catalog: Catalog,
        clock: Clock,
        observer: Observer,
        calls: CallBudget,
    ) -> None:
        self._settings = settings
        self._calls = calls
        self._tokens = tokens
        self._client = client
        self._catalog = catalog
        self._clock = clock
        self._observer = observer
        self._built: dict[str, Backend] = {}

    @property
    def default(self) -> str:
        """The one that makes pictures when none is named."""
        token_present = self._tokens.is_set(self._settings.replicate.api_token_env)
        return choose_backend(self._settings, token_present=token_present)

    def names(self) -> Sequence[str]:
        """See the port."""
        return tuple(self._settings.backends)

    def own(self) -> Backend:
        """That of the gateway's own account; practice when there is no token and only this machine is served."""
        practises = not self._tokens.is_set(self._settings.replicate.api_token_env)
        if practises and is_loopback(self._settings.server.host):
            return self.get(EMULATOR)
        return self.get(GATEWAY)

    def of(self, token: Secret) -> Backend:
        """That of a caller's own token, made for one request and kept nowhere."""
        return build_backend(self._gateway_context(token))

    def tokenless(self) -> Backend:
        """One that fetches what others have made, and that has no token to show."""
        return build_backend(self._gateway_context(None))

    def keeps_pictures(self, backend: Backend) -> bool:
        """Whether the settings keep what it makes for whoever asks for the same again.

        That of a caller's own token keeps nothing unless its caller asks for that.
        """
        configured = self._settings.backends.get(backend.name)
        if configured is not None:
            return self._settings.cache.keep or configured.store
        return self._settings.cache.keep and backend.account == self.get(GATEWAY).account

    def habits(self, name: str | None) -> Habits:
        """What a configured backend says where the caller says nothing.

        Args:
            name: of the backend; None for the one that makes pictures where there is a token.

        Raises:
            NotFound: none is called so.
        """
        found = self._configured(name or choose_backend(self._settings, token_present=True))
        return Habits(
            model=found.model,
            steps=found.default_steps,
            aspect_ratio=found.default_aspect_ratio,
            deadline_seconds=found.timeout.total_seconds() if found.timeout else None,
        )

    def get(self, name: str | None) -> Backend:
        """See the port."""
        name = name or self.default
        if name == GATEWAY and name not in self._built:
            token = self._tokens.find(self._settings.replicate.api_token_env)
            self._built[name] = build_backend(self._gateway_context(token))
        if name not in self._built:
            found = self._configured(name)
            token_env = found.api_token_env or self._settings.replicate.api_token_env
            token = None if found.type == EMULATOR else self._tokens.find(token_env)
            self._built[name] = build_backend(self._context(found, token))
        return self._built[name]

    def _configured(self, name: str) -> BackendSettings:
        found = self._settings.backends.get(name)
        if found is None:
            raise NotFound(
                f"no backend is called {name[:80]!r}; configured are {', '.join(self.names())}",
                hint="`imagen backends` lists them.",
            )
        return found

    def _gateway_context(self, token: Secret | None) -> BackendContext:
        """The account that the settings name at the top level, or another one of the same service."""
        settings = self._settings
        return msgspec.structs.replace(
            self._context(
                BackendSettings(
                    name=GATEWAY, type="replicate", default_aspect_ratio="1:1", store=False, extra={}
                ),
                token,
            ),
            deadline_seconds=settings.timeout.total_seconds() if settings.timeout else None,
        )

    def _context(self, backend: BackendSettings, token: Secret | None) -> BackendContext:
        settings = self._settings
        return BackendContext(
            name=backend.name,
            type=backend.type,
            model=backend.model,
            api_base=backend.api_base or settings.replicate.api_base,
            token=token,
            token_env=backend.api_token_env or settings.replicate.api_token_env,
            default_steps=backend.default_steps,
            default_aspect_ratio=backend.default_aspect_ratio,
            deadline_seconds=backend.timeout.total_seconds() if backend.timeout else None,
            read_seconds=settings.replicate.read_timeout.total_seconds(),
            extra=backend.extra,
            cache_folder=settings.data_dir / "cache",
            client=self._client,
            catalog=self._catalog,
            clock=self._clock,
            observer=self._observer,
            calls=self._calls,
        )

    async def aclose(self) -> None:
        """Close those that were built."""
        for backend in self._built.values():
            await backend.aclose()
