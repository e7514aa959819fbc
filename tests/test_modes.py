"""Training mode and seeds: what a call switches, what a block restores, and that every seed can be drawn again."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tessera import modes
from tessera.errors import TesseraError
from tessera.modes import SeedState, get_state, is_training, manual_seed, mode_key, next_seed, set_state


@pytest.fixture(autouse=True)
def in_a_context_of_its_own():
    """Every test starts in evaluation mode with the seed of a fresh process, and leaves none of its own behind."""
    state = get_state()
    modes.eval()
    set_state(SeedState(0))
    yield
    modes.eval()
    set_state(state)


# ---- mode ----------------------------------------------------------------------------------------------------------


def test_a_fresh_context_evaluates():
    modes.train()
    assert contextvars.Context().run(lambda: (is_training(), mode_key())) == (False, "eval")


def test_a_call_switches():
    modes.train()
    assert is_training() and mode_key() == "train"
    modes.train()
    assert is_training()
    modes.eval()
    assert not is_training() and mode_key() == "eval"


@pytest.mark.parametrize("before", [modes.train, modes.eval])
@pytest.mark.parametrize("inside", [modes.train, modes.eval])
def test_a_block_restores_what_was_before(before, inside):
    before()
    expected = is_training()
    with inside():
        assert is_training() == (inside is modes.train)
    assert is_training() == expected


def test_an_exception_passes_and_the_mode_is_restored():
    with pytest.raises(ZeroDivisionError), modes.train():
        _ = 1 / 0
    assert not is_training()


def test_blocks_nest_and_calls_inside_last_to_their_end():
    with modes.train():
        with modes.eval():
            assert not is_training()
            modes.train()
            assert is_training()
            modes.eval()
            modes.train()
        assert is_training()
        modes.eval()
        with modes.train():
            assert is_training()
        assert not is_training()
    assert not is_training()
    modes.train()
    with modes.eval():
        modes.train()
        modes.eval()
    assert is_training()


def test_a_kept_switch_can_be_entered_again():
    switch = modes.train()
    modes.eval()
    with switch:
        assert is_training()
        with modes.eval(), switch, switch:
            assert is_training()
        assert is_training()
    assert not is_training()
    modes.train()
    with switch:
        modes.eval()
    assert is_training()


def test_many_calls_keep_nothing_alive():
    def depth(frame):
        return 0 if frame is None else 1 + depth(frame.outer)

    for _ in range(50):
        modes.train()
        with modes.eval():
            modes.train()
        modes.eval()
    assert depth(modes._frame.get()) == 1


def test_a_thread_and_a_task_have_a_mode_of_their_own():
    modes.train()
    seen = []

    def work():
        seen.append(is_training())
        with modes.train():
            both.wait(10)
            seen.append(is_training())
            both.wait(10)
        seen.append(is_training())

    both = threading.Barrier(2)
    thread = threading.Thread(target=contextvars.Context().run, args=(work,))
    thread.start()
    both.wait(10)
    modes.eval()
    both.wait(10)
    thread.join()
    assert seen == [False, True, False] and not is_training()

    async def task(switch, ready, other):
        with switch():
            ready.set()
            await other.wait()
            return is_training()

    async def both_tasks():
        first, second = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task(modes.train, first, second), task(modes.eval, second, first))

    assert asyncio.run(both_tasks()) == [True, False]
    assert not is_training()


# ---- seeds ---------------------------------------------------------------------------------------------------------


def test_seeds_are_a_function_of_the_manual_seed_and_the_count():
    manual_seed(11)
    first = [next_seed() for _ in range(5)]
    manual_seed(12)
    other = [next_seed() for _ in range(5)]
    manual_seed(np.int64(11))
    assert [next_seed() for _ in range(5)] == first
    assert len({*first, *other}) == 10
    # A stored result must be drawn again by a later version.
    manual_seed(0)
    assert [next_seed(), next_seed()] == [5876733520225071, 6315957190297641]


def test_the_mixer_is_that_of_splitmix64():
    """The first outputs of the generator with the seed 0, as its authors publish them."""
    outputs = [modes._mix(count * modes._GAMMA) for count in (1, 2, 3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_a_fresh_process_has_the_seed_0():
    set_state(SeedState(0))
    first = next_seed()
    manual_seed(0)
    assert next_seed() == first


def test_seeds_are_well_mixed_and_fit_float64():
    drawn = []
    for seed in range(64):  # neighbouring seeds
        manual_seed(seed)
        drawn += [next_seed() for _ in range(64)]
    assert len(set(drawn)) == len(drawn)
    assert all(type(seed) is int and 0 <= seed < 2**53 and int(float(seed)) == seed for seed in drawn)
    bits = (np.array(drawn)[:, None] >> np.arange(53)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / 64
    flips = bits.reshape(64, 64, 53)
    for axis in (0, 1):  # the next seed, and the next count, change every bit half of the time
        changed = np.diff(flips, axis=axis) != 0
        assert np.abs(changed.mean(axis=(0, 1)) - 0.5).max() < 0.05


def test_the_state_continues():
    manual_seed(-5)
    next_seed()
    state = get_state()
    assert state == SeedState(2**64 - 5, 1)
    expected = [next_seed() for _ in range(3)]
    manual_seed(1)
    set_state(state)
    assert [next_seed() for _ in range(3)] == expected
    assert get_state().count == 4


def test_both_signs_of_a_64_bit_seed():
    manual_seed(-1)
    first = next_seed()
    manual_seed(2**64 - 1)
    assert next_seed() == first
    manual_seed(-(2**63))
    assert get_state() == SeedState(2**63)


@pytest.mark.parametrize("wrong", [1.0, "3", None, True, 2**64, -(2**63) - 1])
def test_other_seeds_are_refused(wrong):
    manual_seed(4)
    with pytest.raises(TesseraError, match="manual_seed takes an integer") as caught:
        manual_seed(wrong)
    assert caught.value.code == "TS203" and str(wrong) in caught.value.message
    assert get_state() == SeedState(4)


@pytest.mark.parametrize("wrong", [3, (3, 0), SeedState(-1), SeedState(0, -1), SeedState(0, 0.5), SeedState(2**64)])
def test_other_states_are_refused(wrong):
    with pytest.raises(TesseraError, match="set_state takes") as caught:
        set_state(wrong)
    assert caught.value.code == "TS203"


def test_threads_never_draw_the_same_seed():
    manual_seed(3)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: next_seed(), range(4000)))
    manual_seed(3)
    assert sorted(drawn) == sorted(next_seed() for _ in range(4000))
