"""Replicate's protocol without I/O: values become messages, messages become values.

Facts: Replicate's OpenAPI document (replicate.com/docs/reference/http) and recorded answers, which are looser than it:
fields may be missing, null, or of an older form, and none of that is an error here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import ceil
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from imagen.backends.replicate.refusals import categorize_failure, parse_refusal
from imagen.catalog.model import COUNT_KEYS
from imagen.decoding import decoder
from imagen.domain.inside import is_file, map_texts, without_file
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Allowance, Sighting, Status
from imagen.domain.secret import Secret
from imagen.errors import GarbledResponse, InvalidModelRef
from imagen.ports import Glance, Passage
from imagen.transport.message import HttpRequest, HttpResponse, origin

MAX_HOLD_SECONDS = 60
"""`Prefer: wait=n` takes 1 to 60."""
MIN_CANCEL_AFTER_SECONDS = 5
"""`Cancel-After` takes 5 seconds and more."""
MAX_FILE_BYTES = 100 * 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024
"""An output that is no list of files is kept up to this length."""
_MAX_FILE_NAME = 255
_HOLD_MARGIN_SECONDS = 15.0
_MOST_MEASURED = 10**9
"""Seconds or pictures of one run; a larger figure is none."""
_MOST_DIGITS = 9
_JSON = {"content-type": "application/json"}
_ONLY_READS = frozenset({"GET", "QUERY"})
_WEBHOOK_SECRET = re.compile(
    r"whsec_(?:[A-Za-z0-9+/]{4}){2,128}(?:[A-Za-z0-9+/]{2}(?:==)?|[A-Za-z0-9+/]{3}=?)?"
)


class Page(msgspec.Struct, frozen=True):
    """One page of a list, newest first; `next` is the address of the following one."""

    results: tuple[dict[str, Any], ...]
    next: str | None


class _Sheet(msgspec.Struct, frozen=True):
    """A page of a list whose entries are not read yet."""

    results: list[msgspec.Raw]
    next: Any = None


class _Listed(msgspec.Struct, frozen=True):
    """As much of a listed prediction as tells whether more of it matters."""

    id: str
    status: Any = None
    created_at: Any = None
    completed_at: Any = None
    error: Any = None
    output: msgspec.Raw = msgspec.Raw(b"null")

    def stands_otherwise(self, known: Status | None) -> bool:
        """Whether it may stand otherwise than it was known to."""
        if known is None or self.status != known.value or self.completed_at is not None:
            return True
        if self.error is not None or memoryview(self.output).nbytes > _LONGEST_NOTHING:
            return True
        return bytes(self.output) not in _NOTHING_YET


_PAGE = decoder(_Sheet)
_LISTED = decoder(_Listed)
_NOTHING_YET = frozenset({b"null", b"[]", b'""'})
_LONGEST_NOTHING = 4


class ModelFacts(msgspec.Struct, frozen=True):
    """What Replicate tells about a model."""

    official: bool | None
    version: str | None
    input_schema: dict[str, Any] | None
    output_is_list: bool | None


def operation_of(request: HttpRequest) -> str:
    """What a request asks for: `create`, `look`, `cancel`, `list` or `other`."""
    path = request.path
    if path.endswith("/cancel"):
        return "cancel"
    if path.endswith("/predictions"):
        return "create" if request.method == "POST" else "list"
    return "look" if path.startswith("/v1/predictions/") else "other"


def read_allowance(response: HttpResponse) -> Allowance | None:
    """What the header `ratelimit-remaining` says; None where it says nothing."""
    remaining = response.headers.get("ratelimit-remaining", "")
    if not remaining.isascii() or not remaining.isdigit() or len(remaining) > _MOST_DIGITS:
        return None
    return Allowance(remaining=int(remaining))


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Builds the requests of one account and reads their answers.

    Args:
        api_base: scheme and host, without `/v1`.
        token: sent to `api_base` and to no other origin.
        token_env: named in errors, so that the reader knows what to set.
        read_seconds: how long an ordinary answer may take.
    """

    api_base: str
    token: Secret | None
    token_env: str
    read_seconds: float = 30.0

    # --- predictions -------------------------------------------------------------------------------------

    def build_create(
        self,
        model: ModelRef,
        model_input: Mapping[str, Any],
        *,
        hold_seconds: float,
        deadline_seconds: float | None,
        webhook: str | None = None,
    ) -> HttpRequest:
        """Buy a prediction: by version on `/predictions`, by name for official models, or on a deployment.

        With a `webhook`, an https address, Replicate tells there that it has ended.
        """
        body: dict[str, Any] = {"input": model_input}
        if webhook is not None:
            body |= {"webhook": webhook, "webhook_events_filter": ["completed"]}
        if model.deployment:
            path = f"/deployments/{model.base}/predictions"
        elif model.version:
            path = "/predictions"
            body["version"] = model.version if len(model.version) == 64 else str(model)
        else:
            path = f"/models/{model.base}/predictions"
        headers = dict(_JSON)
        hold = min(int(hold_seconds), MAX_HOLD_SECONDS)
        if hold >= 1:
            headers["prefer"] = f"wait={hold}"
        if deadline_seconds is not None:
            headers["cancel-after"] = f"{max(ceil(deadline_seconds), MIN_CANCEL_AFTER_SECONDS)}s"
        return self._api(
            "POST",
            path,
            headers=headers,
            body=msgspec.json.encode(body),
            response_seconds=max(self.read_seconds, hold + _HOLD_MARGIN_SECONDS),
        )

    def build_get(self, upstream_id: str) -> HttpRequest:
        """Look at one prediction."""
        return self._api("GET", f"/predictions/{quote(upstream_id, safe='')}")

    def build_cancel(self, upstream_id: str) -> HttpRequest:
        """Stop one; doing it twice is doing it once."""
        return msgspec.structs.replace(
            self._api("POST", f"/predictions/{quote(upstream_id, safe='')}/cancel"), repeatable=True
        )

    def build_list(self, *, created_before: datetime | None = None) -> HttpRequest:
        """The newest 100 predictions, or the newest before an instant; there is no page size to choose."""
        query = {"created_before": created_before.astimezone(UTC).isoformat()} if created_before else {}
        return self._api("GET", "/predictions", query=query)

    def build_next(self, page: Page) -> HttpRequest | None:
        """The page after this one, always asked of our own API: a proxy may pass on addresses of another host.

        None at the end, and where `next` is no address of a page.
        """
        try:
            cursor = urlsplit(page.next or "").query
        except ValueError:
            cursor = ""
        return self._request("GET", f"{self.api_base}/v1/predictions?{cursor}") if cursor else None

    # --- models, account, files --------------------------------------------------------------------------

    def build_model(self, model: ModelRef) -> HttpRequest:
        """A model with its latest version and schema."""
        return self._api("GET", f"/models/{model.base}")

    def build_version(self, model: ModelRef) -> HttpRequest:
        """One version of a model with its schema."""
        return self._api("GET", f"/models/{model.base}/versions/{quote(model.version or '', safe='')}")

    def build_deployment(self, model: ModelRef) -> HttpRequest:
        """A deployment and the release that it runs."""
        return self._api("GET", f"/deployments/{model.base}")

    def build_account(self) -> HttpRequest:
        """Whose token this is."""
        return self._api("GET", "/account")

    def build_webhook_secret(self) -> HttpRequest:
        """What webhooks of this account are signed with."""
        return self._api("GET", "/webhooks/default/secret")

    def build_upload(self, name: str, content: bytes, media_type: str) -> HttpRequest:
        """Upload a file for use as input; at most 100 MiB."""
        boundary = "imagen-7MA4YWxkTrZu0gW"
        while boundary.encode() in content:
            boundary += "-x"
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-_MAX_FILE_NAME:]
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="content"; filename="{safe}"\r\n'
            f"Content-Type: {media_type}\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        # An upload costs nothing and ends by itself: sending it twice wastes bytes, not money.
        return msgspec.structs.replace(
            self._api("POST", "/files", headers=headers, body=body), repeatable=True
        )

    def build_file(self, url: str, *, limit_bytes: int) -> HttpRequest:
        """Fetch an output. Only a file on the API's own host is asked for with the token."""
        own = origin(url) == origin(self.api_base)
        return HttpRequest(
            method="GET",
            url=url,
            bearer=self.token if own else None,
            response_seconds=self.read_seconds,
            repeatable=True,
            limit_bytes=limit_bytes,
        )

    def build_passage(self, call: Passage) -> HttpRequest:
        """What is passed on, as it is but for the token."""
        request = self._request(
            call.method,
            f"{self.api_base}/v1{call.path}",
            headers=call.headers,
            body=call.body if isinstance(call.body, bytes) else None,
        )
        return msgspec.structs.replace(request, repeatable=call.method in _ONLY_READS)

    # --- answers -----------------------------------------------------------------------------------------

    def parse_json(self, response: HttpResponse, *, subject: str) -> dict[str, Any]:
        """The JSON object of a good answer.

        Raises:
            BackendRejected, BackendBroken: the answer is a refusal.
            GarbledResponse: the answer is no JSON object.
        """
        if response.status >= 300:
            raise parse_refusal(response, subject=subject, token_env=self.token_env)
        try:
            value = msgspec.json.decode(response.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise GarbledResponse(
                f"{subject}: Replicate answered {response.status} with something that is no JSON object"
            )
        return value

    def parse_webhook_secret(self, response: HttpResponse, *, subject: str) -> Secret:
        """The secret `whsec_…`, with base64 after it.

        Raises:
            GarbledResponse: there is none in the answer.
        """
        key = self.parse_json(response, subject=subject).get("key")
        if not isinstance(key, str) or not _WEBHOOK_SECRET.fullmatch(key):
            raise GarbledResponse(f"{subject}: Replicate answered without one")
        return Secret(key)

    def parse_prediction(self, response: HttpResponse, *, subject: str) -> Sighting:
        """A prediction from the answer to a create, get or cancel."""
        return read_sighting(self.parse_json(response, subject=subject), subject=subject)

    def parse_page(self, response: HttpResponse, *, subject: str) -> Page:
        """One page of a list.

        Raises:
            InvalidResponse: it is none. Taken for an empty list it would hide what a lost answer has bought.
        """
        value = self.parse_json(response, subject=subject)
        results = value.get("results")
        if not isinstance(results, list):
            raise GarbledResponse(f"{subject}: Replicate answered with something that is no list")
        following = value.get("next")
        return Page(
            tuple(item for item in results if isinstance(item, dict) and isinstance(item.get("id"), str)),
            following if isinstance(following, str) and following else None,
        )

    def parse_glance(
        self, response: HttpResponse, *, subject: str, known: Mapping[str, Status | None]
    ) -> Glance:
        """One page of a list, of which little matters: the rest is skipped, not read.

        Args:
            response: the answer.
            subject: what was asked for.
            known: see `ports.Backend.look_many`.

        Raises:
            GarbledResponse: it is no page.
        """
        if response.status >= 300:
            raise parse_refusal(response, subject=subject, token_env=self.token_env)
        try:
            page = _PAGE.decode(response.body)
        except (ValueError, RecursionError) as error:
            raise GarbledResponse(f"{subject}: Replicate answered with something that is no list") from error
        shown: dict[str, datetime | None] = {}
        moved: dict[str, Sighting] = {}
        created: Any = None
        instants: list[datetime] = []
        for raw in page.results:
            try:
                listed = _LISTED.decode(raw)
            except (ValueError, RecursionError):
                continue
            created = listed.created_at
            if not instants and (first := read_time(created)) is not None:
                instants.append(first)
            if listed.id not in known:
                continue
            shown[listed.id] = read_time(created)
            if listed.stands_otherwise(known[listed.id]):
                # What cannot be read is looked at by itself.
                with suppress(GarbledResponse, ValueError, RecursionError):
                    moved[listed.id] = read_sighting(msgspec.json.decode(raw), subject=subject)
        if (final := read_time(created)) is not None:
            instants.append(final)
        return Glance(
            shown=shown,
            moved=moved,
            newest=max(instants, default=None),
            oldest=min(instants, default=None),
            last=not isinstance(page.next, str) or not page.next,
        )

    def parse_model(self, response: HttpResponse, *, subject: str) -> ModelFacts:
        """A model or a version: wherever the version and its schema stand in it."""
        value = self.parse_json(response, subject=subject)
        version = value.get("latest_version") if "latest_version" in value else value
        version = version if isinstance(version, dict) else {}
        version_id = version.get("id")
        schemas = _dig(version, "openapi_schema", "components", "schemas")
        output = schemas.get("Output")
        official = value.get("is_official")
        return ModelFacts(
            official=official if isinstance(official, bool) else None,
            version=version_id if isinstance(version_id, str) else None,
            input_schema=_input_schema(schemas),
            output_is_list=output.get("type") == "array"
            if isinstance(output, dict) and "type" in output
            else None,
        )

    def parse_release(self, response: HttpResponse, *, subject: str) -> ModelRef:
        """The model and version that a deployment runs now."""
        release = _dig(self.parse_json(response, subject=subject), "current_release")
        model, version = _text(release.get("model")), _text(release.get("version"))
        try:
            return ModelRef.parse(f"{model}:{version}")
        except InvalidModelRef as error:
            raise GarbledResponse(f"{subject}: Replicate told no release of the deployment") from error

    # --- the rest ----------------------------------------------------------------------------------------

    def _api(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        response_seconds: float | None = None,
    ) -> HttpRequest:
        url = f"{self.api_base}/v1{path}" + (f"?{urlencode(query)}" if query else "")
        return self._request(method, url, headers=headers, body=body, response_seconds=response_seconds)

    def _request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        response_seconds: float | None = None,
    ) -> HttpRequest:
        return HttpRequest(
            method=method,
            url=url,
            headers={"accept": "application/json", **(headers or {})},
            body=body,
            bearer=self.token,
            response_seconds=response_seconds or self.read_seconds,
            repeatable=method == "GET",
        )


