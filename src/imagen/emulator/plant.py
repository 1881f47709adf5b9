"""Planting: things with chosen ids, put there as if they had always been.

For tests of clients that call with ids of their own. What is planted is bought by nobody, and gone with the next reset.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

import msgspec

from imagen.decoding import convert
from imagen.emulator.calls.trainings import version_of
from imagen.emulator.clock import timestamp
from imagen.emulator.course import Course
from imagen.emulator.files import StoredFile
from imagen.emulator.journal import fingerprint
from imagen.emulator.models import Model, renamed
from imagen.emulator.parameters import prompt
from imagen.emulator.register import Deployment, Listing, Version
from imagen.emulator.shelves import Collection
from imagen.emulator.sizes import frame_of
from imagen.emulator.state import Account, PredictionOrder, TrainingOrder
from imagen.emulator.world import World

PLANTED_ERROR = "Planted: it failed"
_FOREVER = float("inf")

RunStatus = Literal["starting", "processing", "succeeded", "failed", "canceled", "aborted"]


class PlantedModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A model. Its owner counts as an organization of which every account is a member.

    `name` is `owner/name`, or any other text, for tests that call with one. `versions` are ids, oldest first; None: one
    of the usual kind. `takes` is what a version takes and gives, as the body of control's `POST models` without name and
    version; by default a prompt and anything besides, and one picture.
    """

    name: str
    versions: tuple[str, ...] | None = None
    visibility: Literal["public", "private"] = "public"
    description: str = "Planted"
    readme: str = ""
    takes: dict[str, Any] = {}


