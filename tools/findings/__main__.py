"""The papers' findings on real language models: what it takes, the studies, and docs/findings.md. `make findings`.

python tools/findings                       # all three, one after the other; goes on where it was stopped
python tools/findings --dry-run             # only what it takes: hours, disk, what is missing
python tools/findings --minutes 8           # stop after so long, and store what is there
python tools/findings --write               # only the page, from what is stored; no model runs
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import page
import stored_studies

from densitometer.errors import DensitometerError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="findings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("FINDINGS_DATA"),
        help="folder with wikitext2-test.txt and udhr.jsonl, or hf:",
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=stored_studies.ROOT / ".models",
        help="where make real-models laid the models",
    )
    parser.add_argument(
        "--folder", type=Path, default=stored_studies.FOLDER, help="where the studies are stored"
    )
    parser.add_argument("--minutes", type=float, help="stop measuring after so many minutes")
    parser.add_argument("--dry-run", action="store_true", help="say what is left and what it takes")
    parser.add_argument("--write", action="store_true", help="write the page from what is stored")
    given = parser.parse_args()
    try:
        return work(given)
    except DensitometerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was measured is stored, and the same command goes on", file=sys.stderr)
        return 130


def work(given: argparse.Namespace) -> int:
    tell(stored_studies.outlook(given.folder, given.models, given.data))
    if given.dry_run:
        return 0
    if not given.write:
        out = stored_studies.measure(given.folder, given.models, given.data, given.minutes)
        tell(out)
    if given.minutes is None or given.write:
        page.write(given.folder)
        print("docs/findings.md, docs/findings-in-brief.md and docs/figures: written from what is stored")
    return 0


def tell(out: stored_studies.Outlook) -> None:
    for line in out.missing:
        print(f"missing: {line}", file=sys.stderr)
    print(
        f"left: {len(out.left)} parts, about {out.seconds / 3600:.1f} h of one core and {out.bytes / 1e6:.0f} MB of disk"
    )


if __name__ == "__main__":
    sys.exit(main())