def read_sighting(value: Mapping[str, Any], *, subject: str) -> Sighting:
    """A prediction object as a sighting.

    Output files may be there while the status still says `processing` (they are told before the bookkeeping ends);
    such a prediction counts as succeeded once it has all the outputs that were asked for.

    Raises:
        GarbledResponse: it has no id.
    """
    upstream_id = value.get("id")
    if not isinstance(upstream_id, str) or not upstream_id:
        raise GarbledResponse(f"{subject}: Replicate answered without a prediction id")
    model_input = value.get("input") if isinstance(value.get("input"), dict) else None
    output = read_output(value.get("output"))
    error = _text(value.get("error")) or None
    completed_at = read_time(value.get("completed_at"))
    metrics = _dig(value, "metrics")
    status = _status(value.get("status"), ended=completed_at is not None, failed=error is not None)
    if not status.terminal and _is_whole(value.get("output"), output, model_input):
        status = Status.SUCCEEDED
    return Sighting(
        upstream_id=upstream_id,
        status=status,
        input=model_input,
        output=output,
        answer=_answer(value.get("output"), output),
        model=_model(value.get("model")),
        version=_text(value.get("version")) or None,
        error=error,
        category=categorize_failure(error or "") if status is Status.FAILED else None,
        logs=_text(value.get("logs")),
        predict_seconds=_number(metrics, "predict_time"),
        image_count=_whole(metrics, "image_count"),
        created_at=read_time(value.get("created_at")),
        started_at=read_time(value.get("started_at")),
        completed_at=completed_at,
        data_removed=value.get("data_removed") is True,
    )


