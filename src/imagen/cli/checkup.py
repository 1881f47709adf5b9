"""The check-up: everything that a picture needs, looked at one by one, and the one command that mends each fault."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from imagen.catalog import Catalog
from imagen.domain.prediction import EMULATOR
from imagen.domain.pricing import STALE_AFTER, is_stale
from imagen.errors import (
    BackendError,
    BackendUnauthenticated,
    ConfigError,
    ConnectFailed,
    ImagenError,
    SinkError,
    StoreError,
)
from imagen.ports import Backend, Backends, Clock, Owners, PredictionStore
from imagen.service.bookkeep import Bookkeeper
from imagen.service.budgets import BudgetBook
from imagen.service.mirror import Mirror
from imagen.settings import Settings

ANSWER_SECONDS = 15.0
LARGEST_CLOCK_DIFFERENCE = timedelta(seconds=30)
"""Further apart, and what was bought can no longer be told from what was bought before."""
LITTLE_ROOM, TOO_LITTLE_ROOM = 1 << 30, 100 << 20
_CORRECT_PRICES = (
    "Upgrade imagen, or write what you pay under `models:` in imagen.yaml, with the day in checked_on"
)
_LOGIN = "imagen auth login"
_MOST_NAMED = 5
_MEND_DAMAGED = "Restore imagen.db from a backup, or correct these rows of its table `predictions`."

Level = Literal["ok", "warn", "fault"]
Blame = Literal["config", "machine", "service"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at one look.

    Attributes:
        what: what was looked at.
        mend: the one command, or the one thing to do, that mends it; None when nothing needs mending.
        blame: of a fault: the configuration, this machine, or the service with the token for it.
    """

    level: Level
    what: str
    detail: str
    mend: str | None = None
    blame: Blame | None = None


class DefaultBackends(Backends, Protocol):
    """The backends, and which of them makes pictures when none is named."""

    @property
    def default(self) -> str:
        """Its name.

        Raises:
            ConfigError: the credentials cannot be read.
        """


