"""Promises of `_arrays`: arrays, tables, tensors and images are told by kind, type and shape, untouched."""

from __future__ import annotations

import array
import json

import pytest

from prefactor_trace import _arrays
from prefactor_trace._capture import DEFAULT, capture


def read(value):
    captured = json.loads(capture([value], DEFAULT._replace(max_seconds=10.0)))[0]
    assert json.loads(capture({"a": value, "b": 1}, DEFAULT._replace(max_seconds=10.0))) == {
        "a": captured,
        "b": 1,
    }
    return captured


def test_the_arrays_of_the_standard_library():
    """Their type code, length and size are known."""

    class Own(array.array):
        typecode = property(lambda _: pytest.fail("asked"))

        def __iter__(self):
            pytest.fail("asked")

    assert read(array.array("d", [1.0, 2.0])) == {
        "$array": "array.array",
        "dtype": "d",
        "shape": [2],
        "bytes": 16,
    }
    assert read(Own("b", [1])) == {
        "$array": f"{Own.__module__}.{Own.__qualname__}",
        "dtype": "b",
        "shape": [1],
        "bytes": 1,
    }


def test_numpy_arrays():
    """Type of the items, shape and bytes, for every kind of them, also in subclasses that would say otherwise."""
    np = pytest.importorskip("numpy")

    class Own(np.ndarray):
        shape = dtype = nbytes = property(lambda _: pytest.fail("asked"))

        def __array_finalize__(self, other):
            pass

        def __getattribute__(self, name):
            pytest.fail("asked")

    grid = np.zeros((3, 4), "f4")
    assert read(grid) == {"$array": "numpy.ndarray", "dtype": "float32", "shape": [3, 4], "bytes": 48}
    assert {**read(grid.view(Own)), "$array": ""} == {
        "$array": "",
        "dtype": "float32",
        "shape": [3, 4],
        "bytes": 48,
    }
    assert read(np.ma.array([1, 2]))["shape"] == [2]
    assert read(np.zeros(()))["shape"] == []
    kinds = {
        "?": "bool",
        "O": "object",
        "U3": "str",
        "M8[us]": "datetime64[us]",
        "c8": "complex64",
        "i8": "int64",
    }
    for code, name in kinds.items():
        assert read(np.zeros(2, code))["dtype"] == name
    assert read(np.zeros(2, [("a", "i4")]))["dtype"] == "void"
    assert read(np.broadcast_to(grid, (10**9, 3, 4)))["shape"] == [10**9, 3, 4]


def test_numpy_scalars_are_numbers():
    """Each scalar is the number, truth value or text it stands for, as a value and as a key."""
    np = pytest.importorskip("numpy")
    for made, plain in (
        (np.float32(0.5), 0.5), (np.float64(0.5), 0.5), (np.float16(0.5), 0.5), (np.longdouble(0.5), 0.5),
        *[(kind(7), 7) for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)],
        (np.longlong(7), 7), (np.ulonglong(7), 7), (np.intc(7), 7), (np.bool_(True), True),
        (np.complex64(1j), "1j"), (np.complex128(1j), "1j"), (np.str_("x"), "x"),
        (np.datetime64("2024-05-06"), "2024-05-06"), (np.timedelta64(3, "s"), "3 seconds"),
        (np.float32("nan"), {"$float": "nan"}), (np.uint64(2**60), {"$int": str(2**60)}),
    ):  # fmt: skip
        assert read(made) == plain
        assert type(read(made)) is type(plain)
    assert json.loads(capture({np.int64(1): "a", "1": "b", np.bool_(False): "c"})) == {
        "numpy.int64:1": "a",
        "1": "b",
        "false": "c",
    }

    class Own(np.float32):
        def __float__(self):
            pytest.fail("asked")

    assert read(Own(0.5)) == 0.5


