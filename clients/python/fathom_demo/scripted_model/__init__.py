"""An OpenAI-compatible model server without a language model: written policies and scripts."""

from fathom_demo.scripted_model.faults import FaultRule
from fathom_demo.scripted_model.openai_wire import ChatRequest, Message, Reply
from fathom_demo.scripted_model.scripts import Policy, Script
from fathom_demo.scripted_model.server import ROOT_MODEL, SUB_MODEL, ScriptedModel

__all__ = [
    "ROOT_MODEL",
    "SUB_MODEL",
    "ChatRequest",
    "FaultRule",
    "Message",
    "Policy",
    "Reply",
    "Script",
    "ScriptedModel",
]
