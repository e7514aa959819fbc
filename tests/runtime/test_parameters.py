"""The parameter store: what it makes, what may be assigned, what comes back from a file, and copies on devices."""

import asyncio
import hashlib
import io
import threading
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tessera.dtypes import TYPES, bf16, f16, f32, i32
from tessera.errors import TesseraError
from tessera.runtime.parameters import (
    INITS,
    ParameterSpec,
    ParameterStore,
    current_store,
    default_store,
    use_store,
)

SCALE = ParameterSpec("safe_delta_computation/learnable_scale_parameter#0", (), f32, "ones")
WEIGHTS = ParameterSpec("layer/transformer_layer#0", (64, 768), bf16, "normal")
ATTENTION = ParameterSpec("layer/learned_attention_weights#0", (5, 5), bf16, "constant", 0.2)


def error(code, action, *parts):
    with pytest.raises(TesseraError) as caught:
        action()
    assert caught.value.code == code
    for part in parts:
        assert part in caught.value.message
    return caught.value.message


def bits(array):
    return array.view(f"u{array.itemsize}").tolist()


# ---- what the store makes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (2, 3, 4)], ids=str)
def test_first_values(dtype, shape):
    store = ParameterStore()
    for init, value in (("zeros", 0), ("ones", 1), ("constant", 3.0)):
        array = store.get(ParameterSpec(f"f/{init}#0", shape, dtype, init, 3.0))
        assert array.dtype == dtype.numpy and array.shape == shape and array.flags.c_contiguous
        expected = bool(value) if dtype.is_bool else value
        np.testing.assert_array_equal(array.astype(np.float64), np.full(shape, expected, np.float64))


def test_a_constant_is_rounded_once():
    assert bits(ParameterStore().get(ATTENTION)) == [[0x3E4D] * 5] * 5  # 0.2 as bf16


def test_the_second_use_gives_the_same_array():
    store = ParameterStore()
    assert store.get(WEIGHTS) is store.get(ParameterSpec(WEIGHTS.key, (64, 768), bf16, "zeros"))


def test_normal_is_normal():
    x = ParameterStore(seed=5).get(ParameterSpec("f/w#0", (400, 600), f32, "normal")).astype(np.float64) * 20
    count = x.size
    assert abs(x.mean()) < 5 / np.sqrt(count)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / count)
    for limit, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert abs((np.abs(x) < limit).mean() - share) < 0.005
    assert np.abs(x).max() <= 6
    assert abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(count)
    assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 5 / np.sqrt(count)


@pytest.mark.parametrize(("shape", "rows"), [((64, 768), 64), ((4, 16, 900), 64), ((50000,), 1)])
def test_normal_is_scaled_by_the_rows(shape, rows):
    x = ParameterStore().get(ParameterSpec("f/w#0", shape, f32, "normal")).astype(np.float64)
    assert abs(x.std() * np.sqrt(rows) - 1) < 0.02


def test_first_values_depend_on_key_shape_dtype_and_seed_only():
    def drawn(seed=0, key="f/w#0", shape=(6, 8), dtype=f32, before=()):
        store = ParameterStore(seed)
        for spec in before:
            store.get(spec)
        return store.get(ParameterSpec(key, shape, dtype, "normal")).astype(np.float64).ravel()

    first = drawn()
    np.testing.assert_array_equal(drawn(before=(WEIGHTS, SCALE)), first)
    for other in (drawn(seed=1), drawn(key="f/w#1"), drawn(shape=(8, 6)), drawn(dtype=f16)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.7 and not np.array_equal(first, other)


def test_first_values_are_the_same_everywhere():
    """Across processes, machines and versions: stored results depend on them."""
    drawn = ParameterStore(seed=3).get(WEIGHTS)
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == "26eddf7cfba65545"


def test_long_parameters_go_on_where_a_chunk_ends():
    drawn = ParameterStore().get(ParameterSpec("f/w#0", (150000,), f32, "normal"))
    assert len(np.unique(drawn)) > 0.8 * len(np.unique(np.random.default_rng(0).standard_normal(150000) * 65536 // 1))
    assert not np.array_equal(drawn[:1000], drawn[65536:66536])


def test_threads_get_one_array():
    store, found, start = ParameterStore(), [], threading.Barrier(4)

    def work():
        start.wait(10)
        found.append(store.get(WEIGHTS))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(array) for array in found}) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("", (), f32), "key"),
        (("a\nb", (), f32), "key"),
        ((3, (), f32), "key"),
        (("k", [3], f32), "shape of 'k'"),
        (("k", (3.0,), f32), "shape of 'k'"),
        (("k", (-1,), f32), "shape of 'k'"),
        (("k", (True,), f32), "shape of 'k'"),
        (("k", (3,), "f32"), "dtype of 'k'"),
        (("k", (3,), f32, "uniform"), "zeros, ones, normal, constant, not 'uniform'"),
        (("k", (3,), i32, "normal"), "zeros, ones, constant, not 'normal'"),
    ],
)
def test_what_is_no_spec(arguments, part):
    error("TS203", lambda: ParameterSpec(*arguments), part)
    assert set(INITS) == {"zeros", "ones", "normal", "constant"}


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True])
def test_what_is_no_seed(seed):
    error("TS203", lambda: ParameterStore(seed), str(seed))