class Checkup:
    """Looks at one installation. It changes nothing but for making the data folder and its database."""

    def __init__(
        self,
        settings: Settings,
        *,
        backends: DefaultBackends,
        catalog: Catalog,
        store: PredictionStore,
        bookkeeper: Bookkeeper,
        budgets: BudgetBook,
        mirror: Mirror,
        owners: Owners,
        clock: Clock,
    ) -> None:
        self._budgets = budgets
        self._mirror = mirror
        self._settings = settings
        self._backends = backends
        self._catalog = catalog
        self._store = store
        self._bookkeeper = bookkeeper
        self._owners = owners
        self._clock = clock

    async def run(self, *, offline: bool = False) -> list[Finding]:
        """Everything, in the order in which a picture would meet it.

        Args:
            offline: ask no service.
        """
        findings = [_ok("config", _shown_config(self._settings))]
        findings.append(
            await asyncio.to_thread(_check_folder, "data folder", self._settings.data_dir, "IMAGEN_DATA_DIR")
        )
        if folder := _picture_folder(self._settings.output):
            findings.append(await asyncio.to_thread(_check_folder, "picture folder", folder, "IMAGEN_OUTPUT"))
        findings += await self._check_database()
        findings += await self._check_budgets()
        findings.append(await self._check_sink(offline=offline))
        findings += await self._check_backends(offline=offline)
        findings.append(self._check_prices())
        return findings

    # --- what we keep ------------------------------------------------------------------------------------

    async def _check_database(self) -> list[Finding]:
        try:
            unfinished = await self._store.unfinished()
            damaged = await self._store.unreadable()
            waiting = await self._bookkeeper.waiting()
        except StoreError as error:
            mend = _told(error) or "Set IMAGEN_DATA_DIR to a folder of your own."
            return [_fault("database", error.detail, mend=mend, blame="machine")]
        left = [one for one in unfinished if one.owner is None or not self._owners.alive(one.owner)]
        followed = len(unfinished) - len(left)
        running = f"none left behind, {followed} under way" if followed else "none"
        return [
            _ok("database", "opens, and its schema is the one of this release"),
            *([_warn("damaged rows", _shown_damaged(damaged), mend=_MEND_DAMAGED)] if damaged else []),
            _warn(
                "unfinished",
                _counted(len(left), "prediction has", "predictions have") + " something left to do",
                mend=_mend_unfinished([one.id for one in left]),
            )
            if left
            else _ok("unfinished", running),
            _warn(
                "ledger",
                _counted(waiting, "entry waits", "entries wait") + " to be written",
                mend="imagen usage",
            )
            if waiting
            else _ok("ledger", "nothing waits to be written"),
        ]

    async def _check_budgets(self) -> list[Finding]:
        """Budgets that hold nobody, though somebody meant to be safe by them."""
        try:
            idle = [one for one in await self._budgets.list() if one.idle]
        except StoreError:
            return []  # told by the database's own finding
        return [
            _warn(
                "budgets",
                f"{one.budget.name} counts nobody: it is of the key {one.whom}",
                mend=f"imagen budget remove {one.budget.name}, or `imagen budget set` it again with --key of a key that is good",
            )
            for one in idle
        ]

    async def _check_sink(self, *, offline: bool) -> Finding:
        """The other place of the ledger. No picture waits for it, so nothing of it is a fault."""
        sink, supabase = self._mirror.sink, self._settings.supabase
        if sink is None:
            if (supabase.url is None) != (supabase.service_role_key is None):
                lacking = "url" if supabase.url is None else "service_role_key"
                return _warn(
                    "sink",
                    f"supabase.{lacking} is not set, so Supabase is not used",
                    mend=f"export SUPABASE_{lacking.upper()}=...",
                )
            return _ok("sink", "the ledger is in imagen's own database alone")
        kind = sink.name.partition(":")[0]
        if not offline:
            try:
                await sink.read(limit=1)
            except SinkError as error:
                return _warn("sink", error.detail, mend=_told(error) or "imagen sink status")
        try:
            waiting = await self._mirror.waiting()
        except StoreError:
            return _ok("sink", kind)  # told by the database's own finding
        if waiting:
            return _warn(
                "sink", f"{kind}: {_counted(waiting, 'entry waits', 'entries wait')}", mend="imagen sink sync"
            )
        return _ok("sink", f"{kind} has every entry of the ledger")

    # --- who makes pictures ------------------------------------------------------------------------------

    async def _check_backends(self, *, offline: bool) -> list[Finding]:
        try:
            name = self._backends.default
        except ConfigError as error:
            return [_fault("credentials", error.detail, mend=_told(error) or _LOGIN, blame="config")]
        others = [
            finding
            for other in self._backends.names()
            if other != name
            for finding in self._check_model(other)
        ]
        try:
            backend = self._backends.get(name)
        except ConfigError as error:
            return [_fault("backend", error.detail, mend=_told(error) or _LOGIN, blame="config"), *others]
        if faults := self._check_model(name):
            return [*faults, *others]
        return [*await self._check_default(backend, offline=offline), *others]

    async def _check_default(self, backend: Backend, *, offline: bool) -> list[Finding]:
        about = f"{backend.name} ({backend.model})"
        if backend.practice:
            named = (
                self._settings.default_backend is not None
                or self._settings.sources[f"backends.{backend.name}.type"] != "default"
            )
            findings = [
                _ok("backend", f"{about}, as configured: practice, no pictures of a model")
                if named
                else _warn("backend", f"{about}: no token, so pictures are practice", mend=_LOGIN)
            ]
        elif (readiness := backend.readiness()) != "ok":
            return [
                _ok("backend", about),
                _fault("token", f"{backend.name}: {readiness}", mend=_LOGIN, blame="service"),
            ]
        else:
            findings = [_ok("backend", about), _ok("token", "there is one")]
        return findings if offline else [*findings, *await self._ask(backend)]

    async def _ask(self, backend: Backend) -> list[Finding]:
        try:
            account = await ask_account(backend, seconds=ANSWER_SECONDS)
        except BackendUnauthenticated as error:
            return [_fault("token", error.detail, mend=_LOGIN, blame="service")]
        except (BackendError, OSError) as error:
            detail = error.detail if isinstance(error, BackendError) else str(error)
            return [_fault("service", detail, mend=self._mend_reach(backend), blame="service")]
        findings = [
            _ok("service", "the emulator starts" if backend.practice else f"answers {shown_account(account)}")
        ]
        ahead = account.get("clock_ahead_seconds")
        if isinstance(ahead, int | float) and not backend.practice:
            findings.append(check_clock(timedelta(seconds=ahead)))
        return findings

    def _mend_reach(self, backend: Backend) -> str:
        configured = self._settings.backends[backend.name].api_base
        return f"curl -sS -o /dev/null -w '%{{http_code}}\\n' {configured or self._settings.replicate.api_base}/v1/account"

    def _check_model(self, name: str) -> list[Finding]:
        """What is wrong with a configured backend without asking it anything."""
        configured = self._settings.backends[name]
        default = name == self._backends.default
        try:
            if configured.type in {"replicate", EMULATOR}:
                self._catalog.resolve(configured.model)
            self._backends.get(name)
        except ImagenError as error:
            source = self._settings.sources.get(f"backends.{name}.model", "imagen.yaml")
            mend = f"Change it in {source}: {_told(error) or 'see `imagen backends`'}"
            what, detail = f"backend {name}", error.detail
            return [
                _fault(what, detail, mend=mend, blame="config") if default else _warn(what, detail, mend=mend)
            ]
        return []

    # --- what we know ------------------------------------------------------------------------------------

    def _check_prices(self) -> Finding:
        today = self._clock.now().date()
        used = {
            model.name: model
            for backend in self._settings.backends.values()
            if backend.type == "replicate" and (model := self._catalog.find(backend.model)) is not None
        }
        stale = sorted(name for name, model in used.items() if model.price and is_stale(model.price, today))
        unknown = sorted(name for name, model in used.items() if model.price is None)
        days = STALE_AFTER.days
        told = [
            f"of {len(names)} {'model' if len(names) == 1 else 'models'} {what}: {_named(names)}"
            for names, what in ((stale, f"last checked more than {days} days ago"), (unknown, "not known"))
            if names
        ]
        if told:
            return _warn("prices", "; ".join(told), mend=_CORRECT_PRICES)
        others = [model.price for model in self._catalog]
        return _ok(
            "prices",
            f"of all {len(used)} configured models known and checked lately; of the {len(others)} in the catalog "
            f"{sum(price is not None and is_stale(price, today) for price in others)} are stale and "
            f"{others.count(None)} not known",
        )


