"""Everything that one process needs, put together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from imagen import __version__
from imagen.assembly.backends import ConfiguredBackends, Tokens
from imagen.assembly.elsewhere import Remote
from imagen.catalog import Catalog
from imagen.credentials import CredentialStore
from imagen.domain.batch import Batch
from imagen.domain.caller import Caller
from imagen.domain.events import Event
from imagen.domain.limits import LINED_UP, AccountRules
from imagen.domain.prediction import EMULATOR, prompt_hasher
from imagen.errors import ConfigError, ImagenError
from imagen.identity import resolve_caller
from imagen.instrumentation.analytics import Analytics
from imagen.instrumentation.clock import SystemClock
from imagen.limits.admission import Admission
from imagen.limits.calls import SharedCallBudget
from imagen.limits.line import Line, LineRules
from imagen.pictures.shelf import FolderShelf
from imagen.ports import Clock, Observer, UsageSink
from imagen.queue.local import LocalQueue
from imagen.remote.batch_memory import Memories
from imagen.remote.connection import Connection
from imagen.sealing import KeySealer
from imagen.service.accept import Acceptance
from imagen.service.batches import Batches
from imagen.service.bookkeep import Bookkeeper
from imagen.service.budgets import BudgetBook
from imagen.service.buy import BuyingRules
from imagen.service.cache import PictureCache
from imagen.service.deliver import Advice, Deliverer
from imagen.service.deliveries import Courier, SigningSecrets
from imagen.service.drafts import Drafts
from imagen.service.finish import Finisher
from imagen.service.fresh import FreshOutputs
from imagen.service.gateway import Gateway
from imagen.service.keys import KeyBook
from imagen.service.live import LiveSights
from imagen.service.mirror import Mirror
from imagen.service.news import News
from imagen.service.notices import Notices
from imagen.service.ownership import Ownership
from imagen.service.pace import RunTimeBook
from imagen.service.prepare import Preparation
from imagen.service.prices import PriceBook
from imagen.service.quotes import Estimator
from imagen.service.recommend import Recommender
from imagen.service.replicate_events import Bodies
from imagen.service.replicate_shapes import Outputs
from imagen.service.semaphore_lease import SemaphoreLeases
from imagen.service.share import Reuse
from imagen.service.stranded import Stranded
from imagen.service.taste import Tastes
from imagen.service.terms import Terms
from imagen.service.tokens import TokenVault
from imagen.service.usage import UsageBook
from imagen.service.usage_elsewhere import SinkBook
from imagen.service.watch import HeldOpen, Watcher
from imagen.service.webhooks import Webhooks
from imagen.service.work import Worker
from imagen.settings import (
    LimitSettings,
    Settings,
    choose_sink,
    user_config_folder,
)
from imagen.sinks.postgres import PostgresSink
from imagen.sinks.supabase import SupabaseSink
from imagen.store.batches import SqlBatches
from imagen.store.budgets import SqlBudgets
from imagen.store.cache import SqlCacheIndex
from imagen.store.database import Database
from imagen.store.feedback import SqlFeedback
from imagen.store.kept_entries import KeptEntries
from imagen.store.keys import SqlKeys
from imagen.store.ledger import SqlLedger
from imagen.store.limits import SqlLimits
from imagen.store.outbox import SqlOutbox
from imagen.store.owners import FileOwners
from imagen.store.predictions import SqlPredictionStore
from imagen.store.pulse import DatabasePulse
from imagen.store.relayed_files import SqlRelayedFiles
from imagen.store.run_times import SqlRunTimes
from imagen.store.semaphores import SqlSemaphores
from imagen.store.standing import SqlStandings
from imagen.store.turn import FileTurn
from imagen.transport.client import HttpClient, PublicPoster

SOFTWARE = f"imagen {__version__}"


class Silent:
    """An observer that does not care."""

    def notify(self, event: Event) -> None:
        """Nothing."""


def load_catalog(settings: Settings, clock: Clock) -> Catalog:
    """What is known of models, with our user's own facts laid over it.

    Raises:
        ConfigError: one of those makes no sense; says where it is written.
    """
    try:
        return Catalog.load(settings.models, today=clock.now().date())
    except ConfigError as error:
        setting = error.setting or ""
        places = [
            name for name in settings.sources if name.startswith("models.") and setting.startswith(name)
        ]
        source = settings.sources[max(places, key=len)] if places else None
        detail = f"{source}: {setting}: {error.detail}" if source else error.detail
        raise ConfigError(detail, setting=setting, source=source, hint=error.hint) from error


class App:
    """Everything, put together for one process. Use it as an async context manager."""

    def __init__(
        self, settings: Settings, *, environ: Mapping[str, str], observer: Observer, clock: Clock
    ) -> None:
        self.settings = settings
        self.clock = clock
        self._environ = environ
        self.catalog = load_catalog(settings, clock)
        self.credentials = CredentialStore(user_config_folder(environ))
        self.tokens = Tokens(settings, self.credentials)
        self.sealer = None if settings.secret_key is None else KeySealer.from_setting(settings.secret_key)
        self.hash_prompt = prompt_hasher(settings.prompt_hash_key)
        self.client = HttpClient(
            connect_seconds=settings.replicate.connect_timeout.total_seconds(),
            user_agent=f"imagen/{__version__}",
        )
        rules = AccountRules(
            concurrent=settings.limits.concurrent,
            creates_per_minute=settings.limits.creates_per_minute,
            calls_per_minute=settings.limits.calls_per_minute,
        )
        self._add_store()
        self._add_deliveries(observer)
        self._add_mirror()
        keys, budgets = SqlKeys(self.database), SqlBudgets(self.database)
        self._add_money(keys, budgets)
        self._add_limits(rules)
        self._add_backends(observer)
        self._add_gateway(observer)
        self._add_choice(budgets)
        self._add_durable_work(budgets, rules)

    def _add_store(self) -> None:
        """What is written down, and where."""
        data = self.settings.data_dir
        self.database = Database(data / "imagen.db")
        self.pulse = DatabasePulse(self.database, self.clock)
        self.standings = SqlStandings(self.database)
        self.store = SqlPredictionStore(self.database)
        self.ledger = SqlLedger(self.database)
        self.relayed_files = SqlRelayedFiles(self.database)
        self.owners = FileOwners(data / "owners")
        self.shelf = FolderShelf(self.settings.pictures.folder or data / "kept")

    def _add_money(self, keys: SqlKeys, budgets: SqlBudgets) -> None:
        """Who may spend how much, and what was spent."""
        settings, clock = self.settings, self.clock
        self.keys = KeyBook(keys=keys, budgets=budgets, catalog=self.catalog, clock=clock)
        self.budgets = BudgetBook(budgets=budgets, keys=keys, catalog=self.catalog, clock=clock)
        practice = [name for name, one in settings.backends.items() if one.type == EMULATOR]
        self.usage = UsageBook(ledger=self.ledger, keys=keys, practice=practice)
        sink = self.mirror.sink
        self.sink_usage = (
            None if sink is None else SinkBook(sink=sink, ledger=self.ledger, keys=keys, practice=practice)
        )
        self.bookkeeper = Bookkeeper(
            ledger=self.ledger,
            store=self.store,
            budgets=budgets,
            kept=KeptEntries(settings.data_dir / "unwritten-usage.jsonl"),
            clock=clock,
        )

    def _add_limits(self, rules: AccountRules) -> None:
        """Whose turn it is, and when."""
        settings, clock = self.settings, self.clock
        self.semaphores = SqlSemaphores(self.database)
        self.limits = SqlLimits(self.database, rules)
        self.line = Line(
            limits=self.limits,
            clock=clock,
            rules=LineRules(
                waiting=settings.limits.waiting, waiting_per_caller=settings.limits.waiting_per_caller
            ),
        )
        self.admission = Admission(
            limits=self.limits,
            line=self.line,
            clock=clock,
            creates_per_minute=rules.creates_per_minute,
        )
        self.leases = SemaphoreLeases(admission=self.admission, semaphores=self.semaphores, clock=clock)

    def _add_backends(self, observer: Observer) -> None:
        """Where pictures are made, and what looks at them there."""
        settings, clock = self.settings, self.clock
        per_minute = settings.limits.calls_per_minute
        self.backends = ConfiguredBackends(
            settings,
            tokens=self.tokens,
            client=self.client,
            catalog=self.catalog,
            clock=clock,
            observer=observer,
            calls=SharedCallBudget(limits=self.limits, clock=clock, per_minute=per_minute),
        )
        self.watcher = Watcher(
            times=RunTimeBook(SqlRunTimes(self.database), clock), clock=clock, calls_per_minute=per_minute
        )
        self.held_open = HeldOpen(settings.replicate.held_open)
        self.webhooks = Webhooks(
            source=self.backends.own, wakes=self.watcher, clock=clock, public_url=settings.public_url
        )

    def _add_gateway(self, observer: Observer) -> None:
        """The way of one picture."""
        settings, clock = self.settings, self.clock
        deliverer = self._deliverer(Advice())
        buying = BuyingRules(grace_seconds=settings.replicate.lost_answer_grace.total_seconds())
        self.finisher = Finisher(
            store=self.store,
            bookkeeper=self.bookkeeper,
            deliverer=deliverer,
            watcher=self.watcher,
            clock=clock,
            rules=buying,
        )
        self.cache = PictureCache(
            index=SqlCacheIndex(self.database),
            folder=settings.data_dir / "cache" / "pictures",
            limit_bytes=settings.cache.max_mb << 20,
            picture_bytes=settings.max_picture_mb << 20,
            clock=clock,
        )
        self.gateway = Gateway(
            backends=self.backends,
            store=self.store,
            bookkeeper=self.bookkeeper,
            finisher=self.finisher,
            preparation=Preparation(
                store=self.store,
                deliverer=deliverer,
                owners=self.owners,
                clock=clock,
                hash_prompt=self.hash_prompt,
            ),
            admission=self.admission,
            watcher=self.watcher,
            terms=Terms(watcher=self.watcher, webhooks=self.webhooks, held_open=self.held_open),
            reuse=Reuse(
                cache=self.cache,
                store=self.store,
                batches=SqlBatches(self.database),
                owners=self.owners,
                takes=lambda batch: self.queue.takes(batch),  # noqa: PLW0108 - it is made later
                deliverer=deliverer,
                clock=clock,
                by_default=self.backends.keeps_pictures,
            ),
            ownership=Ownership(store=self.store, owners=self.owners),
            clock=clock,
            rules=buying,
            observers=(observer, Analytics(), self.fresh, self.live),
        )

    def _add_deliveries(self, observer: Observer) -> None:
        """What tells callers at their own addresses, and what it tells them of that no row has."""
        settings, clock, data = self.settings, self.clock, self.settings.data_dir
        self.outbox = SqlOutbox(self.database)
        self.signing = SigningSecrets(outbox=self.outbox, sealer=self.sealer, clock=clock)
        self._poster = PublicPoster(private=settings.deliveries.private, user_agent=f"imagen/{__version__}")
        self._courier_turn = FileTurn(data / "deliveries.lock")
        self.fresh, self.live = FreshOutputs(), LiveSights()
        self._notices = Notices(clock=clock, public_url=settings.public_url, fresh=self.fresh)
        self.courier = Courier(
            outbox=self.outbox,
            signing=self.signing,
            poster=self._poster,
            turn=self._courier_turn,
            clock=clock,
            observer=observer,
            body_of=Bodies(fresh=self.fresh, store=self.store, batches=SqlBatches(self.database)).of,
        )

    def _add_mirror(self) -> None:
        """What keeps the ledger's second place up with the first."""
        self._mirror_turn = FileTurn(self.settings.data_dir / "sink.lock")
        self.mirror = Mirror(
            ledger=self.ledger, sink=_sink(self.settings), turn=self._mirror_turn, clock=self.clock
        )

    def _add_choice(self, budgets: SqlBudgets) -> None:
        """What tells beforehand, and learns what is wanted."""
        prices = self.prices = PriceBook(
            catalog=self.catalog, backend=self.backends.tokenless(), watcher=self.watcher, clock=self.clock
        )
        self.estimator = Estimator(
            gateway=self.gateway,
            backends=self.backends,
            budgets=budgets,
            line=self.line,
            prices=prices,
            clock=self.clock,
        )
        self.feedback = SqlFeedback(self.database)
        self.tastes = Tastes(
            feedback=self.feedback, store=self.store, clock=self.clock, learns=self.settings.learning
        )
        self.recommender = Recommender(prices=prices, tastes=self.tastes)
        self.drafts = Drafts(
            store=self.store,
            gateway=self.gateway,
            catalog=self.catalog,
            clock=self.clock,
            preview_model=self.settings.preview.model,
            edit_model=self.settings.preview.edit_model,
        )

    def _add_durable_work(self, budgets: SqlBudgets, rules: AccountRules) -> None:
        """What outlives its caller."""
        notices, vault, news = self._notices, TokenVault(self.sealer), News()
        batches = SqlBatches(self.database, tells=notices.of_unbegun)
        self.worker = Worker(
            gateway=self.gateway,
            batches=batches,
            backends=self.backends,
            tokens=vault,
            sealer=self.sealer,
            notices=notices,
            outbox=self.outbox,
            news=news,
            owners=self.owners,
            clock=self.clock,
        )
        self.outputs = Outputs(fresh=self.fresh, shelf=self.shelf, backends=self.backends, clock=self.clock)
        limits = self.settings.limits
        self.queue = LocalQueue(
            batches=batches,
            owners=self.owners,
            clock=self.clock,
            width=_hands(limits),
        )
        self.acceptance = Acceptance(
            store=batches,
            budgets=budgets,
            queue=self.queue,
            tokens=vault,
            sealer=self.sealer,
            owners=self.owners,
            clock=self.clock,
        )
        self.batches = Batches(
            store=batches,
            predictions=self.store,
            queue=self.queue,
            finisher=self.finisher,
            tokens=vault,
            drafts=lambda: self.acceptance.drafts,
            stranded=Stranded(
                store=batches,
                predictions=self.store,
                tokens=vault,
                notices=notices,
                owners=self.owners,
                clock=self.clock,
            ),
            troubles=self.worker.troubles,
            news=news,
            owners=self.owners,
            clock=self.clock,
            rules=rules,
        )

    def caller(self) -> Caller:
        """Whom the ledger names: the configured one, else MAI_FROM_ID, else the tmux pane's name, else `unknown`."""
        return Caller(name=self.settings.caller or resolve_caller(self._environ))

    def why_it_cannot_end(self, batch: Batch) -> ImagenError | None:
        """What keeps this process from stopping what runs of a batch that is to be canceled; None where nothing does."""
        try:
            self.worker.backend_of(batch)
        except ImagenError as error:
            return error
        return None

    async def leave_entries(self) -> None:
        """Before a command ends: let the sink of the ledger have what waits, where anything was looked up or written."""
        if self.database.is_open:
            await self.mirror.flush()

    def at(self, url: str | None) -> App | Remote:
        """Whoever does the work: the gateway that runs at `url`, or this process when that is None.

        Args:
            url: as `remote.url` may be.
        """
        if url is None:
            return self
        settings = self.settings
        connection = Connection(
            url, client=self.client, key=settings.remote.api_key, admin_key=settings.admin_api_key
        )
        fetched_by_hand = Advice(again="`curl -O {url}`", addresses="It is at {url}")
        return Remote(
            connection,
            catalog=self.catalog,
            backends=self.backends,
            deliverer=self._deliverer(fetched_by_hand),
            memories=Memories(settings.data_dir / "remote-batches"),
            clock=self.clock,
        )

    def _deliverer(self, advice: Advice) -> Deliverer:
        settings = self.settings
        return Deliverer(
            default_folder=Path(settings.output) if settings.output else settings.data_dir / "pictures",
            incoming=settings.data_dir / "incoming",
            limit_bytes=settings.max_picture_mb << 20,
            software=SOFTWARE,
            shelf=self.shelf,
            clock=self.clock,
            advice=advice,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.worker.aclose()
        await self.line.aclose()
        await self.watcher.aclose()
        await self.backends.aclose()
        await self.client.aclose()
        await self._poster.aclose()
        if self.mirror.sink is not None:
            await self.mirror.sink.aclose()
        self._mirror_turn.close()
        self._courier_turn.close()
        self.database.close()
        self.owners.close()


def _sink(settings: Settings) -> UsageSink | None:
    """Where the ledger is written besides our own database."""
    sink, supabase = settings.sink, settings.supabase
    match choose_sink(settings):
        case "postgresql" if sink.postgres_url is not None:
            return PostgresSink(sink.postgres_url)
        case "supabase" if supabase.url is not None and supabase.service_role_key is not None:
            return SupabaseSink(supabase.url, supabase.service_role_key)
        case _:
            return None


def _hands(limits: LimitSettings) -> int:
    """How many items of batches are worked on at once: those that run, and some that stand in line for their places.

    A part of the line stays for whoever waits for a single picture.
    """
    lined_up = min(LINED_UP * limits.concurrent, limits.waiting // 2, limits.waiting_per_caller // 2)
    running = min(limits.concurrent, limits.waiting * 3 // 4, limits.waiting_per_caller)
    return max(1, lined_up, running)


def build(
    settings: Settings,
    *,
    environ: Mapping[str, str] | None = None,
    observer: Observer | None = None,
    clock: Clock | None = None,
) -> App:
    """The parts of one process, by the settings. Opens nothing yet."""
    return App(
        settings,
        environ=os.environ if environ is None else environ,
        observer=observer or Silent(),
        clock=clock or SystemClock(),
    )