# ---- names ---------------------------------------------------------------------------------------------------------


def test_another_shape_or_dtype_is_another_parameter():
    store = ParameterStore()
    specs = [
        ParameterSpec("f/a#0", shape, dtype, "ones") for shape, dtype in (((4, 4), bf16), ((5, 5), bf16), ((), f32))
    ]
    arrays = [store.get(spec) for spec in specs]
    store.get(SCALE)
    assert store.keys() == ["f/a#0:bf16[4, 4]", "f/a#0:bf16[5, 5]", "f/a#0:f32[]", SCALE.key] == list(store)
    for (name, array), spec, expected in zip(store.items(), specs, arrays, strict=False):
        assert array is expected is store[name] is store[spec] is store[spec.name]
    error("TS609", lambda: store["f/a#0"], "3 parameters 'f/a#0'", "store['f/a#0:bf16[5, 5]']")
    assert len(store) == 4 and "f/a#0" in store and specs[1] in store and specs[1].name in store
    assert "f/b#0" not in store and ParameterSpec("f/a#0", (6,), f32) not in store and 3 not in store


def test_unknown_names():
    store = ParameterStore()
    store.get(SCALE)
    error("TS609", lambda: store["safe_delta_computation/learnable_scale_parameter#O"], f"did you mean '{SCALE.key}'?")
    error("TS609", lambda: store[ParameterSpec(SCALE.key, (2,), f32)], "f32[2]; it has that of f32[]")
    error("TS609", lambda: store.__setitem__("other", np.ones(3)), "no parameter 'other'")
    assert store.keys() == [SCALE.key]


# ---- assignment ----------------------------------------------------------------------------------------------------


def test_assignment_replaces_by_a_copy():
    store = ParameterStore()
    old = store.get(ATTENTION)
    mine = np.arange(25).reshape(5, 5).astype(ml_dtypes.bfloat16)
    store[ATTENTION.key] = mine.T
    mine[:] = 0
    np.testing.assert_array_equal(store.get(ATTENTION).astype(int), np.arange(25).reshape(5, 5).T)
    assert store.get(ATTENTION).flags.c_contiguous and bits(old) == [[0x3E4D] * 5] * 5


def test_arrays_cannot_be_changed_in_place():
    store = ParameterStore()
    for array in (store.get(ATTENTION), store.get(SCALE)):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    store[SCALE] = np.array(2.0, np.float32)
    with pytest.raises(ValueError, match="read-only"):
        store[SCALE.key][...] = 1


def test_a_spec_may_be_assigned_before_its_first_use():
    store = ParameterStore(strict=True)
    store[SCALE] = np.float32(3)
    assert store.get(SCALE) == 3


def test_numbers_for_parameters_without_axes():
    store = ParameterStore()
    for dtype, number in ((f32, 2.5), (bf16, 2), (i32, 7)):
        spec = ParameterSpec("f/s#0", (), dtype)
        store[spec] = number
        assert store[spec] == number and store[spec].dtype == dtype.numpy and store[spec].shape == ()
    error("TS604", lambda: store.__setitem__(ParameterSpec("f/s#0", (), i32), 0.5), "i32[]", "float 0.5")
    error("TS401", lambda: store.__setitem__(ParameterSpec("f/s#0", (), i32), 2**40), str(2**40))
    error("TS604", lambda: store.__setitem__(ATTENTION, 1.0), "bf16[5, 5]", "float 1.0")


@pytest.mark.parametrize(
    ("value", "code", "parts"),
    [
        (np.zeros((5, 4), ml_dtypes.bfloat16), "TS301", ["bf16[5, 5]", "[5, 4]"]),
        (np.zeros((1, 5, 5), ml_dtypes.bfloat16), "TS301", ["[1, 5, 5]"]),
        (np.zeros((5, 5), np.float32), "TS604", ["float32", "array.astype(ml_dtypes.bfloat16)"]),
        (np.zeros((5, 5), np.uint16), "TS604", ["uint16"]),
        ([[0.0] * 5] * 5, "TS604", ["bf16[5, 5]", "list"]),
        (None, "TS604", ["NoneType"]),
    ],
)
def test_other_arrays_are_refused(value, code, parts):
    store = ParameterStore()
    old = store.get(ATTENTION)
    error(code, lambda: store.__setitem__(ATTENTION.key, value), ATTENTION.key, *parts)
    assert store.get(ATTENTION) is old


