"""What kind, type and shape an array, a table, a tensor or an image has; never what is in it.

In comes a type, out comes what reads values of it, or None if it is none of these. An array is recorded as
`{"$array": "<type>", "dtype": "<type of its items>", "shape": [...], "bytes": n}`, as far as each is known.

What keeps it safe: packages are not imported but looked up, and a type is one of theirs if it is the very object
their module holds. Values are read through what these types define in C, or from their state as it is stored, so
that a subclass with properties of its own is not asked. Nothing is converted, copied, loaded or brought from a GPU.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from prefactor_trace._peek import (
    bases_of,
    getter,
    has_base,
    is_a,
    loaded,
    namespace_of,
    own,
    package_of,
    short_name,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Shape = list[int] | None

_MOST_AXES = 64  # of an array; numpy's own limit
_MOST_TYPES = 8  # of the columns of a table that are told


def reader_of_array(bases: tuple[type, ...], packages: list[str]) -> Callable[[Any], object] | None:
    """Return what describes values of a class with *bases*, which are of *packages*; None if they are no arrays."""
    for package in packages:
        for module, name, read in _PACKAGES.get(package, ()):
            if has_base(bases, loaded(module, name)):
                return _or_only_named(read)
    return None


def scalar_of(bases: tuple[type, ...]) -> Callable[[Any], Any] | None:
    """Return what makes an exact Python number or str of values of a class with *bases*, numpy's scalars."""
    for base in bases:
        if package_of(base) == "numpy":
            for names, method in _SCALARS:
                if any(base is loaded("numpy", name) for name in names):
                    return namespace_of(base)[method]  # type: ignore[no-any-return]
    return None


def _or_only_named(read: Callable[[Any], object]) -> Callable[[Any], object]:
    """Let *read* tell nothing but the type where a version of the package keeps its state otherwise."""

    def reader(value: Any) -> object:
        try:
            return read(value)
        except Exception:
            return _described(value, None, None)

    return reader


def _described(value: object, dtype: str | None, shape: Any, size: int | None = None) -> object:
    """Put together what is known of *value*."""
    found: dict[str, object] = {"$array": type_name(type(value))}
    if dtype is not None:
        found["dtype"] = dtype
    if shape is not None and not [length for length in shape if type(length) is not int]:
        found["shape"] = list(shape[:_MOST_AXES])
    if size is not None:
        found["bytes"] = size
    return found


# ---- numpy, and array.array --------------------------------------------------------------------------------

_INTEGERS = (
    *("int8", "int16", "int32", "int64", "longlong", "intc", "int_"),
    *("uint8", "uint16", "uint32", "uint64", "ulonglong", "uintc", "uint"),
)
# Names of numpy's scalars that are no subclass of Python's numbers, and the method, in C, that makes them one.
_SCALARS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("float16", "float32", "longdouble"), "__float__"),
    (_INTEGERS, "__int__"),
    (("bool_",), "__bool__"),
    (("complex64", "clongdouble"), "__complex__"),
    (("datetime64", "timedelta64"), "__str__"),
)


def _numpy(value: Any) -> object:
    array = loaded("numpy", "ndarray")
    return _described(
        value, _numpy_type(value), getter(array, "shape")(value), getter(array, "nbytes")(value)
    )


def _numpy_type(array: Any) -> str:
    return _name_of_dtype(getter(loaded("numpy", "ndarray"), "dtype")(array))


def _name_of_dtype(dtype: Any) -> str:
    """Name *dtype* like its own `name`, which is made in Python and asks the type of the items."""
    base = loaded("numpy", "dtype")
    name = short_name(getter(base, "type")(dtype)).rstrip("_")
    unit = getter(base, "str")(dtype).partition("[")[2] if getter(base, "kind")(dtype) in "Mm" else ""
    return f"{name}[{unit}" if unit else name


def _standard_array(value: Any) -> object:
    kind = loaded("array", "array")
    length = kind.__len__(value)
    return _described(
        value, getter(kind, "typecode")(value), [length], length * getter(kind, "itemsize")(value)
    )


# ---- pandas and polars -------------------------------------------------------------------------------------


def _pandas(value: Any) -> object:
    """Describe a DataFrame or a Series by what holds its blocks."""
    held = own(value, "_mgr")
    manager = next(
        (
            base
            for base in bases_of(type(held))
            if "axes" in namespace_of(base) and package_of(base) == "pandas"
        ),
        None,
    )
    if manager is loaded("pandas._libs.internals", "BlockManager"):
        axes, blocks = getter(manager, "axes")(held), getter(manager, "blocks")(held)
    else:
        axes, blocks = own(held, "axes"), own(held, "blocks")  # of a Series
    lengths = [_length_of_index(axis) for axis in reversed(axes)]
    names = [_type_of_block(block) for block in blocks[:100]]
    told = [*dict.fromkeys([name for name in names if name is not None])][:_MOST_TYPES]  # in order, each once
    dtype = ", ".join(told) if told else None
    return _described(value, dtype, lengths)


def _pandas_index(value: Any) -> object:
    length = _length_of_index(value)
    data = own(value, "_data")
    return _described(value, None if data is None else _type_of_column(data), [length])


def _length_of_index(index: Any) -> int | None:
    numbers = own(index, "_range")
    if type(numbers) is range:
        return len(numbers)
    codes = own(index, "_codes")  # of an index of several levels
    data = list.__getitem__(codes, 0) if is_a(codes, list) else own(index, "_data")
    return _length_of_column(data)


