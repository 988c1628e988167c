"""Each local service gets what it needs of the user's environment, and no more."""

from __future__ import annotations

import datetime as dt
import socket
import tomllib
from pathlib import Path

import pytest
from fathom_client.command.up import exposure
from fathom_client.home import Home, HomeInUseError, Running, home_of
from fathom_client.local_stack import (
    ListenAddressError,
    check_listen_address,
    environment_of,
    has_way_back,
    required_jail,
)
from fathom_client.model_settings import (
    ModelSettingsError,
    NoKeyError,
    scripted_settings,
    settings_of,
)

from llm_gateway.catalog_file import load_catalog

USER = {
    "PATH": "/bin",
    "HOME": "/home/u",
    "OPENAI_API_KEY": "sk-secret",
    "AWS_SECRET_ACCESS_KEY": "also-secret",
    "HTTPS_PROXY": "http://user:password@proxy",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector",
    "FATHOM_GATEWAY_RETRIES_MAX": "2",
    "FATHOM_SANDBOX_WORKERS": "1",
    "FATHOM_ORCHESTRATOR_RUNS_MAX": "3",
}


@pytest.mark.parametrize("service", ["gateway", "sandbox", "orchestrator"])
def test_a_service_gets_no_key_that_it_is_not_given(service: str) -> None:
    """Untrusted code runs beside the sandbox service; the key must not be near it."""
    environment = environment_of(service, USER, {})

    assert "secret" not in str(environment)


def test_only_the_gateway_reaches_the_network() -> None:
    """The proxy's address may hold a password."""
    assert "HTTPS_PROXY" in environment_of("gateway", USER, {})
    assert "password" not in str(environment_of("sandbox", USER, {}))
    assert "password" not in str(environment_of("orchestrator", USER, {}))


def test_a_service_gets_its_own_settings_alone() -> None:
    """A setting of another service would be one that it does not know, an error."""
    names = set(environment_of("sandbox", USER, {}))

    assert names == {"PATH", "HOME", "OTEL_EXPORTER_OTLP_ENDPOINT", "FATHOM_SANDBOX_WORKERS"}


def test_what_the_stack_sets_wins_over_the_user() -> None:
    environment = environment_of("gateway", USER, {"FATHOM_GATEWAY_RETRIES_MAX": "5"})

    assert environment["FATHOM_GATEWAY_RETRIES_MAX"] == "5"


@pytest.mark.parametrize(("said", "told"), [(None, "false"), ("true", "true")])
def test_the_sandbox_starts_without_a_wall_unless_the_user_objects(
    said: str | None, told: str
) -> None:
    """A developer's machine may lack one, and runs code that was asked for by its owner."""
    environ = {"FATHOM_SANDBOX_REQUIRE_JAIL": said} if said else {}

    assert required_jail(environ) == told


def test_the_key_is_named_in_the_gateway_file_and_not_written_to_it() -> None:
    settings = settings_of(USER)

    assert "sk-secret" not in settings.config_toml + settings.describe
    assert settings.secrets == {"OPENAI_API_KEY": "sk-secret"}
    providers = tomllib.loads(settings.config_toml)["providers"]
    assert providers["openai"]["api_key_env"] == "OPENAI_API_KEY"


def test_models_and_prices_are_taken_from_the_environment() -> None:
    environ = USER | {
        "OPENAI_BASE_URL": "https://models.example/v1",
        "FATHOM_ROOT_MODEL": "large",
        "FATHOM_SUB_MODEL": "small",
        "FATHOM_ROOT_PRICE": "1.25/10",
        "FATHOM_SUB_PRICE": "free",
    }

    config = tomllib.loads(settings_of(environ).config_toml)

    root, sub = config["deployments"]
    assert config["providers"]["models.example"]["base_url"] == "https://models.example/v1"
    assert (root["model"], sub["model"]) == ("large", "small")
    assert root["price"] == {"input_usd_per_million": 1.25, "output_usd_per_million": 10.0}
    assert sub["price"] == "free"
    assert config["tiers"] == {"root": ["large"], "sub": ["small"]}


def test_the_root_model_answers_sub_calls_where_no_other_is_named() -> None:
    environ = USER | {"FATHOM_ROOT_MODEL": "only", "FATHOM_ROOT_PRICE": "1/2"}

    config = tomllib.loads(settings_of(environ).config_toml)

    assert [deployment["model"] for deployment in config["deployments"]] == ["only"]
    assert config["tiers"] == {"root": ["only"], "sub": ["only"]}


