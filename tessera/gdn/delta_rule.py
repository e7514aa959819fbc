"""The gated delta rule as a function: checks its arguments, chooses kernels by what they are, and calls them."""

import sys
from typing import Any

import tessera as ts
from tessera.gdn.delta_kernels import Variant, chunk_kernel, prepare_kernel, recurrent_kernel

DTYPES = {
    "bfloat16": ts.bf16,
    "float16": ts.f16,
    "float32": ts.f32,
    "int32": ts.i32,
    "int64": ts.i64,
}
FLOATS = (ts.bf16, ts.f16, ts.f32)
CHUNKS = (16, 32, 64)
MOST_KEYS = 256  # elements of a key: a program keeps that many rows of its columns of the state in registers
FEW_TOKENS = 16  # up to which going token by token takes less time than the two kernels of the chunked form
MULTIPROCESSORS, MOSTLY = 132, 0.9
WIDE, NARROW = 64, 32  # columns of the state a program
STATE_ELEMENTS = 64 * 128  # of a program with 4 warps: 64 registers of each thread
WARP_ELEMENTS = STATE_ELEMENTS // 4


def gated_delta_rule(
    q,
    k,
    v,
    g: Any = None,
    beta: Any = None,
    scale: float | None = None,
    initial_state: Any = None,
    output_final_state: bool = False,
    cu_seqlens: Any = None,
    *,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    A_log=None,
    dt_bias=None,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    state_v_first=False,
    inplace_final_state=False,
    chunk_size=None,
    mode="auto",
    form="auto",
    **schedule,
):
    """The gated delta rule (Gated DeltaNet, Yang, Kautz and Hatamizadeh, ICLR 2025), forward; returns (o, final state).

    For each value head, with a state S of [K, V] in f32 and row vectors of each token:

        S~ = exp(g_t) S;   u_t = beta_t (v_t - k_t S~);   S = S~ + k_t^T u_t;   o_t = scale q_t S

    Arrays of NumPy, CuPy or torch:

    - q, k: [B, T, H, K], K up to 256; v: [B, T, HV, V], HV a multiple of H; all bf16, f16 or f32, as is o [B, T, HV, V]
    - g: [B, T, HV], log decay, at most 0 (None: no decay); beta: [B, T, HV], steps (None: 1); any float dtype
    - scale: K^-0.5 unless given
    - initial_state: f32 [N, HV, K, V], or [N, HV, V, K] with `state_v_first` (None: zeros); N is B, or the number of
      packed sequences. The final state is another such array, or None where neither `output_final_state` nor
      `inplace_final_state`, which overwrites the initial state, asks for it.
    - cu_seqlens: i32 or i64 [N + 1], where B is 1 and sequence n is tokens cu_seqlens[n] up to cu_seqlens[n + 1]

    `use_qk_l2norm_in_kernel` divides q and k by sqrt(their squared norm + 1e-6). `use_gate_in_kernel` takes g as the
    input of the gate -exp(A_log) softplus(g + dt_bias), with A_log and dt_bias f32 [HV] (dt_bias may be None).
    `use_beta_sigmoid_in_kernel` takes sigmoid(beta), twice that with `allow_neg_eigval`.

    `mode` is "recurrent", token by token, "chunk", or "auto", which goes by the number of tokens. `form` is that of the
    chunked kernels: "gated", or "gate_free", whose inverse is bounded for keys of norm 1 only; "auto" takes that where
    the keys are normalised here. `chunk_size` is 16, 32 or 64. Further keywords fix what else is chosen by shape:
    block (columns of the state a program), warps, stages, family ("wgmma" on sm_90a), upright (how registers hold the
    state), prepare_warps, prepare_blocks.

    Raises TesseraError: TS203 for an argument of the wrong kind, TS204 for a dtype, TS301, TS302 and TS304 for shapes
    that do not fit, TS601 for an argument that is missing or that goes with another one.
    """
    arrays = {"q": q, "k": k, "v": v, "g": g, "beta": beta, "A_log": A_log, "dt_bias": dt_bias}
    _check_arrays({**arrays, "initial_state": initial_state, "cu_seqlens": cu_seqlens})
    _check_choices(chunk_size, mode, form)
    _check_options(g, A_log, dt_bias, use_gate_in_kernel, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    batch, length, _, keys = q.shape
    heads, values = v.shape[2:]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if inplace_final_state and initial_state is None:
        raise ts.TesseraError("TS601", "inplace_final_state=True needs the 'initial_state' that it overwrites")
    shape = (sequences, heads, *((values, keys) if state_v_first else (keys, values)))
    if initial_state is not None and tuple(initial_state.shape) != shape:
        order = "[N, HV, V, K]" if state_v_first else "[N, HV, K, V]"
        message = f"'initial_state' is {list(initial_state.shape)}, but {order} is {list(shape)} here"
        raise ts.TesseraError("TS301", message)
    chunked = mode == "chunk" or (mode == "auto" and length > max(FEW_TOKENS, sequences))
    longest = 16 if _dtype(q) == ts.f32 else 64  # true f32 takes more registers and shared memory, and no tensor cores
    fields = _by_shape(chunked, sequences * heads, keys, values, state_v_first)
    # Where there are programs enough, two chunks of 32 are less work than one of 64.
    usual = 32 if fields["block"] == WIDE else 64
    chunk = chunk_size or min(longest, usual if length > 32 else 32 if length > 16 else 16)
    variant = Variant(
        _dtype(q),
        ts.f32 if g is None else _dtype(g),
        ts.f32 if beta is None else _dtype(beta),
        None if cu_seqlens is None else _dtype(cu_seqlens),
        unit=use_qk_l2norm_in_kernel,
        logits=use_beta_sigmoid_in_kernel,
        beta_scale=2.0 if allow_neg_eigval else 1.0,
        value_first=state_v_first,
        gate_free=form == "gate_free" or (form == "auto" and use_qk_l2norm_in_kernel),
        chunk=chunk,
        **{**fields, **schedule},
    )
    scale = keys**-0.5 if scale is None else float(scale)
    final = None
    if output_final_state and not inplace_final_state:
        final = _empty(v, shape, ts.f32)
    gates = {"g": g, "beta": beta, "A_log": A_log, "dt_bias": dt_bias}
    states = {"cu_seqlens": cu_seqlens, "initial_state": initial_state, "final_state": final}
    if not chunked:
        kernel = recurrent_kernel(variant, inplace_final_state)
        result = kernel(q=q, k=k, v=v, scale=scale, **gates, **states)
    else:
        slots = batch * -(-length // chunk) if cu_seqlens is None else length // chunk + sequences
        made = {
            "mix": _empty(q, (slots, heads, chunk, chunk), variant.dtype),
            "attend": _empty(q, (slots, heads, chunk, chunk), variant.dtype),
            "factors": _empty(q, (slots, heads, 3, chunk), ts.f32),
            "fade": _empty(q, (slots, heads), ts.f32),
        }
        prepare_kernel(variant)(q=q, k=k, scale=scale, **made, **gates, cu_seqlens=cu_seqlens)
        result = chunk_kernel(variant, inplace_final_state)(q=q, k=k, v=v, **made, **states)
    return result, initial_state if inplace_final_state else final


def _by_shape(chunked, heads, keys, values, value_first):
    """Columns of the state a program, and warps: those that were fastest on an H200 (`bench/gated_delta_rule.json`).

    Columns as many as registers hold, so that what comes from memory serves more of them, unless that leaves
    multiprocessors without a program.
    """
    wide = heads * -(-values // WIDE) >= MOSTLY * MULTIPROCESSORS and WIDE * keys <= STATE_ELEMENTS
    if not chunked:
        columns = WIDE if wide else 16 if value_first else 32  # whole lines of memory
        return {"block": columns, "warps": 1 << (-(-columns * keys // WARP_ELEMENTS) - 1).bit_length()}
    return {"block": WIDE if wide else NARROW, "warps": 4 if NARROW * keys < STATE_ELEMENTS else 8, "prepare_warps": 2}


def _dtype(array):
    return DTYPES[str(array.dtype).rpartition(".")[2]]


def _empty(like, shape, dtype):
    """An array of the library and on the device of `like`, which is not initialised."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return like.new_empty(shape, dtype=torch.float32 if dtype == ts.f32 else like.dtype)
    library = sys.modules[type(like).__module__.partition(".")[0]]
    return library.empty(shape, "float32" if dtype == ts.f32 else like.dtype)


# Axes and dtypes of each array; q, k and v are no option.
ARRAYS = {
    "q": (4, FLOATS),
    "k": (4, FLOATS),
    "v": (4, FLOATS),
    "g": (3, FLOATS),
    "beta": (3, FLOATS),
    "initial_state": (4, (ts.f32,)),
    "cu_seqlens": (1, (ts.i32, ts.i64)),
    "A_log": (1, (ts.f32,)),
    "dt_bias": (1, (ts.f32,)),
}


def _check_arrays(given: dict[str, Any]):
    """Kinds, ranks and dtypes, and what the kernels themselves do not see; sizes that differ they report."""
    for name, array in given.items():
        if array is None and name not in ("q", "k", "v"):
            continue
        rank, dtypes = ARRAYS[name]
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        if shape is None or dtype is None:
            raise ts.TesseraError("TS203", f"'{name}' is an array, not a {type(array).__name__}")
        if len(shape) != rank:
            raise ts.TesseraError("TS304", f"'{name}' has {rank} axes, but this one is {list(shape)}")
        if DTYPES.get(str(dtype).rpartition(".")[2]) not in dtypes:
            listed = " or ".join(known.name for known in dtypes)
            raise ts.TesseraError("TS204", f"'{name}' is {listed}, not {dtype}")
    q, v, bounds = given["q"], given["v"], given["cu_seqlens"]
    for name in ("k", "v"):
        if _dtype(given[name]) != _dtype(q):
            raise ts.TesseraError("TS204", f"'q' is {_dtype(q).name}, but '{name}' is {_dtype(given[name]).name}")
    if not q.shape[2] or v.shape[2] % q.shape[2]:
        message = f"'v' has {v.shape[2]} heads, which is no multiple of the {q.shape[2]} heads of 'q'"
        raise ts.TesseraError("TS301", message)
    if q.shape[3] > MOST_KEYS:
        raise ts.TesseraError("TS301", f"'q' has keys of {q.shape[3]} elements; at most {MOST_KEYS} fit")
    if bounds is not None and q.shape[0] != 1:
        message = f"'cu_seqlens' packs sequences into a batch of 1, but 'q' has a batch of {q.shape[0]}"
        raise ts.TesseraError("TS301", message)
    if bounds is not None and bounds.shape[0] < 2:
        raise ts.TesseraError("TS301", f"'cu_seqlens' has N + 1 bounds of N sequences, not {bounds.shape[0]}")


def _check_choices(chunk_size, mode, form):
    for name, value, known in (
        ("chunk_size", chunk_size, (None, *CHUNKS)),
        ("mode", mode, ("auto", "chunk", "recurrent")),
        ("form", form, ("auto", "gated", "gate_free")),
    ):
        if value not in known:
            listed = ", ".join(repr(choice) for choice in known if choice is not None)
            raise ts.TesseraError("TS203", f"{name}= is one of {listed}, not {value!r}")


def _check_options(g, A_log, dt_bias, gate, beta, logits, allow_neg_eigval):
    if gate and (g is None or A_log is None):
        missing = "g" if g is None else "A_log"
        raise ts.TesseraError("TS601", f"use_gate_in_kernel=True needs '{missing}'")
    if not gate and (A_log is not None or dt_bias is not None):
        given = "A_log" if A_log is not None else "dt_bias"
        raise ts.TesseraError("TS601", f"'{given}' is of the gate that use_gate_in_kernel=True computes")
    if beta is None and logits:
        raise ts.TesseraError("TS601", "use_beta_sigmoid_in_kernel=True needs 'beta'")
    if allow_neg_eigval and not logits:
        raise ts.TesseraError("TS601", "allow_neg_eigval=True doubles the sigmoid of use_beta_sigmoid_in_kernel=True")
