"""Which provider the local gateway asks, and with which models and prices.

Written as the gateway's configuration file, which names the variable that holds the key; the key
itself is only ever passed on in the gateway's own environment.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fathom_client.errors import FathomError
from fathom_client.loopback import is_loopback

_OPENAI = "https://api.openai.com/v1"
_ROOT_MODEL, _SUB_MODEL = "gpt-5", "gpt-5-mini"
_OPENAI_HOSTS = (".openai.com", ".openai.azure.com")
_REASONING_MODEL = re.compile(r"(gpt-5|o\d)(?![a-z0-9])")
_REASONING_SETTINGS = "output_tokens_max = 16384\n"
"""Reasoning takes output tokens too, and the gateway's own default would cut it short."""
_NO_TEMPERATURE = 'omit_parameters = ["temperature"]\n'
"""OpenAI refuses a temperature for models that reason."""
_KEY_VARIABLE = "OPENAI_API_KEY"
_SCRIPTED_KEY_VARIABLE = "FATHOM_SCRIPTED_MODEL_KEY"
_SCRIPTED_PRICES = {"scripted-root": (1.25, 10.0), "scripted-sub": (0.05, 0.40)}
_PRICE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*$")


class NoKeyError(FathomError):
    """There is no provider to ask: no key is set."""


class ModelSettingsError(FathomError):
    """A variable that names models, prices or the provider is wrong."""


@dataclass(frozen=True)
class _Model:
    """One model at the provider, with its lines in the gateway's file but for its name."""

    id: str
    price: str
    settings: str = ""


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
    base_url = _base_url(environ)
    root_id, sub_id = _models(base_url, environ)
    is_shared = root_id == sub_id and not environ.get("FATHOM_SUB_PRICE")
    root = _model(root_id, base_url, "FATHOM_ROOT_PRICE", environ)
    sub = root if is_shared else _model(sub_id, base_url, "FATHOM_SUB_PRICE", environ)
    names = root_id if root_id == sub_id else f"{root_id} and {sub_id}"
    return ModelSettings(
        _config(base_url, _KEY_VARIABLE, root, sub),
        {_KEY_VARIABLE: environ[_KEY_VARIABLE]},
        f"{names} ({urlsplit(base_url).hostname})",
    )


def scripted_settings(address: str) -> ModelSettings:
    """Return the settings for the scripted model server at `host:port`."""
    root, sub = (
        _Model(name, _price_table(*price), "structured_output = true\n")
        for name, price in _SCRIPTED_PRICES.items()
    )
    text = _config(f"http://{address}/v1", _SCRIPTED_KEY_VARIABLE, root, sub)
    secrets = {_SCRIPTED_KEY_VARIABLE: "none-needed"}
    return ModelSettings(text, secrets, "scripted-root and scripted-sub, no language models")


def _from_file(path: Path, environ: Mapping[str, str]) -> ModelSettings:
    try:
        text = path.read_text()
        providers = tomllib.loads(text).get("providers", {})
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelSettingsError(f"FATHOM_GATEWAY_CONFIG: {path}: {why}") from error
    named = {str(provider.get("api_key_env", "")) for provider in providers.values()}
    secrets = {name: environ[name] for name in named if name in environ}
    return ModelSettings(text, secrets, f"the models of {path}")


def _base_url(environ: Mapping[str, str]) -> str:
    base_url = environ.get("OPENAI_BASE_URL", "").strip().rstrip("/") or _OPENAI
    try:
        parts = urlsplit(base_url)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    # The value is not repeated: it may be a key that was put into the wrong variable.
    if not is_usable:
        raise ModelSettingsError(f"OPENAI_BASE_URL is no http or https URL, such as {_OPENAI}")
    if parts.username or parts.password or parts.query:
        raise ModelSettingsError(
            f"OPENAI_BASE_URL must hold no credential or query; the key belongs in {_KEY_VARIABLE}"
        )
    return base_url


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
        return 'price = "free"\n' if is_loopback(urlsplit(base_url).hostname or "") else ""
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


def _model(model_id: str, base_url: str, price_variable: str, environ: Mapping[str, str]) -> _Model:
    settings = ""
    if _REASONING_MODEL.match(model_id):
        settings = _REASONING_SETTINGS + (_NO_TEMPERATURE if _is_of_openai(base_url) else "")
    return _Model(model_id, _price(price_variable, environ, base_url), settings)


def _is_of_openai(base_url: str) -> bool:
    return (urlsplit(base_url).hostname or "").endswith(_OPENAI_HOSTS)


def _config(base_url: str, key_variable: str, root: _Model, sub: _Model) -> str:
    """Return the gateway's file. Errors and steps name provider and models as they are in it."""
    # Not the URL's whole authority: it may hold a password.
    parts = urlsplit(base_url)
    address = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    provider = "openai" if _is_of_openai(base_url) else _name(address)
    root_name, sub_name = _name(root.id), _name(sub.id)
    if sub_name == root_name and sub != root:
        sub_name = f"{sub_name[:60]}-sub"
    text = (
        f'[providers."{provider}"]\nbase_url = {_quoted(base_url)}\n'
        f'api_key_env = "{key_variable}"\n' + _deployment(root_name, provider, root)
    )
    if sub_name != root_name:
        text += _deployment(sub_name, provider, sub)
    return text + f'\n[tiers]\nroot = ["{root_name}"]\nsub = ["{sub_name}"]\n'


def _deployment(name: str, provider: str, model: _Model) -> str:
    return (
        f'\n[[deployments]]\nname = "{name}"\nprovider = "{provider}"\n'
        f"model = {_quoted(model.id)}\n{model.settings}{model.price}"
    )


def _name(text: str) -> str:
    """Return a text as a name that the gateway's file may hold."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", text).lstrip("._:-")[:64] or "model"


def _quoted(text: str) -> str:
    if re.search(r'["\\\x00-\x1f\x7f]', text):
        raise ModelSettingsError(f"{text!r} has a character that no address or model name has")
    return f'"{text}"'
