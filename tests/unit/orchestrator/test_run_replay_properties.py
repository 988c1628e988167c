"""Runs of any shape, cut off anywhere, more than once: the log, the answer and what was paid are
those of the same run undisturbed.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.driven_run import Bench, told
from tests.support.memory_neighbours import Reply

_CELLS = (
    "a = globals().get('a', 0) + 1\nprint(a, now())",
    "b = rand()\nprint(b)",
    "c = [ask(x) for x in 'xy']\nprint(c)",
    "ask('z')\nundo()",
    "try:\n    ask('fail')\nexcept RuntimeError as error:\n    print(error)",
    "ask('w')\n1/0",
    "d = ask(str(rand()))\nlose_once()",
    "FINAL(rand())\n1/0",
)
_OTHERS = ("no code at all", "FINAL_VAR(missing)", "FINAL()", "FINAL(`a`")


def _reply(codes: list[str]) -> str:
    return "\n".join(f"```repl\n{code}\n```" for code in codes)


replies = st.lists(
    st.one_of(
        st.lists(st.sampled_from(_CELLS), min_size=1, max_size=3).map(_reply),
        st.sampled_from(_OTHERS),
    ),
    min_size=1,
    max_size=4,
)


async def _whole(folder: Path, script: list[Reply], checkpoint_after_s: float) -> Bench:
    bench = Bench(folder, script, checkpoint_after_s=checkpoint_after_s)
    assert await bench.drive(bench.new_run())
    return bench


async def _disturbed(
    folder: Path, script: list[Reply], cuts: list[tuple[int, bool]], checkpoint_after_s: float
) -> Bench:
    bench = Bench(folder, script, checkpoint_after_s=checkpoint_after_s)
    record = bench.new_run()
    for cut, keeps_sessions in cuts:
        cut = max(cut, len(bench.events(record)))
        if await bench.drive(record, cut=cut):
            return bench
        if not keeps_sessions:
            bench.sandbox.sessions.clear()
        record = bench.again(record)
    assert await bench.drive(record)
    return bench


def _without_checkpoints(bench: Bench) -> list[str]:
    """Return what the log tells but for checkpoints, which are taken beside the run."""
    events = [e for e in bench.log.events["0a"] if not e.HasField("checkpoint_stored")]
    for event in events:
        event.ClearField("sequence")
        if event.HasField("run_changed"):
            event.run_changed.ClearField("last_sequence")
            event.run_changed.ClearField("checkpoint_turns")
    return told(events, "0a")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    script=replies,
    cuts=st.lists(st.tuples(st.integers(2, 40), st.booleans()), min_size=1, max_size=3),
    has_checkpoints=st.booleans(),
)
def test_a_run_of_any_shape_goes_on_from_any_events(
    script: list[Reply], cuts: list[tuple[int, bool]], has_checkpoints: bool
) -> None:
    """Each cut is a process that died, with or without the sandbox."""
    script = [*script, "FINAL(done)"]
    after_s = 0.0 if has_checkpoints else 1e9
    with tempfile.TemporaryDirectory() as name:
        first = asyncio.run(_whole(Path(name), script, after_s))
        second = asyncio.run(_disturbed(Path(name), script, sorted(cuts), after_s))

    assert _without_checkpoints(second) == _without_checkpoints(first)
    assert sorted(second.model.paid) == sorted(first.model.paid)
    assert second.sandbox.sessions == {}
    assert len(second.sandbox.natures) == 1 or not second.sandbox.opened
