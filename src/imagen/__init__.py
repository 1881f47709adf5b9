"""imagen: pictures through Replicate that are never paid for twice, never lost, and always priced.

    from imagen import Client

    with Client() as client:
        prediction = client.generate("a red fox in the snow", aspect_ratio="16:9")
        prediction.images[0].save("fox.png")
        print(prediction.cost, prediction.seed)

The names below are imported when they are first used, so that `import imagen` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen.client import AsyncClient, Client, Image, Prediction
    from imagen.domain.model_ref import ModelRef
    from imagen.domain.money import Usd
    from imagen.errors import ImagenError

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Image", "ImagenError", "ModelRef", "Prediction", "Usd", "__version__"]

_HOMES = {
    "AsyncClient": "imagen.client",
    "Client": "imagen.client",
    "Image": "imagen.client",
    "ImagenError": "imagen.errors",
    "ModelRef": "imagen.domain.model_ref",
    "Prediction": "imagen.client",
    "Usd": "imagen.domain.money",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