def test_one_model_may_have_a_price_for_each_of_its_parts() -> None:
    environ = USER | {"FATHOM_ROOT_MODEL": "a/b", "FATHOM_SUB_PRICE": "free"}

    config = tomllib.loads(settings_of(environ).config_toml)

    assert [each["model"] for each in config["deployments"]] == ["a/b", "a/b"]
    assert config["tiers"] == {"root": ["a-b"], "sub": ["a-b-sub"]}


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000/v1", "http://[::1]:8000/v1"])
def test_the_gateway_accepts_the_names_in_the_file(address: str, tmp_path: Path) -> None:
    """Errors name provider and model by them, so they are made of the address and the id."""
    settings = settings_of(USER | {"OPENAI_BASE_URL": address, "FATHOM_ROOT_MODEL": "org/m 1"})
    file = tmp_path / "gateway.toml"
    file.write_text(settings.config_toml)

    catalog = load_catalog(file, {"OPENAI_API_KEY": "k"}, dt.datetime.now(dt.UTC))

    assert list(catalog.deployments) == ["org-m-1"]


def test_another_provider_needs_a_model_to_be_named() -> None:
    """It hardly offers the default's models under their names."""
    with pytest.raises(ModelSettingsError, match="FATHOM_ROOT_MODEL"):
        settings_of(USER | {"OPENAI_BASE_URL": "https://models.example/v1"})


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8000/v1", "http://localhost:8000/v1"])
def test_a_model_on_this_machine_is_free(base_url: str) -> None:
    environ = USER | {"OPENAI_BASE_URL": base_url, "FATHOM_ROOT_MODEL": "m"}

    config = tomllib.loads(settings_of(environ).config_toml)

    assert config["deployments"][0]["price"] == "free"


@pytest.mark.parametrize("price", ["cheap", "1", "1/", "-1/2"])
def test_a_price_that_is_none_is_refused(price: str) -> None:
    with pytest.raises(ModelSettingsError, match="FATHOM_SUB_PRICE"):
        settings_of(USER | {"FATHOM_SUB_PRICE": price})


def test_a_name_cannot_add_lines_to_the_file() -> None:
    with pytest.raises(ModelSettingsError):
        settings_of(USER | {"FATHOM_ROOT_MODEL": 'm"\nprice = "free'})


def test_without_a_key_there_is_no_provider() -> None:
    with pytest.raises(NoKeyError, match="OPENAI_API_KEY"):
        settings_of({"PATH": "/bin"})


def test_a_gateway_file_of_the_users_own_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[providers.mine]\nbase_url = "http://x"\napi_key_env = "MY_KEY"\n')
    environ = {"FATHOM_GATEWAY_CONFIG": str(file), "MY_KEY": "k", "OPENAI_API_KEY": "other"}

    settings = settings_of(environ)

    assert settings.config_toml == file.read_text()
    assert settings.secrets == {"MY_KEY": "k"}


def test_the_scripted_model_has_prices_for_both_tiers() -> None:
    """Its costs are shown, so that limits on money can be seen to work."""
    config = tomllib.loads(scripted_settings("127.0.0.1:5").config_toml)

    assert config["providers"]["127.0.0.1:5"]["base_url"] == "http://127.0.0.1:5/v1"
    assert all("input_usd_per_million" in each["price"] for each in config["deployments"])


def test_the_home_is_where_the_user_says(tmp_path: Path) -> None:
    assert home_of({"FATHOM_HOME": str(tmp_path)}).path == tmp_path
    assert home_of({"XDG_STATE_HOME": str(tmp_path)}).path == tmp_path / "fathom"


def test_one_process_owns_a_home(tmp_path: Path) -> None:
    """Two orchestrators over one database would end each other's runs."""
    home = Home(tmp_path)

    with home.owned(), pytest.raises(HomeInUseError), home.owned():
        pass

    with home.owned():
        pass


def test_who_owns_a_home_is_told(tmp_path: Path) -> None:
    home, running = Home(tmp_path), Running(pid=4711, address="a:1", shared=True, scripted=False)

    with home.owned(), home.announced(running):
        with pytest.raises(HomeInUseError, match="process 4711"), home.owned():
            pass


def test_what_a_killed_owner_announced_is_gone_with_the_next_owner(tmp_path: Path) -> None:
    """Others would be sent to its address while the next one starts, and find nobody there."""
    home, record = Home(tmp_path), tmp_path / "up.json"
    running = Running(pid=4711, address="a:1", shared=True, scripted=False)
    with home.owned(), home.announced(running):
        left_behind = record.read_text()
    record.write_text(left_behind)

    with home.owned():
        assert home.running() is None


