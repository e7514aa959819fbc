"""The gated delta rule beside its recurrence in float64: how far off, and on a GPU how long, against the length T.

    python examples/gdn/gated_delta_rule/compare.py [--lengths 64,200,1000] [--dtype bf16] [--plot FILE.svg]

Without a GPU the kernels run on the interpreter, and only errors are shown. The roofline share is that of the time in
which the tensors could be copied at the rate of a copy on this GPU. Plots need matplotlib.
"""

import argparse
import statistics

import ml_dtypes
import numpy as np

from tessera.gdn import gated_delta_rule

DTYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
MOST = {"bf16": 0.008, "f16": 0.002, "f32": 1e-5}  # RMS of the deviation over that of the output
HEADS, VALUE_HEADS, K, V = 1, 2, 128, 128


def problem(length, dtype, seed=0):
    """One sequence: unit queries and keys, values, decays and steps."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, length, HEADS, K))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    v = rng.standard_normal((1, length, VALUE_HEADS, V))
    g = -rng.exponential(0.05, (1, length, VALUE_HEADS)).astype(np.float32)
    return *(x.astype(dtype) for x in (q, k, v)), g, rng.random(g.shape).astype(np.float32)


def recurrence(q, k, v, g, beta):
    """o in float64, one token after the other: what the rule says."""
    q, k, v, g, beta = (x.astype(np.float64) for x in (q, k, v, g, beta))
    q, k = (np.repeat(x, VALUE_HEADS // HEADS, axis=2) for x in (q, k))
    state, o = np.zeros((VALUE_HEADS, K, V)), np.empty_like(v)
    for t in range(v.shape[1]):
        state = state * np.exp(g[0, t])[:, None, None]
        update = beta[0, t][:, None] * (v[0, t] - np.einsum("hk,hkv->hv", k[0, t], state))
        state = state + np.einsum("hk,hv->hkv", k[0, t], update)
        o[0, t] = K**-0.5 * np.einsum("hk,hkv->hv", q[0, t], state)
    return o


def deviation(o, reference):
    return np.sqrt(np.mean((o.astype(np.float64) - reference) ** 2)) / np.sqrt(np.mean(reference**2))


def clock():
    """A function from a call on tensors to microseconds, and the rate of a copy; None without a GPU and torch."""
    try:
        import torch

        from tessera.runtime.bench_device import open_device

        device = open_device()
        rate = device.peaks().copy
    except Exception:  # no torch, no CuPy, no GPU
        return None, 0.0

    def on_gpu(x):
        wide = x.dtype.name == "bfloat16"
        return (torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if wide else torch.from_numpy(x)).cuda()

    def timed(arrays, mode):
        tensors = [on_gpu(x) for x in arrays]
        return statistics.median(device.timed([lambda: gated_delta_rule(*tensors, mode=mode)], 20)[0])

    return timed, rate


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="1,16,64,200,500")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--plot")
    options = parser.parse_args(argv)
    timed, rate = clock()
    rows = []
    print("     T  mode       error      time      roofline")
    for length in map(int, options.lengths.split(",")):
        arrays = problem(length, DTYPES[options.dtype])
        reference = recurrence(*arrays)
        moved = sum(x.nbytes for x in arrays) + arrays[2].nbytes
        for mode in ("chunk", "recurrent"):
            o, _ = gated_delta_rule(*arrays, mode=mode)
            error = deviation(o, reference)
            assert error <= MOST[options.dtype], f"T={length}, {mode}: {error} is more than {MOST[options.dtype]}"
            us = timed(arrays, mode) if timed else None
            rows.append((length, mode, error, us))
            shown = "no GPU" if us is None else f"{us:7.1f} us {moved / rate * 1e6 / us:8.1%}"
            print(f"{length:6d}  {mode:9}  {error:.2e}  {shown}")
    if options.plot:
        plot(rows, options.plot)


def plot(rows, path):
    """Error, and where there are times those, against T."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5))
    for mode in ("chunk", "recurrent"):
        lengths, _, errors, times = zip(*(row for row in rows if row[1] == mode), strict=True)
        axes[0].loglog(lengths, errors, "o-", label=mode)
        if None not in times:
            axes[1].loglog(lengths, times, "o-", label=mode)
    for axis, title in zip(axes, ("RMS error of o, relative", "time (us)"), strict=True):
        axis.set(xlabel="T", title=title)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
