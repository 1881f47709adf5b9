"""Stories of `imagen emulator`."""

from __future__ import annotations

import io
import json
import signal
import socket
import urllib.request
from typing import Any

from PIL import Image


def test_it_serves_the_other_commands_until_it_is_told_to_stop(cli: Any) -> None:
    started = cli.start("emulator", "--port", "0", "--run-seconds", "0.1", "--json")
    facts = json.loads(started.read_line())
    assert facts["practice"] is True
    cli.use(facts["url"], facts["token"])
    checked = cli("doctor", "--json", code=0).json
    service = next(finding for finding in checked["findings"] if finding["what"] == "service")
    assert service["detail"].startswith("answers emulated-")
    ended = started.stop(signal.SIGTERM)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "", "")


def test_in_a_terminal_it_tells_how_it_is_used_and_ctrl_c_is_its_usual_end(cli: Any) -> None:
    started = cli.start("emulator", "--port", "0")
    lines = [started.read_line() for _ in range(4)]
    assert "for practice" in lines[0]
    url = lines[0].split(" listens on ")[1].split(",")[0]
    assert f"export IMAGEN_REPLICATE__API_BASE={url} REPLICATE_API_TOKEN=r8_practice" in lines[3]
    ended = started.stop(signal.SIGINT)
    assert ended.code == 0, ended
    assert "stopped" in ended.stderr


def test_a_taken_port_is_told_with_what_to_do(cli: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("emulator", "--port", str(port), code=2)
    assert done.stderr == (
        f"imagen: port {port} of 127.0.0.1 is taken: something listens there already. `--port 0` takes a free one.\n"
    )


def test_it_listens_to_nobody_else(cli: Any) -> None:
    done = cli("emulator", "--host", "0.0.0.0", "--port", "0", code=2)  # noqa: S104 - it is refused
    assert "127.0.0.1" in done.stderr
    assert "--allow-non-loopback" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_listens_to_others_where_that_is_meant_and_says_how_it_is_reached(cli: Any) -> None:
    started = cli.start(
        *("emulator", "--host", "0.0.0.0", "--port", "0", "--allow-non-loopback", "--json"),  # noqa: S104
        *("--public-url", "http://replicate:5055", "--public-delivery-url", "http://replicate:5056"),
    )
    facts = json.loads(started.read_line())
    assert (facts["url"], facts["delivery_url"]) == ("http://replicate:5055", "http://replicate:5056")
    assert started.stop(signal.SIGTERM).code == 0


def test_its_pictures_are_as_large_as_asked_and_inside_held_answers(cli: Any) -> None:
    started = cli.start(
        "emulator", "--port", "0", "--run-seconds", "0", "--data-uris", "--picture-kib", "512", "--json"
    )
    facts = json.loads(started.read_line())
    body = {"version": "black-forest-labs/flux-schnell", "input": {"prompt": "x", "output_format": "png"}}
    headers = {"Authorization": "Bearer r8_x", "Content-Type": "application/json", "Prefer": "wait"}
    request = urllib.request.Request(
        f"{facts['url']}/v1/predictions", json.dumps(body).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        (uri,) = json.load(answer)["output"]
    with urllib.request.urlopen(uri) as picture:
        content = picture.read()
    assert abs(len(content) - 512 * 1024) < 1024
    Image.open(io.BytesIO(content)).verify()
    assert started.stop(signal.SIGTERM).code == 0
