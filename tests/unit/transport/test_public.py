"""Which addresses strangers may have us call: those of the public internet, however the others are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.errors import InvalidInput
from imagen.transport.public import LONGEST_URL, check_webhook_url, is_public

PRIVATE = [
    "0.0.0.1", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9",
    "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1",
    "192.168.1.1", "198.18.0.1", "198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
    "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:db8::1", "3fff::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::ffff:0:127.0.0.1",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1",
    "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "5f00::1", "4000::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "128.0.0.1", "172.15.255.255", "172.32.0.1", "192.169.0.1",
    "223.255.255.255", "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]  # fmt: skip
NO_ADDRESS = [
    "", "localhost", "a.example", "127.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1",
    "127.0.0.1 ", "127.0.0.1.", "1.1.1.1:80", "[::1]", "fe80::1%eth0", "2606:4700::1%1", "1.1.1", "1.1.1.256",
    "0", "\uff18.\uff18.\uff18.\uff18", "8.8.8.8\n", "8.8.8.08",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_everybodys_is_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_everybodys_is_public(address: str):
    assert is_public(address)


@pytest.mark.parametrize("text", NO_ADDRESS)
def test_what_is_not_plainly_an_address_is_not_public(text: str):
    assert not is_public(text)


@given(number=st.integers(0, 2**32 - 1))
def test_an_address_inside_another_is_judged_like_itself(number: int):
    plain = ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
    assert is_public(f"::ffff:{plain}") == is_public(f"64:ff9b::{plain}") == is_public(plain)


@given(ip=st.ip_addresses())
def test_nothing_that_the_library_calls_private_is_public(ip: object):
    if getattr(ip, "is_private") or getattr(ip, "is_multicast"):  # noqa: B009 - of both kinds
        mapped = getattr(ip, "ipv4_mapped", None)
        assert not is_public(str(ip)) or (mapped is not None and is_public(str(mapped)))


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example",
        "https://a.example/hook?x=1&y=%20",
        "HTTPS://A.Example:8443/hook",
        "https://sub.a-b.example./",
        "https://xn--bcher-kva.example/",
        "https://_dmarc.a.example/",
        "https://8.8.8.8/hook",
        "https://[2606:4700:4700::1111]:443/hook",
    ],
)
def test_a_public_https_address_is_taken_as_it_is(url: str):
    assert check_webhook_url(url, private=False) == url


BAD = {
    "": "must be made of",
    "a.example/hook": "https://",
    "//a.example/hook": "https://",
    "http://a.example/hook": "https://",
    "HTTP://a.example/hook": "https://",
    "ftp://a.example/": "https://",
    "file:///etc/passwd": "https://",
    "unix:///var/run/docker.sock": "https://",
    "javascript:alert(1)": "https://",
    "https://": "must name a host",
    "https:///hook": "must name a host",
    "https://:443/": "must name a host",
    "https://a..example/": "must name a host",
    "https://.example/": "must name a host",
    "https://-a.example/": "must name a host",
    "https://" + "a" * 64 + ".example/": "must name a host",
    "https://" + ".".join(["abc"] * 80) + "/": "must name a host",
    "https://a.example:0/": "must name a host",
    "https://a.example:70000/": "no address",
    "https://a.example:x/": "no address",
    "https://[::1/": "no address",
    "https://user@a.example/": "user name",
    "https://user:password@a.example/": "user name",
    "https://@a.example/": "user name",
    "https://a.example#@127.0.0.1/": "behind #",
    "https://a.example/ hook": "must be made of",
    "https://a.example\\@127.0.0.1/": "must be made of",
    "https://a.example/\r\nHost: b": "must be made of",
    "https://a.example/\0": "must be made of",
    "https://bücher.example/": "must be made of",
    "https://\uff11\uff12\uff17.0.0.1/": "must be made of",
    "https://a.example/" + "x" * LONGEST_URL: f"{LONGEST_URL} characters",
}


@pytest.mark.parametrize("url", BAD)
@pytest.mark.parametrize("private", [False, True])
def test_what_is_no_address_for_events_is_refused_by_field(url: str, private: bool):
    if private and url.lower().startswith("http://"):
        assert check_webhook_url(url, private=True) == url
        return
    with pytest.raises(InvalidInput) as raised:
        check_webhook_url(url, private=private)
    (problem,) = raised.value.problems
    assert problem.field == "webhook"
    assert BAD[url] in problem.message
    assert "password" not in problem.message or "no password" in problem.message


@pytest.mark.parametrize(
    "host",
    [
        *(f"[{one}]" if ":" in one else one for one in PRIVATE),
        "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.0.0.1.",
        "0", "a.example.1", "a.0x7f", "1.2.3.4.5", "localhost", "LOCALHOST", "localhost.", "a.localhost", "printer",
        "printer.local", "metadata.google.internal", "router.lan", "[fe80::1%25eth0]", "[::ffff:7f00:1]",
    ],
)  # fmt: skip
def test_what_is_not_public_however_it_is_written_is_refused(host: str):
    with pytest.raises(InvalidInput, match="webhook"):
        check_webhook_url(f"https://{host}/hook", private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/hook",
        "http://localhost/",
        "https://printer.local/",
        "https://[::1]:1/",
        "http://printer",
    ],
)
def test_private_ones_are_taken_where_the_settings_allow_them(url: str):
    assert check_webhook_url(url, private=True) == url


@given(url=st.text(max_size=100) | st.from_regex(r"https?://[0-9a-fx.:\[\]%@\\/?#]{0,40}", fullmatch=True))
def test_any_text_is_taken_or_refused_and_nothing_else_happens(url: str):
    fields: list[str] = []
    try:
        taken = check_webhook_url(url, private=False)
    except InvalidInput as error:
        taken, fields = "", [problem.field for problem in error.problems]
    assert taken.lower().startswith("https://") or fields == ["webhook"]
