"""What a run writes down about itself: its configuration and the versions it ran with, and what a resume may change.

`config.json` keeps apart what shapes the program (static: a resume must agree), the floats (a resume may change them,
and says so) and the options of the run, such as how often it saves (free).
"""

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl_gen

PACKAGES = (
    "jax", "jaxlib", "numpy", "flax", "optax", "chex", "orbax-checkpoint", "distrax", "mujoco", "mujoco-mjx", "brax",
    "playground", "gymnax", "tensorflow-datasets",
)  # fmt: skip
OF_THE_MOMENT = ("resume", "replay", "runs", "devices", "distributed", "debug")  # a resume does not inherit these


def describe(exp: Any, **more: Any) -> dict[str, Any]:
    """A dataclass of settings as JSON: which experiment it is; its static fields, floats and options by dotted names.

    Args:
      exp: dataclass, which may hold further ones.
      more: further dataclasses, by name.
    Returns:
      experiment, version, static, floats, options.
    Raises:
      ValueError: if the first has a field of a further one's name.
    """
    if taken := set(more) & {field.name for field in dataclasses.fields(exp)}:
        raise ValueError(f"{type(exp).__name__} has a field {taken.pop()!r}, the name of what ran: call it otherwise")
    described: dict[str, Any] = {"experiment": identity(exp), "version": jaxrl_gen.__version__}
    described |= {"static": {}, "floats": {}, "options": {}}
    for root, prefix in [(exp, ""), *((value, f"{name}.") for name, value in more.items())]:
        for path, kind, value in _fields(root, prefix):
            described[kind][path] = _to_json(value)
    return described


def identity(exp: Any) -> str:
    """The name of an experiment's class with its file's, the same for `python -m` and `python file.py`."""
    module = type(exp).__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec else Path(getattr(sys.modules["__main__"], "__file__", "notebook")).stem
    return f"{module.rpartition('.')[2]}.{type(exp).__qualname__}"


def recover(default: Any, recorded: dict[str, Any]) -> Any:
    """The recorded settings, put into a dataclass of the same kind; those of the moment stay as they are.

    Args:
      default: the experiment as its file has it.
      recorded: what `describe` gave, as read from `config.json`.
    Returns:
      A dataclass like `default`.
    Raises:
      ValueError: if the record is of another experiment or version, or is not what `describe` gives.
    """
    refuse_others(default, recorded)
    values = {**recorded["options"], **recorded["static"], **recorded["floats"]}
    for path, _, value in list(_fields(default, "")):
        if path in values and path not in OF_THE_MOMENT and _is_plain(value):
            default = _replace(default, path.split("."), _from_json(values[path], value))
    return default


def refuse_others(exp: Any, recorded: dict[str, Any]) -> None:
    """Refuse the record of another experiment, or of another version of this package.

    Raises:
      ValueError: saying which.
    """
    if not isinstance(recorded, dict) or not {"experiment", "version", "static", "floats", "options"} <= set(recorded):
        raise ValueError("config.json is not the record of a run")
    if recorded["experiment"] != identity(exp):
        raise ValueError(f"the run is of another experiment: {recorded['experiment']}; this is {identity(exp)}")
    if recorded["version"] != jaxrl_gen.__version__:
        raise ValueError(f"the run is of jaxrl_gen {recorded['version']}; this is {jaxrl_gen.__version__}")


def changes(recorded: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """The floats that changed since the record was written.

    Returns:
      A list of {field, was, now}.
    Raises:
      ValueError: if a static field changed, naming the first.
    """
    now = json.loads(json.dumps(now))
    for path in sorted(set(recorded["static"]) | set(now["static"])):
        was, value = recorded["static"].get(path, "missing"), now["static"].get(path, "missing")
        if was != value:
            raise ValueError(f"{path} is {value} and was {was}: it shapes the program, so a resume cannot change it")
    changed = [
        {"field": path, "was": recorded["floats"].get(path), "now": now["floats"].get(path)}
        for path in sorted(set(recorded["floats"]) | set(now["floats"]))
        if recorded["floats"].get(path) != now["floats"].get(path)
    ]
    for change in changed:
        if np.shape(change["was"]) != np.shape(change["now"]):
            raise ValueError(f"{change['field']} is {change['now']} and was {change['was']}: another number of members")
    return changed


def versions(devices: int = 1) -> dict[str, Any]:
    """What a result depends on beside the configuration: packages, Python, devices, XLA's flags, matmul precision.

    Args:
      devices: that share the work; with several processes it is all there are.
    """
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = None
    return {
        "jaxrl_gen": jaxrl_gen.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": installed,
        "backend": jax.default_backend(),
        "chip": chip(),
        "devices": jax.device_count(),
        "devices_used": jax.device_count() if jax.process_count() > 1 else devices,
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two `versions`, in words; if anything, a resume need not be bit for bit the same.

    What one of them does not tell is not compared: earlier versions told less.
    """
    both = [{**tree, **tree.get("packages", {})} for tree in (before, now)]
    was, is_now = both
    aside = ("packages", "platform", "devices", "processes", "cores")
    names = [name for name in is_now if name in was and name not in aside]
    return [f"{name} {is_now[name]} (was {was[name]})" for name in names if was[name] != is_now[name]]


def chip() -> str:
    """The name of the accelerator, or of the processor."""
    kind = jax.local_devices()[0].device_kind
    if kind != "cpu":
        return kind
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader, or a kill, never sees half of it; numbers that are not finite become null."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def plain(value: Any) -> Any:
    """Arrays as lists, paths as text, and null for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _fields(root: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """(dotted name, kind, value) of every field, those of dataclasses within included."""
    for field in dataclasses.fields(root):
        value, path = getattr(root, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{path}.")
        elif field.metadata.get("option"):
            yield path, "options", value
        else:
            is_float = isinstance(value, float) or (hasattr(value, "dtype") and np.issubdtype(value.dtype, np.floating))
            yield path, "static" if field.metadata.get("static", not is_float) else "floats", value


def _is_plain(value: Any) -> bool:
    plain_types = bool | int | float | str | tuple | list | Path
    return value is None or isinstance(value, plain_types) or hasattr(value, "tolist")


def _to_json(value: Any) -> Any:
    """A field's value, from which `_from_json` makes it again; infinity as text."""
    if isinstance(value, list | tuple):
        return [_to_json(x) for x in value]
    if hasattr(value, "tolist"):
        return _to_json(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _from_json(value: Any, like: Any) -> Any:
    if isinstance(value, list):
        swept = isinstance(like, float) or hasattr(like, "dtype")
        return np.asarray([float(x) for x in value], np.float32) if swept else _tuple(value)
    if isinstance(like, float) and value is not None:
        return float(value)
    return Path(value) if isinstance(like, Path) and value is not None else value


def _tuple(value: Any) -> Any:
    return tuple(_tuple(x) for x in value) if isinstance(value, list) else value


def _replace(root: Any, path: list[str], value: Any) -> Any:
    first, *rest = path
    return dataclasses.replace(root, **{first: _replace(getattr(root, first), rest, value) if rest else value})
