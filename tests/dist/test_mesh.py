"""The mesh of devices and the decorators of distributed functions, on a machine with any number of GPUs."""

import pickle
import subprocess
import sys

import pytest

import tessera as ts
from tessera import Tensor, dist
from tessera.errors import SourceError
from tessera.frontend.definition import FunctionDefinition
from tessera.ir.assignment import current_scope, distributed
from tessera.ir.sharding import replicated

GPUS = [f"cuda:{i}" for i in range(8)]
MESH = dist.mesh(devices=GPUS, axes=("dp", "mp"), shape=(2, 4))


def layer(x: Tensor["B", "S", "D", ts.bf16]) -> Tensor["B", "S", "D", ts.bf16]:
    return x


# -- the mesh as data


def test_a_mesh_is_a_value():
    assert (MESH.devices, MESH.axes, MESH.shape) == (tuple(GPUS), ("dp", "mp"), (2, 4))
    assert MESH.size("dp") == 2 and MESH.size("mp") == 4 and MESH.kind == "cuda"
    same = dist.mesh(tuple(GPUS), ["dp", "mp"], [2, 4])
    assert same == MESH and hash(same) == hash(MESH) and pickle.loads(pickle.dumps(MESH)) == MESH
    assert dist.mesh(GPUS, ("mp", "dp"), (2, 4)) != MESH
    assert str(MESH) == "dp=2, mp=4"
    with pytest.raises(AttributeError):
        MESH.shape = (4, 2)


def test_device_numbers_are_row_major():
    assert MESH.coordinates(0) == {"dp": 0, "mp": 0}
    assert MESH.coordinates(6) == {"dp": 1, "mp": 2}
    assert MESH.device_at(dp=1, mp=2) == 6 == MESH.device_at(mp=2, dp=1)
    deep = dist.mesh([f"cpu:{i}" for i in range(12)], ("pp", "dp", "self"), (2, 3, 2))
    assert [deep.device_at(**deep.coordinates(number)) for number in range(12)] == list(range(12))
    assert deep.coordinates(11) == {"pp": 1, "dp": 2, "self": 1}


def test_it_needs_no_device():
    program = (
        "import sys; old = set(sys.modules); from tessera import dist; "
        f"m = dist.mesh({GPUS!r}, ('dp', 'mp'), (2, 4)); print(m.describe(0).splitlines()[0]); "
        "print(sorted({'cupy', 'cuda', 'torch', 'numpy.linalg.lapack'} & set(sys.modules) - old))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["virtual mesh dp=2, mp=4: 8 logical devices on 1 real one", "[]"]


@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        ({"devices": GPUS[:7]}, "TS606", ("dp=2, mp=4", "has 8 devices", "names 7")),
        ({"devices": []}, "TS606", ("has 8 devices", "names 0")),
        ({"devices": "cuda:0"}, "TS203", ("devices of a mesh", "devices=[", "'cuda:0'")),
        ({"devices": GPUS[:7] + ["cuda:1"]}, "TS606", ("cuda:1 more than once", "1, 7")),
        ({"devices": GPUS[:7] + ["gpu:7"]}, "TS606", ("'gpu:7' is no device", "'cuda:0'")),
        ({"devices": GPUS[:7] + ["cuda:07"]}, "TS606", ("'cuda:07' is no device",)),
        ({"devices": GPUS[:7] + ["cuda:7\n"]}, "TS606", ("is no device",)),
        ({"devices": GPUS[:7] + [7]}, "TS606", ("7 is no device",)),
        ({"devices": GPUS[:7] + ["cpu:0"]}, "TS606", ("of one kind", "cuda:0 and cpu:0")),
        ({"axes": "dp"}, "TS203", ("axes of a mesh", "axes=(", "'dp'")),
        ({"axes": ()}, "TS606", ("no axes",)),
        ({"axes": ("dp", "")}, "TS606", ("not empty", "''")),
        ({"axes": ("dp", 1)}, "TS606", ("by a text", "1")),
        ({"axes": ("dp", "dp")}, "TS606", ("two axes", "'dp'")),
        ({"axes": ("dp", "mp", "pp")}, "TS606", ("names 3 axes", "('dp', 'mp', 'pp')", "sizes for 2", "(2, 4)")),
        ({"shape": 8}, "TS203", ("shape of a mesh", "shape=(", "8")),
        ({"shape": (2, 0)}, "TS606", ("'mp'", "positive int", "0")),
        ({"shape": (-2, -4)}, "TS606", ("'dp'", "positive int", "-2")),
        ({"shape": (2, 4.0)}, "TS606", ("'mp'", "positive int", "4.0")),
        ({"shape": (2, True)}, "TS606", ("'mp'", "positive int", "True")),
    ],
)
def test_what_is_no_mesh(changes, code, parts):
    with pytest.raises(SourceError) as caught:
        dist.mesh(**{"devices": GPUS, "axes": ("dp", "mp"), "shape": (2, 4), **changes})
    assert caught.value.code == code and caught.value.remedy
    assert all(part in caught.value.message for part in parts), caught.value.message


