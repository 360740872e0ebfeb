"""Settings that cannot work, alone or together, stop the start; those that can do not."""

from __future__ import annotations

import pytest

from service import importing
from service.settings import MOST_OF_IMPORT, InvalidSettings, read

LONGEST = "2147000.0"


def given(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"BRIDGELOG_{name}", value)


@pytest.mark.parametrize("name", ["STATEMENT_TIMEOUT", "LOCK_TIMEOUT", "REQUEST_TIMEOUT"])
def test_a_time_out_is_one_that_postgresql_can_hold(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given(monkeypatch, **{name: LONGEST})
    read()
    for value in ("2147000.5", "2147484", "1e300", "inf", "nan", "0"):
        given(monkeypatch, **{name: value})
        with pytest.raises(InvalidSettings, match=f"BRIDGELOG_{name}"):
            read()


@pytest.mark.parametrize("name", ["DATABASE_URL", "READ_DATABASE_URL", "DIRECT_DATABASE_URL"])
def test_ports_are_one_for_all_hosts_or_one_for_each(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given(monkeypatch, DATABASE_URL="postgresql://h/d")
    for good in ("host=a,b,c", "host=a,b,c&port=1", "host=a,b,c&port=1,2,3"):
        given(monkeypatch, **{name: f"postgresql:///d?{good}"})
        read()
    for bad in ("host=a,b,c&port=1,2", "host=a&port=1,2", "host=a,b&port=1,2,3"):
        given(monkeypatch, **{name: f"postgresql:///d?{bad}"})
        with pytest.raises(InvalidSettings, match=f'"BRIDGELOG_{name}" has . ports for . hosts'):
            read()


def test_what_one_request_may_need_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_OF_IMPORT == importing.MAX_RECORD + importing.BATCH_BYTES
    for values in (
        {"MAX_BODY": "30000000", "MAX_PAGE": "1024", "MAX_HELD": "60000000"},
        {"MAX_BODY": "1024", "MAX_PAGE": "30000000", "MAX_HELD": "60000000"},
        {"MAX_BODY": "1024", "MAX_PAGE": "1024", "MAX_HELD": str(2 * MOST_OF_IMPORT)},
    ):
        given(monkeypatch, **values)
        read()
        given(monkeypatch, MAX_HELD=str(int(values["MAX_HELD"]) - 1))
        with pytest.raises(InvalidSettings, match="BRIDGELOG_MAX_HELD"):
            read()


def test_a_burst_is_one_of_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, RATE_BURST="5")
    with pytest.raises(InvalidSettings, match="BRIDGELOG_RATE_BURST"):
        read()
    given(monkeypatch, RATE_LIMIT="1")
    assert read().rate_burst == 5
