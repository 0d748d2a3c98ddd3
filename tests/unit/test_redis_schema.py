"""The Lua scripts and the schema of Redis name the same keys and fields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tusd_py.backends.redis import scripts
from tusd_py.backends.redis.schema import Keys, LockField
from tusd_py.core.upload_codec import FIELDS

FILES = sorted(Path(scripts.__file__).parent.glob("*.lua"))
LOADED = {scripts.DEADLINE, scripts.WITH_EVENTS, scripts.read("replication_id"), scripts.read("tally")}
LOADED |= {script.text for script in vars(scripts).values() if isinstance(script, scripts.Script)}
OF_A_RECORD = re.compile(r"redis\.call\('(?:HMGET|HGET|HSET|HDEL|HINCRBY)', KEYS\[[0-9]\], ([^)]*)\)")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_script_is_loaded_and_names_only_fields_of_the_schema(path: Path) -> None:
    text = scripts.read(path.stem)
    assert text in LOADED
    fields = {name for words in OF_A_RECORD.findall(text) for name in re.findall(r"'(\w+)'", words)}
    assert fields <= {*FIELDS, *(field.value for field in LockField)}


def test_fields_of_the_locker_are_none_of_an_upload() -> None:
    assert not {field.value for field in LockField} & set(FIELDS)


@pytest.mark.parametrize("prefix", ["tus:", "a*b[c]?\\", ""])
def test_id_of_a_record_is_found_in_its_key(prefix: str) -> None:
    keys = Keys(prefix)
    assert keys.upload_id(keys.record("24e533e02ec3bc40")) == "24e533e02ec3bc40"


def test_keys_of_one_upload_share_their_hash_slot() -> None:
    keys = Keys("tus:")
    made = [keys.record, keys.parts, keys.waiting_finals, keys.lock, keys.release_request, keys.commit_request]
    made += [keys.removed_creation, keys.history, keys.events]
    assert {re.findall(r"{(.*)}", key("id"))[0] for key in made} == {"id"}
    assert len({key("id") for key in made}) == len(made)
