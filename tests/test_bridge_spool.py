"""The spool's logs: what is on disk is read back, whatever the end of its writer was. No database."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bridge import spool
from service.bridge.spool import Directory, Kind, Log

SEGMENT = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def directory(folder: Path) -> Directory:
    return Directory(folder, segment_bytes=SEGMENT)


@pytest.fixture
def own(directory: Directory) -> Iterator[Log]:
    log = directory.claim()
    yield log
    log.release()


def crash(directory: Directory, log: Log) -> Log:
    """What another process finds of a log whose process is gone."""
    log.release()
    [adopted] = directory.adopt()
    return adopted


def fill(log: Log, number: int, *, size: int = 100) -> list[UUID]:
    ids = [uuid4() for _ in range(number)]
    for index, interception_id in enumerate(ids):
        log.append(Kind.CHILDREN, interception_id, f"{index} ".encode() + b"x" * size)
    return ids


def drain(log: Log, *, most: int = 7) -> list[tuple[Kind, UUID, bytes]]:
    found = []
    while log.waiting:
        records, after = log.read(most=most, most_bytes=10**9)
        found += [(record.kind, record.interception_id, record.body) for record in records]
        log.consume(after, records=len(records) or log.waiting)
    return found


def segments(log: Log) -> list[Path]:
    return sorted(log.folder.glob("*.log"))


def test_what_is_added_is_read_in_order_across_segments(own: Log) -> None:
    ids = fill(own, 200)
    assert len(segments(own)) > 5
    assert own.waiting == 200
    read = drain(own)
    assert [interception_id for _, interception_id, _ in read] == ids
    assert read[42][2].startswith(b"42 ")
    assert own.waiting == 0
    assert own.oldest_at is None


def test_what_is_consumed_is_deleted(own: Log) -> None:
    for _ in range(20):
        fill(own, 100)
        drain(own)
        assert own.size < 2 * SEGMENT + 1024
        assert own.size == sum(path.stat().st_size for path in segments(own))


def test_files_are_nobody_elses(folder: Path, own: Log, directory: Directory) -> None:
    fill(own, 100)
    directory.bury(b"{}")
    paths = [folder, *folder.rglob("*")]
    assert len(paths) > 5
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_nobody_adopts_what_is_held(directory: Directory, own: Log) -> None:
    fill(own, 3)
    assert directory.adopt() == []
    assert Directory(own.folder.parent, segment_bytes=SEGMENT).adopt() == []


def test_a_log_is_adopted_once(directory: Directory) -> None:
    first, second = directory.claim(), directory.claim()
    ids = fill(first, 3)
    adopted = crash(directory, first)
    assert directory.adopt() == []
    assert [interception_id for _, interception_id, _ in drain(adopted)] == ids
    directory.remove(adopted)
    assert [path for path in second.folder.parent.iterdir() if path.is_dir()] == [second.folder]
    second.release()


def test_what_was_consumed_before_a_crash_is_not_read_again(directory: Directory, own: Log) -> None:
    ids = fill(own, 100)
    records, after = own.read(most=50, most_bytes=10**9)
    own.consume(after, records=len(records))
    adopted = crash(directory, own)
    assert adopted.waiting == 50
    assert [interception_id for _, interception_id, _ in drain(adopted)] == ids[50:]
    adopted.release()


def test_an_adopter_that_is_killed_leaves_what_it_has_not_consumed(directory: Directory) -> None:
    log = directory.claim()
    ids = fill(log, 100)
    for taken in (30, 60):
        log = crash(directory, log)
        records, after = log.read(most=30, most_bytes=10**9)
        assert [record.interception_id for record in records] == ids[taken - 30 : taken]
        log.consume(after, records=len(records))
    log = crash(directory, log)
    assert [interception_id for _, interception_id, _ in drain(log)] == ids[60:]
    log.release()


def test_running_interceptions_outlive_the_segments_that_say_so(directory: Directory) -> None:
    log = directory.claim()
    kept, ended, lost = uuid4(), uuid4(), uuid4()
    for interception_id in (kept, ended, lost):
        log.append(Kind.RUNNING, interception_id)
    for _ in range(5):
        fill(log, 100)
        drain(log)
    log.append(Kind.END, ended, b"{}")
    log.append(Kind.LOST, lost, b"{}")
    fill(log, 100)
    drain(log)
    log = crash(directory, log)
    assert log.running == {kept}
    # Whoever adopts it adds to it, and it is still known when the process that is gone gave its last sign of life.
    last_at = log.last_at
    log.append(Kind.CONSUMED, UUID(int=0), bytes(8))
    log = crash(directory, log)
    assert (log.running, log.last_at) == ({kept}, last_at)
    log.release()


@pytest.mark.parametrize("cut", ["torn", "spoilt", "garbage"])
def test_what_is_not_whole_at_the_end_is_left_out(directory: Directory, cut: str) -> None:
    log = directory.claim()
    ids = fill(log, 10)
    path = segments(log)[-1]
    size = path.stat().st_size
    log.release()
    with path.open("r+b") as file:
        if cut == "torn":
            file.truncate(size - 1)
        elif cut == "spoilt":
            file.seek(size - 5)
            file.write(b"?")
        else:
            file.seek(size)
            file.write(random.Random(1).randbytes(300))
    [adopted] = directory.adopt()
    expected = ids if cut == "garbage" else ids[:-1]
    assert adopted.waiting == len(expected)
    assert [interception_id for _, interception_id, _ in drain(adopted)] == expected
    # What is added later is found.
    more = fill(adopted, 3)
    again = crash(directory, adopted)
    assert [interception_id for _, interception_id, _ in drain(again)] == more
    again.release()


def test_a_spoilt_place_in_the_middle_costs_the_rest_of_its_segment(directory: Directory) -> None:
    log = directory.claim()
    fill(log, 200)
    paths = segments(log)
    log.release()
    with paths[2].open("r+b") as file:
        file.seek(2000)
        file.write(b"\0" * 50)
    [adopted] = directory.adopt()
    found = [int(body.split()[0]) for _, _, body in drain(adopted)]
    missing = set(range(200)) - set(found)
    assert found == sorted(found)
    assert 0 < len(missing) < SEGMENT // 100
    assert missing == set(range(min(missing), max(missing) + 1))
    assert not adopted.waiting
    adopted.release()


@given(cut=st.integers(min_value=0), sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=20))
def test_a_log_cut_anywhere_gives_what_is_whole(cut: int, sizes: list[int]) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        directory = Directory(root / "spool", segment_bytes=1 << 30)
        log = directory.claim()
        ends = []
        for size in sizes:
            log.append(Kind.CHILDREN, UUID(int=size + 1), b"b" * size)
            ends.append(log.size)
        [path] = segments(log)
        log.release()
        cut %= ends[-1] + 1
        with path.open("r+b") as file:
            file.truncate(cut)
        [adopted] = directory.adopt()
        expected = [size for size, end in zip(sizes, ends, strict=True) if end <= cut]
        assert [len(body) for _, _, body in drain(adopted)] == expected
        adopted.release()
    finally:
        shutil.rmtree(root)


def test_a_write_that_failed_adds_nothing(own: Log, directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(own, 2)
    whole = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda descriptor, data, offset: whole(descriptor, data[: len(data) // 2], offset))
        with pytest.raises(OSError, match="a part only"):
            own.append(Kind.CHILDREN, uuid4(), b"y" * 500)
    ids += fill(own, 2, size=10)
    assert own.waiting == 4
    adopted = crash(directory, own)
    assert [interception_id for _, interception_id, _ in drain(adopted)] == ids
    adopted.release()


def test_a_segment_whose_head_the_disk_did_not_take_is_begun_again(
    own: Log, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = uuid4()
    own.append(Kind.RUNNING, running)
    while own.size < SEGMENT:
        fill(own, 1)
    before = segments(own)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                own.append(Kind.CHILDREN, uuid4(), b"{}")
    assert segments(own) == before
    fill(own, 3)
    drain(own)
    assert len(segments(own)) == 1, "the segment that said what is running is deleted"
    adopted = crash(directory, own)
    assert adopted.running == {running}
    adopted.release()


def test_a_segment_that_was_made_and_never_written_is_no_obstacle(directory: Directory, own: Log) -> None:
    ids = fill(own, 3)
    (own.folder / f"{own.end:020}.log").touch()
    adopted = crash(directory, own)
    records, after = adopted.read(most=2, most_bytes=10**9)
    adopted.consume(after, records=len(records))
    again = crash(directory, adopted)
    (again.folder / f"{again.end:020}.log").touch()
    again = crash(directory, again)
    assert [interception_id for _, interception_id, _ in drain(again)] == ids[2:]
    more = fill(again, 2)
    last = crash(directory, again)
    assert [interception_id for _, interception_id, _ in drain(last)] == more
    last.release()


def test_what_is_no_log_is_left_alone(folder: Path, directory: Directory) -> None:
    """A directory may hold other things, if only the `lost+found` of a disk."""
    others = ("lost+found", "request-log", "postgres", "1-backup")
    for name in others:
        (folder / name).mkdir(parents=True)
        (folder / name / "kept.conf").write_bytes(b"x" * 10_000)
    lost = directory.claim()
    ids = fill(lost, 3)
    assert directory.size() == lost.size
    adopted = crash(directory, lost)
    assert [interception_id for _, interception_id, _ in drain(adopted)] == ids
    directory.remove(adopted)
    assert directory.adopt() == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(["lock", *others])
    for name in others:
        assert [path.name for path in (folder / name).iterdir()] == ["kept.conf"]


@pytest.mark.parametrize("why", ["Permission denied", "it has a record of kind 99, which this release does not know"])
def test_a_log_that_cannot_be_read_stays_and_keeps_nobody_from_the_others(
    directory: Directory, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [directory.claim() for _ in range(3)]
    ids = [fill(log, 1)[0] for log in logs]
    unreadable = logs[1]
    [segment] = segments(unreadable)
    whole = os.open

    def forbid(path: Path, *how: int) -> int:
        if path == unreadable.folder / "lock":
            raise PermissionError(13, "Permission denied")
        return whole(path, *how)

    with monkeypatch.context() as patch:
        if why == "Permission denied":
            patch.setattr(os, "open", forbid)
        else:
            with segment.open("ab") as file:
                file.write(spool._frame(99, ids[1], 1.0))  # type: ignore[arg-type]  # of another release
        for log in logs:
            log.release()
        adopted = directory.adopt()
    assert {log.folder for log in adopted} == {logs[0].folder, logs[2].folder}
    told = capsys.readouterr()
    assert why in told.out + told.err
    if why == "Permission denied":
        [last] = directory.adopt()
        assert [interception_id for _, interception_id, _ in drain(last)] == ids[1:2]
        adopted.append(last)
    else:
        assert segment.exists()
        assert directory.adopt() == []
    for log in adopted:
        log.release()


async def test_many_who_wait_share_an_fsync(own: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    whole = os.fsync

    def count(descriptor: int) -> None:
        synced.append(descriptor)
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", count)

    async def add() -> None:
        fill(own, 1)
        await own.sync()

    await asyncio.gather(*(add() for _ in range(100)))
    assert len(synced) < 20
    before = len(synced)
    await own.sync()
    assert len(synced) == before


async def test_a_failed_fsync_is_told_to_all_who_waited_for_it(own: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.fsync

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    fill(own, 3)
    outcomes = await asyncio.gather(*(own.sync() for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 5
    monkeypatch.setattr(os, "fsync", whole)
    # The next record goes to another file, and is durable.
    fill(own, 1)
    await own.sync()
    assert len(segments(own)) == 2
    assert own.waiting == len(drain(own)) == 4


WRITER = """
import sys, uuid
from pathlib import Path
from service.bridge.spool import Directory, Kind
log = Directory(Path(sys.argv[1]), segment_bytes=4096).claim()
for number in range(10**9):
    log.append(Kind.CHILDREN, uuid.UUID(int=number + 1), b"x" * (number % 300))
    sys.stdout.write(f"{number + 1}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("lines", [1, 37, 500])
def test_what_append_returned_from_survives_kill_9(folder: Path, directory: Directory, lines: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(lines)]
    assert directory.adopt() == [], "its process lives"
    writer.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    writer.wait()
    [adopted] = directory.adopt()
    found = [interception_id.int for _, interception_id, _ in drain(adopted)]
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) <= len(acknowledged) + 1
    adopted.release()


def test_many_processes_make_and_adopt_logs_at_once(folder: Path) -> None:
    """Each log is adopted once, though everybody tries, and one folder vanishes while another looks at it."""
    work = """
import sys
from pathlib import Path
from uuid import UUID
from service.bridge.spool import Directory, Kind
directory = Directory(Path(sys.argv[1]), segment_bytes=4096)
for number in range(20):
    own = directory.claim()
    own.append(Kind.CHILDREN, UUID(int=int(sys.argv[2]) * 1000 + number + 1))
    own.release()
    for adopted in directory.adopt():
        records, after = adopted.read(most=10, most_bytes=10**9)
        print(*(record.interception_id.int for record in records))
        adopted.consume(after, records=len(records))
        directory.remove(adopted)
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", work, str(folder), str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(6)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 6
    found = [int(word) for output in outputs for word in output.split()]
    for left in Directory(folder, segment_bytes=4096).adopt():
        found += [interception_id.int for _, interception_id, _ in drain(left)]
        left.release()
    assert sorted(found) == sorted(worker * 1000 + number + 1 for worker in range(6) for number in range(20))