def _is_whole(raw: Any, output: tuple[str, ...], model_input: Mapping[str, Any] | None) -> bool:
    """Whether an output that is there before the end is all of it: one file, or as many as were asked for by number.

    A list without a number asked for may still grow.
    """
    if isinstance(raw, str):
        return bool(output)
    counted = any(key in (model_input or {}) for key in COUNT_KEYS)
    return counted and len(output) >= outputs_asked_for(model_input)


def read_output(value: Any) -> tuple[str, ...]:
    """The files of an output, in order: addresses anywhere in it, however it is nested; other text is no file."""
    files: list[str] = []
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            if is_file(part):
                files.append(part)
        elif isinstance(part, (dict, list)):
            left.extend(reversed(part.values() if isinstance(part, dict) else part))
    return tuple(files)


def _model(value: Any) -> str | None:
    """`owner/name` of a model; None for anything else."""
    if not isinstance(value, str) or "/" not in value:
        return None
    with suppress(InvalidModelRef):
        return ModelRef.parse(value).base
    return None


def _answer(raw: Any, files: tuple[str, ...]) -> Any:
    """An output as `Prediction.answer` has it."""
    if not raw or (isinstance(raw, list) and tuple(raw) == files):
        return None
    try:
        told = map_texts(raw, without_file)
        return told if len(msgspec.json.encode(told)) <= MAX_ANSWER_BYTES else None
    except RecursionError:
        return None


