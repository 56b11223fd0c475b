"""How many models of all kinds get the right new head: each is compared with one freshly built for the new count.

``python benchmarks/zoo.py`` judges all of them, one on each core, ``... braindecode`` those whose names contain that.
What isn't installed is left out; ``nox -s zoo`` installs most of it. One that takes too long or too much is ended.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.heads import oracle
from tests.heads.zoo import CASES, GOOD, NOT_BUILT, judged, share_right

SLOW = 40  # seconds of CPU time that are worth a line


def main(wanted: str) -> int:
    """Print what is not right, and the counts; return how many are wrong in silence."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    verdicts = []
    for one in judged(case for case in CASES if wanted in case):
        verdicts.append(one)
        if one.verdict not in GOOD or one.seconds > SLOW:
            print(f"{one.case}: {one.verdict} ({one.seconds:.0f} s): {one.why}", flush=True)
    counts = Counter(one.verdict for one in verdicts)
    print(*(f"{count:5} {verdict}" for verdict, count in counts.most_common()), sep="\n")
    built = counts.total() - counts[NOT_BUILT]
    print(f"{share_right(verdicts):.1%} of {built} are right, or refused with what to do instead")
    return counts[oracle.WRONG]


if __name__ == "__main__":
    sys.exit(main("".join(sys.argv[1:])) > 0)
