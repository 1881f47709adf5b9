"""Which model: `owner/name`, `owner/name:version`, a version alone, or a deployment."""

from __future__ import annotations

import re

import msgspec

from imagen.errors import InvalidModelRef

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_REF = re.compile(
    rf"(?P<deployment>deployments/)?(?P<owner>{_PART})/(?P<name>{_PART})(?::(?P<version>[A-Za-z0-9._-]{{1,128}}))?"
)

_VERSION = re.compile(r"[0-9a-f]{64}")


class ModelRef(msgspec.Struct, frozen=True):
    """One model, perhaps pinned to a version, or one deployment of a model.

    A ref without a version means whatever its owner serves now: right for official models. Community models on
    Replicate run by version only. A version alone runs too: then `owner` and `name` are empty, and only the service
    knows which model it is of.
    """

    owner: str
    name: str
    version: str | None = None
    deployment: bool = False

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `owner/name`, `owner/name:version`, `deployments/owner/name`, or the 64 hex digits of a version.

        Raises:
            InvalidModelRef: the text has another form. Each part may hold letters, digits, `.`, `_` and `-`.
        """
        if _VERSION.fullmatch(text.strip()):
            return cls("", "", text.strip())
        match = _REF.fullmatch(text.strip())
        if match is None or ".." in text or (match["deployment"] and match["version"]):
            raise InvalidModelRef(
                f"model {text[:120]!r} must be of the form owner/name or owner/name:version",
                hint="For a deployment write deployments/owner/name. `imagen models` lists the known models.",
            )
        return cls(match["owner"], match["name"], match["version"], bool(match["deployment"]))

    @property
    def nameless(self) -> bool:
        """Whether it is a version alone."""
        return not self.owner

    @property
    def base(self) -> str:
        """`owner/name`, without version; of a version alone that."""
        return self.version or "" if self.nameless else f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        if self.nameless:
            return self.base
        text = f"deployments/{self.base}" if self.deployment else self.base
        return f"{text}:{self.version}" if self.version else text
