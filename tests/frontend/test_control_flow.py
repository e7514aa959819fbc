"""Loops, branches and copy groups of a kernel: what is carried, what is joined, what is waited for."""

import numpy as np
from traced import kernel, names, the

import tessera as ts
from tessera.runtime.interpreter import interpret


def test_waiting_for_all_but_the_newest_groups():
    traced = kernel(
        """
        buffers = [tile.alloc_shared([16, ctx.N], ts.bf16) for _ in range(3)]
        for number, buffer in enumerate(buffers):
            tile.copy_async(buffer, x[number * 16 : number * 16 + 16])
            tile.cp_commit_group()
        tile.cp_wait_group(1)
        tile.cp_wait_group(1)
        tile.cp_wait_group(0)
        """
    )
    copies = [op.result for op in traced.body.walk() if op.name == "copy_async"]
    waits = [op.operands for op in traced.body.walk() if op.name == "wait"]
    assert waits == [copies[:2], copies[2:]]


def test_copies_inside_a_loop():
    traced = kernel(
        """
        b = tile.alloc_shared([16, ctx.N], ts.bf16)
        for j in tile.range(0, ctx.M, 16):
            tile.copy_async(b, x[j : j + 16])
            tile.cp_commit_group()
            tile.cp_wait_group(0)
            tile.store(b * 2.0, out[j : j + 16])
        """
    )
    assert names(traced.body) == "alloc_shared for { window copy_async wait read mul window store }"


# -- loops and branches


def test_loop_carries_what_its_body_assigns():
    traced = kernel(
        """
        acc, count, scale = tile.zeros([4]), 0, 0.5
        unchanged = 3.0
        for j in tile.range(2, n, 3):
            t = v * unchanged
            acc = acc + t * scale
            count += 1
            scale = scale * 2.0
        tile.store(acc * scale + count, v)
        """
    )
    loop = the(traced, "for")
    body = loop.regions[0]
    assert [argument.name for argument in body.arguments] == ["j", "acc", "count", "scale"]
    assert [str(result.type.dtype) for result in loop.results] == ["f32", "i64", "f32"]
    assert body.ops[-1].name == "yield" and len(body.ops[-1].operands) == 3
    assert [op.owner.attributes["value"] for op in (loop.operands[0], loop.operands[2])] == [2, 3]
    assert (loop.loc.line, loop.loc.column, loop.loc.end_column) == (8, 5, 34)


def test_nested_loops():
    traced = kernel(
        """
        acc = tile.zeros([4])
        for i in tile.range(n):
            for j in tile.range(i):
                acc = acc + v
            acc = acc * 2.0
        tile.store(acc, v)
        """
    )
    assert names(traced.body) == "full for { for { load add } mul } store"


def test_temporaries_of_a_loop_are_not_carried():
    traced = kernel(
        """
        t = tile.zeros([8])
        size = 4
        for j in tile.range(n):
            t = v * 2.0
            size = 4
            tile.store(t + tile.zeros([size]), v)
        """
    )
    assert len(the(traced, "for").results) == 0


def test_value_of_an_index_reaches_windows_inside_the_loop():
    traced = kernel("for j in tile.range(0, ctx.M, 16):\n    tile.store(x[j : j + 16], out[j : j + 16])")
    assert [op.attributes["extents"][0] for op in traced.body.walk() if op.name == "window"] == [16, 16]
    assert traced.attributes["parameters"][0] == ("x", "in")


def test_branch_joins_what_it_assigns():
    traced = kernel(
        """
        a, b, same, c = v * 1.0, 1, 5, None
        if n > 2:
            a = a + 1.0
            b = 2
            same = 5
            local = 3
        elif n > 1:
            b = n
        c = same
        tile.store(a * b, v[0:c - 1])
        """
    )
    branch = the(traced, "if")
    assert [str(result.type.dtype) for result in branch.results] == ["f32", "i64"]
    assert names(branch.regions[1]) == "gt if {  } {  }"
    assert the(traced, "store").loc.line == 15


def test_branch_decided_at_compile_time_leaves_no_region():
    assert (
        names(kernel("if ctx.N is None or False:\n    tile.barrier()\nelse:\n    tile.store(1.0, v)").body)
        == "full store"
    )


def test_containers_made_inside_a_region_may_change_there():
    traced = kernel(
        """
        for j in tile.range(n):
            parts = []
            for i in range(2):
                parts.append(v * float(i))
            parts[0] = parts[0] + 1.0
            tile.store(sum(parts), v)
        """
    )
    assert names(traced.body) == "for { load mul load mul add add store }"


def reference(v, n):
    """What the kernel below computes, as plain Python."""
    acc, count, scale = np.zeros(4), 0, 0.5
    for i in range(1, n, 2):
        for j in range(i):
            if j % 2 == 0 and i > 1:
                acc = acc + v * scale
                count += 1
            else:
                scale = scale * 2.0
        count = max(count, i // 2)
    return acc * scale + count - v[-1]


def test_loops_and_branches_compute_what_python_computes():
    traced = kernel(
        """
        acc, count, scale = tile.zeros([4]), 0, 0.5
        for i in tile.range(1, n, 2):
            for j in tile.range(i):
                if j % 2 == 0 and i > 1:
                    acc = acc + v * scale
                    count += 1
                else:
                    scale = scale * 2.0
            count = max(count, i // 2)
        tile.store(acc * scale + count - v[-1], out[0, 0:4])
        """
    )
    v = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    dims = {"M": 1, "N": 4}
    arguments = {
        "x": np.zeros((1, 4), ts.bf16.numpy),
        "w": np.zeros((4, 4), np.float32),
        "v": v,
        "n": 6,
        "s": 0.0,
        "out": np.zeros((1, 4), ts.bf16.numpy),
    }
    result = interpret(traced, arguments, dims, (1, 1, 1)).outputs["out"]
    assert np.array_equal(np.asarray(result)[0], reference(v, 6).astype(ts.bf16.numpy))