class PlantedDeployment(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A deployment `owner/name` of a model that is there; its owner counts as an organization too."""

    name: str
    model: str
    version: str = ""
    hardware: str = "gpu-h100"
    min_instances: int = 0
    max_instances: int = 5


class PlantedCollection(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A collection."""

    slug: str
    name: str = "Planted"
    description: str = "Planted"
    models: tuple[str, ...] = ()


class PlantedFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An uploaded file; `content` is base64."""

    id: str
    content: str = ""
    name: str = "planted"
    content_type: str = "application/octet-stream"
    metadata: dict[str, Any] = {}


class PlantedRun(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What planted predictions and trainings have in common.

    `version` is the id of the model's version; empty: its newest. What is `starting` or `processing` stays so until it
    is canceled.
    """

    id: str
    model: str
    version: str = ""
    status: RunStatus = "succeeded"
    input: dict[str, Any] = {}
    logs: str | None = None
    error: str = PLANTED_ERROR


class PlantedPrediction(PlantedRun, kw_only=True):
    """A prediction; `output` is any JSON value, None: what the model makes."""

    output: Any = None


class PlantedTraining(PlantedRun, kw_only=True):
    """A training; one that has succeeded has given `destination`, a model that is there, a version."""

    destination: str


class Plant(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST plant`: all kinds are optional, and planted in this order.

    `token` says whose predictions, trainings and files they are; `owners` are organizations of which every account is
    a member; `hardware` is names by SKU. What is there already under an id is replaced.
    """

    token: str | None = None
    owners: tuple[str, ...] = ()
    hardware: dict[str, str] = {}
    models: tuple[PlantedModel, ...] = ()
    deployments: tuple[PlantedDeployment, ...] = ()
    collections: tuple[PlantedCollection, ...] = ()
    files: tuple[PlantedFile, ...] = ()
    predictions: tuple[PlantedPrediction, ...] = ()
    trainings: tuple[PlantedTraining, ...] = ()


def plant(world: World, wanted: Plant) -> dict[str, int]:
    """Plant all of it; how many of each kind there were.

    Raises:
        ValueError: something refers to what is not there, or has no owner; what came before it is planted.
    """
    world.models.owners.update(wanted.owners)
    world.models.hardware.update(wanted.hardware)
    for model in wanted.models:
        _plant_model(world, model)
    for deployment in wanted.deployments:
        _plant_deployment(world, deployment)
    for collection in wanted.collections:
        world.models.collections[collection.slug] = Collection(
            collection.slug, collection.name, collection.description, collection.models
        )
    owned: list[PlantedFile | PlantedRun] = [*wanted.files, *wanted.predictions, *wanted.trainings]
    if owned:
        account = _account(world, wanted.token)
        for one in owned:
            _plant_owned(world, account, one)
    return {name: len(getattr(wanted, name)) for name in Plant.__struct_fields__ if name != "token"}


def _plant_owned(world: World, account: Account, one: PlantedFile | PlantedRun) -> None:
    match one:
        case PlantedFile():
            world.state.keep_file(account, _stored(one, world.clock.time()))
        case PlantedPrediction():
            _plant_prediction(world, account, one)
        case PlantedTraining():
            _plant_training(world, account, one)


def _account(world: World, token: str | None) -> Account:
    if not token:
        raise ValueError("token is missing: files, predictions and trainings belong to an account")
    return world.state.account(fingerprint(token))


def _plant_model(world: World, wanted: PlantedModel) -> None:
    takes = {"parameters": {"prompt": prompt()}, "required": (), "extra_inputs": True, "output": "uri"}
    model = convert({**takes, **wanted.takes, "name": "planted/model"}, Model)
    ids = (Model(name="planted/model").version_id,) if wanted.versions is None else wanted.versions
    world.models.owners.add(wanted.name.partition("/")[0])
    world.models.enter(
        Listing(
            name=wanted.name,
            description=wanted.description,
            visibility=wanted.visibility,
            official=model.official,
            readme=wanted.readme,
            created_at=timestamp(world.clock.time()),
            versions=[
                Version(renamed(model, wanted.name, identity, official=model.official)) for identity in ids
            ],
        )
    )


def _plant_deployment(world: World, wanted: PlantedDeployment) -> None:
    deployment = Deployment(
        name=wanted.name,
        model=wanted.model,
        version=wanted.version,
        hardware=wanted.hardware,
        min_instances=wanted.min_instances,
        max_instances=wanted.max_instances,
        created_at=timestamp(world.clock.time()),
    )
    if world.models.run_by(deployment) is None:
        raise ValueError(
            f"the deployment {wanted.name} has no model {wanted.model} {wanted.version}".rstrip()
        )
    world.models.owners.add(deployment.owner)
    world.models.deployments[wanted.name] = deployment


def _stored(wanted: PlantedFile, now: float) -> StoredFile:
    try:
        content = base64.b64decode(wanted.content, validate=True)
    except (ValueError, binascii.Error) as problem:
        raise ValueError(f"the content of the file {wanted.id} is not base64") from problem
    return StoredFile(wanted.id, wanted.name, wanted.content_type, content, wanted.metadata, now)


def _plant_prediction(world: World, account: Account, wanted: PlantedPrediction) -> None:
    model = _model(world, wanted)
    frame = frame_of(model, wanted.input)
    prediction = world.state.make(
        account.key,
        PredictionOrder(
            id=wanted.id,
            model=model,
            input=wanted.input,
            course=_course(wanted, wanted.output),
            count=frame.count,
            format=frame.format,
            cancel_after_seconds=0 if wanted.status == "aborted" else None,
        ),
    )
    world.state.forget(wanted.id)
    world.state.enter(account, prediction)
    if wanted.status == "canceled":
        world.state.cancel(prediction)


def _plant_training(world: World, account: Account, wanted: PlantedTraining) -> None:
    destination = world.models.listings.get(wanted.destination)
    if destination is None:
        raise ValueError(f"the training {wanted.id} has no destination {wanted.destination}")
    world.state.forget(wanted.id)
    order = TrainingOrder(
        id=wanted.id,
        model=_model(world, wanted),
        input=wanted.input,
        course=_course(wanted, None),
        destination=destination.name,
    )
    training = world.state.train(account, order)
    if wanted.status == "aborted":
        training.deadline_at = training.created_at
    world.models.enter_version(destination, version_of(training, destination))
    if wanted.status == "canceled":
        world.state.cancel(training)


def _model(world: World, wanted: PlantedRun) -> Model:
    meant = f"{wanted.model}:{wanted.version}" if wanted.version else wanted.model
    model = world.models.meant_by(meant) if wanted.version else world.models.named(meant)
    if model is None:
        raise ValueError(f"{wanted.id} has no model {meant}")
    return model


def _course(wanted: PlantedRun, output: Any) -> Course:
    """A course on which the run is in the wanted status, now and until somebody stops it."""
    ended = wanted.status in {"succeeded", "failed"}
    return Course(
        queue_seconds=0.0 if ended or wanted.status == "processing" else _FOREVER,
        run_seconds=0.0 if ended else _FOREVER,
        error=wanted.error if wanted.status == "failed" else None,
        output="files" if output is None else "given",
        given=output,
        logs=wanted.logs,
    )
