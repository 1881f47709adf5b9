"""A running gateway in place of this process: the same parts, over HTTP."""

from __future__ import annotations

from imagen.assembly.backends import ConfiguredBackends
from imagen.catalog import Catalog
from imagen.ports import Clock
from imagen.remote.batch_memory import Memories
from imagen.remote.batches import RemoteBatches
from imagen.remote.budgets import RemoteBudgets
from imagen.remote.choice import RemoteEstimator, RemoteRecommender, RemoteTastes
from imagen.remote.connection import Connection
from imagen.remote.drafts import RemoteDrafts
from imagen.remote.generate import Outward, RemoteGateway
from imagen.remote.keys import RemoteKeys
from imagen.remote.predictions import RemotePredictions
from imagen.remote.semaphores import RemoteLeases, RemoteSemaphores
from imagen.remote.usage import RemoteUsage
from imagen.service.deliver import Deliverer


class Remote:
    """The parts of a running gateway that do what those of an `App` do.

    Attributes:
        gateway, semaphores, leases, keys, budgets, usage, batches: as in `App`.
        estimator, recommender, tastes: likewise.
        predictions: how single ones stand.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        catalog: Catalog,
        backends: ConfiguredBackends,
        deliverer: Deliverer,
        memories: Memories,
        clock: Clock,
    ) -> None:
        source = backends.tokenless()
        self.semaphores = RemoteSemaphores(connection)
        self.leases = RemoteLeases(connection, self.semaphores, clock)
        self.keys = RemoteKeys(connection)
        self.budgets = RemoteBudgets(connection)
        self.usage = RemoteUsage(connection)
        self.gateway = RemoteGateway(
            connection,
            catalog=catalog,
            habits=backends.habits,
            deliverer=deliverer,
            source=source,
            quote=source.quote,
            clock=clock,
        )
        self.drafts = RemoteDrafts(connection, gateway=self.gateway, catalog=catalog, clock=clock)
        self.batches = RemoteBatches(
            connection,
            memories=memories,
            deliverer=deliverer,
            source=Outward(source, connection.url),
            clock=clock,
        )
        self.estimator = RemoteEstimator(connection, self.gateway)
        self.recommender = RemoteRecommender(connection)
        self.tastes = RemoteTastes(connection)
        self.predictions = RemotePredictions(connection)
