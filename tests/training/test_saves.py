"""Saves on disk: order, what is refused, and what stays when something fails."""

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_service.hosting import durable
from nablad_service.training.saves import Saves


def arrays(number):
    return {"params/a": np.full((2, 3), number, np.float32), "step": np.int32(number)}


@pytest.fixture
def saves(tmp_path):
    kept = Saves(tmp_path, keep=3)
    yield kept
    kept.close()


def write(saves, step, number=None, name="run", tenant=""):
    saves.write(tenant, name, step, arrays(step if number is None else number), {"sequence": step})


def number_in(saves, step=None):
    found, about = saves.read("", "run", step)
    assert (found["params/a"] == found["step"]).all()
    assert found["step"].shape == ()
    return int(found["step"]), about


def test_the_last_save_is_read_by_default_and_others_by_their_step(saves):
    for step in (10, 30, 20):
        write(saves, step)
    assert number_in(saves) == (20, {"sequence": 20})
    assert number_in(saves, 30) == (30, {"sequence": 30})
    assert saves.steps("", "run") == [10, 30, 20]
    assert saves.about("", "run") == {"sequence": 20}


def test_old_saves_go_when_a_new_one_is_there(saves, tmp_path):
    for step in range(5):
        write(saves, step)
    assert saves.steps("", "run") == [2, 3, 4]
    assert len(list(tmp_path.glob("*/run/*.safetensors"))) == 3


def test_a_save_takes_the_place_of_an_earlier_one_of_its_step(saves):
    write(saves, 1)
    write(saves, 2)
    write(saves, 1, number=7)
    assert saves.steps("", "run") == [2, 1]
    assert number_in(saves, 1)[0] == 7


def test_saves_of_a_name_are_written_in_turn(saves, monkeypatch):
    """A server that stops saves a session whose last save it has given up, and which goes on."""
    inside, together, real = [], [], durable.write_file

    def write_file(path, data):
        inside.append(path)
        together.append(len(inside))
        real(path, data)
        inside.remove(path)

    monkeypatch.setattr(durable, "write_file", write_file)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: write(saves, step), range(16)))
    assert together == [1] * 16
    assert len(saves.steps("", "run")) == 3


def test_what_a_crash_left_half_written_is_no_save_and_goes(saves, tmp_path):
    write(saves, 1)
    torn = tmp_path / "common" / "run" / f"{durable.ASIDE}0123"
    torn.write_bytes(b"half")
    assert saves.steps("", "run") == [1]
    write(saves, 2)
    assert not torn.exists()


def test_a_full_disk_is_told_and_costs_nothing_that_was_saved(saves, monkeypatch):
    write(saves, 1)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_file", full)
        with pytest.raises(Refusal, match=r"storage: 'run' could not be saved: the disk is full"):
            write(saves, 2)
    assert number_in(saves)[0] == 1
    write(saves, 2)
    assert number_in(saves)[0] == 2


def test_a_damaged_save_is_told(saves, tmp_path):
    write(saves, 1)
    write(saves, 2)
    (last,) = tmp_path.glob("common/run/*-2.safetensors")
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(Refusal, match=r"unfit_save: the save of 'run' at step 2 cannot be read"):
        saves.read("", "run")
    assert number_in(saves, 1)[0] == 1


def test_a_save_that_is_not_there_is_told_with_those_that_are(saves):
    with pytest.raises(Refusal, match=r"no_save: 'run' has no save$"):
        saves.read("", "run")
    write(saves, 4)
    with pytest.raises(Refusal, match="no_save: 'run' has no save of step 5; there are those of steps 4"):
        saves.read("", "run", 5)


def test_tenants_have_saves_of_their_own(saves):
    write(saves, 1)
    write(saves, 2, tenant="../other")
    assert saves.names("") == saves.names("../other") == ["run"]
    assert saves.names("third") == []
    assert saves.steps("../other", "run") == [2]
    saves.remove("", "run")
    assert saves.names("") == []
    assert saves.steps("../other", "run") == [2]


def test_a_generation_is_never_given_twice(tmp_path):
    for expected in (2, 3, 4):
        saves = Saves(tmp_path, keep=3)
        assert saves.begin_generation("", "run", 2) == expected
        saves.close()


def test_a_folder_has_one_server(saves, tmp_path):
    with pytest.raises(BlockingIOError):
        Saves(tmp_path, keep=3)
