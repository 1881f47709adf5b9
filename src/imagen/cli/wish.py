"""What was typed for one picture, or for many, as a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imagen.cli.options import read_image, read_options, wanted_format
from imagen.domain.money import read_dollars
from imagen.domain.request import GenerationRequest

if TYPE_CHECKING:
    from imagen.assembly import App


def read_request(
    app: App,
    *,
    prompt: str,
    model: str | None,
    input_image: str | None,
    opt: list[str] | None,
    max_cost: str | None = None,
    output: str | None = None,
    **said: Any,
) -> GenerationRequest:
    """A request by the options of a command.

    Args:
        app: knows the names of models.
        prompt: what the picture shall show.
        model: as it is called.
        input_image: a file or an address.
        opt: KEY=VALUE, each.
        max_cost: dollars.
        output: where the picture goes, which may tell its format.
        said: what is in a request as it is typed.

    Raises:
        InvalidInput, NotFound: naming what makes no sense.
    """
    return GenerationRequest(
        prompt=prompt,
        model=None if model is None else app.catalog.resolve(model),
        input_image=None if input_image is None else read_image(input_image),
        text_options=read_options(opt or []),
        max_cost=None if max_cost is None else read_dollars(max_cost, field="max_cost"),
        output_format=wanted_format(output),
        **said,
    )
