"""The other side of `clients.py`: takes steps with the client of this interpreter, one a line, until its input ends.

    python steps.py with_replicate_1

Each line is `{"step": name, "to": {"url", "token"}, "given": {…}}`; each answer `{"done": …}`, or `{"error": {…}}` with
what the client raised.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

TOLD = ("status", "status_code", "title", "detail", "code", "param", "type", "request_id")
"""What an error of a client may know besides its text."""


def told(error: BaseException) -> dict[str, Any]:
    """An error of a client as JSON."""
    facts = {name: getattr(error, name, None) for name in TOLD}
    body = getattr(error, "body", None)
    return {
        "kind": type(error).__name__,
        "kinds": [each.__name__ for each in type(error).__mro__],
        "text": str(error),
        "body": body if isinstance(body, (dict, str)) else None,
        **{name: value for name, value in facts.items() if isinstance(value, (str, int))},
    }


def main() -> None:
    """Serve until standard input ends."""
    sys.path.insert(0, str(Path(__file__).parent))
    steps = importlib.import_module(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a client prints is no answer
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            done = {"done": getattr(steps, asked["step"])(asked["to"], **asked["given"])}
        except Exception as error:  # noqa: BLE001 - what the client raises is the result
            done = {"error": told(error)}
        print(json.dumps(done), file=answers, flush=True)


if __name__ == "__main__":
    main()
