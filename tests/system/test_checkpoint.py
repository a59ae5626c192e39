import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from system import checkpoint, part
from system.checkpoint import CheckpointStore, Part, write_part
from system.errors import CheckpointError

FILES = ["learner.json", "learner.safetensors", "manifest.json", "replay-0.json", "replay-0.safetensors"]


def parts_of(step, size=100):
    """Parts whose every number tells the step, so that a mixture of two checkpoints would show."""
    return {
        "learner": Part(arrays={"weights": np.full(size, step, np.float32)}, scalars={"step": step}),
        "replay-0": Part(arrays={"states": np.full((size, 2), step, np.uint8)}, scalars={"step": step}),
    }


def assert_is_checkpoint_of(step, loaded):
    assert loaded.step == step
    for name, expected in parts_of(step, loaded.parts["learner"].arrays["weights"].size).items():
        assert loaded.parts[name].scalars == expected.scalars
        for key, array in expected.arrays.items():
            np.testing.assert_array_equal(loaded.parts[name].arrays[key], array)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def store_with_two(store):
    store.save(1, parts_of(1))
    store.save(2, parts_of(2))
    return store


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3)])
def test_arrays_come_back_with_dtype_shape_and_every_bit(store, dtype, shape):
    generator = np.random.default_rng(0)
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array = np.frombuffer(generator.bytes(count), np.uint8) if dtype != "bool" else generator.random(count) < 0.5
    array = array.view(dtype).reshape(shape) if count else np.zeros(shape, dtype)
    store.save(7, {"learner": Part(arrays={"a": array})})
    back = store.load().parts["learner"].arrays["a"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def test_the_largest_uint64_survives(store):
    store.save(1, {"ids": Part(arrays={"last": np.array(2**64 - 1, np.uint64)})})
    assert int(store.load().parts["ids"].arrays["last"]) == 18446744073709551615


def test_views_with_strides_and_foreign_byte_order_are_not_scrambled(store):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"transposed": matrix.T, "every other": np.arange(20)[::2], "big endian": matrix.astype(">f4")}
    store.save(1, {"learner": Part(arrays=arrays)})
    for key, back in store.load().parts["learner"].arrays.items():
        np.testing.assert_array_equal(back, arrays[key])


def test_a_numpy_generator_continues_with_the_same_numbers(store):
    generator = np.random.default_rng(2**100 + 1)
    generator.random(3)
    store.save(1, {"random": Part(scalars=generator.bit_generator.state)})
    expected = generator.random(5)
    restored = np.random.default_rng(0)
    restored.bit_generator.state = store.load().parts["random"].scalars
    np.testing.assert_array_equal(restored.random(5), expected)


def test_scalars_come_back_exactly_and_floats_that_json_does_not_know_too(store):
    scalars = {"third": 1 / 3, "tiny": 5e-324, "big": 2**127 - 1, "best": float("inf"), "worst": [float("-inf")]}
    scalars |= {"none": None, "yes": True, "text": "π", "nested": {"a": [1, {"b": 2.5}]}}
    store.save(1, {"learner": Part(scalars=scalars | {"pair": (1, 2), "numpy": np.int64(3), "nan": np.float64("nan")})})
    back = store.load().parts["learner"].scalars
    assert np.isnan(back.pop("nan"))
    assert back == scalars | {"pair": [1, 2], "numpy": 3}


@pytest.mark.parametrize(
    ("scalars", "where"),
    [({"a": {"b": [0, object()]}}, r"learner\.scalars\.a\.b\[1\]"), ({"a": {1: 2}}, r"learner\.scalars\.a: keys")],
)
def test_a_value_that_would_not_come_back_is_refused_by_its_place(store_with_two, scalars, where):
    with pytest.raises(TypeError, match=where):
        store_with_two.save(3, {"learner": Part(scalars=scalars)})
    assert sorted(os.listdir(store_with_two.directory)) == ["step-000000001", "step-000000002"]


def test_arrays_of_objects_and_complex_numbers_are_refused():
    for array in (np.array([{}]), np.ones(2, complex), [1.0]):
        with pytest.raises(TypeError, match="'a' must be a numpy array"):
            Part(arrays={"a": array})


def test_only_the_two_newest_are_kept(store):
    for step in (10, 20, 30, 40):
        store.save(step, parts_of(step))
    assert store.steps() == [30, 40]
    assert sorted(os.listdir(store.directory)) == ["step-000000030", "step-000000040"]


