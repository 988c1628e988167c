"""What the root model is told of a profile: the operator's words, the helpers and the host tools,
put into the prompts.
"""

from __future__ import annotations

import json

from orchestrator.profiles.profile import HostTool, Profile
from orchestrator.runs.model.prompt_book import PromptBook


def profile_prompts(prompts: PromptBook, profile: Profile) -> PromptBook:
    """Return the prompts with the profile's own system message, where it has one."""
    replacement = profile.prompts.system_replacement
    return prompts.replaced("system", replacement) if replacement else prompts


def system_words(prompts: PromptBook, profile: Profile) -> str:
    """Return what is added to the system message, after an empty line; empty for nothing."""
    parts = [profile.prompts.system]
    provided = [
        f"- `{called}`: {about}"
        for helper in profile.helpers
        for called, about in helper.provides.items()
    ]
    if provided:
        parts.append(prompts.text("profile_helpers", provided="\n".join(provided)))
    if profile.tools:
        tools = "\n".join(map(_of_tool, profile.tools))
        parts.append(prompts.text("profile_tools", tools=tools, example=profile.tools[0].name))
    return "".join(f"\n\n{part}" for part in parts if part)


def question_words(question: str, profile: Profile) -> str:
    """Return a question with what the profile adds to it."""
    added = profile.prompts.question
    return f"{question.strip()}\n\n{added}" if added else question


def _of_tool(tool: HostTool) -> str:
    schema = json.dumps(json.loads(tool.arguments_schema_json), ensure_ascii=False)
    return f"- `{tool.name}`: {tool.description} Arguments, by name: `{schema}`"
