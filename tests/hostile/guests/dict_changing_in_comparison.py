# Expect: raised RuntimeError
# Then: kept
"""An equality that empties the dictionary it is asked for, in the middle of a look-up."""


class Traitor:
    def __hash__(self):
        return 1

    def __eq__(self, other):
        table.clear()
        return False


table = {}
for number in range(200):
    table[Traitor()] = number
for key in table:
    table[Traitor()] = key
    table[Traitor()] = None
    table[number] = number
