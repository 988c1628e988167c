"""What is shown to a server, and whom a caller trusts."""

from __future__ import annotations

from pathlib import Path

import pytest
from fathom_client.access import Access, ApiKeyError, TlsFilesError
from fathom_client.command.invocation import access_of

from tests.support.certificates import Authority


def test_a_key_is_sent_as_a_bearer_credential() -> None:
    assert Access(api_key="k-1").metadata() == (("authorization", "Bearer k-1"),)
    assert Access().metadata() == ()


@pytest.mark.parametrize("key", ["a\nb", "a b", "schlüssel", "a\x00"])
def test_a_key_that_cannot_be_sent_is_refused_before_any_call_and_not_shown(key: str) -> None:
    """gRPC would abort the call with an error that nobody can tell from a defect."""
    with pytest.raises(ApiKeyError) as refused:
        Access(api_key=key).metadata()

    assert key not in str(refused.value)


def test_options_go_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("typed\n")
    environ = {
        "FATHOM_API_KEY": "inherited",
        "FATHOM_TLS_CA_FILE": "ca.pem",
        "FATHOM_TLS_CERTIFICATE_FILE": "own.pem",
        "FATHOM_TLS_KEY_FILE": "own.key",
    }

    inherited = access_of({}, environ)
    typed = access_of(
        {"--api-key-file": str(tmp_path / "key"), "--tls-ca-file": "typed.pem"}, environ
    )

    files = {"tls_certificate_file": Path("own.pem"), "tls_key_file": Path("own.key")}
    assert inherited == Access(api_key="inherited", tls_ca_file=Path("ca.pem"), **files)
    assert typed == Access(api_key="typed", tls_ca_file=Path("typed.pem"), **files)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """gRPC itself would fail with each call, and not say why."""
    authority = Authority(tmp_path)
    one, other = authority.pair("one"), authority.pair("other")
    wrong = {
        "one.key: holds no certificate": Access(tls_ca_file=one.key),
        "none.pem: cannot be read": Access(tls_ca_file=tmp_path / "none.pem"),
        "one.pem: is of no use without the private key": Access(
            tls_certificate_file=one.certificate
        ),
        "one.key: is of no use without the certificate": Access(tls_key_file=one.key),
        "other.key: are no certificate and its": Access(
            tls_certificate_file=one.certificate, tls_key_file=other.key
        ),
    }
    for message, access in wrong.items():
        with pytest.raises(TlsFilesError, match=message):
            access.channel_credentials()