def test_a_step_saved_again_replaces_the_first(store_with_two):
    store_with_two.save(2, parts_of(2, size=7))
    loaded = store_with_two.load()
    assert loaded.parts["learner"].arrays["weights"].size == 7
    assert store_with_two.steps() == [1, 2]


def test_saving_after_going_back_removes_the_abandoned_future(store, caplog):
    for step in (10, 20):
        store.save(step, parts_of(step))
    with caplog.at_level(logging.WARNING):
        store.save(15, parts_of(15))
    assert store.steps() == [10, 15]
    assert_is_checkpoint_of(15, store.load())
    assert "[20] removed" in caplog.text


def test_a_chosen_step_and_chosen_parts_are_loaded(store_with_two):
    assert_is_checkpoint_of(1, store_with_two.load(step=1))
    assert list(store_with_two.load(only=["learner"]).parts) == ["learner"]
    with pytest.raises(CheckpointError, match=r"no part \['critic'\]; it has \['learner', 'replay-0'\]"):
        store_with_two.load(only=["critic"])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .*; there are \[1, 2\]"):
        store_with_two.load(step=5)


def test_parts_written_by_another_process_are_committed(store):
    tmp = store.begin(4)
    write_part(tmp, "learner", parts_of(4)["learner"])
    program = textwrap.dedent("""
        import sys, numpy as np
        from pathlib import Path
        from system.checkpoint import Part, write_part
        part = Part(arrays={"states": np.full((100, 2), 4, np.uint8)}, scalars={"step": 4})
        write_part(Path(sys.argv[1]), "replay-0", part)
    """)
    subprocess.run([sys.executable, "-c", program, str(tmp)], check=True, timeout=60)
    store.commit(tmp, expected=["learner", "replay-0"])
    assert_is_checkpoint_of(4, store.load())


def test_a_part_that_did_not_arrive_or_is_half_written_stops_the_commit(store_with_two):
    tmp = store_with_two.begin(3)
    write_part(tmp, "learner", parts_of(3)["learner"])
    with pytest.raises(CheckpointError, match=r"replay-0\.json.*replay-0\.safetensors"):
        store_with_two.commit(tmp, expected=["learner", "replay-0"])
    tmp = store_with_two.begin(3)
    (tmp / "replay-0.safetensors.partial").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"still being written \['replay-0\.safetensors\.partial'\]"):
        store_with_two.commit(tmp)
    assert store_with_two.steps() == [1, 2]
    assert not list(store_with_two.directory.glob("*.tmp"))


def damage_flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_remove])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(store_with_two, file, damage, caplog):
    damage(store_with_two.directory / "step-000000002" / file)
    loaded = store_with_two.load()
    assert_is_checkpoint_of(1, loaded)
    assert len(loaded.warnings) == 1
    assert "step-000000002 is damaged" in loaded.warnings[0] and file in loaded.warnings[0]
    assert loaded.warnings[0] in caplog.text
    with pytest.raises(CheckpointError, match="step-000000002"):
        store_with_two.load(step=2)


def test_every_single_changed_byte_of_a_manifest_is_noticed(store_with_two):
    manifest = store_with_two.directory / "step-000000002" / "manifest.json"
    sound = manifest.read_bytes()
    for position in range(len(sound)):
        manifest.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with pytest.raises(checkpoint._DamageError):
            checkpoint._read_manifest(manifest.parent)


def test_when_none_is_sound_each_is_named_with_what_is_wrong(store_with_two):
    damage_flip(store_with_two.directory / "step-000000002" / "learner.safetensors")
    damage_truncate(store_with_two.directory / "step-000000001" / "replay-0.json")
    with pytest.raises(CheckpointError) as caught:
        store_with_two.load()
    line = str(caught.value)
    assert "step-000000002 is damaged and was not used: learner.safetensors does not match its checksum" in line
    assert "step-000000001 is damaged and was not used: replay-0.json has" in line
    assert "\n" not in line


def test_a_directory_without_checkpoints_is_a_one_line_error(store):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        store.load()