def test_pandas():
    """Rows and columns, and the types of the columns, each once; an index is told by its length."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1], "c": pd.Categorical(["x", "y"]), "d": [3, 4]})
    found = read(frame)
    assert found["$array"].endswith("DataFrame")
    assert (found["shape"], sorted(found["dtype"].split(", "))) == (
        [2, 4],
        ["CategoricalDtype", "float64", "int64"],
    )
    assert read(pd.DataFrame())["shape"] == [0, 0]
    series = read(pd.Series([1.0, 2.0, 3.0], name="secret"))
    assert (series["shape"], series["dtype"]) == ([3], "float64")
    for index, length in (
        (pd.RangeIndex(5), 5), (pd.Index([1, 2]), 2), (pd.DatetimeIndex(["2024"]), 1), (pd.CategoricalIndex(["a"]), 1),
        (pd.MultiIndex.from_tuples([(1, 2), (3, 4), (5, 6)]), 3),
    ):  # fmt: skip
        assert read(index)["shape"] == [length]
    assert read(pd.Timestamp("2024-05-06T12:00:00Z")) == "2024-05-06T12:00:00+00:00"
    assert read(pd.NaT)["$type"].startswith("pandas.")
    assert b"secret" not in capture(pd.Series([1], name="secret"))

    class Own(pd.DataFrame):
        shape = property(lambda _: pytest.fail("asked"))

        def __iter__(self):
            pytest.fail("asked")

    assert read(Own({"a": [1]}))["shape"] == [1, 1]


def test_a_frame_made_otherwise_is_only_named():
    """Where the state of a table is not as it is known, its type is told."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1]})
    object.__setattr__(frame, "_mgr", object())
    assert list(read(frame)) == ["$array"]


def test_polars():
    """Rows and columns; nothing lazy is collected."""
    pl = pytest.importorskip("polars")
    assert read(pl.DataFrame({"a": [1, 2]})) == {
        "$array": "polars.dataframe.frame.DataFrame",
        "shape": [2, 1],
    }
    assert read(pl.Series([1]))["shape"] == [1]
    assert read(pl.Series([1]))["dtype"] == "Int64"
    assert read(pl.LazyFrame({"a": [1]})) == {"$type": "polars.lazyframe.frame.LazyFrame"}


def test_pyarrow():
    """Tables by rows and columns, arrays by type and length; a type made of others only by its name."""
    pa = pytest.importorskip("pyarrow")
    assert read(pa.table({"a": [1, 2]})) == {"$array": "pyarrow.lib.Table", "shape": [2, 1]}
    assert read(pa.record_batch({"a": [1, 2]}))["shape"] == [2, 1]
    assert read(pa.array([1])) == {"$array": "pyarrow.lib.Int64Array", "dtype": "int64", "shape": [1]}
    assert read(pa.chunked_array([[1], [2]]))["shape"] == [2]
    assert read(pa.array([[1]]))["dtype"] == "ListType"


def test_images():
    """Rows, columns and mode; no pixel is loaded."""
    image = pytest.importorskip("PIL.Image")
    made = image.new("RGB", (3, 4))
    assert read(made) == {"$array": "PIL.Image.Image", "dtype": "RGB", "shape": [4, 3]}

    class Own(image.Image):
        size = mode = property(lambda _: pytest.fail("asked"))

        def load(self):
            pytest.fail("loaded")

    lazy = Own()
    lazy._size, lazy._mode = (5, 6), "L"
    assert (read(lazy)["shape"], read(lazy)["dtype"]) == ([6, 5], "L")


def test_torch():
    """Type and shape of a tensor. A subclass and a mode are told of what is read, so then only the type is told."""
    torch = pytest.importorskip("torch")
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            pytest.fail("asked")

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            pytest.fail("asked")

    grid = torch.ones(2, 3)
    assert read(grid) == {"$array": "torch.Tensor", "dtype": "float32", "shape": [2, 3]}
    assert read(torch.nn.Parameter(grid))["shape"] == [2, 3]
    assert list(read(torch.Tensor._make_subclass(Own, grid))) == ["$array"]
    with Mode():
        assert list(read(grid)) == ["$array"]


def test_jax():
    """Type and shape of an array; a tracer is left alone."""
    jax = pytest.importorskip("jax")
    found = read(jax.numpy.ones((2, 3)))
    assert (found["dtype"], found["shape"]) == ("float32", [2, 3])
    assert read(jax.numpy.ones(1, "bfloat16"))["dtype"] == "bfloat16"


def test_who_only_says_so_is_not_believed():
    """A class that calls itself numpy's or pandas' is a stranger, if their module does not hold it."""
    for package, kinds in _arrays._PACKAGES.items():
        for module, name, _ in kinds:
            kind = type(name, (), {"__module__": module, "_mgr": property(lambda _: pytest.fail("asked"))})
            assert read(kind()) == {"$type": f"{module}.{name}"}
            assert package == module.partition(".")[0] or module == "jaxlib.xla_extension"
