# Expect: completed
# Then: kept
"""An answer whose type lies about its length, its text and its equality."""


class Text(str):
    def __len__(self):
        return 0

    def encode(self, *_):
        return b""

    def __getitem__(self, key):
        return "other"


FINAL(Text("\ud800" + "x" * 1_000))
