"""What a name such as mypackage.module:Hook stands for."""

import importlib
import os
import sys
from collections.abc import Callable

from ds_moe_mtl.config.errors import UserError


def named_class(name: str, key: str, base: type) -> Callable:
    """Return what `module:Name` names: a class with all methods of `base`, or a function.

    The module may be one of the current folder; those that are installed come first. key: where
    the name stands in the YAML. Raises UserError, one line, for a module that cannot be imported
    and a name that stands for nothing of the kind.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever a user's own module does when it is imported
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise UserError(f"{key}: {name}: {module} cannot be imported: {reason}") from error
    wanted = f"a class that extends {base.__module__}.{base.__name__}, or a function that makes one"
    if not callable(found):
        what = f"the module {module} has no {attribute}" if found is None else "cannot be called"
        raise UserError(f"{key}: {name}: {what}; allowed: {wanted}")
    methods = [method for method in vars(base) if not method.startswith("_")]
    lacking = [method for method in methods if not hasattr(found, method)]
    if isinstance(found, type) and lacking:
        raise UserError(f"{key}: {name} has no {lacking[0]}; allowed: {wanted}")
    return found
