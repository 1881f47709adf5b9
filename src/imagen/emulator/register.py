"""What can be run: models with their versions, deployments, collections and hardware, as the API lists them.

What the emulator was started with, and what `add` brings, survives a reset; what was made over the API or planted does
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imagen.emulator.models import CREATED_AT, Model
from imagen.emulator.shelves import COLLECTIONS, HARDWARE, Collection

MOST_MODELS = 1000
"""Models of one owner (spec of models.create)."""

MOST_VERSIONS = 1000
"""Versions of one model; ours, so that memory is bounded."""

MOST_DEPLOYMENTS = 1000
"""Deployments of one owner; ours as well."""

IDLE_SECONDS = 900.0
"""How long a deployment must have been unused before it can be deleted (spec of deployments.delete)."""


def always(now: float) -> bool:  # noqa: ARG001 - whenever it is asked
    """What is there from the beginning."""
    return True


@dataclass(frozen=True)
class Version:
    """One version of a model; that of a training is there once the training has succeeded."""

    model: Model
    created_at: str = CREATED_AT
    is_there: Callable[[float], bool] = always

    @property
    def id(self) -> str:
        """64 hexadecimal digits, where nobody planted something else."""
        return self.model.version_id

    def to_json(self) -> dict[str, Any]:
        """The version object of the API."""
        return self.model.version_json(self.created_at)


@dataclass(eq=False)
class Listing:
    """A model as it is listed: what its owner says of it, and its versions, oldest first."""

    name: str
    """`owner/name`."""
    description: str | None = None
    visibility: str = "public"
    official: bool = False
    links: dict[str, str] = field(default_factory=dict)
    """`cover_image_url`, `github_url`, `license_url`, `paper_url`, `weights_url`, as far as they are known."""
    readme: str = ""
    tags: tuple[str, ...] = ()
    run_count: int = 0
    created_at: str = CREATED_AT
    versions: list[Version] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model) -> Listing:
        """The public listing of a model with one version."""
        return cls(
            name=model.name,
            description=model.description,
            official=model.official,
            readme=f"# {model.name}\n\n{model.description}\n",
            tags=model.tags,
            run_count=int(model.version_id[:6], 16),
            versions=[Version(model)],
        )

    @property
    def owner(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]

    def versions_at(self, now: float) -> list[Version]:
        """The versions that are there, oldest first."""
        return [version for version in self.versions if version.is_there(now)]

    def version(self, identity: str, now: float) -> Version | None:
        """The version of this id."""
        return next((version for version in self.versions_at(now) if version.id == identity), None)

    def latest(self, now: float) -> Version | None:
        """The newest version, if there is one."""
        return next(reversed(self.versions_at(now)), None)

    def changed_at(self, now: float) -> str:
        """When its newest version was made, or itself."""
        latest = self.latest(now)
        return self.created_at if latest is None else latest.created_at

    def to_json(self, now: float) -> dict[str, Any]:
        """The model object of the API."""
        owner, _, name = self.name.partition("/")
        latest = self.latest(now)
        return {
            "url": f"https://replicate.com/{self.name}",
            "owner": owner,
            "name": name,
            "description": self.description,
            "visibility": self.visibility,
            "is_official": self.official,
            "github_url": self.links.get("github_url"),
            "paper_url": self.links.get("paper_url"),
            "license_url": self.links.get("license_url"),
            "run_count": self.run_count,
            "cover_image_url": self.links.get("cover_image_url"),
            "default_example": None,
            "latest_version": None if latest is None else latest.to_json(),
        }


@dataclass(eq=False)
class Deployment:
    """A model under a name of its own; each change of its settings is a release."""

    name: str
    """`owner/name`."""
    model: str
    version: str = ""
    """The id of the version it runs; empty: the newest there is."""
    hardware: str = "gpu-h100"
    min_instances: int = 0
    max_instances: int = 5
    number: int = 1
    created_at: str = CREATED_AT
    by: str = "organization"
    used_at: float = -math.inf

    @property
    def owner(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]

    def is_idle(self, now: float) -> bool:
        """Whether it may be deleted: no instance is kept running, and nobody used it for 15 minutes."""
        return self.min_instances == 0 and now >= self.used_at + IDLE_SECONDS

    def to_json(self, api_url: str, version: str) -> dict[str, Any]:
        """The deployment object of the API."""
        owner, _, name = self.name.partition("/")
        return {
            "owner": owner,
            "name": name,
            "current_release": {
                "number": self.number,
                "model": self.model,
                "version": version,
                "created_at": self.created_at,
                "created_by": {
                    "type": self.by,
                    "username": owner,
                    "name": f"Emulated {self.by} {owner}",
                    "avatar_url": f"{api_url}/avatars/{owner}.png",
                    "github_url": f"https://github.com/{owner}",
                },
                "configuration": {
                    "hardware": self.hardware,
                    "min_instances": self.min_instances,
                    "max_instances": self.max_instances,
                },
            },
        }


class Register:
    """Everything one emulator lists; adding a name again replaces it.

    `time` tells the instant that "there is" speaks of.
    """

    def __init__(
        self, models: Iterable[Model], deployments: Mapping[str, str], time: Callable[[], float]
    ) -> None:
        self._time = time
        self._models = {model.name: model for model in models}
        self._deployments = dict(deployments)
        self.listings: dict[str, Listing] = {}
        self.deployments: dict[str, Deployment] = {}
        self.collections: dict[str, Collection] = {}
        self.hardware: dict[str, str] = {}
        self.owners: set[str] = set()
        """Organizations of which every account is a member."""
        self._homes: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was made over the API and what was planted."""
        self.listings = {name: Listing.of(model) for name, model in self._models.items()}
        self._homes = {model.version_id: name for name, model in self._models.items()}
        self.deployments = {name: Deployment(name, model) for name, model in self._deployments.items()}
        self.collections = {collection.slug: collection for collection in COLLECTIONS}
        self.hardware = dict(HARDWARE)
        self.owners = {name.partition("/")[0] for name in self._deployments}

    def add(self, model: Model) -> None:
        """Make a model known for good."""
        self._models[model.name] = model
        self.enter(Listing.of(model))

    def enter(self, listing: Listing) -> None:
        """List a model until the next reset."""
        self.listings[listing.name] = listing
        for version in listing.versions:
            self._homes[version.id] = listing.name

    def enter_version(self, listing: Listing, version: Version) -> None:
        """Give a model one more version, its newest."""
        listing.versions.append(version)
        self._homes[version.id] = listing.name

    def remove(self, listing: Listing) -> None:
        """List a model no more."""
        self.listings.pop(listing.name, None)

    def everyone(self) -> tuple[Model, ...]:
        """What each listed model's newest version takes and gives, in the order they became known."""
        newest = (self.named(name) for name in self.listings)
        return tuple(model for model in newest if model is not None)

    def named(self, name: str) -> Model | None:
        """The newest version of the model `owner/name`."""
        listing = self.listings.get(name)
        latest = None if listing is None else listing.latest(self._time())
        return None if latest is None else latest.model

    def meant_by(self, version: str) -> Model | None:
        """The model that `owner/name`, `owner/name:<64 hex>` or `<64 hex>` means."""
        name, _, identity = version.rpartition(":")
        if "/" in version and not name:
            return self.named(version)
        return self._version(name or self._homes.get(identity, ""), identity)

    def run_by(self, deployment: Deployment) -> Model | None:
        """The version that a deployment runs; None when it or its model is gone."""
        if not deployment.version:
            return self.named(deployment.model)
        return self._version(deployment.model, deployment.version)

    def deployment(self, name: str) -> tuple[Deployment, Model] | None:
        """The deployment `owner/name` and what it runs."""
        deployment = self.deployments.get(name)
        model = None if deployment is None else self.run_by(deployment)
        return None if deployment is None or model is None else (deployment, model)

    def _version(self, name: str, identity: str) -> Model | None:
        listing = self.listings.get(name)
        version = None if listing is None else listing.version(identity, self._time())
        return None if version is None else version.model
