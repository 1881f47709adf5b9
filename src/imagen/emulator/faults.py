"""What can go wrong on request: one small struct for each fault.

A fault says which requests it meets (`operation`, `method`, `path`, `model`, `prompt`, all optional), how
many it lets pass first (`skip`) and how many it then strikes (`times`, null for all). As JSON, for control's
`POST faults`, the struct's name in snake case is its `name`:

    {"name": "drop_after", "operation": "predictions.create", "times": 2}

A prompt can carry a fault as well: `a red fox [fault:status status=503]`, `[fault:fail preset=E005]`. It
strikes that prompt's create calls (or with `operation=delivery` its downloads, and so on): a fault of the
wire once for each account, a fault of the prediction always, unless `times` says otherwise.

A fault of webhooks strikes what the emulator itself sends; each attempt is a request of its own, called `webhook`, or
`completed.webhook` and so on.

Where a fault strikes is its `slot`. A request meets at most one fault of each slot, the one posted first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec

from imagen.decoding import convert
from imagen.emulator.course import Course
from imagen.emulator.fault import CREATE, DELIVERY, TRAIN, WEBHOOK_OPERATIONS, Fault, Slot
from imagen.emulator.journal import same_operation

Seconds = Annotated[float, msgspec.Meta(ge=0)]
HttpStatus = Annotated[int, msgspec.Meta(ge=200, le=599)]

FAILURES = {
    "nsfw": "NSFW content detected. Try running it again, or try a different prompt.",
    "E005": "The input or output was flagged as sensitive. Please try again with different inputs. (E005)",
    "interrupted": "Prediction interrupted; please retry (code: PA)",
}
"""Error texts of failed runs as reported in public issues, 2025-2026."""


class Status(Fault, frozen=True):
    """Answers with a status and does nothing: a proxy's 502, a 500 before anything was bought.

    `status` 200-599; `body` JSON, or text sent as HTML; `headers` are added. Without a body it is a problem
    document of that status; a 404 is then word for word what the API says of something that is not there.
    """

    status: HttpStatus = 500
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it


class StatusAfter(Fault, frozen=True):
    """Does the thing, a purchase for example, and then answers with a status as `Status` does."""

    slot: ClassVar[Slot] = Slot.AFTER

    status: HttpStatus = 500
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it


class Drop(Fault, frozen=True):
    """Closes the connection before doing anything: nothing was bought."""


class DropAfter(Fault, frozen=True):
    """Does the thing and then closes the connection without an answer: bought, and nobody knows the id."""

    slot: ClassVar[Slot] = Slot.AFTER


class Cut(Fault, frozen=True):
    """Does the thing, announces the whole answer (content-length), sends half of it and closes."""

    slot: ClassVar[Slot] = Slot.AFTER


class Delay(Fault, frozen=True):
    """Waits for `seconds` (on the virtual clock) before doing anything."""

    slot: ClassVar[Slot] = Slot.DELAY

    seconds: Seconds = 1.0


class RateLimit(Fault, frozen=True):
    """Answers 429 though no limit was reached; `retry_after` in seconds.

    `where` says in which place the seconds stand: `body` (JSON `retry_after` and the text, as recorded),
    `header` (`Retry-After` only), `text` (`~Ns` in `detail` only), `none` (nowhere).
    """

    retry_after: Annotated[int, msgspec.Meta(ge=0)] = 1
    where: Literal["body", "header", "text", "none"] = "body"


class PaymentRequired(Fault, frozen=True):
    """Answers 402: the account's credit is used up."""


class Garbage(Fault, frozen=True):
    """Answers 200 with something that is not JSON; `kind` is `html`, `text`, `empty` or `half_json`."""

    kind: Literal["html", "text", "empty", "half_json"] = "html"


class GarbageAfter(Garbage, frozen=True):
    """Does the thing and then answers as `Garbage` does: bought, and the answer cannot be read."""

    slot: ClassVar[Slot] = Slot.AFTER


class Redirect(Fault, frozen=True):
    """Redirects to `location`, with `status` 301, 302, 303, 307 or 308."""

    location: str
    status: Literal[301, 302, 303, 307, 308] = 302


class Huge(Fault, frozen=True):
    """Answers 200 with a body of `size` bytes, streamed without a content-length; default 64 MiB."""

    size: Annotated[int, msgspec.Meta(ge=0)] = 64 * 1024 * 1024


class CourseFault(Fault, frozen=True):
    """A fault of the prediction itself: matched when it is created, and then it stays with it.

    With `operation="trainings.create"` it strikes trainings instead, as far as they can suffer it.
    """

    slot: ClassVar[Slot] = Slot.COURSE
    strikes_downloads: ClassVar[bool] = False
    """Whether it can strike single downloads instead, with `operation="delivery"`."""

    def _can_strike(self, wanted: str) -> bool:
        return (
            same_operation(wanted, CREATE)
            or wanted == TRAIN
            or (self.strikes_downloads and wanted == DELIVERY)
        )


class Fail(CourseFault, frozen=True):
    """The run fails. `preset` is `nsfw`, `E005` or `interrupted`; `error` is a text of your own instead."""

    preset: Literal["nsfw", "E005", "interrupted"] = "nsfw"
    error: str | None = None

    def bend(self, course: Course) -> Course:
        """An error makes it fail."""
        return replace(course, error=self.error or FAILURES[self.preset])


class EmptyOutput(CourseFault, frozen=True):
    """It succeeds with the output `[]`."""

    def bend(self, course: Course) -> Course:
        """No files."""
        return replace(course, output="empty")


