# Expect: raised Broken
# Then: kept
"""An exception of which every part raises: text, notes, context, arguments."""


class Text(str):
    def strip(self, *_):
        raise SystemExit

    def splitlines(self, *_):
        return [None]


class Broken(Exception):
    def __str__(self):
        return Text("text")

    def __repr__(self):
        raise SystemExit

    @property
    def __notes__(self):
        raise SystemExit

    @property
    def __suppress_context__(self):
        raise KeyboardInterrupt


raise Broken from Broken()