@pytest.mark.parametrize(
    ("ask", "code", "parts"),
    [
        (lambda: MESH.size("mpi"), "TS201", ("no axis 'mpi'", "dp, mp", "did you mean 'mp'?")),
        (lambda: MESH.size("tensor"), "TS201", ("no axis 'tensor'", "dp, mp")),
        (lambda: MESH.size(0), "TS203", ("by a text", "dp, mp", "0")),
        (lambda: MESH.coordinates(8), "TS607", ("no device 8", "dp=2, mp=4", "0 to 7")),
        (lambda: MESH.coordinates(-1), "TS607", ("no device -1",)),
        (lambda: MESH.coordinates("cuda:1"), "TS203", ("an int", "'cuda:1'")),
        (lambda: MESH.device_at(dp=1), "TS202", ("every axis", "mp lacks")),
        (lambda: MESH.device_at(dp=1, mp=0, pp=0), "TS201", ("no axis 'pp'",)),
        (lambda: MESH.device_at(dp=2, mp=0), "TS607", ("'dp' has size 2", "dp=2")),
        (lambda: MESH.device_at(dp=0, mp=-1), "TS607", ("'mp' has size 4", "mp=-1")),
        (lambda: MESH.device_at(dp=True, mp=0), "TS203", ("'dp'", "an int", "True")),
        (lambda: MESH.is_virtual(-1), "TS203", ("GPUs", "-1")),
        (lambda: MESH.describe("all"), "TS203", ("GPUs", "'all'")),
    ],
)
def test_what_a_mesh_has_not(ask, code, parts):
    with pytest.raises(SourceError) as caught:
        ask()
    assert caught.value.code == code
    assert all(part in caught.value.message for part in parts), caught.value.message


# -- real devices


@pytest.mark.parametrize("present", [0, 1, 2, 3, 7, 8, 9])
def test_placement(present):
    placed = MESH.placement(present)
    assert MESH.is_virtual(present) == (present < 8)
    if present == 0:
        assert set(placed) == {"cpu:0"}
    else:
        shares = [placed.count(device) for device in sorted(set(placed))]
        assert len(shares) == min(present, 8) and max(shares) - min(shares) <= 1
        assert {int(device.removeprefix("cuda:")) for device in placed} <= set(range(present))
    if present >= 8:
        assert placed == MESH.devices


def test_a_mesh_on_the_later_gpus_of_a_machine():
    later = dist.mesh(["cuda:2", "cuda:3"], ("dp",), (2,))
    assert later.placement(4) == ("cuda:2", "cuda:3") and not later.is_virtual(4)
    assert later.placement(3) == ("cuda:0", "cuda:1") and later.is_virtual(3)


def test_a_mesh_of_cpu_devices_never_uses_a_gpu():
    two = dist.mesh(["cpu:0", "cpu:1"], ("dp",), (2,))
    assert two.placement(8) == two.placement(0) == ("cpu:0", "cpu:0") and two.is_virtual(8)
    assert not dist.mesh(["cpu:0"], ("dp",), (1,)).is_virtual(0)


def test_describe_says_who_shares():
    assert MESH.describe(2).splitlines() == [
        "virtual mesh dp=2, mp=4: 8 logical devices on 2 real ones",
        "  cuda:0 runs cuda:0 (dp=0 mp=0), cuda:2 (dp=0 mp=2), cuda:4 (dp=1 mp=0), cuda:6 (dp=1 mp=2)",
        "  cuda:1 runs cuda:1 (dp=0 mp=1), cuda:3 (dp=0 mp=3), cuda:5 (dp=1 mp=1), cuda:7 (dp=1 mp=3)",
    ]
    assert MESH.describe(0).splitlines()[1].startswith("  cpu:0 runs cuda:0 (dp=0 mp=0), cuda:1 (dp=0 mp=1),")
    whole = MESH.describe(8)
    assert "virtual" not in whole and whole.splitlines()[0] == "mesh dp=2, mp=4: 8 logical devices, each a real one"
    assert whole.splitlines()[7] == "  cuda:6 runs cuda:6 (dp=1 mp=2)"
    assert dist.mesh(["cuda:0"], ("dp",), (1,)).describe(0).startswith("virtual mesh dp=1: 1 logical device on 1 real")


