"""Profiles' files: what they hold, and words for what is wrong in them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fathom.orchestrator.v1.run_pb2 import RunSpec

from common.config import ConfigError
from common.errors import InvalidFieldError
from orchestrator.blobs import FolderBlobStore
from orchestrator.profiles.filled_spec import defaults_of, filled, lowered
from orchestrator.profiles.prelude import prelude_of
from orchestrator.profiles.profile import NO_PROFILE, Profile
from orchestrator.profiles.profile_files import read_profiles
from orchestrator.profiles.profiles import SHIPPED, Profiles
from orchestrator.profiles.words import profile_prompts, question_words, system_words
from orchestrator.runs.limits import RunLimits
from orchestrator.runs.model.prompt_book import PromptBook
from tests.support.eventually import eventually

LEAST = 'version = 1\ndescription = "d"\n'
TOOL = (
    LEAST + '[tools.ask]\nendpoint = "127.0.0.1:1"\ndescription = "Asks."\narguments = "a.json"\n'
)
LIMITS = RunLimits(
    turns_max=20,
    time_max_s=600.0,
    sub_calls_max=1_000,
    tokens_max=1_000_000,
    cost_usd_nanos_max=5_000_000_000,
)


def profile(folder: Path, text: str, **files: str) -> Profile:
    """Return the profile of a file with these files beside it, `_` in their names for a dot."""
    (folder / "p.toml").write_text(text)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return read_profiles(folder)["p"]


def test_a_profile_has_what_its_file_says(tmp_path: Path) -> None:
    read = profile(
        tmp_path,
        'version = "1.2"\ndescription = "d"\ntenants = ["acme"]\nguest = "numpy"\n'
        'answer_schema = "s.json"\ncitations_required = true\nconfidence_min = 0.8\n'
        'direct_tokens_max = 0\n[prompts]\nsystem = "s.md"\nquestion = "q.md"\n'
        '[tiers]\nroot = "big"\n[limits.defaults]\nturns_max = 5\ntime_max_s = 90\n'
        "[limits.ceilings]\ncost_usd_max = 0.25\n"
        '[[helpers]]\nfile = "h.py"\n[tools.ask]\nendpoint = "127.0.0.1:1"\n'
        'description = "Asks."\narguments = "s.json"\ncalls_max = 2\n',
        s_json='{"type": "object"}',
        s_md="Do it well.",
        q_md="Be short.",
        h_py='def double(x: int, *, twice=False) -> int:\n    """Double it."""\n    return 2 * x\n',
    )

    assert read.version.startswith("1.2+")
    assert (read.tenants, read.guest, read.root_tier) == (("acme",), "numpy", "big")
    assert (read.confidence_min, read.direct_tokens_max) == (0.8, 0)
    assert read.limit_defaults == {"turns_max": 5, "time_max_s": 90.0}
    assert read.limit_ceilings == {"cost_usd_nanos_max": 250_000_000}
    assert dict(read.helpers[0].provides) == {"double(x, *, twice=False)": "Double it."}
    assert [(tool.name, tool.calls_max) for tool in read.tools] == [("ask", 2)]
    assert Profile.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('description = "d"\n', "version"),
        ('version = true\ndescription = "d"\n', "version"),
        ("version = 1\n", "description"),
        (LEAST + "color = 1\n", "color"),
        (LEAST + 'guest = "ruby"\n', "guest"),
        (LEAST + 'tenants = ["a b"]\n', "tenants"),
        (LEAST + "citations_required = 1\n", "citations_required"),
        (LEAST + "confidence_min = 2\n", "confidence_min"),
        (LEAST + "direct_tokens_max = -1\n", "direct_tokens_max"),
        (LEAST + 'answer_schema = "gone.json"\n', "answer_schema"),
        (LEAST + 'answer_schema = "bad.json"\n', "answer_schema"),
        (LEAST + 'answer_schema = "../secret"\n', "answer_schema"),
        (LEAST + '[prompts]\nsystem_replacement = "bad.md"\n', "prompts: system_replacement"),
        (LEAST + '[prompts]\nsistem = "bad.md"\n', "prompts: sistem"),
        (LEAST + "[tiers]\nroot = 1\n", "tiers: root"),
        (LEAST + "[limits.defaults]\nturns_max = 0\n", "limits: defaults: turns_max"),
        (LEAST + "[limits.ceilings]\nturns = 1\n", "limits: ceilings: turns"),
        (LEAST + '[limits.ceilings]\ncost_usd_max = "1"\n', "limits: ceilings: cost_usd_max"),
        (
            LEAST + "[limits.defaults]\nturns_max = 9\n[limits.ceilings]\nturns_max = 8\n",
            "limits.defaults.turns_max",
        ),
        (LEAST + '[[helpers]]\nfile = "bad.py"\n', "helpers[0]: file"),
        (LEAST + '[[helpers]]\nfile = "silent.py"\n', "helpers[0]: file"),
        (LEAST + '[[helpers]]\nfile = "h.py"\n[[helpers]]\nfile = "h.py"\n', "double"),
        (LEAST + "helpers = 1\n", "helpers"),
        (TOOL.replace("127.0.0.1:1", "nowhere"), "tools: ask: endpoint"),
        (TOOL.replace('arguments = "a.json"', ""), "tools: ask: arguments"),
        (TOOL.replace("tools.ask", "tools.Ask"), "tools: Ask"),
        (TOOL.replace("tools.ask", "tools.llm_query"), "tools: llm_query"),
        (TOOL + "calls_max = 0\n", "tools: ask: calls_max"),
        (TOOL + "time_max_s = 601\n", "tools: ask: time_max_s"),
        (TOOL + "result_bytes_max = 10_000_000\n", "tools: ask: result_bytes_max"),
        (TOOL + 'result = "bad.json"\n', "tools: ask: result"),
        ("version = \n", "p.toml"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(
    tmp_path: Path, text: str, named: str
) -> None:
    """An operator mends the file, and nobody has to guess which."""
    with pytest.raises(ConfigError) as failed:
        profile(
            tmp_path,
            text,
            a_json="{}",
            bad_json='{"type": "nothing"}',
            bad_md="$nobody knows",
            bad_py="def f(:",
            silent_py="def f(): pass",
            h_py='def double(x):\n    """Double it."""\n',
        )

    assert str(tmp_path / "p.toml") in str(failed.value)
    assert named in str(failed.value)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="profiles_folder"):
        read_profiles(tmp_path / "gone")


def test_the_digest_changes_with_anything_that_it_is_made_of(tmp_path: Path) -> None:
    """Somebody who edits a prompt and forgets the version has another version all the same."""
    text = LEAST + '[prompts]\nsystem = "s.md"\n'
    first = profile(tmp_path, text, s_md="one")
    second = profile(tmp_path, text, s_md="two")

    assert first.stated_version == second.stated_version
    assert first.version != second.version


def test_a_run_gets_what_it_asks_within_the_profiles_ceilings(tmp_path: Path) -> None:
    read = profile(
        tmp_path,
        LEAST + "confidence_min = 0.5\n[tiers]\nroot = 'big'\n"
        "[limits.defaults]\nturns_max = 50\nsub_calls_max = 7\n"
        "[limits.ceilings]\ntime_max_s = 60\ntokens_max = 9_000_000\n",
    )
    ceilings = lowered(LIMITS, read)
    defaults = defaults_of(LIMITS, read, ceilings)
    asked = filled(RunSpec(question="q", root_tier="small"), read)

    assert (ceilings.time_max_s, ceilings.tokens_max) == (60.0, 1_000_000)
    assert (defaults.time_max_s, defaults.sub_calls_max, defaults.turns_max) == (60.0, 7, 20)
    assert (asked.root_tier, asked.confidence_min) == ("small", 0.5)
    assert filled(RunSpec(question="q", confidence_min=0), read).confidence_min == 0


def test_the_model_is_told_of_helpers_tools_and_the_operators_words(tmp_path: Path) -> None:
    book = PromptBook.packaged()
    read = profile(
        tmp_path,
        TOOL.replace("[tools", '[prompts]\nsystem = "s.md"\nquestion = "q.md"\n'
                     '[[helpers]]\nfile = "h.py"\n[tools'),
        a_json='{"type": "object"}',
        s_md="Cost $5 or so.",
        q_md="Be short.",
        h_py='def double(x):\n    """Double it."""\n',
    )  # fmt: skip
    words = system_words(book, read)

    assert all(part in words for part in ("Cost $5 or so.", "`double(x)`: Double it.", "`ask`"))
    assert question_words("Why?", read) == "Why?\n\nBe short."
    assert system_words(book, NO_PROFILE) == ""
    assert [name for name, _ in prelude_of(read).sources] == ["h.py", "host tools"]


def test_a_replaced_system_message_is_filled_in(tmp_path: Path) -> None:
    read = profile(
        tmp_path,
        LEAST + '[prompts]\nsystem_replacement = "s.md"\n',
        s_md="Work in pieces of $chunk_characters.",
    )
    book = PromptBook.packaged()

    assert profile_prompts(book, read).system(window_tokens=0) == "Work in pieces of 30000."
    assert profile_prompts(book, NO_PROFILE) is book


async def test_a_version_outlives_its_file(tmp_path: Path) -> None:
    """A run that another process takes over works with the version that it began with."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    blobs = FolderBlobStore(tmp_path / "objects")
    old = profile(folder, LEAST)
    await Profiles(blobs, folder).keep(old)
    (folder / "p.toml").unlink()
    later = Profiles(blobs, folder)

    assert await later.kept(old.version) == old
    with pytest.raises(InvalidFieldError, match="none"):
        later.asked("t", "profiles/p")


async def test_a_changed_file_is_read_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    before = profile(folder, LEAST)
    profiles = Profiles(FolderBlobStore(tmp_path / "objects"), folder)
    watching = asyncio.create_task(profiles.watch(0.001))
    try:
        (folder / "p.toml").write_text("nonsense")
        await eventually(lambda: "the profiles stay as they were" in caplog.text)
        kept = profiles.asked("t", "profiles/p")
        (folder / "p.toml").write_text(LEAST.replace("1", "2"))
        await eventually(lambda: profiles.asked("t", "profiles/p").stated_version == "2")
    finally:
        watching.cancel()

    assert kept == before


def test_a_profile_of_other_tenants_is_not_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    profile(folder, LEAST + 'tenants = ["acme"]\n')
    profiles = Profiles(FolderBlobStore(tmp_path / "objects"), folder)

    assert [p.name for p in profiles.visible("acme")] == ["p"]
    assert profiles.visible("other") == []
    with pytest.raises(InvalidFieldError, match="those that are offered: none"):
        profiles.asked("other", "profiles/p")


def test_every_shipped_profile_says_how_to_work_and_with_what() -> None:
    for each in read_profiles(SHIPPED).values():
        assert each.prompts.system and each.helpers and each.answer_schema_json