class NullOutput(CourseFault, frozen=True):
    """It succeeds with the output `null`."""

    def bend(self, course: Course) -> Course:
        """No output."""
        return replace(course, output="null")


class DataUriOutput(CourseFault, frozen=True):
    """Its output holds data URIs in place of links, as recorded in October 2024."""

    def bend(self, course: Course) -> Course:
        """Files within the answer."""
        return replace(course, output="data_uris")


class BrokenPicture(CourseFault, frozen=True):
    """Its files end in the middle, with a content-length that agrees: only decoding finds out.

    With `operation="delivery"` it strikes single downloads, and the next one is whole.
    """

    strikes_downloads: ClassVar[bool] = True

    def bend(self, course: Course) -> Course:
        """Half of each file."""
        return replace(course, pictures="truncated")


class NotAPicture(CourseFault, frozen=True):
    """Its files are HTML pages with status 200 and `text/html`.

    With `operation="delivery"` it strikes single downloads.
    """

    strikes_downloads: ClassVar[bool] = True

    def bend(self, course: Course) -> Course:
        """No picture at all."""
        return replace(course, pictures="html")


class EarlyOutput(CourseFault, frozen=True):
    """The output is there for `seconds` while it is still `processing`; a held create returns then."""

    seconds: Seconds = 1.0

    def bend(self, course: Course) -> Course:
        """Bookkeeping that takes time."""
        return replace(course, settle_seconds=self.seconds)


class HoldReturnsStarting(CourseFault, frozen=True):
    """A create call with `Prefer: wait` comes back at once, with `status` `starting` or `processing`."""

    status: Literal["starting", "processing"] = "starting"

    def bend(self, course: Course) -> Course:
        """A hold that does not hold."""
        return replace(course, hold_ends_in=self.status)


class Slow(CourseFault, frozen=True):
    """It waits for `queue_seconds` and runs for `run_seconds` (on the virtual clock)."""

    run_seconds: Seconds = 30.0
    queue_seconds: Seconds = 0.0

    def bend(self, course: Course) -> Course:
        """Other times."""
        return replace(course, run_seconds=self.run_seconds, queue_seconds=self.queue_seconds)


class NeverStarts(CourseFault, frozen=True):
    """It stays `starting` until it is canceled or its deadline comes."""

    def bend(self, course: Course) -> Course:
        """A queue without end."""
        return replace(course, queue_seconds=float("inf"))


class Loose(CourseFault, frozen=True):
    """Its JSON lacks keys that the published document requires, as most recorded bodies do.

    `keys` are left out; an output that is there stays.
    """

    keys: tuple[str, ...] = ("output", "urls.web", "data_removed", "metrics")

    def bend(self, course: Course) -> Course:
        """Fewer keys."""
        return replace(course, left_out=course.left_out | frozenset(self.keys))


class HiddenFromList(CourseFault, frozen=True):
    """`GET /predictions` does not show it for `seconds` after its creation."""

    seconds: Seconds = 5.0

    def bend(self, course: Course) -> Course:
        """A list that lags behind."""
        return replace(course, hidden_seconds=self.seconds)


class WebhookFault(Fault, frozen=True):
    """A fault of what is sent to the address that a create call named."""

    slot: ClassVar[Slot] = Slot.WEBHOOK

    def _can_strike(self, wanted: str) -> bool:
        return any(same_operation(operation, wanted) for operation in WEBHOOK_OPERATIONS)


class WebhookDrop(WebhookFault, frozen=True):
    """The webhook is lost on its way, and the sender does not know: it is not sent again."""


class WebhookDuplicate(WebhookFault, frozen=True):
    """The webhook arrives `copies` times more, with the same id and signature."""

    copies: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class WebhookDelay(WebhookFault, frozen=True):
    """The webhook is sent `seconds` later (on the virtual clock), and those after it do not wait for it."""

    seconds: Seconds = 5.0


class WebhookReorder(WebhookFault, frozen=True):
    """The webhook is sent after the next one of its prediction; `completed`, after which none comes, as always."""


class WebhookForge(WebhookFault, frozen=True):
    """What arrives is not what was sent.

    `kind` says how: `secret` (signed with another one), `body` (changed after it was signed), `unsigned` (without the
    three headers), `stale` (signed ten minutes ago), `garbage` (headers that mean nothing).
    """

    kind: Literal["secret", "body", "unsigned", "stale", "garbage"] = "secret"


AnyFault = (
    Status
    | StatusAfter
    | Drop
    | DropAfter
    | Cut
    | Delay
    | RateLimit
    | PaymentRequired
    | Garbage
    | GarbageAfter
    | Redirect
    | Huge
    | Fail
    | EmptyOutput
    | NullOutput
    | DataUriOutput
    | BrokenPicture
    | NotAPicture
    | EarlyOutput
    | HoldReturnsStarting
    | Slow
    | NeverStarts
    | Loose
    | HiddenFromList
    | WebhookDrop
    | WebhookDuplicate
    | WebhookDelay
    | WebhookReorder
    | WebhookForge
)
"""Every fault there is; adding one is adding its struct and its name here."""


def fault_from_json(value: Any, *, lax: bool = False) -> Fault:
    """Make a fault of its JSON; `lax` also reads numbers and booleans out of strings.

    Raises:
        ValueError: no such fault, no such attribute, or a value that the attribute cannot have.
    """
    fault: Fault = convert(value, AnyFault, strict=not lax)
    return fault


def fault_names() -> tuple[str, ...]:
    """The names of all faults, in the order of this module."""
    return tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyFault))
