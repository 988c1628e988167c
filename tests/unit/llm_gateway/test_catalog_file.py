"""The configuration file: what is read, and how each mistake is told."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest

from common.config import ConfigError, Secret
from llm_gateway.catalog import Catalog
from llm_gateway.catalog_file import load_catalog
from llm_gateway.errors import ModelNotOfferedError
from llm_gateway.prices import FREE, Price, Rates

ROOT = Path(__file__).resolve().parents[3]
NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
GOOD = """
[providers.one]
base_url = "https://one.example/v1/"
api_key_env = "ONE_KEY"
timeout_s = 12.5
headers = { x-team = "search" }

[providers.local]
base_url = "http://127.0.0.1:8000/v1"

[[deployments]]
name = "big"
provider = "one"
model = "gpt-5"
context_tokens_max = 1000
output_tokens_max = 100
concurrency_max = 7
omit_parameters = ["temperature"]
structured_output = true
price = { input_usd_per_million = 1.25, output_usd_per_million = 10, \
cached_input_usd_per_million = 0.125 }

[[deployments]]
name = "little:8b"
provider = "local"
model = "acme/little"
price = "free"

[tiers]
root = ["big", "little:8b"]
sub = ["little:8b"]
"""


def load(text: str, folder: Path, **environ: str) -> Catalog:
    path = folder / "gateway.toml"
    path.write_text(text)
    return load_catalog(path, {"ONE_KEY": "sk-1"} | environ, NOW)


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    catalog = load(GOOD, tmp_path)

    big, little = catalog.deployments.values()
    assert big.provider.base_url == "https://one.example/v1"
    assert big.provider.api_key == Secret("sk-1")
    assert (big.provider.timeout_s, big.provider.headers) == (12.5, {"x-team": "search"})
    assert (big.model, big.context_tokens_max, big.output_tokens_max) == ("gpt-5", 1000, 100)
    assert (big.concurrency_max, big.omit_parameters) == (7, frozenset({"temperature"}))
    assert (big.structured_output, little.structured_output) == (True, False)
    assert big.price == Price(
        (Rates(input=1_250_000_000, output=10_000_000_000, cached_input=125_000_000),)
    )
    assert (little.provider.api_key, little.price) == (None, FREE)
    assert catalog.tiers == {"root": (("big",), ("little:8b",)), "sub": (("little:8b",),)}


def test_cached_input_costs_what_input_costs_unless_said(tmp_path: Path) -> None:
    text = re.sub(r",\s*cached_input_usd_per_million = 0.125", "", GOOD)

    assert load(text, tmp_path).deployments["big"].price.bands[0].cached_input == 1_250_000_000


def test_a_price_that_is_not_given_comes_from_the_table(tmp_path: Path) -> None:
    text = re.sub(r"price = \{[^}]*\}", "", GOOD, count=1)

    assert load(text, tmp_path).deployments["big"].price.bands[0].output == 10_000_000_000


def test_the_window_of_the_table_fills_in_for_a_missing_one(tmp_path: Path) -> None:
    text = re.sub(r"price = \{[^}]*\}", "", GOOD, count=1).replace("context_tokens_max = 1000", "")

    assert load(text, tmp_path).deployments["big"].context_tokens_max == 400_000


def test_a_key_is_read_from_a_file(tmp_path: Path) -> None:
    """How Kubernetes mounts secrets."""
    (tmp_path / "key").write_text("sk-file\n")
    text = replaced('api_key_env = "ONE_KEY"', f'api_key_file = "{tmp_path / "key"}"')

    assert load(text, tmp_path).deployments["big"].provider.api_key == Secret("sk-file")


@pytest.mark.parametrize(
    ("base_url", "field"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://openai.com.example/v1", "max_tokens"),
    ],
)
def test_openai_itself_gets_its_own_name_for_the_output_limit(
    tmp_path: Path, base_url: str, field: str
) -> None:
    text = replaced("https://one.example/v1/", base_url)

    assert load(text, tmp_path).deployments["big"].provider.output_limit_field == field


def test_deployments_of_one_step_share_the_calls_by_weight(tmp_path: Path) -> None:
    text = replaced('root = ["big", "little:8b"]', 'root = [["big", "little:8b"]]')
    catalog = load(text.replace("concurrency_max = 7", "weight = 3"), tmp_path)

    assert catalog.steps("root") == (("big", "little:8b"),)
    assert [d.weight for d in catalog.pool("root")] == [3, 1]
    assert catalog.tiers_of("big") == ("root",)


ROUTING = """
[routing]
tiers_by_depth = ["root", "sub", "sub", "root"]
larger_window_tier = "root"
downgrade = { root = "sub" }
downgrade_share = 0.5
hedge_share = 0.05
"""


def test_who_stands_in_for_whom_is_read(tmp_path: Path) -> None:
    routing = load(GOOD + ROUTING, tmp_path).routing

    assert [routing.tier_at(depth) for depth in (0, 1, 3, 99)] == ["root", "sub", "root", "root"]
    assert (routing.larger_window_tier, routing.downgrade) == ("root", {"root": "sub"})
    assert (routing.downgrade_share, routing.hedge_share) == (0.5, 0.05)


def test_without_rules_the_root_is_asked_first_and_sub_below(tmp_path: Path) -> None:
    routing = load(GOOD, tmp_path).routing

    assert [routing.tier_at(depth) for depth in (0, 1, 2)] == ["root", "sub", "sub"]
    assert (routing.larger_window_tier, routing.downgrade, routing.hedge_share) == ("", {}, 0.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["root", "sub", "sub", "root"]', "[]", "tiers_by_depth: must be a list of texts, at"),
        ('["root", "sub", "sub", "root"]', '["boss"]', "tiers_by_depth: 'boss' is not one of root"),
        ('tier = "root"', 'tier = "long"', "larger_window_tier: 'long' is not one of root, sub"),
        ('{ root = "sub" }', '{ root = "x" }', "downgrade: 'x' is not one of root, sub"),
        ('{ root = "sub" }', '{ x = "sub" }', "downgrade: 'x' is not one of root, sub"),
        ("0.5", "1.1", "downgrade_share: must be a share from 0 to 1"),
        ("0.05", "-0.1", "hedge_share: must be a share from 0 to 1"),
        ("hedge_share", "hedges", "hedges: there is no such key"),
    ],
)
def test_a_mistake_about_who_stands_in_is_told(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in ROUTING
    with pytest.raises(ConfigError) as caught:
        load(GOOD + ROUTING.replace(old, new, 1), tmp_path)

    assert f"routing: {message}" in str(caught.value)


def test_files_of_secrets_are_named_within_their_folder(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    text = replaced('api_key_env = "ONE_KEY"', 'api_key_file = "key"')

    provider = load(f'secrets_dir = "{tmp_path}"\n{text}', tmp_path).deployments["big"].provider

    assert (provider.api_key, provider.api_key_file) == (Secret("sk-file"), tmp_path / "key")


def test_a_proxy_with_a_credential_comes_from_the_environment(tmp_path: Path) -> None:
    text = replaced("timeout_s = 12.5", 'proxy_env = "PROXY"')

    catalog = load(text, tmp_path, PROXY="http://me:secret@proxy:3128")

    assert catalog.deployments["big"].provider.proxy == Secret("http://me:secret@proxy:3128")
    assert "secret@" not in repr(catalog)


MISTAKES = {
    "not toml": ("[", "[[", "is not TOML"),
    "typo": ("timeout_s = 12.5", "timeout = 12.5", "timeout: there is no such key"),
    "unknown table": ("[tiers]", "[extra]\n[tiers]", "extra: there is no such key"),
    "no url": ('base_url = "https://one.example/v1/"', "", "base_url: is missing"),
    "bad url": ("https://one.example/v1/", "one.example", "must be an http or https URL"),
    "no host at all": ("https://one.example/v1/", "https://[::1", "must be an http or https URL"),
    "no such port": ("//one.example/", "//one.example:65536/", "must be an http or https URL"),
    "no such name": ("//one.example/", "//one..example/", "must be an http or https URL"),
    "space in url": ("//one.example/", "//one example/", "must be an http or https URL"),
    "fragment": ("/v1/", "/v1#x", "must hold no credential, query or fragment"),
    "line in header": ('"search"', '"a\\r\\nb"', "cannot stand in a header"),
    "header of words": ("x-team", '"x team"', "cannot stand in a header"),
    "proxy port": ("timeout_s = 12.5", 'proxy = "http://p:99999"', "proxy: must be an http URL"),
    "timeout for ever": ("timeout_s = 12.5", "timeout_s = 1e400", "above 0, at most 1000000000"),
    "timeout of nothing": ("timeout_s = 12.5", "timeout_s = 1e-400", "seconds above 0"),
    "number of pages": ("concurrency_max = 7", "weight = 1" + "0" * 5_000, "is not TOML"),
    "number beyond": ("concurrency_max = 7", "weight = 1" + "0" * 20, "at most 9007199254740992"),
    "tables in tables": ("[tiers]", f"x = {'[' * 9_999}\n[tiers]", "is not TOML"),
    "key in url": ("https://one", "https://user:pw@one", "must hold no credential"),
    "unset key": ("ONE_KEY", "TWO_KEY", "environment variable TWO_KEY is not set"),
    "two keys": (
        'api_key_env = "ONE_KEY"',
        'api_key_env = "ONE_KEY"\napi_key_file = "x"',
        "api_key_file: cannot stand beside api_key_env",
    ),
    "no key file": ('api_key_env = "ONE_KEY"', 'api_key_file = "/nowhere"', "cannot be read"),
    "literal key": ('api_key_env = "ONE_KEY"', 'api_key = "sk"', "api_key: there is no such key"),
    "key in header": ("x-team", "Authorization", "would put a key in this file"),
    "header type": ('"search"', "3", "headers: must be a table of texts"),
    "timeout 0": ("timeout_s = 12.5", "timeout_s = 0", "seconds above 0"),
    "timeout nan": ("timeout_s = 12.5", "timeout_s = nan", "must be a finite number"),
    "timeout text": ("timeout_s = 12.5", 'timeout_s = "9"', "must be a number"),
    "field": (
        "timeout_s = 12.5",
        'output_limit_field = "tokens"',
        "must be one of max_tokens, max_completion_tokens",
    ),
    "proxy": ("timeout_s = 12.5", 'proxy = "socks5://x"', "proxy: must be an http URL such as"),
    "proxy key": (
        "timeout_s = 12.5",
        'proxy = "http://me:pw@proxy:1"',
        "proxy: must hold no credential; use proxy_env",
    ),
    "unset proxy": ("timeout_s = 12.5", 'proxy_env = "PROXY"', "variable PROXY is not set"),
    "two proxies": (
        "timeout_s = 12.5",
        'proxy = "http://p:1"\nproxy_env = "PROXY"',
        "proxy_env: cannot stand beside proxy",
    ),
    "no authority": (
        "timeout_s = 12.5",
        'tls_ca_file = "/nowhere.pem"',
        "/nowhere.pem: cannot be read",
    ),
    "no certificate": (
        "timeout_s = 12.5",
        'tls_ca_file = "/etc/hostname"',
        "holds no certificate in PEM form",
    ),
    "key alone": (
        "timeout_s = 12.5",
        'tls_client_key_file = "/etc/hostname"',
        "tls_client_key_file: needs tls_client_cert_file beside it",
    ),
    "tls without tls": (
        'base_url = "http://127.0.0.1:8000/v1"',
        'base_url = "http://127.0.0.1:8000/v1"\ntls_verify = false',
        "base_url: must begin with https://",
    ),
    "name": ('name = "big"', 'name = "big one"', "is not a name"),
    "name twice": ('name = "little:8b"', 'name = "big"', "'big' is used twice"),
    "provider": ('provider = "one"', 'provider = "two"', "not one of the providers: one, local"),
    "model": ('model = "gpt-5"', 'model = ""', "model: must be a text in quotes, not empty"),
    "window": ("context_tokens_max = 1000", "context_tokens_max = 0", "at least 1"),
    "window bool": ("context_tokens_max = 1000", "context_tokens_max = true", "whole number"),
    "omit": ('["temperature"]', '["messages"]', "'messages' is not one of temperature, stop"),
    "price word": ('price = "free"', 'price = "cheap"', "price: must be a table"),
    "unknown price": ('price = "free"', "", "does not know 'acme/little'; give price ="),
    "price typo": ("input_usd_per_million", "input_usd", "input_usd_per_million: is missing"),
    "negative price": ("= 1.25", "= -1.25", "0 or more"),
    "no root": ("root = [", "boss = [", 'root: is missing; add root = ["name'),
    "empty tier": ('sub = ["little:8b"]', "sub = []", "sub: needs at least one deployment"),
    "tier of nothing": ('sub = ["little:8b"]', 'sub = ["x"]', "'x' is not one of big, little:8b"),
    "empty step": ('sub = ["little:8b"]', "sub = [[]]", "sub: needs at least one deployment"),
    "step in step": ('sub = ["little:8b"]', 'sub = [[["big"]]]', "['big'] is not one of big"),
    "step twice": ('sub = ["little:8b"]', 'sub = ["big", ["big"]]', "list of different texts"),
    "no tier list": ('sub = ["little:8b"]', 'sub = "big"', "must be a list of different texts"),
    "weight": ("concurrency_max = 7", "weight = 0", "weight: must be a whole number of at least 1"),
    "tier twice": ('["little:8b"]', '["big", "big"]', "must be a list of different texts"),
}


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_place_and_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(replaced(old, new), tmp_path)

    assert str(caught.value).startswith(str(tmp_path / "gateway.toml"))
    assert message in str(caught.value)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-1\nx-evil: 1", "sk-é"])
def test_a_key_that_cannot_be_sent_is_refused(tmp_path: Path, key: str) -> None:
    """Each call with it would fail, and say nothing of why."""
    (tmp_path / "key").write_text(key)
    in_file = replaced('api_key_env = "ONE_KEY"', f'api_key_file = "{tmp_path / "key"}"')

    for text in (GOOD, in_file):
        with pytest.raises(ConfigError) as caught:
            load(text, tmp_path, ONE_KEY=key)
        assert key not in str(caught.value)


@pytest.mark.parametrize("table", ["providers", "deployments", "tiers"])
def test_a_file_without_a_part_is_refused(tmp_path: Path, table: str) -> None:
    parts = {
        "providers": r"\[providers[^\[]*",
        "deployments": r"\[\[deployments.*(?=\[tiers)",
        "tiers": r"\[tiers.*",
    }

    with pytest.raises(ConfigError, match=table):
        load(re.sub(parts[table], "", GOOD, flags=re.DOTALL), tmp_path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalog(tmp_path / "none.toml", {}, NOW)


@pytest.mark.parametrize("wanted", ["cheap", "models/none", "big", "models/", ""])
def test_what_is_not_offered_has_no_pool(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ModelNotOfferedError):
        load(GOOD, tmp_path).pool(wanted)


def test_a_pool_is_in_the_order_of_the_file(tmp_path: Path) -> None:
    catalog = load(GOOD, tmp_path)

    assert [d.name for d in catalog.pool("root")] == ["big", "little:8b"]
    assert [d.name for d in catalog.pool("models/little:8b")] == ["little:8b"]
    assert catalog.tiers_of("little:8b") == ("root", "sub")


def test_the_example_file_is_good() -> None:
    catalog = load_catalog(
        ROOT / "deploy" / "gateway.example.toml", {"OPENAI_API_KEY": "sk-example"}, NOW
    )

    assert {"root", "sub"} <= catalog.tiers.keys()


def test_every_key_is_documented() -> None:
    """The page is what operators have; the code's table reader names the keys."""
    files = ("catalog_file", "provider_table", "routing_table")
    source = "".join((ROOT / "llm_gateway" / f"{file}.py").read_text() for file in files)
    keys = set(re.findall(r'(?:table|prices|top)\.(?!fail)\w+\(\s*"(\w+)"', source))
    keys |= set(re.findall(r'_file\(table, "(\w+)"', source))
    page = (ROOT / "docs" / "gateway-config.md").read_text()

    assert len(keys) > 30
    assert not [key for key in keys if f"`{key}`" not in page]
