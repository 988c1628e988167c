"""Which provider the local gateway asks, and with which models and prices.

Written as the gateway's configuration file, which names the variable that holds the key; the key
itself is only ever passed on in the gateway's own environment.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fathom_client.errors import FathomError

_OPENAI = "https://api.openai.com/v1"
_ROOT_MODEL, _SUB_MODEL = "gpt-5", "gpt-5-mini"
_DEFAULT_MODEL_LIMITS = "output_tokens_max = 16384\n"
"""Both reason, which takes output tokens too: the gateway's own default would cut them short."""
_KEY_VARIABLE = "OPENAI_API_KEY"
_SCRIPTED_KEY_VARIABLE = "FATHOM_SCRIPTED_MODEL_KEY"
_TIERS = '\n[tiers]\nroot = ["root"]\nsub = ["sub"]\n'
_SCRIPTED_PRICES = {"scripted-root": (1.25, 10.0), "scripted-sub": (0.05, 0.40)}
_PRICE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*$")


class NoKeyError(FathomError):
    """There is no provider to ask: no key is set."""


class ModelSettingsError(FathomError):
    """A variable that names models, prices or the provider is wrong."""


@dataclass(frozen=True)
class ModelSettings:
    """What the local gateway is configured with."""

    config_toml: str
    """Its configuration file."""
    secrets: Mapping[str, str]
    """Variables with keys, for the gateway's environment alone."""
    describe: str
    """For people: which models, from where."""


def has_provider(environ: Mapping[str, str]) -> bool:
    """Tell whether the environment names a provider to ask."""
    return bool(environ.get(_KEY_VARIABLE) or environ.get("FATHOM_GATEWAY_CONFIG"))


def settings_of(environ: Mapping[str, str]) -> ModelSettings:
    """Return what the user's environment asks for.

    FATHOM_GATEWAY_CONFIG is taken as it is; else OPENAI_API_KEY, with OPENAI_BASE_URL,
    FATHOM_ROOT_MODEL, FATHOM_SUB_MODEL, FATHOM_ROOT_PRICE and FATHOM_SUB_PRICE where set.
    Raises NoKeyError or ModelSettingsError.
    """
    if path := environ.get("FATHOM_GATEWAY_CONFIG"):
        return _from_file(Path(path), environ)
    if not environ.get(_KEY_VARIABLE):
        raise NoKeyError(f"{_KEY_VARIABLE} is not set, so there is no model to ask")
    base_url = environ.get("OPENAI_BASE_URL") or _OPENAI
    root, sub = _models(base_url, environ)
    root_price = _price("FATHOM_ROOT_PRICE", environ, base_url)
    sub_price = _price("FATHOM_SUB_PRICE", environ, base_url)
    text = (
        f'[providers.default]\nbase_url = {_quoted(base_url)}\napi_key_env = "{_KEY_VARIABLE}"\n'
        + _deployment("root", root, root_price)
        + _deployment("sub", sub, sub_price)
        + _TIERS
    )
    host = urlsplit(base_url).hostname or base_url
    return ModelSettings(
        text, {_KEY_VARIABLE: environ[_KEY_VARIABLE]}, f"{root} and {sub} ({host})"
    )


def scripted_settings(address: str) -> ModelSettings:
    """Return the settings for the scripted model server at `host:port`."""
    deployments = "".join(
        _deployment(tier, f"scripted-{tier}", _price_table(*_SCRIPTED_PRICES[f"scripted-{tier}"]))
        for tier in ("root", "sub")
    )
    text = (
        f'[providers.default]\nbase_url = "http://{address}/v1"\n'
        f'api_key_env = "{_SCRIPTED_KEY_VARIABLE}"\n{deployments}{_TIERS}'
    )
    secrets = {_SCRIPTED_KEY_VARIABLE: "none-needed"}
    return ModelSettings(text, secrets, "scripted-root and scripted-sub, no language models")


def _from_file(path: Path, environ: Mapping[str, str]) -> ModelSettings:
    try:
        text = path.read_text()
        providers = tomllib.loads(text).get("providers", {})
    except (OSError, ValueError) as error:
        raise ModelSettingsError(f"FATHOM_GATEWAY_CONFIG: {path}: {error}") from error
    named = {str(provider.get("api_key_env", "")) for provider in providers.values()}
    secrets = {name: environ[name] for name in named if name in environ}
    return ModelSettings(text, secrets, f"the models of {path}")


def _models(base_url: str, environ: Mapping[str, str]) -> tuple[str, str]:
    root = environ.get("FATHOM_ROOT_MODEL") or (_ROOT_MODEL if base_url == _OPENAI else "")
    if not root:
        raise ModelSettingsError(
            f"OPENAI_BASE_URL is {base_url}: set FATHOM_ROOT_MODEL (and FATHOM_SUB_MODEL) to"
            " models that it offers"
        )
    is_default = not environ.get("FATHOM_ROOT_MODEL")
    return root, environ.get("FATHOM_SUB_MODEL") or (_SUB_MODEL if is_default else root)


def _price(variable: str, environ: Mapping[str, str], base_url: str) -> str:
    """Return the price line, empty where the gateway is to look the price up."""
    text = environ.get(variable, "").strip()
    if not text:
        return 'price = "free"\n' if _is_loopback(base_url) else ""
    if text == "free":
        return 'price = "free"\n'
    match = _PRICE.match(text)
    if match is None:
        raise ModelSettingsError(
            f"{variable}: {text!r} is neither `free` nor INPUT/OUTPUT in US dollars a million"
            " tokens, such as 1.25/10"
        )
    return _price_table(float(match[1]), float(match[2]))


def _price_table(input_usd: float, output_usd: float) -> str:
    return (
        f"price = {{ input_usd_per_million = {input_usd},"
        f" output_usd_per_million = {output_usd} }}\n"
    )


def _is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _deployment(name: str, model: str, price: str) -> str:
    limits = _DEFAULT_MODEL_LIMITS if model in (_ROOT_MODEL, _SUB_MODEL) else ""
    return (
        f'\n[[deployments]]\nname = "{name}"\nprovider = "default"\n'
        f"model = {_quoted(model)}\n{limits}{price}"
    )


def _quoted(text: str) -> str:
    if re.search(r'["\\\x00-\x1f\x7f]', text):
        raise ModelSettingsError(f"{text!r} has a character that no address or model name has")
    return f'"{text}"'
