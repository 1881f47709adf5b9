"""Forms with parts, read to their end: one that broke off on its way is told as such."""

from __future__ import annotations

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser


class WholeForm(MultiPartParser):
    """A parser that wants the last boundary too; without it nobody knows what is missing."""

    _ended = False

    def on_end(self) -> None:
        """The last boundary was read."""
        self._ended = True

    async def parse(self) -> FormData:
        """Read all of it.

        Raises:
            MultiPartException: it is no such form, or ended before its last boundary.
        """
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:  # also that of the part that is not whole
                file.close()
            raise MultiPartException("it ended before its last boundary")
        return form