def _length_of_column(data: Any) -> int | None:
    array = loaded("numpy", "ndarray")
    backed = loaded("pandas._libs.arrays", "NDArrayBacked")
    if is_a(data, backed):
        data = getter(backed, "_ndarray")(data)
    if is_a(data, array):
        return getter(array, "shape")(data)[-1]  # type: ignore[no-any-return]
    chunks, chunked = own(data, "_pa_array"), loaded("pyarrow.lib", "ChunkedArray")
    return chunked.__len__(chunks) if is_a(chunks, chunked) else None


def _type_of_block(block: Any) -> str | None:
    kind = loaded("pandas._libs.internals", "Block")
    return _type_of_column(getter(kind, "values")(block)) if is_a(block, kind) else None


def _type_of_column(data: Any) -> str | None:
    if is_a(data, loaded("numpy", "ndarray")):
        return _numpy_type(data)
    backed = loaded("pandas._libs.arrays", "NDArrayBacked")
    dtype = getter(backed, "_dtype")(data) if is_a(data, backed) else own(data, "_dtype")
    if is_a(dtype, loaded("numpy", "dtype")):
        return _name_of_dtype(dtype)
    return short_name(type(data if dtype is None else dtype))


def _polars_frame(value: Any) -> object:
    frame = own(value, "_df")
    known = package_of(type(frame)) in ("builtins", "polars") and short_name(type(frame)) == "PyDataFrame"
    shape = namespace_of(type(frame)).get("shape") if known else None
    return _described(value, None, shape(frame) if type(shape) is types.MethodDescriptorType else None)


def _polars_series(value: Any) -> object:
    series = own(value, "_s")
    known = package_of(type(series)) in ("builtins", "polars") and short_name(type(series)) == "PySeries"
    namespace = namespace_of(type(series)) if known else {}
    length, dtype = namespace.get("len"), namespace.get("dtype")
    if type(length) is not types.MethodDescriptorType or type(dtype) is not types.MethodDescriptorType:
        return _described(value, None, None)
    found = dtype(series)
    return _described(value, short_name(found if is_a(found, type) else type(found)), [length(series)])


# ---- pyarrow -----------------------------------------------------------------------------------------------


def _arrow_table(value: Any) -> object:
    kind = next(base for base in bases_of(type(value)) if "num_rows" in namespace_of(base))
    return _described(value, None, [getter(kind, "num_rows")(value), getter(kind, "num_columns")(value)])


def _arrow_array(value: Any) -> object:
    kind: Any = next(base for base in bases_of(type(value)) if "type" in namespace_of(base))
    dtype = getter(kind, "type")(value)
    # The text of a type made of others can ask one that is the user's.
    plain = type(dtype) is loaded("pyarrow.lib", "DataType")
    return _described(value, str(dtype) if plain else short_name(type(dtype)), [kind.__len__(value)])


# ---- tensors -----------------------------------------------------------------------------------------------


def _torch(value: Any) -> object:
    """Describe a tensor, unless a mode is on: it is code that is told of every attribute that is read."""
    exact = type(value) is loaded("torch", "Tensor") or type(value) is loaded(
        "torch.nn.parameter", "Parameter"
    )
    if not exact or loaded("torch._C", "_len_torch_function_stack")() != 0:
        return {"$array": type_name(type(value))}
    kind = loaded("torch._C", "TensorBase")
    return _described(
        value, repr(getter(kind, "dtype")(value)).rpartition(".")[2], getter(kind, "shape")(value)
    )


def _jax(value: Any) -> object:
    about = namespace_of(type(value)).get("aval")
    read = about.fget if type(about) is property else None
    if type(read) is types.FunctionType or read is None:
        return _described(value, None, None)
    aval = read(value)
    dtype, shape = own(aval, "dtype"), own(aval, "shape")
    known = is_a(dtype, loaded("numpy", "dtype"))
    return _described(
        value, _name_of_dtype(dtype) if known else None, shape if type(shape) is tuple else None
    )


# ---- images ------------------------------------------------------------------------------------------------


def _image(value: Any) -> object:
    size, mode = own(value, "_size"), own(value, "_mode") or own(value, "mode")
    rows_first = size[::-1] if type(size) is tuple and len(size) == 2 else None
    return _described(value, mode if type(mode) is str else None, rows_first)


# By package: the module and the name of a type, and what reads values of it and of its subclasses.
_PACKAGES: dict[str, tuple[tuple[str, str, Callable[[Any], object]], ...]] = {
    "array": (("array", "array", _standard_array),),
    "numpy": (("numpy", "ndarray", _numpy),),
    "pandas": (
        ("pandas", "DataFrame", _pandas),
        ("pandas", "Series", _pandas),
        ("pandas", "Index", _pandas_index),
    ),
    "polars": (("polars", "DataFrame", _polars_frame), ("polars", "Series", _polars_series)),
    "pyarrow": (
        ("pyarrow.lib", "Table", _arrow_table),
        ("pyarrow.lib", "RecordBatch", _arrow_table),
        ("pyarrow.lib", "Array", _arrow_array),
        ("pyarrow.lib", "ChunkedArray", _arrow_array),
    ),
    "torch": (("torch", "Tensor", _torch),),
    "jaxlib": (("jaxlib._jax", "ArrayImpl", _jax), ("jaxlib.xla_extension", "ArrayImpl", _jax)),
    "PIL": (("PIL.Image", "Image", _image),),
}