async def ask_account(backend: Backend, *, seconds: float) -> Mapping[str, Any]:
    """What the service tells about the account.

    Raises:
        BackendError: it said no, broke, or gave no answer in time.
    """
    try:
        async with asyncio.timeout(seconds):
            return await backend.probe()
    except TimeoutError:
        raise ConnectFailed(f"no answer came within {seconds:g} s", backend=backend.name) from None


def shown_account(account: Mapping[str, Any]) -> str:
    """Whose it is, in a few words."""
    username = str(account.get("username") or account.get("name") or "an account without a name")
    return f"{username} (organization)" if account.get("type") == "organization" else username


def check_clock(ahead: timedelta) -> Finding:
    """Whether this machine's clock agrees with the service's; `ahead` is by how much ours is."""
    seconds = abs(ahead.total_seconds())
    if abs(ahead) <= LARGEST_CLOCK_DIFFERENCE:
        return _ok("clock", f"differs by {seconds:.0f} s from the service's")
    mend = "sudo sntp -sS time.apple.com" if sys.platform == "darwin" else "sudo timedatectl set-ntp true"
    which = "ahead of" if ahead > timedelta(0) else "behind"
    return _fault("clock", f"is {seconds:.0f} s {which} the service's", mend=mend, blame="machine")


def _check_folder(what: str, folder: Path, variable: str) -> Finding:
    """Whether a file can be written there, and how much room is left."""
    elsewhere = f"export {variable}=<a folder that can be written>"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"imagen")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return _fault(
            what, f"{folder} cannot be written: {error.strerror or error}", mend=elsewhere, blame="machine"
        )
    detail = f"{folder}, {free / (1 << 30):,.1f} GiB free"
    if free < TOO_LITTLE_ROOM:
        return _fault(what, f"{detail}: too little", mend=elsewhere, blame="machine")
    return _warn(what, f"{detail}: little", mend=elsewhere) if free < LITTLE_ROOM else _ok(what, detail)


def _picture_folder(output: str | None) -> Path | None:
    """The folder of the pictures where the settings name one plainly, and no template of one."""
    if not output or "{" in output:
        return None
    path = Path(output)
    return path if output.endswith(os.sep) or path.is_dir() else None


def _mend_unfinished(ids: Sequence[str]) -> str:
    return f"imagen predictions adopt {ids[0]}" if len(ids) == 1 else "imagen predictions list --unfinished"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (" and others" if len(names) > _MOST_NAMED else "")


def _shown_damaged(ids: Sequence[str]) -> str:
    return (
        _counted(len(ids), "prediction", "predictions") + f" cannot be read and are left out: {_named(ids)}"
    )


def _shown_config(settings: Settings) -> str:
    file = settings.config_file
    return f"{file}" if file else "no file: the built-in settings and the environment"


def _told(error: ImagenError) -> str | None:
    """The hint, as a bare command where it is one."""
    return error.hint.removeprefix("Run: ") if error.hint else None


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _ok(what: str, detail: str) -> Finding:
    return Finding(level="ok", what=what, detail=detail)


def _warn(what: str, detail: str, *, mend: str) -> Finding:
    return Finding(level="warn", what=what, detail=detail, mend=mend)


def _fault(what: str, detail: str, *, mend: str, blame: Blame) -> Finding:
    return Finding(level="fault", what=what, detail=detail, mend=mend, blame=blame)