@pytest.mark.parametrize(
    ("certificate", "authority", "told"),
    [("", "", True), ("o.pem", "", False), ("o.pem", "ca.pem", True)],
)
def test_the_sandbox_calls_no_orchestrator_that_it_cannot_trust(
    certificate: str, authority: str, told: bool
) -> None:
    """A child run would be tried again until the time of its parent is over."""
    environ = {
        "FATHOM_ORCHESTRATOR_TLS_CERTIFICATE_FILE": certificate,
        "FATHOM_SANDBOX_TLS_CA_FILE": authority,
    }

    assert has_way_back(environ) is told


@pytest.mark.parametrize(
    "address", ["nowhere", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", ":7311"]
)
def test_what_is_no_address_cannot_be_listened_on(address: str) -> None:
    with pytest.raises(ListenAddressError, match="HOST:PORT"):
        check_listen_address(address)


def test_a_port_that_another_program_has_is_told_before_services_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenAddressError, match=f"cannot listen on 127.0.0.1:{port}"):
            check_listen_address(f"127.0.0.1:{port}")

    check_listen_address(f"127.0.0.1:{port}")


def test_running_services_are_found_until_they_end(tmp_path: Path) -> None:
    home, running = Home(tmp_path), Running(pid=1, address="a:1", shared=True, scripted=False)

    with home.owned(), home.announced(running):
        assert home.running() == running

    assert home.running() is None


def test_a_record_of_a_killed_process_is_not_believed(tmp_path: Path) -> None:
    """Its process id may belong to another program by then; the lock cannot."""
    home = Home(tmp_path)
    with home.owned():
        (tmp_path / "up.json").write_text(
            '{"pid": 1, "address": "a:1", "shared": true, "scripted": false}'
        )

    assert home.running() is None


def test_the_folders_are_for_their_user_alone(tmp_path: Path) -> None:
    """They hold what was asked about, and the answers."""
    home = Home(tmp_path / "new")

    home.create()

    assert home.path.stat().st_mode & 0o077 == 0
    assert home.objects.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5-mini", "gpt-5.1", "o3", "o4-mini"])
@pytest.mark.parametrize("host", ["api.openai.com", "eu.api.openai.com", "x.openai.azure.com"])
def test_models_that_reason_get_room_for_it_and_no_temperature(model: str, host: str) -> None:
    """Reasoning is paid as output, before the first word; a temperature is refused."""
    environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"https://{host}/v1"}

    config = tomllib.loads(settings_of(environ | {"FATHOM_ROOT_MODEL": model}).config_toml)

    [deployment] = config["deployments"]
    assert deployment["output_tokens_max"] >= 16_000
    assert deployment["omit_parameters"] == ["temperature"]


@pytest.mark.parametrize(
    ("model", "host"),
    [("gpt-4.1", "api.openai.com"), ("gpt-50", "api.openai.com"), ("gpt-5", "models.example")],
)
def test_other_models_are_sent_a_temperature(model: str, host: str) -> None:
    """Another provider's model of the same name may take one."""
    environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"https://{host}/v1"}

    config = tomllib.loads(settings_of(environ | {"FATHOM_ROOT_MODEL": model}).config_toml)

    assert all("omit_parameters" not in each for each in config["deployments"])


@pytest.mark.parametrize(
    "base_url", ["models.example/v1", "ftp://models.example", "http://[x", "http://x:99999"]
)
def test_an_address_that_is_none_is_refused_before_anything_starts(base_url: str) -> None:
    with pytest.raises(ModelSettingsError, match="OPENAI_BASE_URL"):
        settings_of(USER | {"OPENAI_BASE_URL": base_url, "FATHOM_ROOT_MODEL": "m"})


@pytest.mark.parametrize(
    "base_url", ["sk-secret", "https://u:sk-secret@h/v1", "https://h?k=sk-secret"]
)
def test_a_key_in_the_wrong_variable_is_not_repeated(base_url: str) -> None:
    with pytest.raises(ModelSettingsError, match="OPENAI_BASE_URL") as caught:
        settings_of(USER | {"OPENAI_BASE_URL": base_url, "FATHOM_ROOT_MODEL": "m"})

    assert "sk-secret" not in str(caught.value)


def test_what_is_open_to_other_machines_is_said_as_it_is() -> None:
    """A warning that is wrong where keys are asked for is not read where it is right."""
    prefix = "FATHOM_ORCHESTRATOR_"

    assert "; nothing is encrypted; nobody is asked who they are; " in exposure({})
    guarded = exposure({f"{prefix}API_KEYS_FILE": "k", f"{prefix}TLS_CERTIFICATE_FILE": "c"})
    assert guarded == "reachable from other machines; every question is paid with your key"
