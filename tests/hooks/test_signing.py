from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tusd_py.hooks.signing import parse_secrets, read_secrets, signature_headers

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
OTHER = "whsec_" + base64.b64encode(b"another secret of 32 bytes......").decode()
BODY = '{"a": "ä"}'.encode()


def test_request_is_verified_by_the_library_of_standard_webhooks() -> None:
    headers = signature_headers("an-id", int(time.time()), BODY, parse_secrets(f"{SECRET}\n\n{OTHER}\n"))
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(BODY, headers) == {"a": "ä"}


def test_signature_is_that_of_the_specification() -> None:
    secret = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signature_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', secret)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_request_without_secrets_has_id_and_time_only() -> None:
    assert signature_headers("a", 5, BODY, ()) == {"webhook-id": "a", "webhook-timestamp": "5"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no secret"),
        ("\n \n", "no secret"),
        ("secret", "line 1"),
        (f"{SECRET}\nwhsec_", "line 2"),
        ("whsec_c2hvcnQ=", "line 1"),
        ("whsec_not base64 at all!", "line 1"),
        ("whsec_" + "A" * 400, "line 1"),
    ],
)
def test_malformed_secrets_are_refused_without_telling_them(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        parse_secrets(text)
    assert SECRET not in str(raised.value)


def test_file_of_secrets_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    with pytest.raises(ValueError, match="secrets: No such file"):
        read_secrets(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="secrets: "):
        read_secrets(file)
    file.write_text(SECRET)
    assert len(read_secrets(file)) == 1
