"""Files are written whole or not at all; pipes and devices are written to, never replaced."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

import densitometer as dm
from densitometer._util.files import check_writable, write_file

pytestmark = pytest.mark.fast

CONTENT = b"a whale " * 5000


def write(path: Path) -> None:
    check_writable(path)
    write_file(path, lambda file: file.write(CONTENT))


def test_a_file_is_replaced_whole_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == CONTENT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(dm.DensitometerError, match="File too large"):
            write(tmp_path / "old")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "old").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_pipe_is_written_to_where_somebody_reads_it(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(dm.DensitometerError, match="no process reads this pipe"):
        write(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    thread = Thread(target=write, args=(pipe,))
    thread.start()
    got = b""
    while len(got) < len(CONTENT):  # empty until the other end is opened
        got += os.read(reader, 1 << 16)
    thread.join()
    os.close(reader)
    assert got == CONTENT
    assert pipe.is_fifo()


def test_devices_are_written_to_and_stay(tmp_path):
    write(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    with pytest.raises(dm.DensitometerError, match="No space left"):
        write(Path("/dev/full"))
    assert Path("/dev/full").is_char_device()


def test_standard_output_that_is_a_file_is_written_in_order(tmp_path):
    code = (
        "from densitometer._util.files import write_file; print('before', flush=True);"
        "write_file('/dev/stdout', lambda f: f.write(b'within\\n')); print('after')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nwithin\nafter\n"


@pytest.mark.parametrize(("name", "message"), [("no/such/m.json", "no such folder"), ("", "it is a folder")])
def test_what_would_fail_is_refused_before_the_work(tmp_path, name, message):
    with pytest.raises(dm.DensitometerError, match=message):
        check_writable(tmp_path / name)
    with pytest.raises(dm.DensitometerError, match="cannot write"):
        write_file(tmp_path / name, lambda file: file.write(CONTENT))


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / "private.json"
    path.write_text("old")
    path.chmod(0o600)
    write_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