def test_the_remedy_names_numpy_types():
    store = ParameterStore()
    store.get(SCALE)
    error("TS604", lambda: store.__setitem__(SCALE.key, np.float64(1)), "array.astype(np.float32)")


# ---- strict stores and the store of a call -------------------------------------------------------------------------


def test_a_strict_store_makes_nothing():
    store = ParameterStore(strict=True)
    error("TS609", lambda: store.get(ATTENTION), f"'{ATTENTION.key}' of bf16[5, 5]")
    assert len(store) == 0
    store.strict = False
    store.get(ATTENTION)
    store.strict = True
    assert store.get(ATTENTION).shape == (5, 5)
    bigger = ParameterSpec(ATTENTION.key, (6, 6), bf16)
    error("TS609", lambda: store.get(bigger), "bf16[6, 6]; it has that of bf16[5, 5]")
    error("TS609", lambda: store.on_device(bigger, 0, lambda array: array), "bf16[6, 6]")


def test_use_store():
    outer, inner = ParameterStore(), ParameterStore()
    assert current_store() is default_store()
    with use_store(outer) as given:
        assert given is outer is current_store() and default_store() is not outer
        with pytest.raises(ZeroDivisionError), use_store(inner):
            assert current_store() is inner
            _ = 1 / 0
        assert current_store() is outer
    assert current_store() is default_store() is default_store()
    error("TS203", lambda: use_store("a").__enter__(), "use_store", "'a'")


def test_tasks_use_stores_of_their_own():
    async def task(store, ready, other):
        with use_store(store):
            ready.set()
            await other.wait()
            return current_store() is store

    async def both():
        first, second = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task(ParameterStore(), first, second), task(ParameterStore(), second, first))

    assert asyncio.run(both()) == [True, True]


# ---- devices -------------------------------------------------------------------------------------------------------


def test_a_copy_is_uploaded_once_per_device_and_assignment():
    store, uploads = ParameterStore(), []

    def upload(array):
        uploads.append(array)
        return None if len(uploads) == 1 else ("copy", array.tolist())  # whatever it returns is kept

    assert store.on_device(SCALE, 0, upload) is store.on_device(SCALE, 0, upload) is None
    assert store.on_device(SCALE, 1, upload) == ("copy", 1.0) and len(uploads) == 2
    store.on_device(ATTENTION, 0, upload)
    store[SCALE.key] = 4.0
    assert store.on_device(SCALE, 0, upload) == store.on_device(SCALE, 1, upload) == ("copy", 4.0)
    assert len(uploads) == 5
    store.on_device(ATTENTION, 0, upload)
    assert len(uploads) == 5


def test_a_failed_upload_is_tried_again():
    store = ParameterStore()
    with pytest.raises(ZeroDivisionError):
        store.on_device(SCALE, 0, lambda array: 1 / 0)
    assert store.on_device(SCALE, 0, lambda array: 7) == 7


# ---- files ---------------------------------------------------------------------------------------------------------


def special(dtype):
    """Every code of the narrow types, NaN and infinities included; extremes of the others."""
    if dtype.bits <= 16 and dtype.is_float:
        return np.arange(1 << dtype.bits).astype(f"u{dtype.bytes}").view(dtype.numpy)
    if dtype.is_float:
        return np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, dtype.largest], dtype.numpy)
    if dtype.is_bool:
        return np.array([True, False])
    return np.array([-dtype.largest - 1, 0, dtype.largest], dtype.numpy)


def filled(seed=9):
    store = ParameterStore(seed)
    for dtype in TYPES.values():
        array = special(dtype)
        store[ParameterSpec("f/a#0", array.shape, dtype)] = array
        store.get(ParameterSpec("f/a#0", (), dtype, "ones"))
        store.get(ParameterSpec("f/a#0", (0, 4), dtype))
    store.get(WEIGHTS)
    return store