def read_time(value: Any) -> datetime | None:
    """An ISO 8601 instant as aware UTC; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        instant = datetime.fromisoformat(value)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _status(value: Any, *, ended: bool, failed: bool) -> Status:
    """Replicate's six statuses; a word that we do not know yet is judged by whether the run has ended."""
    try:
        status = Status(value)
    except ValueError:
        status = Status.UNKNOWN
    if status not in {Status.QUEUED, Status.UNKNOWN}:
        return status
    if ended:
        return Status.FAILED if failed else Status.SUCCEEDED
    return Status.STARTING


def outputs_asked_for(model_input: Mapping[str, Any] | None) -> int:
    """How many files a run with this input shall give."""
    values = model_input or {}
    wanted = next((values[key] for key in COUNT_KEYS if key in values), 1)
    return wanted if isinstance(wanted, int) and wanted > 0 else 1


def _input_schema(schemas: Mapping[str, Any]) -> dict[str, Any] | None:
    found = schemas.get("Input")
    if not isinstance(found, dict) or not isinstance(found.get("properties"), dict):
        return None
    return {
        **found,
        "$defs": {name: part for name, part in schemas.items() if name not in {"Input", "Output"}},
    }


def _dig(value: Any, *names: str) -> dict[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _MOST_MEASURED:
        return None
    return float(value)


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    value = _number(values, name)
    return None if value is None else int(value)