def test_a_reader_whose_checkpoints_are_pruned_meanwhile_takes_the_newer_ones(store_with_two, monkeypatch):
    read, calls = checkpoint._read, []

    def read_while_the_run_goes_on(path, only):
        calls.append(path.name)
        if len(calls) == 1:
            store_with_two.save(3, parts_of(3))
            store_with_two.save(4, parts_of(4))
        return read(path, only)

    monkeypatch.setattr(checkpoint, "_read", read_while_the_run_goes_on)
    assert_is_checkpoint_of(4, store_with_two.load())
    assert calls == ["step-000000002", "step-000000001", "step-000000004"]


def test_another_version_of_torch_is_a_warning(store, monkeypatch):
    monkeypatch.setattr(checkpoint, "_versions", lambda: {"torch": "1.0"})
    store.save(1, parts_of(1))
    monkeypatch.undo()
    (warning,) = store.load().warnings
    assert "torch 1.0 (now 2." in warning


def test_leftovers_of_a_crash_are_ignored_and_removed_at_the_next_save(store_with_two):
    leftover = store_with_two.directory / "step-000000009.tmp"
    leftover.mkdir()
    (leftover / "learner.json").write_text("{}")
    assert_is_checkpoint_of(2, store_with_two.load())
    store_with_two.save(3, parts_of(3))
    assert not leftover.exists()


@pytest.mark.parametrize("function", ["save_file", "_sync_file", "sync_directory"])
def test_no_space_at_any_point_leaves_the_old_checkpoints_and_one_line(store_with_two, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint if function == "sync_directory" else part, function, full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*[\d,]+ .*free") as caught:
        store_with_two.save(3, parts_of(3))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert sorted(os.listdir(store_with_two.directory)) == ["step-000000001", "step-000000002"]
    assert_is_checkpoint_of(2, store_with_two.load())


def test_a_disk_that_is_really_full_leaves_the_old_checkpoints_and_one_line(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        store = CheckpointStore(mount / "checkpoints")
        store.save(1, parts_of(1))
        with pytest.raises(CheckpointError, match=r"No space left.*needs 8,000,0\d\d bytes and [\d,]+ are free"):
            store.save(2, {"learner": Part(arrays={"weights": np.ones(1_000_000)}, scalars={"step": 2})})
        assert os.listdir(store.directory) == ["step-000000001"]
        assert_is_checkpoint_of(1, store.load())
        store.save(3, parts_of(3))
        assert_is_checkpoint_of(3, store.load())
    finally:
        subprocess.run(["umount", str(mount)], check=True)


SAVER = """
import sys, time, numpy as np
from pathlib import Path
from system.checkpoint import CheckpointStore, Part, write_part

store, mode, size = CheckpointStore(Path(sys.argv[1])), sys.argv[2], 200_000

def parts_of(step):
    return {
        "learner": Part(arrays={"weights": np.full(size, step, np.float32)}, scalars={"step": step}),
        "replay-0": Part(arrays={"states": np.full((size, 2), step, np.uint8)}, scalars={"step": step}),
    }

store.save(1, parts_of(1))
if mode == "between parts":
    tmp = store.begin(2)
    write_part(tmp, "learner", parts_of(2)["learner"])
    print("ready", flush=True)
    time.sleep(60)
print("ready", flush=True)
for step in range(2, 1_000_000):
    store.save(step, parts_of(step))
"""


def start_saver(directory, mode):
    command = [sys.executable, "-c", SAVER, str(directory), mode]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(checkpoint.__file__).parents[1])
    assert child.stdout.readline() == "ready\n"
    return child


def kill(child):
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=30) == -signal.SIGKILL
    child.stdout.close()


def test_a_kill_between_two_parts_leaves_the_checkpoint_before(tmp_path):
    kill(start_saver(tmp_path, "between parts"))
    assert (tmp_path / "step-000000002.tmp" / "learner.safetensors").exists()
    store = CheckpointStore(tmp_path)
    assert_is_checkpoint_of(1, store.load())
    store.save(2, parts_of(2))
    assert sorted(os.listdir(tmp_path)) == ["step-000000001", "step-000000002"]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_without_warning(tmp_path):
    for attempt in range(6):
        directory = tmp_path / str(attempt)
        child = start_saver(directory, "any moment")
        time.sleep(0.05 + 0.013 * attempt)
        kill(child)
        store = CheckpointStore(directory)
        loaded = store.load()
        assert_is_checkpoint_of(store.steps()[-1], loaded)
        assert loaded.warnings == ()