def test_a_file_holds_every_bit(tmp_path):
    store, path = filled(), tmp_path / "parameters.npz"
    store.save(path)
    store.save(str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["parameters.npz"]
    again = ParameterStore(strict=True)
    again.load(path)
    assert again.keys() == store.keys() and again.seed == 9 and again.strict
    for (name, array), (_, expected) in zip(again.items(), store.items(), strict=True):
        assert array.dtype == expected.dtype and array.shape == expected.shape, name
        assert bits(array) == bits(expected), name
        assert not array.flags.writeable


def test_plain_numpy_reads_the_file(tmp_path):
    store = ParameterStore()
    store.get(ATTENTION)
    store.get(SCALE)
    store.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert sorted(file.files) == sorted(["tessera", ATTENTION.name, SCALE.name])
        assert file[ATTENTION.name].dtype == np.uint16 and file[SCALE.name] == 1


def test_loading_makes_the_store_what_it_was(tmp_path):
    store = filled()
    store.save(tmp_path / "p.npz")
    expected = filled().get(ParameterSpec("later#0", (3, 3), f32, "normal"))
    other = ParameterStore(seed=1)
    other.get(SCALE)
    assert other.on_device(WEIGHTS, 0, bits) != bits(store[WEIGHTS])
    other.load(tmp_path / "p.npz")
    assert SCALE not in other
    assert other.on_device(WEIGHTS, 0, bits) == bits(store[WEIGHTS])
    np.testing.assert_array_equal(other.get(ParameterSpec("later#0", (3, 3), f32, "normal")), expected)


def members(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def doubled():
    file = io.BytesIO(members(tessera=HEAD))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("tessera.npy", archive.read("tessera.npy"))
    return file.getvalue()


def lengthened():
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(members(tessera=HEAD))) as old, zipfile.ZipFile(file, "w") as new:
        new.writestr("tessera.npy", old.read("tessera.npy") + b"more")
    return file.getvalue()


def flipped():
    data = bytearray(members(tessera=HEAD, **{"k:f32[3]": np.full(3, 1.5, np.float32)}))
    data[data.index(np.float32(1.5).tobytes())] ^= 1
    return bytes(data)


HEAD = np.array([1, 0], np.uint64)
BROKEN = {
    "empty": (lambda: b"", "not a zip file"),
    "text": (lambda: b"hello", "not a zip file"),
    "cut": (lambda: members(tessera=HEAD)[:-30], ""),
    "bit": (flipped, "CRC"),
    "no head": (lambda: members(a=np.zeros(3)), "not written by ParameterStore.save"),
    "head": (lambda: members(tessera=np.zeros(2)), "head"),
    "format": (lambda: members(tessera=np.array([2, 0], np.uint64)), "format 2"),
    "name": (lambda: members(tessera=HEAD, a=np.zeros(3)), "'a' is not the name"),
    "dtype": (lambda: members(tessera=HEAD, **{"k:f31[3]": np.zeros(3)}), "'k:f31[3]'"),
    "shape": (lambda: members(tessera=HEAD, **{"k:f32[3]": np.zeros(4, np.float32)}), "float32[4], not float32[3]"),
    "values": (lambda: members(tessera=HEAD, **{"k:f32[3]": np.zeros(3)}), "float64[3], not float32[3]"),
    "bits": (lambda: members(tessera=HEAD, **{"k:bf16[3]": np.zeros(3, np.float16)}), "float16[3], not uint16[3]"),
    "spelling": (lambda: members(tessera=HEAD, **{"k:f32[03]": np.zeros(3, np.float32)}), "'k:f32[03]'"),
    "pickle": (lambda: members(tessera=HEAD, **{"k:f32[1]": np.array([{}], object)}), "pickle"),
    "twice": (doubled, "two members"),
    "longer": (lengthened, "longer"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_other_files_are_refused_and_change_nothing(tmp_path, case):
    make, part = BROKEN[case]
    (tmp_path / "p.npz").write_bytes(make())
    store = ParameterStore(seed=2)
    old = store.get(SCALE)
    error("TS610", lambda: store.load(tmp_path / "p.npz"), str(tmp_path / "p.npz"), part)
    assert store.keys() == [SCALE.key] and store[SCALE] is old and store.seed == 2


def test_a_missing_file(tmp_path):
    error("TS610", lambda: ParameterStore().load(tmp_path / "none.npz"), "none.npz", "No such file")


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    store, path = ParameterStore(), tmp_path / "p.npz"
    store.get(SCALE)
    store.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["p.npz"]


def test_arrays_serve_as_arguments_of_kernels(tmp_path):
    from tests.lanes import define

    scaled = define("""
        @ts.kernel
        def k(w: Tensor["M", "N", ts.bf16], out: Tensor["M", "N", ts.f32]):
            p = tile.program_id(0) * 16
            tile.store(w[p : p + 16] * 2.0, out[p : p + 16])
    """)
    weights = ParameterStore().get(ParameterSpec("f/w#0", (20, 16), bf16, "normal"))
    np.testing.assert_array_equal(scaled(weights), weights.astype(np.float32) * 2)