# -- decorators and scopes


def test_distribute_marks_a_function():
    made = dist.distribute(mesh=MESH)(layer)
    assert isinstance(made, FunctionDefinition) and made.name == "layer" and made.options == {"mesh": MESH}
    assert [parameter.name for parameter in made.parameters] == ["x"]


def test_distribute_marks_a_definition_and_keeps_its_options():
    definition = ts.function(layer)
    definition.options["checkpoint"] = True
    made = dist.distribute(mesh=MESH)(definition)
    assert made.options == {"checkpoint": True, "mesh": MESH} and made.function is layer
    assert definition.options == {"checkpoint": True}  # the other one is as it was
    assert dist.distribute(mesh=MESH)(made).options["mesh"] == MESH


def test_distribute_refuses():
    @ts.kernel
    def k(x: Tensor["N", ts.f32]):
        pass

    other = dist.mesh(["cuda:0"], ("dp",), (1,))
    for wrong, parts in (
        (lambda: dist.distribute(layer), ("takes a mesh", "@ts.distribute(mesh=mesh)", "function layer")),
        (lambda: dist.distribute(), ("takes a mesh", "None")),
        (lambda: dist.distribute(mesh=GPUS), ("takes a mesh", "'cuda:0'")),
        (lambda: dist.distribute(mesh=MESH)(k), ("'k' is a kernel",)),
        (lambda: dist.distribute(other)(dist.distribute(MESH)(layer)), ("'layer'", "dp=2, mp=4", "dp=1")),
    ):
        with pytest.raises(SourceError, match="TS203") as caught:
            wrong()
        assert all(part in caught.value.message for part in parts), caught.value.message
    with pytest.raises(SourceError, match="TS102.*3"):
        dist.distribute(mesh=MESH)(3)


@pytest.mark.parametrize(
    ("name", "use"),
    [("shard", lambda: dist.shard(None, axis=0, mesh_axis="dp")), ("all_gather", lambda: dist.all_gather(None, "mp"))],
)
def test_collectives_need_a_function(name, use):
    with pytest.raises(SourceError, match=f"TS102.*dist.{name} works only inside a function decorated with @ts.func"):
        use()


def test_an_assignment_needs_a_distributed_function():
    with pytest.raises(SourceError, match=r"TS102.*device_assignment\(3\) .*@ts.distribute\(mesh=...\)"):
        with dist.device_assignment(3):
            pass


def test_an_assignment_finds_its_axis_as_in_the_language_document():
    whole = replicated(MESH, 3)
    with distributed(MESH) as scope:
        assert current_scope() is scope
        split = scope.shard(whole, 0, "dp")
        for rank in (0, 1, 2, 3):
            with dist.device_assignment(rank) as axis:
                assert axis == "mp"
                found = scope.computed(whole, split)
            assert found == dist.Sharding(MESH, ("dp", None, None), (("mp", rank),))
        assert scope.computed(whole, split) == split
    assert current_scope() is None


def test_assignments_nest_on_different_axes():
    with distributed(MESH) as scope:
        with dist.device_assignment(1, axis="dp"):
            with dist.device_assignment(1) as axis:  # the one that is left
                assert axis == "mp"
                assert scope.computed(replicated(MESH, 1)).owners == (("dp", 1), ("mp", 1))
                with pytest.raises(SourceError, match=r"TS608.*device_assignment\(0\) finds no mesh axis: dp, mp"):
                    with dist.device_assignment(0):
                        pass
            with pytest.raises(SourceError, match=r"TS608.*device_assignment\(0, axis='dp'\) .*inside of one to dp=1"):
                with dist.device_assignment(0, axis="dp"):
                    pass
            assert scope.assigned == {"dp": 1}
        assert scope.assigned == {}


def test_an_exception_leaves_the_scopes_as_they_were():
    with pytest.raises(ZeroDivisionError):
        with distributed(MESH) as outer:
            with distributed(MESH), dist.device_assignment(3):
                raise ZeroDivisionError
    assert current_scope() is None and outer.assigned == {}


def test_a_shard_that_fails_uses_no_axis():
    with distributed(MESH) as scope:
        with pytest.raises(SourceError, match="TS304"):
            scope.shard(replicated(MESH, 1), 1, "dp")
        assert scope.sharded == set()
