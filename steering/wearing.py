"""LoRA adapters on a Hugging Face model through PEFT: a whole adapter that fits, or the model as it was.

PEFT itself passes over tensors whose module the model lacks, and leaves what it has put in where a later module
fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import BadInput
from .adapter import Adapter, read_adapter

_FIX = "Use the base model it was trained on"


def wear(model: Any, directory: Path, *, name: str = "default", where: str | None = None) -> Any:
    """The model with an adapter on.

    Args:
        model: a plain Hugging Face model, or one that this function returned, which then has one more adapter.
        directory: a PEFT folder.
        name: the adapter's, among those of the model.
        where: what errors name; by default the folder.

    Returns:
        PEFT's model, ready to read.

    Raises:
        BadInput: the adapter is not usable (see `adapter.read_adapter`), or does not fit the model, which is then as
            it was.
    """
    from peft import PeftModel

    where = str(directory) if where is None else where
    wrapped = isinstance(model, PeftModel)
    check_fits(read_adapter(directory), model.get_base_model() if wrapped else model, where)
    try:
        if wrapped:
            model.load_adapter(str(directory), adapter_name=name, is_trainable=False)
        else:
            model = PeftModel.from_pretrained(model, str(directory), adapter_name=name, is_trainable=False)
    except BaseException as error:
        _strip(model, name)
        if not isinstance(error, RuntimeError | ValueError | KeyError):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"the adapter does not fit the model ({first})", where=where, fix=_FIX) from None
    return model.eval()


def check_fits(adapter: Adapter, model: nn.Module, where: str) -> None:
    """Raises BadInput, naming the module, where the model lacks one of the adapter's or has it in another shape."""
    parts = dict(model.named_modules())
    for module, (a, b) in adapter.modules.items():
        part: Any = parts.get(module)
        if part is None:
            raise BadInput(f"the adapter changes {module}, which the model does not have", where=where, fix=_FIX)
        part = getattr(part, "base_layer", part)  # what another adapter lies on
        shape = getattr(part, "out_features", None), getattr(part, "in_features", None)
        if shape == (None, None):
            raise BadInput(f"{module} is no linear layer but a {type(part).__name__}", where=where, fix=_FIX)
        if shape != (b.shape[0], a.shape[1]):
            raise BadInput(
                f"the adapter does not fit the model: {module} is {list(shape)}, "
                f"and the adapter changes {[b.shape[0], a.shape[1]]}",
                where=where,
                fix=_FIX,
            )


def _strip(model: Any, name: str) -> None:
    """Take off what a failed attempt put on: one adapter of several, or all that makes the model other than plain."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel):
        if name in model.peft_config:
            model.delete_adapter(name)
        return
    for path, part in list(model.named_modules()):
        if isinstance(part, BaseTunerLayer):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, part.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
