"""The OpenAPI document is made of the operations, and is one by the rules of OpenAPI 3.1."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.model_ref import ModelRef
from imagen.server.app import FACES, operations
from imagen.server.context import Context
from imagen.server.documents import OPERATIONS, openapi_document
from imagen.server.operation import Operation, Parameter

METHODS = {"get", "post", "put", "patch", "delete"}
DOCUMENT = json.loads(msgspec.json.encode(openapi_document(operations(), "1.2.3")))


def told(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in item.keys() & METHODS:
            yield method.upper(), path, item[method]


def without_kind(path: str) -> str:
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


# --- the document of the gateway -------------------------------------------------------------------------


def test_the_document_is_valid_by_the_schema_of_openapi_3_1():
    validator = jsonschema.Draft202012Validator(OPENAPI_31)
    assert [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(DOCUMENT)] == []
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == "1.2.3"


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["schemas"]))
def test_each_schema_is_valid_json_schema(name: str):
    jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


def test_every_reference_leads_somewhere():
    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert set(references(DOCUMENT)) <= known
    assert len(known) > 5


def test_every_operation_of_the_gateway_is_told_and_no_other():
    there_are = {(operation.method, without_kind(operation.path)) for operation in operations()}
    assert {(method, path) for method, path, _ in told(DOCUMENT)} == there_are
    assert len(there_are) == len(operations())


def test_the_gateway_serves_a_document_of_all_its_faces():
    from imagen.server import documents  # noqa: PLC0415 - beside the names above it would hide where they are from

    assert {*documents.FACES, documents} == set(FACES)


def test_operations_have_names_of_their_own():
    names = [operation["operationId"] for _, _, operation in told(DOCUMENT)]
    assert len(set(names)) == len(names)
    assert {"health", "openapi", "generate"} <= set(names)


def test_every_tag_that_is_used_is_told_once():
    used = {tag for _, _, operation in told(DOCUMENT) for tag in operation["tags"]}
    tags = [tag["name"] for tag in DOCUMENT["tags"]]
    assert set(tags) == used
    assert len(tags) == len(used)


def test_examples_fit_their_schemas():
    checked = 0
    for _, path, operation in told(DOCUMENT):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [answer.get("content", {}) for answer in operation["responses"].values()]
        for content in contents:
            for media in content.values():
                if "example" in media:
                    schema = {**media["schema"], "components": DOCUMENT["components"]}
                    errors = jsonschema.Draft202012Validator(schema).iter_errors(media["example"])
                    assert [f"{path}: {error.message}" for error in errors] == []
                    checked += 1
    assert checked >= 2


def test_every_parameter_of_a_path_is_told_and_required():
    for _, path, operation in told(DOCUMENT):
        there = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert there == set(re.findall(r"\{(\w+)\}", path))
        assert all(one["required"] for one in operation.get("parameters", []) if one["in"] == "path")


# --- how it is made --------------------------------------------------------------------------------------


class Part(msgspec.Struct):
    """One part."""

    size: int


class Other(msgspec.Struct):
    """Another part."""

    weight: float


class Wish(msgspec.Struct, kw_only=True):
    """What is wanted.

    More about it.

    Attributes:
        long_name: what it is called,
            told on two lines.
        low, high: the limits.
        part: of a kind.
    """

    long_name: str
    low: int = 0
    high: int = 1
    part: Part | None = None


class Mixed(msgspec.Struct, kw_only=True):
    """An answer that is encoded and never decoded.

    Attributes:
        results: parts of both kinds, in order.
        ref: of a type that JSON does not have.
    """

    results: list[Part | Other]
    maybe: Part | Other | None = None
    ref: ModelRef | None = None


async def make(context: Context, request: Request) -> Response:
    raise NotImplementedError


def operation(**facts: Any) -> Operation:
    given: dict[str, Any] = {
        "method": "POST", "path": "/things", "handler": make, "summary": "Make a thing", "tag": "things",
        "access": "caller", "answers": {201: Part},
    }  # fmt: skip
    return Operation(**given | facts)


def made(**facts: Any) -> dict[str, Any]:
    document = openapi_document([operation(**facts)], "1")
    jsonschema.Draft202012Validator(OPENAPI_31).validate(document)
    ((_, _, one),) = told(document)
    return one


def schemas(*kinds: Any) -> dict[str, Any]:
    document = openapi_document([operation(answers={200: kind}) for kind in kinds], "1")
    found: dict[str, Any] = document["components"]["schemas"]
    return found


def test_body_and_answers_are_told_by_reference():
    one = made(body=Wish, example={"long_name": "x"})
    body = one["requestBody"]
    assert body["required"] is True
    assert body["content"]["application/json"] == {
        "schema": {"$ref": "#/components/schemas/Wish"}, "example": {"long_name": "x"},
    }  # fmt: skip
    answer = one["responses"]["201"]
    assert answer["description"] == "Created"
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Part"}


def test_errors_have_the_body_of_errors_and_say_how_long_to_wait():
    answers = made(errors=(429, 503))["responses"]
    assert set(answers) == {"201", "401", "403", "429", "503"}
    assert answers["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert "Retry-After" in answers["429"]["headers"]
    assert "WWW-Authenticate" in answers["401"]["headers"]


def test_what_takes_something_may_find_it_wrong():
    assert "400" in made(body=Wish)["responses"]
    assert "400" in made(path="/things/{id}")["responses"]
    assert "400" not in made()["responses"]


@pytest.mark.parametrize(
    ("access", "security"),
    [
        ("anyone", []),
        ("caller", [{"adminKey": []}, {"apiKey": []}, {"bearer": []}, {}]),
        ("admin", [{"adminKey": []}]),
    ],
)
def test_access_is_told_as_security(access: str, security: list[Any]):
    assert made(access=access)["security"] == security


def test_the_keys_are_told_under_the_headers_that_carry_them():
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert schemes["adminKey"]["name"] == "X-Admin-API-Key"
    assert schemes["apiKey"]["name"] == "X-API-Key"
    assert schemes["bearer"]["scheme"] == "bearer"


def test_a_path_with_a_kind_in_it_is_told_without():
    document = openapi_document([operation(path="/files/{name:path}/{part}")], "1")
    assert list(document["paths"]) == ["/files/{name}/{part}"]
    ((_, _, one),) = told(document)
    assert [(each["name"], each["in"]) for each in one["parameters"]] == [("name", "path"), ("part", "path")]


def test_parameters_are_told_as_they_are():
    limit = Parameter(
        name="limit", place="query", description="How many.", schema={"type": "integer", "maximum": 9}
    )
    (parameter,) = made(parameters=(limit,))["parameters"]
    assert parameter == {
        "name": "limit", "in": "query", "required": False, "description": "How many.",
        "schema": {"type": "integer", "maximum": 9},
    }  # fmt: skip


def test_an_answer_that_is_no_json_has_its_media_type():
    answer = made(answers={200: None}, media_type="image/png")["responses"]["200"]
    assert list(answer["content"]) == ["image/png"]
    assert "content" not in made(answers={204: None})["responses"]["204"]


def test_one_handler_on_two_paths_gets_two_names():
    document = openapi_document([operation(), operation(path="/v1/things"), operation(method="PUT")], "1")
    assert sorted(one["operationId"] for _, _, one in told(document)) == ["make", "make_2", "make_3"]


def test_what_a_class_says_of_its_fields_is_told_at_the_fields():
    wish = schemas(Wish)["Wish"]
    assert wish["description"] == "What is wanted.\n\nMore about it."
    assert wish["properties"]["long_name"]["description"] == "what it is called, told on two lines."
    assert wish["properties"]["low"]["description"] == "the limits."
    assert wish["properties"]["high"]["description"] == "the limits."
    assert wish["properties"]["part"]["description"] == "of a kind."
    assert wish["required"] == ["long_name"]


def test_an_answer_may_hold_one_struct_or_the_other():
    found = schemas(Mixed)
    both = [{"$ref": "#/components/schemas/Part"}, {"$ref": "#/components/schemas/Other"}]
    assert found["Mixed"]["properties"]["results"]["items"]["anyOf"] == both
    assert found["Mixed"]["properties"]["results"]["description"] == "parts of both kinds, in order."
    assert found["Mixed"]["properties"]["maybe"]["anyOf"] == [*both, {"type": "null"}]
    assert found["Mixed"]["required"] == ["results"]
    assert {"Part", "Other"} <= set(found)


def test_the_documents_own_operations_are_open_to_anyone():
    assert {operation.access for operation in OPERATIONS} == {"anyone"}
