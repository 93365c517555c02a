"""What a user gets: the built wheel, installed into an empty environment and used where the repository is not.

    python tools/try_release.py dist [PYTHON]

The environment is of the running Python, or of the one named. Nothing is installed there but the wheel and what it asks for,
so an extra that is imported without being asked for fails here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LARGEST = 25 * 2**20  # bytes of a wheel
ROOT = Path(__file__).resolve().parents[1]
TEXT = "The old captain looked at the sea and said that the white whale"


def main() -> None:
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    size = wheel.stat().st_size
    assert size <= LARGEST, f"{wheel.name} has {size / 2**20:.1f} MiB, more than {LARGEST / 2**20:g}"
    python = sys.argv[2] if len(sys.argv) > 2 else sys.executable
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        kept = ("PATH", "HOME", "LANG", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_FIND_LINKS", "SSL_CERT_FILE")
        environment = {name: os.environ[name] for name in kept if name in os.environ}

        def run(*command: str, fails: bool = False) -> str:
            ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
            output = ran.stdout + ran.stderr
            assert (ran.returncode != 0) == fails, f"{' '.join(command)}: exit {ran.returncode}\n{output}"
            assert "Traceback" not in output, output
            return output

        run(python, "-m", "venv", "empty")
        installed = str(home / "empty/bin/python")
        pip = [installed, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel.resolve()))
        densitometer = str(home / "empty/bin/densitometer")
        where = run(installed, "-c", "import densitometer; print(densitometer.__file__)").strip()
        assert Path(where).is_relative_to(home), where
        run(densitometer, "--help")
        run(
            densitometer,
            "measure",
            TEXT,
            "--importance",
            "l1,fisher",
            "--json",
            "m.json",
            "--html",
            "m.html",
            "--plot",
            "m.pdf",
        )
        measured = json.loads((home / "m.json").read_text())
        assert measured["full_trace_tv"] < 1e-4
        for name in ("m.html", "m.pdf"):
            assert (home / name).stat().st_size > 10_000, name
        assert "every identity holds" in run(densitometer, "doctor", "demo-parallel")
        run(densitometer, "plan", "demo", "--length", "40")
        run(
            densitometer,
            "study",
            "short-texts",
            "-m",
            "demo",
            "-o",
            "study",
            "--window",
            "words:5",
            "--shard",
            "1/50",
        )
        advice = run(densitometer, "report", "study", fails=True)
        assert "densitometer[analysis]" in advice, advice
        version = run(installed, "-V").strip()
    print(
        f"{wheel.name}: {size / 2**20:.1f} MiB ({sdist.name}: {sdist.stat().st_size / 2**20:.1f} MiB); works alone under {version}"
    )


if __name__ == "__main__":
    main()
