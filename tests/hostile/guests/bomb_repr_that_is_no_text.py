# Expect: completed
# Then: kept
"""Representations that are of the wrong kind, huge, or raise what nobody catches."""


class Wrong:
    def __init__(self, answer):
        self.answer = answer

    def __repr__(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Text(str):
    def __getitem__(self, key):
        raise SystemExit

    def __len__(self):
        raise KeyboardInterrupt

    def encode(self, *_):
        raise GeneratorExit


one, two, three = Wrong(5), Wrong("x" * 20_000_000), Wrong(KeyboardInterrupt())
four, five, six = Wrong(Text("y" * 300)), Wrong(SystemExit(3)), Wrong("\ud800" * 300)
