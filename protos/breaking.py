"""Compare the contracts with the main branch: a change that breaks clients fails.

Where the repository has no main branch to compare with, or it has no contracts yet, it says so
and succeeds.
"""

from __future__ import annotations

import subprocess
import sys

AGAINST = ("origin/main", "main")


def main() -> None:
    """Run `buf breaking` against the first of AGAINST that has contracts."""
    for branch in AGAINST:
        listed = subprocess.run(
            ["git", "ls-tree", "--name-only", branch, "buf.yaml"],
            capture_output=True,
            text=True,
            check=False,
        )
        if listed.stdout.strip():
            against = f".git#ref={branch}"
            compared = subprocess.run(["buf", "breaking", "--against", against], check=False)
            sys.exit(compared.returncode)
    print("no branch to compare the contracts with")


if __name__ == "__main__":
    main()
